"""Numbers and places of what the book names, against another reading of its texts and outputs."""

import re

import jupytext
import nbformat
import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

import chapters
import mentions
import numbering

TEXT = """\
(lesson-03)=
# Chapter 3 · Routes

$$
a
$$ (eq-03-one)

```{code-cell} ipython3
# $$ (eq-03-no)
show(fig, caption=f"Figure 3.1. Ours.")
show(fig, caption="Figure 4.7 of the thesis.")
```

:::{exercise} A title with $x$
:label: ex-03-first

$$
b
$$ (eq-03-two)
:::

**Table 3.1.** In numbers.
"""
EVIDENCE = """\
# Evidence 3

(evi-03-more)=
## More

$$ c
$$ (eq-03-proof)

```{code-cell} ipython3
show(fig, caption="Figure 3.E1. "
    "Proof.")
```

(evi-03-end)=
:::{admonition} Provenance
A laptop.
:::
"""
GLOSSARY = """\
:::{glossary}
optimal transport (OT)
  Moving mass.

code
  In chapter 03, a row.
:::
"""
ERRATA = "(erratum-k4)=\n### K4: the self-kernel\n"


@pytest.fixture
def small(tmp_path):
    """A book of one chapter."""
    folder = tmp_path / "book" / "chapters"
    folder.mkdir(parents=True)
    (folder / "03_routes.md").write_text(TEXT)
    (folder / "03_routes_evidence.md").write_text(EVIDENCE)
    (folder.parent / "glossary.md").write_text(GLOSSARY)
    (folder.parent / "errata.md").write_text(ERRATA)
    return tmp_path


@pytest.fixture(scope="module")
def book():
    return numbering.read(chapters.ROOT)


def test_a_small_book(small):
    book = numbering.read(small)
    assert {label: target.text for label, target in book.labels.items()} == {
        "lesson-03": "Chapter 3 · Routes",
        "eq-03-one": "(3.1)",
        "eq-03-two": "(3.2)",
        "ex-03-first": "Exercise 3.1",
        "eq-03-proof": "(3.E1)",
        "evi-03-more": "More",
        "evi-03-end": "Provenance",
        "erratum-k4": "K4",
    }
    assert {key: target.href for key, target in book.names.items()} == {
        ("figure", "3.1"): "notebooks/03_routes.html#figure-3-1",
        ("figure", "3.E1"): "notebooks/03_routes_evidence.html#figure-3-e1",
        ("table", "3.1"): "notebooks/03_routes.html#table-3-1",
        ("exercise", "3.1"): "notebooks/03_routes.html#ex-03-first",
        ("chapter", "3"): "notebooks/03_routes.html",
        ("evidence", "3"): "notebooks/03_routes_evidence.html",
        ("erratum", "K4"): "book/errata.html#erratum-k4",
    }
    assert book.labels["eq-03-two"].href == "notebooks/03_routes.html#equation-eq-03-two"
    assert book.labels["ex-03-first"].title == "A title with $x$"
    assert {name: target.anchor for name, target in book.terms.items()} == {
        "optimal transport": "term-optimal-transport-OT",
        "OT": "term-optimal-transport-OT",
        "code": "term-code",
    }
    assert book.local == {"code": "3"}


def test_a_label_twice_is_an_error(small):
    path = small / "book" / "chapters" / "03_routes_evidence.md"
    path.write_text(EVIDENCE.replace("eq-03-proof", "eq-03-one"))
    with pytest.raises(ValueError, match="eq-03-one"):
        numbering.read(small)


def parsed(text):
    """Yield (kind, label) of equations and exercises, in order, by a parser of Markdown."""
    parser = MarkdownIt().use(dollarmath_plugin).use(colon_fence_plugin)
    for token in parser.parse(text):
        if token.type == "math_block_label":
            yield "equation", token.info
        elif token.type == "colon_fence":
            if token.info.startswith("{exercise}"):
                yield "exercise", re.search(r":label: (\S+)", token.content)[1]
            yield from parsed(token.content)


def test_numbers_are_places_in_the_order_of_the_page(book):
    expected = {}
    for name in chapters.names():
        count = {"equation": 0, "exercise": 0}
        for cell in jupytext.read(chapters.TEXTS / f"{name}.md").cells:
            for kind, label in parsed(cell.source) if cell.cell_type == "markdown" else ():
                count[kind] += 1
                letter = "E" if chapters.is_evidence(name) else ""
                expected[label] = f"{int(name[:2])}.{letter}{count[kind]}"
    numbered = ("equation", "exercise")
    assert {k: t.number for k, t in book.labels.items() if t.kind in numbered} == expected


def captions(name):
    """The numbers of the figures that a stored notebook shows; the caption of one without."""
    notebook = nbformat.read(chapters.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            html = "".join(output.get("data", {}).get("text/html", ""))
            for text in re.findall(r"<figcaption[^>]*>\s*(.*)", html):
                yield re.sub(r"^Figure (\d+\.E?\d+)\b.*", r"\1", text)


@pytest.mark.parametrize("name", chapters.names())
def test_figures_are_those_of_the_outputs_and_numbered_in_order(book, name):
    number, letter = int(name[:2]), "E" if chapters.is_evidence(name) else ""
    shown = list(captions(name))
    assert shown == [f"{number}.{letter}{i}" for i in range(1, len(shown) + 1)]
    page = f"notebooks/{name}"
    for kind in ("figure", "table"):
        found = [n for (k, n), target in book.names.items() if (k, target.page) == (kind, page)]
        assert found == [f"{number}.{letter}{i}" for i in range(1, len(found) + 1)]
        assert kind == "table" or found == shown


BOOK = numbering.Book(
    labels={},
    names={
        (kind, number): numbering.Target(kind, number, page, f"{kind}-{number}", "")
        for kind, number, page in [
            ("chapter", "2", "notebooks/02_a"),
            ("chapter", "3", "notebooks/03_b"),
            ("chapter", "10", "notebooks/10_c"),
            ("evidence", "2", "notebooks/02_a_evidence"),
            ("figure", "2.4", "notebooks/02_a"),
            ("figure", "2.5", "notebooks/02_a"),
            ("figure", "2.E1", "notebooks/02_a_evidence"),
            ("figure", "3.6", "notebooks/03_b"),
            ("table", "2.1", "notebooks/02_a"),
            ("exercise", "2.4", "notebooks/02_a"),
            ("erratum", "K4", "book/errata"),
            ("erratum", "T14", "book/errata"),
        ]
    },
    terms={
        name: numbering.Target("term", "", "book/glossary", anchor, "")
        for name, anchor in [
            ("latent space", "term-latent-space"),
            ("gate", "term-gate"),
            ("posterior gate", "term-posterior-gate"),
            ("ACC", "term-acc"),
            ("batch entropy", "term-batch-entropy"),
            ("code", "term-code"),
        ]
    },
    local={"code": "11"},
)


@pytest.mark.parametrize(
    "text, page, names",
    [
        ("See chapter 3, and Chapter 10.", "notebooks/02_a", ["chapter 3", "Chapter 10"]),
        ("chapters 2, 3 and 10", "book/intro", ["chapters 2", "3", "10"]),
        ("chapter 03, 1 for perfect", "book/intro", ["chapter 03"]),
        ("chapter 2 is this one, evidence 2 not", "notebooks/02_a", ["evidence 2"]),
        ("lesson 2's choice", "notebooks/03_b", ["lesson 2"]),
        ("chapter 3 of the thesis, the thesis's chapter 3, its chapter 3", "book/intro", []),
        ("the experts thesis' chapter 2", "book/intro", []),
        ("chapters 2 and 3 of {cite:t}`santos`", "book/intro", []),
        ("In Figure 2.4 (Table 2.1)", "notebooks/02_a", ["Figure 2.4", "Table 2.1"]),
        ("Figures 2.4 and 2.5.", "notebooks/02_a_evidence", ["Figures 2.4", "2.5"]),
        ("Figure 2.E1, Figures 2.4 and 2.E1", "notebooks/02_a_evidence",
         ["Figure 2.E1", "Figures 2.4", "2.E1"]),
        ("Figure 2.4 on another page", "notebooks/03_b", []),
        ("chapter 2's Figure 2.4", "notebooks/03_b", ["chapter 2", "Figure 2.4"]),
        ("the lesson’s Figure 2.4", "notebooks/02_a_evidence", ["Figure 2.4"]),
        ("the thesis's Figure 3.6, Figure 3.6 of the thesis", "notebooks/03_b", []),
        ("its Figure 3.6; (thesis, Figure 3.6)", "notebooks/03_b", []),
        ("Figure 3.6 of $x$ and Figure 3.60", "notebooks/03_b", ["Figure 3.6"]),
        ("Exercise 2.4, exercise 2.4", "notebooks/02_a", ["Exercise 2.4"]),
        ("K4 and T14, not K40, AK4, K4.2, -K4", "book/intro", ["K4", "T14"]),
        ("`K4` $K4$ {ref}`K4 <erratum-k4>` [K4](x.md)", "book/intro", []),
        ("## K4\n:::{admonition} K4\nK4", "book/intro", ["K4"]),
        ("**Table 2.1.** Table 2.1", "notebooks/02_a", ["Table 2.1"]),
        ("Gates, gate; posterior\ngates", "book/intro", ["Gates", "posterior\ngates"]),
        ("latent spaces and a latent space", "book/intro", ["latent spaces"]),
        ("batch entropies, ACC, acc, ACCs", "book/intro", ["batch entropies", "ACC"]),
        ("code, aggregate, self-gate", "book/intro", []),
        ("codes", "notebooks/11_d", ["codes"]),
        ("latent space", "book/glossary", []),
    ],
)  # fmt: skip
def test_what_a_text_names(text, page, names):
    hidden = mentions.masked(text)
    assert len(hidden) == len(text)
    found = mentions.find(hidden, BOOK, page, set())
    assert [text[m.start : m.end] for m in found] == names


def test_a_term_is_found_once_on_a_page():
    seen = set()
    assert len(mentions.find("a gate", BOOK, "book/intro", seen)) == 1
    assert mentions.find("a gate", BOOK, "book/intro", seen) == []


PROSE = [*sorted(chapters.TEXTS.glob("*.md")), *sorted((chapters.ROOT / "book").glob("*.md"))]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_a_documents_equation_is_told_from_ours(path):
    """Theirs has the word and no parentheses, "eq. 7"; ours has parentheses, no word, and links."""
    prose = mentions.masked(path.read_text(encoding="utf-8"))
    assert re.findall(r".{20}\b[Ee]q(?:s|uations?)?\.? \(\d.{10}", prose) == []
    assert re.findall(r".{20}\b[Ee]q(?:s|uations?)?\.? \0.{10}", prose) == []
    if path.parent != chapters.TEXTS:
        return  # the errata stand under their document's name
    owner = r"thesis|paper|slides|DeepKDE|DeepDPM|StatDEC|SwAV|\bits\b|the word"
    for block in re.split(r"\n\n|\n\* - ", prose):
        named = re.search(r"\b[Ee]qs?\. \d", block)
        assert not named or re.search(owner, block, flags=re.I), block.strip("\0 \n")[:200]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_a_chapters_number_is_that_of_its_title(path):
    assert re.findall(r"[Cc]hapters? 0\d", mentions.masked(path.read_text(encoding="utf-8"))) == []
