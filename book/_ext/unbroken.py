"""Small typography that the texts leave to the page, in prose, captions and tables.

"0.45 ± 0.01", "16 %" and a formula with its comma stay on one line, a hyphen before a number
becomes a minus sign, and a table's columns of plain numbers are marked: digits under digits.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SPACE = "\N{NARROW NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
UNTOUCHED = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)
OPENS = re.compile(r"[(\[“‘]+$")
CLOSES = re.compile(r"(?:[.,:;!?)\]’”]|-\w+)+")
CAPTION = re.compile(r"(?<=>)(?<!<code>)[^<>]+(?=<)")  # a text in a caption's HTML


def unbroken(text: str) -> str:
    """The same text with unbreakable spaces around ± and before %, and true minus signs."""
    text = text.replace(" ± ", f"{SPACE}±{SPACE}")
    text = re.sub(r"(?<=\d) (?=%)", SPACE, text)
    return re.sub(r"(?<=[\s(\[>])-(?=\.?\d)", MINUS, text)


def _alike(cells: list[str]) -> bool:
    """Tell whether these are numbers, or nothing, with as many decimals everywhere."""
    numbers = [cell for cell in cells if cell not in ("", "–", "—")]
    decimals = {len(number.partition(".")[2]) for number in numbers}
    return len(decimals) == 1 and all(re.fullmatch(r"−?[\d.,]+", number) for number in numbers)


def _table(table: re.Match[str]) -> str:
    """A data frame with its numbers kept together, and its columns of plain numbers marked."""
    html = re.sub(r"(?<=<td>)(?:nan|NaN|None)(?=</td>)", "", table[0])
    html = re.sub(r"<td[^>]*>[^<]*(?=</td>)", lambda cell: unbroken(cell[0]), html)
    head, _, body = html.partition("<tbody>")
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in body.split("</tr>")]
    columns = list(zip(*filter(None, rows), strict=False))
    plain = [_alike([cell.strip() for cell in column]) for column in columns]

    def mark(row: re.Match[str], tag: str) -> str:
        """Mark the last cells of a row, one for each column, unless one spans several."""
        cells = row[0].split(f"<{tag}>")
        if len(cells) <= len(plain):
            return row[0]
        tags = [f'<{tag} class="number">' if numbers else f"<{tag}>" for numbers in plain]
        tags = [f"<{tag}>"] * (len(cells) - 1 - len(plain)) + tags
        return cells[0] + "".join(map("".join, zip(tags, cells[1:], strict=True)))

    rows_of = re.compile(r"<tr.*?</tr>", re.S)
    head = rows_of.sub(lambda row: mark(row, "th"), head)
    head = head.replace('<th class="number"></th>', "<th></th>")  # of a row of names
    return head + "<tbody>" + rows_of.sub(lambda row: mark(row, "td"), body)


def of_output(html: str) -> str:
    """The HTML of an output with the captions and tables in it mended."""
    html = re.sub(r'<table[^>]* class="dataframe.*?</table>', _table, html, flags=re.S)
    return re.sub(
        r"<figcaption.*?</figcaption>",
        lambda caption: CAPTION.sub(lambda text: unbroken(text[0]), caption[0]),
        html,
        flags=re.S,
    )


def _bind(formula: nodes.math) -> None:
    """Put an inline formula and the punctuation that touches it on one line."""
    parent, i = formula.parent, formula.parent.index(formula)
    before, after = (
        parent[j] if 0 <= j < len(parent) and isinstance(parent[j], nodes.Text) else nodes.Text("")
        for j in (i - 1, i + 1)
    )
    opens, closes = OPENS.search(before), CLOSES.match(after)
    bound = nodes.inline("", "", classes=["unbroken"])
    if opens:
        parent[i - 1] = nodes.Text(before[: opens.start()])
        bound += nodes.Text(opens[0])
    if closes:
        parent[i + 1] = nodes.Text(after[closes.end() :])
    if opens or closes:
        parent[i] = bound
        bound += formula
        bound += nodes.Text(closes[0] if closes else "")


def _in_page(app: Sphinx, doctree: nodes.document, *_: Any) -> None:
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, UNTOUCHED) and unbroken(text) != text:
            text.parent.replace(text, nodes.Text(unbroken(text)))
    for formula in list(doctree.findall(nodes.math)):
        _bind(formula)
    for node in list(doctree.findall(nodes.raw)):
        if node.get("format") == "html":
            html = of_output(node.astext())
            node.replace_self(nodes.raw("", html, **node.attributes))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", _in_page, priority=900)  # after the links of plain words
    return {"parallel_read_safe": True, "parallel_write_safe": True}
