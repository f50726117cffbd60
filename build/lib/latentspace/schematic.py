"""A method as a picture: boxes for what it holds, arrows for what flows between them.

    drawing = Schematic(7, 2.4)
    drawing.box("x", 0.8, 1.2, "image\n$28\\times28$")
    drawing.box("f", 2.6, 1.2, "encoder $f_\\theta$", kind="network")
    drawing.arrow("x", "f")
    figures.show(drawing.figure, alt="...")

Places and sizes are inches from the lower left corner; 7 are the width of the text.
"""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from latentspace import figures

__all__ = ["KINDS", "Schematic"]

KINDS = {
    "data": (figures.PALETTE[0], "round"),
    "network": (figures.PALETTE[1], "square"),
    "value": (figures.PALETTE[2], "round"),
    "loss": (figures.PALETTE[3], "square"),
    "plain": (figures.INK, "square"),
}
"""Each kind of box with its colour and corners: what comes in, what is trained, what is computed
from both, what is minimised, and the rest."""

_CORNERS = {"round": 0.16, "square": 0.03}


class Schematic:
    """An empty drawing of ``width`` by ``height`` inches, in ``figure``."""

    def __init__(self, width: float, height: float) -> None:
        self.figure: Figure = plt.figure(figsize=(width, height), layout="none")
        self._ax = self.figure.add_axes((0, 0, 1, 1))
        self._ax.set(xlim=(0, width), ylim=(0, height))
        self._ax.set_axis_off()
        self._boxes: dict[str, Patch] = {}

    def box(
        self,
        name: str,
        x: float,
        y: float,
        text: str,
        *,
        kind: str = "data",
        width: float = 1.2,
        height: float = 0.6,
    ) -> None:
        """Draw a box of one of the `KINDS` around (x, y), and remember it by its name.

        KeyError for an unknown kind; ValueError if the name is taken.
        """
        if name in self._boxes:
            raise ValueError(f"there is a box {name!r} already")
        colour, corners = KINDS[kind]
        place = (x - width / 2, y - height / 2)
        shape = f"round,pad=0,rounding_size={_CORNERS[corners]}"
        edge = FancyBboxPatch(
            place, width, height, boxstyle=shape, facecolor="none", edgecolor=colour, lw=1.4
        )
        fill = FancyBboxPatch(
            place, width, height, boxstyle=shape, facecolor=colour, edgecolor="none", alpha=0.12
        )
        self._ax.add_patch(fill)
        self._boxes[name] = self._ax.add_patch(edge)
        self._ax.text(x, y, text, ha="center", va="center", fontsize=9)

    def arrow(
        self,
        start: str,
        end: str,
        text: str = "",
        *,
        at: tuple[float, float] | None = None,
        bend: float = 0.0,
        dashed: bool = False,
    ) -> None:
        """Lead an arrow from one box to another, from edge to edge; KeyError for an unknown box.

        ``bend`` curves it to the left (> 0) or right of its way, ``dashed`` marks a path without a
        gradient. Its ``text`` stands at ``at``, or else above the middle between the boxes.
        """
        a, b = self._boxes[start], self._boxes[end]
        (x0, y0), (x1, y1) = _centre(a), _centre(b)
        self._ax.add_patch(
            FancyArrowPatch(
                (x0, y0), (x1, y1), patchA=a, patchB=b, shrinkA=2, shrinkB=2,
                arrowstyle="-|>", mutation_scale=10, lw=1.1, color=figures.INK,
                linestyle="--" if dashed else "-", connectionstyle=f"arc3,rad={-bend}",
            )
        )  # fmt: skip
        if text:
            x, y = at or ((x0 + x1) / 2, (y0 + y1) / 2 + 0.12)
            self._ax.text(x, y, text, ha="center", va="bottom" if at is None else "center",
                          fontsize=8.5)  # fmt: skip

    def note(self, x: float, y: float, text: str, **style: object) -> None:
        """Write text, centred at (x, y) unless the style says otherwise."""
        self._ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 8.5} | style)


def _centre(box: Patch) -> tuple[float, float]:
    return box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2
