"""Links from plain words: "chapter 12", "K4", "Figure 2.4", a glossary's term at its first use.

Which words these are, and where they lead, `mentions` and `numbering` say. Titles, formulas, code,
what is a link already and the outputs of cells stay as they are, but for the captions of figures.
Figures and tables get the anchors to which such links lead.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from docutils import nodes
from numbered import book
from sphinx.application import Sphinx

import mentions

Find = Callable[[str], list[mentions.Mention]]
Address = Callable[[mentions.Target], str]

PLAIN = (nodes.emphasis, nodes.strong, nodes.inline)
CAPTION = re.compile(r"(<figcaption\b[^>]*>)(.*?)(?=</figcaption>)", flags=re.S)
PARAGRAPH = re.compile(r"(?<=<p>)[^<>]+(?=</p>)")


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


def _own(text: str, anchors: set[str]) -> tuple[str, int]:
    """The anchor of the figure or table whose name begins a text, and where that name ends."""
    name = re.match(r"[\s*]*(Figure|Table) (\d+)\.(\d+)\b", text)
    anchor = "-".join(name.groups()).lower() if name else ""
    return (anchor, name.end()) if name and anchor in anchors else ("", 0)


def _inside(node: nodes.Node, anchor: str) -> bool:
    """Tell whether the node stands in the section of that id."""
    while node is not None:
        if anchor in getattr(node, "attributes", {}).get("ids", ()):
            return True
        node = node.parent
    return False


def _link_paragraph(
    paragraph: nodes.paragraph, find: Find, address: Address, anchors: set[str]
) -> None:
    """Put references in place of what the paragraph names."""
    pieces = list(_pieces(paragraph))
    text = "".join(text for _, text in pieces)
    own, begin = _own(text, anchors) if text.startswith("*") else ("", 0)
    if own:
        paragraph["ids"].append(own)
    found = [
        mention
        for mention in find(text)
        if mention.start >= begin
        and not (mention.target.kind == "erratum" and _inside(paragraph, mention.target.anchor))
    ]
    start = 0
    for node, text in pieces:
        end = start + len(text)
        here = [m for m in found if node is not None and start <= m.start and m.end <= end]
        if here:
            parts: list[nodes.Node] = []
            done = 0
            for mention in here:
                first, last = mention.start - start, mention.end - start
                words = text[first:last]
                reference = nodes.reference(
                    "", words, internal=True, refuri=address(mention.target),
                    classes=["mention", mention.target.kind],
                )  # fmt: skip
                parts += [nodes.Text(text[done:first]), reference]
                done = last
            node.parent.replace(node, [*parts, nodes.Text(text[done:])])
        start = end


def _link_html(text: str, find: Find, address: Address, begin: int = 0) -> str:
    """The same in HTML, from a place on."""
    parts, done = [text[:begin]], begin
    for mention in find(_words(text)):
        if mention.start >= done:
            href, kind = address(mention.target), mention.target.kind
            link = f'<a class="reference internal mention {kind}" href="{href}">'
            parts += [text[done : mention.start], link, text[mention.start : mention.end], "</a>"]
            done = mention.end
    return "".join([*parts, text[done:]])


def _words(html: str) -> str:
    """HTML with tags, code and character references hidden."""
    hide = re.compile(r"<code>.*?</code>|<[^>]*>|&\w+;")
    return hide.sub(lambda match: mentions.HIDDEN * len(match[0]), html)


def _link_output(html: str, find: Find, address: Address, anchors: set[str]) -> str:
    """The same in a figure's caption, whose anchor stands at the figure's top, or a paragraph."""
    caption = CAPTION.search(html)
    if caption is None:
        return PARAGRAPH.sub(lambda match: _link_html(match[0], find, address), html)
    text = caption[2].replace("&#x27;", "'")
    own, begin = _own(_words(text), anchors)
    head = html[: caption.end(1)]
    if own:
        head = head.replace("<figure", f'<span id="{own}"></span><figure', 1)
    return head + _link_html(text, find, address, begin) + html[caption.end() :]


def _link_page(app: Sphinx, doctree: nodes.document, page: str) -> None:
    names = book(Path(app.srcdir))
    anchors = {target.anchor for target in names.names.values() if target.page == page}
    find = partial(mentions.find, book=names, page=page, seen=set())

    def address(target: mentions.Target) -> str:
        uri = app.builder.get_relative_uri(page, target.page) if target.page != page else ""
        return f"{uri}#{target.anchor}" if target.anchor else uri

    link = {"find": find, "address": address, "anchors": anchors}
    for node in list(doctree.findall(_may_name)):
        if isinstance(node, nodes.paragraph):
            _link_paragraph(node, **link)
        else:
            html = _link_output(node.astext(), **link)
            node.replace_self(nodes.raw("", html, **node.attributes))


def _may_name(node: nodes.Node) -> bool:
    """Tell whether links may come into a node: paragraphs of our own, and figures."""
    if isinstance(node, nodes.paragraph):
        return not (isinstance(node.parent, nodes.citation) or _inside(node, "index"))
    return isinstance(node, nodes.raw) and bool(re.search("</figcaption>|</p>", node.astext()))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", _link_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
