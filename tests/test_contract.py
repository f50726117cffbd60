"""The contract's measures on notebooks whose every measure is known."""

import copy
import re

import nbformat
import pytest

import contract


def md(text, *tags):
    return nbformat.v4.new_markdown_cell(text, metadata={"tags": list(tags)})


def py(source, *tags, html=None):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
    if html:
        cell.outputs = [nbformat.v4.new_output("display_data", data={"text/html": html})]
    return cell


def book(*cells):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = copy.deepcopy(list(cells))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def rows(n):
    body = "".join(f"<tr><td>{i}</td></tr>" for i in range(n))
    return f"<table><thead><tr><th>a</th></tr></thead><tbody>{body}</tbody></table>"


ERRATUM = md(":::{admonition} Erratum K1: a sign\nPlus, see {ref}`K1 <erratum-k1>`.\n:::")
SOLUTION = md(":::{admonition} S\n:::", "solution")


def good_lesson(changed=None):
    """A lesson that holds to everything; `changed` replaces one of its parts."""
    parts = {
        "title": [md("# Chapter 2 · DeepKDE\n\nWhy?")],
        "set-up": [py("import sys", "hide-input"), py("n = 1", "parameters", "hide-input")],
        "idea": [md("## The idea"), py("Schematic(7, 2)", "hide-input")],
        "method": [md(":::{admonition} A 2.1\n:class: algorithm\n1. By {eq}`eq-02-a`.\n:::")],
        "settings": [md("::::{admonition} Settings\n:class: settings\nAdam.\n::::")],
        "erratum": [ERRATUM],
        "code": [py("a = 1\nb = 2"), md("And."), py("c = 3", html=rows(8))],
        "verdict": [md(":::{admonition} What to use\n:class: verdict\nThis.\n:::")],
        "exercises": [md(":::{exercise} One\n:label: ex\nDo it.\n:::") for _ in range(5)],
        "solutions": [md(":::{admonition} Solution\nDone.\n:::", "solution") for _ in range(5)],
        "checks": [md("Check."), py("assert a == 1"), py("assert b == 2")],
    }  # fmt: skip
    cells = {**parts, **(changed or {})}
    return book(*(cell for part in cells.values() for cell in part))


def test_a_good_lesson_breaks_nothing():
    assert contract.lesson(good_lesson()) == []


LONG = "word " * 3501
NINETY = "word " * 81 + "{ref}`K1 <erratum-k1>`"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"title": [md(f"# Chapter 2\n\n{LONG}")]}, r"words: 35\d\d, at most 3500"),
        ({"code": [py("a"), md("b")] * 41}, "code cells: 46, at most 45"),
        ({"code": [py("a\n" * 9), md("b")] * 3}, "median open cell: 9, at most 8"),
        ({"code": [py("a"), md("b"), py("a\n" * 21)]}, "longest open cell: 21, at"),
        ({"code": [py("a")] * 4}, "code cells in a row: 4"),
        ({"set-up": [py("import sys")]}, "not folded, before the first section: import sys"),
        ({"set-up": [py("n = 1", "parameters")]}, "not folded"),
        ({"idea": [md("## The idea"), py("plot()")]}, "no schematic"),
        ({"method": []}, "0 boxes of class algorithm"),
        ({"method": [md(":::{admonition} A\n:class: algorithm\nDo.\n:::")]}, "no numbered steps"),
        ({"settings": []}, "0 boxes of class settings"),
        ({"verdict": []}, "0 boxes of class verdict"),
        ({"erratum": [ERRATUM] * 5}, "5 boxes of errata, at most 4"),
        ({"erratum": [md(f":::{{admonition}} Errata K2\n{NINETY}\n:::")]}, "81 words in the box"),
        ({"erratum": [md(":::{admonition} Erratum K2\nPlus.\n:::")]}, "no link to the errata page"),
        ({"code": [py("a", html=rows(1) * 3)]}, "3 tables among the open outputs"),
        ({"code": [py("a", html=rows(9))]}, "a table of 9 rows"),
        ({"code": [py("a  # fmt: skip")]}, "# fmt"),
        ({"exercises": [md(":::{exercise} One\n:::")] * 4}, "4 exercises"),
        ({"solutions": [SOLUTION] * 4}, "5 exercises and 4 solutions"),
        ({"checks": [py("assert a == 1")]}, "1 exercises check themselves"),
    ],
)  # fmt: skip
def test_a_lesson_that_breaks_one_rule(changed, message):
    found = contract.lesson(good_lesson(changed))
    assert len(found) == 1
    assert re.search(message, found[0])


def test_what_a_lesson_may_have_more_of_out_of_sight():
    more = [md(LONG, "solution"), py("a\n" * 30, "solution"), py("b\n" * 30, "hide-input"),
            py("c", "hide-output", html=rows(50)), py("d  # fmt: skip", "hide-cell")]  # fmt: skip
    changed = {"code": [c for cell in more for c in (cell, md("and"))] + [py("a")]}
    assert contract.lesson(good_lesson(changed)) == []


def test_words():
    text = """
Two words, $x + y = z$ and `four code words here`, {ref}`a link <target>`; leave-one-out is one.

$$
L = a b c
$$ (eq-1)

:::{admonition} A title here
:class: dropdown
in it
:::
"""
    # Two words, and leave-one-out is one. (eq-1) in it
    assert contract.words(text) == 2 + 1 + 3 + 1 + 2
    assert contract.words(r"It costs \$5 and \$6 here") == 6


def good_evidence(**changed):
    table = "# Chapter 2 · evidence\n\n| claim | test | verdict | section |\n|---|---|---|---|\n"
    parts = {"top": [md(table)], "set-up": [py("import sys", "hide-input")],
             "body": [md("## One"), py("a\n" * 25)],
             "end": [md("## Where\n\n:::{admonition} Provenance\nA laptop.\n:::")]}  # fmt: skip
    return book(*(cell for part in {**parts, **changed}.values() for cell in part))


def test_evidence():
    assert contract.evidence(good_evidence()) == []
    below = md("# E\n\n:::{list-table} Claims\n* - Claim\n  - Test\n  - Verdict\n  - Section\n:::")
    assert contract.evidence(good_evidence(top=[md("# E")], body=[below])) == []
    assert contract.evidence(good_evidence(body=[py("a\n" * 26)])) == [
        "a code cell of 26 lines, at most 25"
    ]
    for changed, message in [
        ({"top": [md("# E\n\nClaim, test, verdict, section")]}, "does not open with a table"),
        ({"top": [md("# E"), py("a")], "body": [below]}, "does not open with a table"),
        ({"end": [md("The end.")]}, "Provenance"),
        ({"end": [*good_evidence().cells[-1:], md("More.")]}, "Provenance"),
    ]:
        (found,) = contract.evidence(good_evidence(**changed))
        assert message in found


def test_the_title_gives_the_number(tmp_path, monkeypatch):
    monkeypatch.setattr("chapters.NOTEBOOKS", tmp_path)
    assert contract.breaches("02_deepkde", good_lesson()) == []
    assert contract.breaches("02_deepkde_evidence", good_evidence()) == []
    (found,) = contract.breaches("12_unknown_k", good_lesson())
    assert "chapter's number, 12" in found
    (tmp_path / "02_deepkde.ipynb").write_bytes(b" " * 2_000_000)
    assert contract.breaches("02_deepkde", good_lesson()) == ["the notebook has 2.0 MB, below 2"]
