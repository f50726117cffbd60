"""A chapter as a notebook of plain Markdown, which every front end shows well.

The chapters are written in MyST. The site reads that; Colab and JupyterLab would show its roles,
directives and labels raw. Here each construct that the book uses becomes plain Markdown:

    {eq}, {numref}, {ref}, {cite:p} ...   words, with a link where it leads to another place
    $$ ... $$ (eq-02-js)                  $$ ... \\tag{2.2} $$
    :::{admonition} Title                 a quote that opens with a bold title
    the same with the class dropdown      <details>
    :::{exercise} Title                   a heading with the exercise's number, and the text
    :::{list-table}                       a table of pipes
    (evi-02-kde)=                         nothing: references lead to the site

A construct that is none of these stops it, with the file and the line.
"""

import re
from collections.abc import Callable

from nbformat import NotebookNode

import address
import chapters
import citations
import mentions
import numbering

__all__ = ["Unknown", "Writer", "notebook"]

# What stands in a line of prose: an escaped character, a role, code, a formula.
TOKEN = re.compile(
    r"\\[\\$`]"
    r"|\{(?P<role>[\w:-]+)\}(?P<ticks>`+)(?P<text>.+?)(?P=ticks)"
    r"|(?P<code>(?P<fence>`+).+?(?P=fence))"
    r"|(?P<math>(?P<dollars>\$\$?)[^$]+(?P=dollars))",
    re.S,
)
# What MyST reads in its own way, and this module has no plain form for: a directive, a label, a
# comment, a block break, a definition, a footnote, attributes, a link that is no full address.
FOREIGN = re.compile(
    r"^ *(:{3,}|~{3}|\([\w-]+\)=|%|\+{3}|: ).*|\[\^\S+|\]\{[^}]*|\{\{|\{[\w:-]+\}`.*"
    r"|\]\((?!https?://)[^)]*|<(project|path|inv):[^>]*",
    re.M,
)
OPENING = re.compile(r"(:{3,})\{([\w:-]+)\} *(.*)")
CLOSING = re.compile(r"(.*?)\$\$ *(?:\(([\w-]+)\))? *")  # of a formula, with its label
LABELLED = re.compile(r"\$\$ *\([\w-]+\)")


class Unknown(ValueError):
    """A construct without a plain form: what is wrong, and the words where it stands."""

    def __init__(self, message: str, words: str) -> None:
        super().__init__(message)
        self.words = words


class Writer:
    """Writes the cells of one page in plain Markdown.

    page : its path on the site without a suffix, such as notebooks/02_deepkde.
    site : the public address of the site.
    """

    def __init__(
        self, page: str, site: str, book: numbering.Book, works: dict[str, citations.Work]
    ) -> None:
        self.page, self.site, self.book, self.works = page, site, book, works
        self.seen: set[str] = set()  # the terms that are linked already

    def cell(self, source: str) -> str:
        """Return a cell's source in plain Markdown, with what it names on other pages linked."""
        found = mentions.find(mentions.masked(source), self.book, self.page, self.seen)
        for mention in reversed(found):
            if mention.target.page != self.page:
                link = self.link(source[mention.start : mention.end], mention.target.href)
                source = source[: mention.start] + link + source[mention.end :]
        return self.text(source)

    def text(self, source: str, quoted: bool = False) -> str:
        """Return the source in plain Markdown; `quoted` says that it stands in a quote."""
        lines, parts, prose = source.splitlines(), [], []
        while lines:
            line = lines.pop(0)
            opening = OPENING.fullmatch(line)
            fence = re.match(r"`{3,}", line)
            if fence and "{" in line:
                raise Unknown("a directive has a fence of colons", line)
            block = None
            if opening:
                block = self.directive(opening, _until(opening[1] + ":*", lines, line))
            elif fence:
                block = "\n".join([line, *_until(fence[0] + "`*", lines, line), fence[0]])
            elif line.startswith("$$") and ("$$" not in line[2:] or CLOSING.fullmatch(line[2:])):
                lines.insert(0, line[2:])
                block = self.display(_until(CLOSING.pattern, lines, line, keep=True), quoted)
            elif label := re.fullmatch(r"\(([\w-]+)\)= *", line):
                self.target(label[1], line)
                continue
            if block is None and line.strip():
                prose.append(line)
                continue
            parts.append(self.inline("\n".join(prose)))
            parts.append(block or "")
            prose = []
        parts.append(self.inline("\n".join(prose)))
        return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)).strip()

    # Lines of prose

    def inline(self, prose: str) -> str:
        """Return a paragraph with each role in plain words, and each formula on one line."""
        plain = TOKEN.sub(lambda token: "x" * len(token[0]), prose)
        if found := FOREIGN.search(plain) or LABELLED.search(prose):
            raise Unknown("MyST that has no plain form", prose[found.start() : found.end()].strip())
        return TOKEN.sub(self._token, prose)

    def _token(self, token: re.Match[str]) -> str:
        if token["math"]:
            return " ".join(token[0].split())
        if not token["role"]:
            return token[0]
        write = ROLES.get(token["role"])
        if write is None:
            raise Unknown(f"no plain form for the role {{{token['role']}}}", token[0])
        return write(self, token["text"], token[0])

    def target(self, label: str, words: str) -> numbering.Target:
        """Return what a label means."""
        if label not in self.book.labels:
            raise Unknown(f"no label {label!r} in the book", words)
        return self.book.labels[label]

    def reference(self, text: str, words: str) -> str:
        """Return `label`, or `title <label>`, as a link to the site."""
        titled = re.fullmatch(r"(.*?)\s*<(\S+)>", text, flags=re.S)
        target = self.target(titled[2] if titled else text, words)
        if target.number and target.page == self.page:  # the reader finds it by its number
            return self.inline(titled[1]) if titled else target.text
        return self.link(self.inline(titled[1]) if titled else target.text, target.href)

    def citation(self, keys: str, words: str, form: str, between: str) -> str:
        """Return the works, each with its link."""
        found = [self.works.get(key.strip()) for key in keys.split(",")]
        if None in found:
            raise Unknown("a work that is not in book/references.bib", words)
        return between.join(
            self.link(form.format(*work[:2]), work.address) for work in found
        )

    def link(self, text: str, href: str) -> str:
        """Return a link to an address, or to a place within the site."""
        return f"[{text}]({href if '://' in href else f'{self.site}/{href}'})"

    # Blocks

    def display(self, lines: list[str], quoted: bool) -> str:
        """Return a formula with its number.

        In a quote it takes one line: JupyterLab would read the quote's marks as part of it.
        """
        end, label = CLOSING.fullmatch(lines[-1]).groups()
        formula = [line for line in [*lines[:-1], end] if line.strip()]
        if label:
            formula[-1] += f" \\tag{{{self.target(label, lines[-1]).number}}}"
        return f"$$ {' '.join(formula)} $$" if quoted else "\n".join(["$$", *formula, "$$"])

    def directive(self, opening: re.Match[str], lines: list[str]) -> str:
        """Return a box, an exercise or a table."""
        _, name, title = opening.groups()
        options = {}
        while lines and (option := re.fullmatch(r":([\w-]+): *(.*)", lines[0])):
            options[option[1]] = option[2].strip()
            lines.pop(0)
        if name not in DIRECTIVES or set(options) - DIRECTIVES[name][0]:
            raise Unknown(f"no plain form for the directive {name} with these options", opening[0])
        return DIRECTIVES[name][1](self, self.inline(title), options, "\n".join(lines))

    def box(self, title: str, options: dict[str, str], body: str) -> str:
        """Return an admonition."""
        if "dropdown" not in options.get("class", "").split():
            return _quote(title, self.text(body, quoted=True))
        if re.search(r"[$`*_\[<]", title):
            raise Unknown("a folded box has a title of plain words", title)
        return f"<details>\n<summary><b>{title}</b></summary>\n\n{self.text(body)}\n\n</details>"

    def exercise(self, title: str, options: dict[str, str], body: str) -> str:
        """Return an exercise under a heading with its number, which outlines then show."""
        number = self.target(options["label"], options["label"]).text
        return f"### {number} ({title})\n\n{self.text(body)}"

    def table(self, title: str, options: dict[str, str], body: str) -> str:
        """Return a table of lists as one of pipes, under its title."""
        if options.get("header-rows") != "1":
            raise Unknown("a table has one row of headings", title)
        rows: list[list[str]] = []
        for line in filter(str.strip, body.splitlines()):
            cell = re.fullmatch(r"(\* |  )- ?(.*)|    (\S.*)", line)
            if cell is None:
                raise Unknown("a table is a list of lists", line)
            if cell[1] == "* ":
                rows.append([])
            if cell[1]:
                rows[-1].append(cell[2])
            else:
                rows[-1][-1] += " " + cell[3]
        written = [[self.inline(_without_pipes(cell)) for cell in row] for row in rows]
        written.insert(1, ["---"] * len(rows[0]))
        return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in written)


ROLES: dict[str, Callable[[Writer, str, str], str]] = {
    "eq": Writer.reference,
    "ref": Writer.reference,
    "numref": Writer.reference,
    "math": lambda writer, text, words: f"${text}$",
    "cite:t": lambda writer, text, words: writer.citation(text, words, "{} ({})", ", "),
    "cite:p": lambda writer, text, words: f"({writer.citation(text, words, '{}, {}', '; ')})",
}
# Each with the options that it may have.
DIRECTIVES: dict[str, tuple[set[str], Callable[[Writer, str, dict[str, str], str], str]]] = {
    "admonition": ({"class"}, Writer.box),
    "exercise": ({"label"}, Writer.exercise),
    "list-table": ({"header-rows", "widths"}, Writer.table),
}


def _until(pattern: str, lines: list[str], opening: str, keep: bool = False) -> list[str]:
    """Take lines up to one that matches, which is left out unless `keep`."""
    end = next((i for i, line in enumerate(lines) if re.fullmatch(pattern, line.rstrip())), None)
    if end is None:
        raise Unknown("nothing closes this", opening)
    taken = lines[: end + keep]
    del lines[: end + 1]
    return taken


def _quote(title: str, body: str) -> str:
    lines = [f"**{title}**", "", *body.splitlines()]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _without_pipes(cell: str) -> str:
    """Return a cell's text with the pipes in formulas by their names, and others escaped."""

    def rename(token: re.Match[str]) -> str:
        if not token["math"]:
            return token[0]
        return token[0].replace(r"\|", r"\Vert ").replace("|", r"\vert ")

    return TOKEN.sub(rename, cell).replace("|", r"\|")


def fold(cell: NotebookNode) -> None:
    """Fold in JupyterLab and Colab what the site folds; parameters stay open, to be changed."""
    tags = set(cell.metadata.get("tags", []))
    hidden = {}
    if tags & {"hide-input", "hide-cell", "remove-cell"} and "parameters" not in tags:
        hidden["source_hidden"] = True
        cell.metadata["cellView"] = "form"  # in Colab
    if tags & {"hide-output", "hide-cell", "remove-cell"}:
        hidden["outputs_hidden"] = True
    if hidden:
        cell.metadata["jupyter"] = hidden


def _place(words: str, text: str) -> int:
    return text[: max(text.find(words.splitlines()[0] if words else ""), 0)].count("\n") + 1


def notebook(name: str) -> NotebookNode:
    """Return the chapter's text as a notebook of plain Markdown without outputs.

    Raises SystemExit if there is no such chapter, or with file and line where its text holds a
    construct that has no plain form.
    """
    notebook = chapters.read(name)
    site = f"https://{address.forms(address.current(chapters.ROOT))[1]}"
    book, works = numbering.read(chapters.ROOT), citations.read(chapters.ROOT)
    writer = Writer(f"notebooks/{name}", site, book, works)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            fold(cell)
            continue
        try:
            cell.source = writer.cell(cell.source)
        except Unknown as error:
            path = chapters.TEXTS / f"{name}.md"
            line = _place(error.words, path.read_text(encoding="utf-8"))
            raise SystemExit(f"{path}:{line}: {error}: {error.words}") from error
    return notebook
