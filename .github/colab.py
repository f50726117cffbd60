"""Run the chapters' set-up cell as Colab would, but with the library from this checkout.

Fails if the cell changes numpy or torch, or leaves something out that the library needs.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = 'f"git+{address}@v0.1.0"'


def versions() -> list[str]:
    return [version(name) for name in ("numpy", "torch", "torchvision")]


cell = (ROOT / "book" / "tools" / "setup_cell.py").read_text()
if LIBRARY not in cell:
    raise SystemExit(f"The set-up cell no longer installs {LIBRARY}")
sys.modules["google.colab"] = ModuleType("google.colab")
before = versions()
exec(cell.replace(LIBRARY, repr(str(ROOT))))
if versions() != before:
    raise SystemExit(f"The set-up cell changed numpy or torch: {before} -> {versions()}")
