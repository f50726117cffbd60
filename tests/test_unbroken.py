"""Small typography of the pages: what stays on one line, minus signs, columns of numbers."""

import importlib.util
import re

import pytest

import chapters

docutils = pytest.importorskip("docutils")
pytest.importorskip("sphinx")
from docutils import nodes  # noqa: E402

PATH = chapters.ROOT / "book" / "_ext" / "unbroken.py"
SPEC = importlib.util.spec_from_file_location("unbroken", PATH)
unbroken = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(unbroken)

FRAME = """<table border="1" class="dataframe">
<thead><tr style="text-align: right;"><th></th><th>n</th><th>loss</th><th>ours</th></tr></thead>
<tbody><tr><th>a</th><td>1,200</td><td>-0.5</td><td>0.1 ± 0.2</td></tr>
<tr><th>b</th><td></td><td>12.25</td><td>-3</td></tr></tbody></table>"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-500-500", "-500-500"),  # behind a formula, for instance
        ("by -1.7 ± 3.8", "by −1.7\u202f±\u202f3.8"),
        ("(-.3 to 2-8)", "(−.3 to 2-8)"),
        ("96 % of BaseCNN-2", "96\u202f% of BaseCNN-2"),
        ("a -b, well-known, 64-128-10", "a -b, well-known, 64-128-10"),
    ],
)
def test_signs_and_spaces(text, shown):
    assert unbroken.unbroken(text) == shown


def test_only_columns_of_like_numbers_are_marked():
    html = unbroken.of_output(FRAME)
    assert re.findall(r'<t[hd] class="number">([^<]*)', html) == ["n", "1,200", ""]
    assert "−0.5" in html
    assert "0.1\u202f±\u202f0.2" in html
    assert re.sub(r' class="number"', "", html).count("<") == FRAME.count("<")


def test_what_is_not_a_number_is_left_out():
    assert "nan" not in unbroken.of_output(FRAME.replace("12.25", "nan"))


def test_a_cell_that_spans_columns_stays():
    html = FRAME.replace("<th>n</th><th>loss</th>", '<th colspan="2">both</th>')
    assert '<th colspan="2">both</th><th>ours</th>' in unbroken.of_output(html)


def test_a_formula_keeps_its_punctuation():
    paragraph = nodes.paragraph(
        "", "", nodes.Text("so ("), nodes.math("", "K"), nodes.Text("): it")
    )
    unbroken._bind(paragraph[1])
    assert [child.astext() for child in paragraph] == ["so ", "(K):", " it"]
    assert paragraph[1]["classes"] == ["unbroken"]
    assert isinstance(paragraph[1][1], nodes.math)
