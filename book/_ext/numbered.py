"""The book's own numbers on the site: equation (2.7), Exercise 2.4, as `numbering` counts them.

Sphinx counts through the whole site. Tables and figures carry their numbers in the text, so that a
table with a caption gets none.
"""

import sys
from functools import lru_cache
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import numbering  # noqa: E402

logger = logging.getLogger(__name__)
book = lru_cache(numbering.read)


def _number(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Put the book's numbers in place of Sphinx's, which are tuples that it joins by dots."""
    known = {target.anchor: target.number for target in book(Path(env.srcdir)).labels.values()}
    for page, numbers in env.toc_fignumbers.items():
        numbers.pop("table", None)
        for counted in numbers.values():
            for anchor in counted:
                if anchor in known:
                    counted[anchor] = tuple(known[anchor].split("."))
                else:
                    logger.warning("the texts do not number #%s", anchor, location=page)
    return []


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-get-updated", _number, priority=900)  # after Sphinx has counted
    return {"parallel_read_safe": True, "parallel_write_safe": True}
