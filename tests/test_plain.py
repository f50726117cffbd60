"""The stored notebooks in plain Markdown, as a front end that knows nothing of MyST reads them."""

import re

import nbformat
import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

import chapters
import citations
import numbering
import plain

each = pytest.mark.parametrize("name", chapters.names())


def content(notebook):
    """What a notebook holds but for what its run has put in."""
    return [(cell.cell_type, cell.metadata, cell.source) for cell in notebook.cells]


@each
def test_notebook_is_made_from_the_text(name):
    """Where this fails, `make notebooks` mends it; other chapters' numbers are in it too."""
    assert content(chapters.stored(name)) == content(plain.notebook(name))


# What a reader sees

READER = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, allow_space=True)
RAW = re.compile(
    r":::|\{[\w:-]+\}|\([\w-]+\)=|^:[\w-]+:|\$|`|\b(?:eq|ex|evi|evidence|lesson|erratum)-\d|\\tag"
    r"|\+\+\+|\[\[|\]\(",
    re.M,
)


def seen(source):
    """The words of a Markdown text that a reader sees as they are, and the HTML in it."""
    words, html = [], []
    for block in READER.parse(source):
        for token in [block, *(block.children or [])]:
            if token.type == "text":
                words.append(token.content)
            elif token.type.startswith("html"):
                html.append(token.content.strip())
    return words, html


def markdown(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


@each
def test_nothing_raw_is_left(name):
    pairs = [seen(source) for source in markdown(chapters.stored(name))]
    words = [word for words, _ in pairs for word in words]
    assert [word for word in words if RAW.search(word)] == []
    pieces = [piece for _, html in pairs for piece in html]
    box = r"</details>|<details>\n<summary><b>[\w .,:]+</b></summary>"
    assert [piece for piece in pieces if not re.fullmatch(box, piece)] == []


@each
def test_links_are_full_addresses(name):
    links = [
        token.attrs["href"]
        for source in markdown(chapters.stored(name))
        for block in READER.parse(source)
        for token in block.children or []
        if token.type == "link_open"
    ]
    assert [link for link in links if not link.startswith("https://")] == []


@each
def test_equations_are_numbered_in_order(name):
    """By their chapter, and an E on the evidence's page."""
    tags = re.findall(r"\\tag\{(.*?)\}", "\n".join(markdown(chapters.stored(name))))
    start = f"{int(name[:2])}." + ("E" if chapters.is_evidence(name) else "")
    assert tags == [f"{start}{i + 1}" for i in range(len(tags))]
    labels = re.findall(r"^\$\$ \(", (chapters.TEXTS / f"{name}.md").read_text(), flags=re.M)
    assert len(tags) == len(labels)


# One construct at a time

SITE = "https://example.org/book"
PAGE = "notebooks/02_one"


def target(kind, number, page, anchor, title=""):
    return numbering.Target(kind, number, page, anchor, title)


LABELS = {
    "eq-02-a": target("equation", "2.1", PAGE, "equation-eq-02-a"),
    "eq-03-a": target("equation", "3.7", "notebooks/03_two", "equation-eq-03-a"),
    "ex-02-a": target("exercise", "2.4", PAGE, "ex-02-a", "One"),
    "evi-02-a": target("section", "", PAGE, "evi-02-a", "A study"),
    "erratum-k4": target("erratum", "K4", "book/errata", "erratum-k4", "the self-kernel"),
}
NAMES = {("erratum", "K4"): LABELS["erratum-k4"]}
TERMS = {"entropy": target("term", "", "book/glossary", "term-entropy", "entropy")}
WORKS = {
    "a": citations.Work("Scott", "1992", "https://doi.org/10/1"),
    "b": citations.Work("Lin et al.", "1991", "book/references.html#cite-b"),
}


def writer():
    return plain.Writer(PAGE, SITE, numbering.Book(LABELS, NAMES, TERMS, {}), WORKS)


@pytest.mark.parametrize(
    ("myst", "expected"),
    [
        ("By {eq}`eq-02-a` and {eq}`eq-03-a`.",
         f"By (2.1) and [(3.7)]({SITE}/notebooks/03_two.html#equation-eq-03-a)."),
        ("{numref}`ex-02-a`, {ref}`the first <ex-02-a>`", "Exercise 2.4, the first"),
        ("{ref}`evi-02-a`", f"[A study]({SITE}/{PAGE}.html#evi-02-a)"),
        ("{ref}`see $x$\nhere <evi-02-a>`", f"[see $x$\nhere]({SITE}/{PAGE}.html#evi-02-a)"),
        ("As K4 says", f"As [K4]({SITE}/book/errata.html#erratum-k4) says"),
        ("Entropy. The entropy", f"[Entropy]({SITE}/book/glossary.html#term-entropy). The entropy"),
        ("`K4`, $K4$ and ``a `b` {eq}`c` ``", "`K4`, $K4$ and ``a `b` {eq}`c` ``"),
        ("{cite:t}`a`", "[Scott (1992)](https://doi.org/10/1)"),
        ("so {cite:p}`a,b`", "so ([Scott, 1992](https://doi.org/10/1); "
         f"[Lin et al., 1991]({SITE}/book/references.html#cite-b))"),
        ("{math}`n=5` costs \\$5 and \\$6 {1, 2}", "$n=5$ costs \\$5 and \\$6 {1, 2}"),
        ("$a\n+b$", "$a +b$"),
        ("a\n\n$$\nx\n=y,\n$$ (eq-02-a)\n\nb", "a\n\n$$\nx\n=y, \\tag{2.1}\n$$\n\nb"),
        ("$$\nx\n$$", "$$\nx\n$$"),
        ("$$x$$ (eq-02-a)", "$$\nx \\tag{2.1}\n$$"),
        ("as $$x$$ is\n$$y$$ and", "as $$x$$ is\n$$y$$ and"),
        ("(evi-02-a)=\n## A study", "## A study"),
        ("```python\n{eq}`x`\n:::\n```", "```python\n{eq}`x`\n:::\n```"),
        ("- a\n- b\n\n  c", "- a\n- b\n\n  c"),
        (":::{admonition} Note 1: `a`\n:class: note\na\n\n$$\nx\ny\n$$ (eq-02-a)\n:::",
         "> **Note 1: `a`**\n>\n> a\n>\n> $$ x y \\tag{2.1} $$"),
        (":::{admonition} Solution\n:class: dropdown\na\n\n- b\n:::",
         "<details>\n<summary><b>Solution</b></summary>\n\na\n\n- b\n\n</details>"),
        ("::::{admonition} A\n:::{admonition} B\nb\n:::\n::::",
         "> **A**\n>\n> > **B**\n> >\n> > b"),
        (":::{exercise} One\n:label: ex-02-a\n\nDo it.\n:::",
         "### Exercise 2.4 (One)\n\nDo it."),
        (":::{list-table} What\n:header-rows: 1\n:widths: 1 2\n\n* - a\n  - b\n* - $|x|$ or\n"
         "    $\\|y\\|$\n  - `p|q`\n:::",
         "**What**\n\n| a | b |\n| --- | --- |\n"
         "| $\\vert x\\vert $ or $\\Vert y\\Vert $ | `p\\|q` |"),
    ],
)  # fmt: skip
def test_each_construct(myst, expected):
    assert writer().cell(myst) == expected


@pytest.mark.parametrize(
    ("myst", "words"),
    [
        (":::{tip}\na\n:::", ":::{tip}"),
        (":::{admonition} A\n:name: b\na\n:::", ":::{admonition} A"),
        (":::{admonition} A\na", ":::{admonition} A"),
        (":::\na", ":::"),
        ("```{note}\na\n```", "```{note}"),
        ("a {term}`b`", "{term}`b`"),
        ("{eq}`eq-02-none`", "{eq}`eq-02-none`"),
        ("{cite:p}`a,none`", "{cite:p}`a,none`"),
        ("(none)=\n# A", "(none)="),
        ("$$\nx", "$$"),
        ("- a\n\n  $$\n  x\n  $$ (eq-02-a)", "$$ (eq-02-a)"),
        ("$$\nx\n$$ (eq-none)", "$$ (eq-none)"),
        ("a\n% a comment", "% a comment"),
        ("a[^1]", "[^1]"),
        ("[a](other.md)", "](other.md"),
        ("[a]{.b}", "]{.b"),
        ("term\n: its meaning", ": its meaning"),
        (":::{admonition} $x$\n:class: dropdown\na\n:::", "$x$"),
        (":::{list-table} A\n:header-rows: 1\n\n* - a\nb\n:::", "b"),
    ],
)
def test_a_construct_without_a_plain_form_is_refused(myst, words):
    with pytest.raises(plain.Unknown) as caught:
        writer().cell(myst)
    assert caught.value.words == words


def test_what_is_refused_is_told_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "TEXTS", tmp_path)
    text = "---\nkernelspec:\n  name: python3\n---\n\n# A\n\nAs {term}`b` says\n"
    (tmp_path / "02_one.md").write_text(text)
    with pytest.raises(SystemExit, match=r"02_one.md:8: no plain form for the role \{term\}"):
        plain.notebook("02_one")


@pytest.mark.parametrize(
    ("tags", "hidden"),
    [
        (["hide-input"], {"source_hidden": True}),
        (["setup", "hide-input"], {"source_hidden": True}),
        (["parameters", "hide-input"], None),  # a reader changes them
        (["solution", "hide-cell"], {"source_hidden": True, "outputs_hidden": True}),
        (["hide-output"], {"outputs_hidden": True}),
        ([], None),
    ],
)
def test_code_is_folded_as_on_the_site(tags, hidden):
    cell = nbformat.v4.new_code_cell("a = 1", metadata={"tags": tags} if tags else {})
    plain.fold(cell)
    assert cell.metadata.get("jupyter") == hidden
    assert ("cellView" in cell.metadata) == ("source_hidden" in (hidden or {}))


def test_citations(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "references.bib").write_text(
        "@book{a, author = {von Luxburg, Ulrike}, title = {T}, year = {2007}, doi = {10/1(2)}}\n"
        '@book{b, author = {{The authors} and M{\\"u}ller, A.}, title = {T}, year = {undated}}\n'
        "@article{c, author = {A, B. and C, D. and E, F.}, title = {T}, year = {1999},"
        " journal = {arXiv preprint arXiv:1802.03426}}\n"
        "@misc{d, author = {A, B.}, title = {T}, year = {1999}, url = {https://a.b/c}}\n"
        "@misc{e, author = {A, B.}, title = {T}, year = {1999}, eprint = {1234.5}}\n"
    )
    assert citations.read(tmp_path) == {
        "a": ("von Luxburg", "2007", "https://doi.org/10/1%282%29"),
        "b": ("The authors and Müller", "undated", "book/references.html#cite-b"),
        "c": ("A et al.", "1999", "https://arxiv.org/abs/1802.03426"),
        "d": ("A", "1999", "https://a.b/c"),
        "e": ("A", "1999", "https://arxiv.org/abs/1234.5"),
    }
