"""Links from plain words: "chapter 12", "K4", "Figure 2.4", a glossary's term at its first use.

Which words these are, and where they lead, `mentions` and `numbering` say. Titles, formulas, code,
what is a link already and the outputs of cells stay as they are, but for the captions of figures.
Figures and tables get the anchors to which such links lead.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from pathlib import Path

from docutils import nodes
from numbered import book
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import mentions

PLAIN = (nodes.emphasis, nodes.strong, nodes.inline)
CAPTION = re.compile(r"(<figcaption\b[^>]*>)(.*?)(?=</figcaption>)", flags=re.S)
PARAGRAPH = re.compile(r"(?<=<p>)[^<>]+(?=</p>)")
MARKUP = re.compile(r"<code>.*?</code>|<[^>]*>|&\w+;")


class _Page:
    """One page, and what it has named so far."""

    def __init__(self, app: Sphinx, name: str) -> None:
        self.app, self.name = app, name
        self.book = book(Path(app.srcdir))
        self.anchors = {t.anchor for t in self.book.names.values() if t.page == name}
        self.seen: set[str] = set()

    def find(self, text: str) -> list[mentions.Mention]:
        """Return what a text of the page names."""
        return mentions.find(text, self.book, self.name, self.seen)

    def address(self, target: mentions.Target) -> str:
        """Return where the target is, seen from this page."""
        there = target.page
        uri = self.app.builder.get_relative_uri(self.name, there) if there != self.name else ""
        return f"{uri}#{target.anchor}" if target.anchor else uri

    def own(self, text: str) -> tuple[str, int]:
        """Return the anchor of the figure or table that a text begins to name, and that name's end.

        Both are empty if it names none of this page.
        """
        name = re.match(r"[\s*]*(Figure|Table) (\d+)\.(E?\d+)\b", text)
        anchor = "-".join(name.groups()).lower() if name else ""
        return (anchor, name.end()) if name and anchor in self.anchors else ("", 0)

    def link_paragraph(self, paragraph: nodes.paragraph) -> None:
        """Put references in place of what the paragraph names."""
        pieces = list(_pieces(paragraph))
        text = "".join(text for _, text in pieces)
        own, begin = self.own(text) if text.startswith("*") else ("", 0)
        if own:
            paragraph["ids"].append(own)
        found = [
            mention
            for mention in self.find(text)
            if mention.start >= begin and not _inside(paragraph, mention.target.anchor)
        ]
        start = 0
        for node, text in pieces:
            end = start + len(text)
            here = [m for m in found if node is not None and start <= m.start and m.end <= end]
            if here:
                node.parent.replace(node, list(self._linked(text, start, here)))
            start = end

    def _linked(self, text: str, start: int, found: list[mentions.Mention]) -> Iterator[nodes.Node]:
        """Yield a text that begins at `start` with references for what is found in it."""
        done = 0
        for mention in found:
            first, last = mention.start - start, mention.end - start
            target = mention.target
            yield nodes.Text(text[done:first])
            link = nodes.reference("", text[first:last], internal=True, refuri=self.address(target))
            link["classes"] += ["mention", f"to-{target.kind}"]
            if tip := meanings(self.app.env).get(target.anchor, target.title):
                link["reftitle"] = tip
            yield link
            done = last
        yield nodes.Text(text[done:])

    def link_output(self, html: str) -> str:
        """Return a raw output with links in its figure's caption, or else in its paragraphs.

        The anchor of a figure stands at its top.
        """
        caption = CAPTION.search(html)
        if caption is None:
            return PARAGRAPH.sub(lambda match: self._linked_html(match[0]), html)
        text = caption[2].replace("&#x27;", "'")
        own, begin = self.own(text)
        head = html[: caption.end(1)]
        if own:
            head = head.replace("<figure", f'<span id="{own}"></span><figure', 1)
        return head + self._linked_html(text, begin) + html[caption.end() :]

    def _linked_html(self, text: str, begin: int = 0) -> str:
        """Return HTML with links, from a place on."""
        hidden = MARKUP.sub(lambda match: mentions.HIDDEN * len(match[0]), text)
        parts, done = [text[:begin]], begin
        for mention in self.find(hidden):
            if mention.start >= done:
                href, kind = escape(self.address(mention.target)), mention.target.kind
                words = text[mention.start : mention.end]
                link = f'<a class="reference internal mention to-{kind}" href="{href}">{words}</a>'
                parts += [text[done : mention.start], link]
                done = mention.end
        return "".join([*parts, text[done:]])


def _pieces(node: nodes.Node) -> Iterator[tuple[nodes.Text | None, str]]:
    """Yield the texts in a paragraph, and for all else in it as many hidden characters.

    A star stands where emphasis begins and ends, as in Markdown: no name goes beyond it.
    """
    for child in node.children:
        cited = "bibtex-citation" in child.get("classes", ()) if isinstance(child, PLAIN) else False
        if isinstance(child, nodes.Text):
            yield child, str(child)
        elif isinstance(child, PLAIN) and not cited:
            yield None, "*"
            yield from _pieces(child)
            yield None, "*"
        else:
            yield None, (mentions.CITED if cited else mentions.HIDDEN) * len(child.astext())


def _inside(node: nodes.Node, anchor: str) -> bool:
    """Tell whether the node stands in the section of that id."""
    while node is not None:
        if anchor and anchor in getattr(node, "attributes", {}).get("ids", ()):
            return True
        node = node.parent
    return False


@lru_cache
def meanings(env: BuildEnvironment) -> dict[str, str]:
    """Return what the glossary's terms mean, by anchor, where words alone say it."""
    items = env.get_doctree("book/glossary").findall(nodes.definition_list_item)
    return {
        item[0]["ids"][0]: "" if item[-1].next_node(nodes.math) else item[-1].astext()
        for item in items
        if item[0]["ids"]
    }


def _may_name(node: nodes.Node) -> bool:
    """Tell whether links may come into a node: our own paragraphs, and raw outputs with text."""
    if isinstance(node, nodes.paragraph):
        return not (isinstance(node.parent, nodes.citation) or _inside(node, "index"))
    return isinstance(node, nodes.raw) and bool(re.search("</figcaption>|</p>", node.astext()))


def _link_page(app: Sphinx, doctree: nodes.document, name: str) -> None:
    page = _Page(app, name)
    for node in list(doctree.findall(_may_name)):
        if isinstance(node, nodes.paragraph):
            page.link_paragraph(node)
        else:
            html = page.link_output(node.astext())
            node.replace_self(nodes.raw("", html, **node.attributes))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", _link_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
