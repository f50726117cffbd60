"""The front page's directives: a picture that moves, the gallery, the map, the book in numbers.

Pictures are those that the notebooks' stored outputs hold, found by the number in their caption.
"""

import json
import re
import sys
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import printed  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CAPTION = re.compile(r"<figcaption[^>]*>(.*?)</figcaption>", re.DOTALL)
SVG = re.compile(r"<svg .*</svg>", re.DOTALL)


def lesson(number: int) -> str:
    """The file name of a chapter's lesson, without its suffix."""
    paths = (ROOT / "notebooks").glob(f"{number:02d}_*.ipynb")
    (path,) = [path for path in paths if not path.stem.endswith("_evidence")]
    return path.stem


def title(number: int) -> str:
    """A lesson's title without "Chapter 2 ·" and what follows a colon."""
    text = (ROOT / "book" / "chapters" / f"{lesson(number)}.md").read_text(encoding="utf-8")
    heading = re.search(r"^# .*· (.*)$", text, re.MULTILINE).group(1)
    return heading.partition(":")[0]


def figure(name: str) -> str:
    """The HTML of "Figure 2.5" without its caption; ValueError if no notebook holds it."""
    number = int(name.removeprefix("Figure ").partition(".")[0])
    path = ROOT / "notebooks" / f"{lesson(number)}.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            html = "".join(output.get("data", {}).get("text/html", ""))
            caption = CAPTION.search(html)
            if caption and re.match(rf"{re.escape(name)}\b(?!\.\d)", caption[1]):
                return html.replace(caption[0], "")
    raise ValueError(f"{path.name} has no {name}")


class _Front(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        for path in (ROOT / "notebooks").glob("*.ipynb"):
            self.env.note_dependency(str(path))
        try:
            return [nodes.raw("", self.html(), format="html")]
        except (ValueError, OSError) as error:
            raise self.error(str(error)) from error

    def html(self) -> str:
        raise NotImplementedError


class Moving(_Front):
    """The animation named in the content; it plays once, unless the reader prefers stillness."""

    def html(self) -> str:
        return f'<div class="front-picture">{figure(self.content[0].strip())}</div>{PLAY}'


PLAY = """<script>
if (matchMedia("(prefers-reduced-motion: no-preference)").matches)
  document.querySelector(".front-picture button").click();
</script>"""


class Gallery(_Front):
    """A card for each line "Figure 2.5 | the chapter's question"."""

    def html(self) -> str:
        return f'<div class="front-gallery">{"".join(map(self.card, self.content))}</div>'

    def card(self, line: str) -> str:
        name, question = (part.strip() for part in line.split("|"))
        number = int(name.removeprefix("Figure ").partition(".")[0])
        picture = SVG.search(figure(name))[0]
        return (
            f'<a href="../notebooks/{lesson(number)}.html"><div>{picture}</div>'
            f"<strong>{number} · {escape(title(number))}</strong> {escape(question)}</a>"
        )


# Where each chapter stands on the map, and what it needs; after "?" what helps.
PLACES = {
    2: (0, 0), 3: (1.5, 0), 1: (4.5, 0), 4: (1, 1), 7: (2, 1), 5: (3, 1), 8: (4, 1),
    10: (5, 1), 11: (6, 1), 12: (7, 1), 6: (3, 2), 9: (4, 2),
}  # fmt: skip
NEEDS = [(3, 4), (3, 7), (1, 5), (1, 8), (1, 10), (1, 11), (1, 12), (5, 6), (8, 9)]
HELPS = [(5, 7)]
WIDE, HIGH, STEP = 108, 46, (118, 84)


class Map(_Front):
    """Which chapter needs which; along a dashed arrow one helps the other."""

    def html(self) -> str:
        lines = [arrow(*pair) for pair in NEEDS] + [arrow(*pair, dashed=True) for pair in HELPS]
        boxes = [box(number) for number in sorted(PLACES)]
        width, height = 7 * STEP[0] + WIDE + 4, 2 * STEP[1] + HIGH + 4
        return (
            f'<div class="front-map" tabindex="0"><svg viewBox="-2 -2 {width} {height}" '
            f'role="group" aria-label="Which chapter needs which">{MARK}'
            f"{''.join(lines + boxes)}</svg></div>"
        )


MARK = (
    '<defs><marker id="front-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
    'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
)


def corner(number: int) -> tuple[float, float]:
    column, row = PLACES[number]
    return column * STEP[0], row * STEP[1]


def arrow(start: int, end: int, *, dashed: bool = False) -> str:
    (x1, y1), (x2, y2) = corner(start), corner(end)
    if y1 == y2:  # beside each other
        x1, x2 = (x1 + WIDE, x2) if x1 < x2 else (x1, x2 + WIDE)
        y1, y2 = y1 + HIGH / 2, y2 + HIGH / 2
    else:
        x1, x2, y1 = x1 + WIDE / 2, x2 + WIDE / 2, y1 + HIGH
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<path d="M{x1} {y1}L{x2} {y2}" stroke="currentColor" opacity=".6" fill="none"{dash} '
        'marker-end="url(#front-tip)"/>'
    )


def box(number: int) -> str:
    x, y = corner(number)
    words = title(number).split()
    half = -(-len(words) // 2)
    text = "".join(
        f'<tspan x="{x + WIDE / 2}" dy="{1.25 * (i > 0)}em">{escape(part)}</tspan>'
        for i, part in enumerate([f"{number} {' '.join(words[:half])}", " ".join(words[half:])])
        if part
    )
    rise = 20 if len(words) > 1 else 27
    return (
        f'<a href="../notebooks/{lesson(number)}.html"><rect x="{x}" y="{y}" width="{WIDE}" '
        f'height="{HIGH}" rx="6"/><text y="{y + rise}">{text}</text></a>'
    )


class Numbers(_Front):
    """The state of the book, counted at each build."""

    def html(self) -> str:
        counts = sum((document.counts() for document in printed.read()), printed.Counter())
        measured = counts.total() - counts["not run"]
        full = counts["agrees"] + counts["differs"]
        errata = (ROOT / "book" / "errata.md").read_text(encoding="utf-8")
        facts = {
            "notebooks, executed": len(list((ROOT / "notebooks").glob("*.ipynb"))),
            "printed numbers measured": measured,
            "of them at the printed scale": full,
            "of these agree with ours": counts["agrees"],
            "errata": len(re.findall(r"^\(erratum-[a-z]\d+\)=$", errata, re.MULTILINE)),
        }
        items = "".join(f"<li><b>{n}</b> {escape(name)}</li>" for name, n in facts.items())
        return f'<ul class="front-numbers">{items}</ul>'


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("moving-picture", Moving)
    app.add_directive("gallery", Gallery)
    app.add_directive("chapter-map", Map)
    app.add_directive("book-in-numbers", Numbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
