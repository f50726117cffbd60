"""One thread and one seed, this checkout's library in each process, and which tests share one.

Several threads would wait for each other in operations as small as the tests', and two processes
share the cores (`make check`, `make test`). The variables must stand before numpy and torch are
imported; processes that a test starts inherit them.
"""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
           "VECLIB_MAXIMUM_THREADS")  # fmt: skip
os.environ.update(dict.fromkeys(THREADS, "1"))

try:
    import hypothesis
except ImportError:  # `make colab` runs the chapters alone
    pass
else:  # on a busy machine an example takes as long as it takes
    hypothesis.settings.register_profile("book", deadline=None)
    hypothesis.settings.load_profile("book")

LIBRARY = str(Path(__file__).resolve().parents[1] / "lib")
PATHS = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
os.environ["PYTHONPATH"] = os.pathsep.join([LIBRARY, *(path for path in PATHS if path != LIBRARY)])


@pytest.fixture(autouse=True)
def one_seed() -> None:
    """Give each test the same global random state, whatever its process ran before."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of a file to one process, those of the site too, and each chapter its own.

    For `pytest -n 2 --dist loadgroup`; what takes long comes first.
    """
    for item in items:
        if item.get_closest_marker("site"):
            item.add_marker(pytest.mark.xdist_group("site"))
        elif not item.get_closest_marker("chapter"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))


TINY = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A tiny chapter

```{code-cell} ipython3
:tags: [parameters]

word = "published"
rate = 0.5
steps = 2
sizes = [1, 2]
```

```{code-cell} ipython3
print(word, rate * steps)
```

```{code-cell} ipython3
:tags: [solution]

print("solved")
```
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one chapter, 01_tiny, in place of the book's."""
    import chapters

    for folder in ("book/chapters", "book/results", "notebooks/params"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(chapters.ROOT / "_config.yml", tmp_path)
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    monkeypatch.setattr(chapters, "TEXTS", tmp_path / "book" / "chapters")
    monkeypatch.setattr(chapters, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "book" / "chapters" / "01_tiny.md").write_text(TINY)
    return tmp_path
