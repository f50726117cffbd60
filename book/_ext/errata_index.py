"""The directive ``{errata-index}``: the entries of the errata page in one table a document."""

import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import errata  # noqa: E402


class ErrataIndex(SphinxDirective):
    """Show what `errata.index` writes."""

    def run(self) -> list[nodes.Node]:
        lines = errata.index(errata.read()).splitlines()
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, source=str(errata.PAGE)), 0, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("errata-index", ErrataIndex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
