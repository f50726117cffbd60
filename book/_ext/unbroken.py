"""Keep "0.45 ± 0.01" on one line in the tables that the notebooks put out."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SPACE = "\N{NARROW NO-BREAK SPACE}"


def unbroken(html: str) -> str:
    """The same with the spaces round each ± of a table's cell made unbreakable."""
    return re.sub(
        r"<td[^>]*>[^<]*</td>", lambda cell: cell[0].replace(" ± ", f"{SPACE}±{SPACE}"), html
    )


def _in_outputs(app: Sphinx, doctree: nodes.document, *_: Any) -> None:
    for node in list(doctree.findall(nodes.raw)):
        if node.get("format") == "html" and "dataframe" in node.astext():
            html = unbroken(node.astext())
            node.replace_self(nodes.raw("", html, **node.attributes))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", _in_outputs)
    return {"parallel_read_safe": True}
