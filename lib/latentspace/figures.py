"""The book's plots: one style, and figures that follow a page's light or dark theme.

`show` puts a figure on the page as inline SVG on a transparent ground. Text, axes and whatever
else is drawn in `INK` take the colour of the text around them; `PALETTE` is legible on white and
on near-black. `scrubber` strings figures or images to an animation with a slider.
"""

import html
import math
import re
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentspace import svg

__all__ = [
    "DIVERGING", "INK", "MIDTONE", "PALETTE", "SEQUENTIAL", "class_colours", "figure_html",
    "image_grid", "panel_labels", "scrubber", "scrubber_html", "show", "use_style",
]  # fmt: skip

INK = "#010203"
"""Draw in this what should have the text's colour; on the page it becomes ``currentColor``."""

PALETTE = (
    "#2e71e3", "#fb5005", "#3fa290", "#b52f99", "#889a5b",
    "#009bd8", "#ae4354", "#8b27fd", "#935a2a", "#5fa425",
)  # fmt: skip
"""Ten colours, one a class or curve.

Each has a contrast of at least 3:1 on #ffffff and on #14181e. Any two differ by at least 17 CIE76
units of Lab in normal, protanopic and deuteranopic sight, the first five by 23.
"""

SEQUENTIAL = "viridis"
"""Colour map of filled areas: densities, images, heat maps."""

DIVERGING = "RdBu_r"
"""Colour map of filled areas around a meaningful zero."""

MIDTONE = mpl.colors.LinearSegmentedColormap.from_list(
    "midtone", ["#2e71e3", "#7a68c8", "#b5559a", "#d8504f", "#c97510"]
)
"""Colour map of points and lines on the bare page, which viridis leaves unseen at one end."""

_DPI = 150
_SCRUBBER_BYTES = 1_700_000


def use_style() -> None:
    """Set the book's matplotlib style; 7 inches are the width of the text."""
    plt.style.use("default")
    mpl.rcParams.update({
        "figure.figsize": (7.0, 3.6),
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "figure.max_open_warning": 0,  # the frames of a scrubber are open together
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.titlesize": 10,
        "figure.titlesize": 10.5,
        "legend.fontsize": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": INK,
        "grid.alpha": 0.15,
        "hatch.color": INK,
        "boxplot.boxprops.color": INK,
        "boxplot.capprops.color": INK,
        "boxplot.whiskerprops.color": INK,
        "boxplot.flierprops.markeredgecolor": INK,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.linewidth": 0.8,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "scatter.edgecolors": "none",
        "axes.prop_cycle": mpl.cycler(color=PALETTE),
        "image.cmap": SEQUENTIAL,
    })  # fmt: skip


def class_colours(y: np.ndarray) -> np.ndarray:
    """Return the palette's colour of each label: (N,) integers >= 0 to (N,) hex strings.

    Labels from 10 on begin the palette anew; -1, noise, is mid-grey.
    """
    y = np.asarray(y)
    return np.where(y < 0, "#808488", np.array(PALETTE)[y % len(PALETTE)])


def panel_labels(axes: Sequence[Axes]) -> None:
    """Put (a), (b), ... before the titles of the panels, in reading order."""
    for letter, ax in zip("abcdefghijklmnopqrstuvwxyz", np.ravel(axes), strict=False):
        ax.set_title(f"({letter}) {ax.get_title()}".rstrip())


def image_grid(
    ax: Axes, images: np.ndarray, columns: int = 10, frames: Sequence[object] | None = None
) -> None:
    """Draw small images side by side in one panel, one pixel apart, without axes.

    Parameters
    ----------
    images : (N, H, W) grey or (N, H, W, 3) colour; uint8, or floats in [0, 1].
    columns : images in a row.
    frames : N colours to frame the images with, for instance `class_colours(y)`.

    Raises
    ------
    ValueError : the shape is another, or there is no image.
    """
    images = np.asarray(images)
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
        raise ValueError(f"images must be (N, H, W) or (N, H, W, 3), not {images.shape}")
    count, height, width = images.shape[:3]
    border = 1 if frames is None else 2
    high, wide = height + 2 * border, width + 2 * border
    rows = -(-count // columns)
    canvas = np.zeros((rows * high, min(columns, count) * wide, 4), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * high, i % columns * wide
        if frames is not None:
            frame = np.multiply(mpl.colors.to_rgba(frames[i]), 255)
            canvas[top + 1 : top + high - 1, left + 1 : left + wide - 1] = frame.round()
        inside = canvas[top + border :, left + border :][:height, :width]
        inside[..., :3], inside[..., 3] = _bytes(image), 255
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()


def show(fig: Figure, *, alt: str, caption: str = "") -> None:
    """Display a figure as inline SVG and close it.

    Point clouds and meshes are rasterised inside the SVG; axes and text stay vectors.

    Parameters
    ----------
    alt : says what is seen, for readers who don't see it.
    caption : plain text, in which `code` and *emphasis* are marked as here.

    Raises
    ------
    ValueError : `alt` is empty.
    """
    _display(figure_html(fig, alt=alt, caption=caption), alt)
    plt.close(fig)


def figure_html(fig: Figure, *, alt: str, caption: str = "") -> str:
    """Return what `show` displays: a ``<figure>`` that needs no style sheet."""
    _require_alt(alt)
    drawing = svg.of_figure(fig, _DPI, INK)
    svg.make_ids_unique([drawing], alt)
    drawing.set("role", "img")
    drawing.set("aria-label", alt)
    return _in_figure("ls-figure", svg.markup(drawing), alt, caption)


def scrubber(
    frames: Sequence[Figure | np.ndarray],
    labels: Sequence[object],
    *,
    alt: str,
    caption: str = "",
    first: int = -1,
) -> None:
    """Display frames one at a time, with a slider and a play button; figures are closed.

    Parameters
    ----------
    frames : figures, or uint8 arrays (H, W) or (H, W, 3), all of one size.
    labels : what the slider says at each frame, for instance "epoch 10".
    alt, caption : as in `show`.
    first : index of the frame that shows at first, and without JavaScript: the last by default.

    Raises
    ------
    ValueError : `alt` is empty, there is no frame, or not one label a frame.
    IndexError : there is no frame `first`.
    """
    _display(scrubber_html(frames, labels, alt=alt, caption=caption, first=first), alt)
    for frame in frames:
        if isinstance(frame, Figure):
            plt.close(frame)


def scrubber_html(
    frames: Sequence[Figure | np.ndarray],
    labels: Sequence[object],
    *,
    alt: str,
    caption: str = "",
    first: int = -1,
) -> str:
    """Return what `scrubber` displays; its length is the animation's size in bytes."""
    _require_alt(alt)
    if len(frames) == 0 or len(frames) != len(labels):
        raise ValueError(f"{len(frames)} frames need as many labels, not {len(labels)}")
    shown = range(len(frames))[first]
    dpi = _scrubber_dpi(frames)
    drawings = [
        svg.of_figure(frame, dpi, INK) if isinstance(frame, Figure) else svg.of_array(frame)
        for frame in frames
    ]
    glyphs = svg.share_glyphs(drawings)
    root = svg.make_ids_unique([glyphs, *drawings], alt)
    for i, drawing in enumerate(drawings):
        drawing.set("aria-hidden", "true")
        drawing.set("style", drawing.get("style") + ";grid-area:1/1")
        if i != shown:
            drawing.set("style", drawing.get("style") + ";visibility:hidden")
        for clip in drawing.iter("clipPath"):  # one for all, it must not hide with the first
            clip.set("style", "visibility:visible")
    last, texts = len(drawings) - 1, [html.escape(str(label)) for label in labels]
    body = _SCRUBBER.format(
        alt=html.escape(alt),
        glyphs=svg.markup(glyphs),
        frames="".join(map(svg.markup, drawings)),
        labels=html.escape("\n".join(map(str, labels))).replace("\n", "&#10;"),
        last=last,
        shown=shown,
        label=texts[shown],
        pause=min(400, max(80, 6000 // len(drawings))),
        root=root,
    )
    return _in_figure("ls-figure ls-scrubber", body, alt, caption, root)


# `visibility` keeps the frames' room and lets the browser decode them ahead of their turn. The
# script finds its own figure: Jupyter, Colab and a plain page each run it in another way.
_SCRUBBER = """\
<div role="img" aria-label="{alt}" style="display:grid">{glyphs}{frames}</div>
<div style="visibility:hidden;display:flex;gap:.6em;align-items:center;max-width:32em;\
margin:.3em auto" data-labels="{labels}">
<button type="button" style="flex:none;width:5em;padding:.2em 0;font:inherit;color:inherit;\
background:none;border:1px solid currentColor;border-radius:.3em;cursor:pointer">Play</button>
<input type="range" min="0" max="{last}" value="{shown}" aria-label="Frame" \
aria-valuetext="{label}" style="flex:1;min-width:5em;accent-color:#2e71e3"/>
<output style="flex:none;min-width:6em;font-variant-numeric:tabular-nums">{label}</output>
</div>
<script>(() => {{
const root = document.currentScript?.closest("figure") ?? document.getElementById("{root}");
const [stage, bar] = root.children, [button, slider, text] = bar.children;
const frames = stage.querySelectorAll(":scope > svg[aria-hidden]");
const labels = bar.dataset.labels.split("\\n");
let shown = {shown}, timer = null;
const go = i => {{
  frames[shown].style.visibility = "hidden";
  frames[shown = i].style.visibility = "visible";
  slider.value = i;
  text.textContent = labels[i];
  slider.setAttribute("aria-valuetext", labels[i]);
}};
const stop = () => {{
  clearInterval(timer);
  timer = null;
  button.textContent = "Play";
}};
slider.oninput = () => {{ stop(); go(+slider.value); }};
button.onclick = () => {{
  if (timer) return stop();
  if (shown === {last}) go(0);
  button.textContent = "Pause";
  timer = setInterval(() => {{ if (shown < {last}) go(shown + 1); else stop(); }}, {pause});
}};
bar.style.visibility = "visible";
}})()</script>
"""


class _Output:
    """HTML for a notebook, the alt text for a terminal."""

    def __init__(self, markup: str, alt: str) -> None:
        self.markup, self.alt = markup, alt

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_html_(self) -> str:
        return self.markup


def _display(markup: str, alt: str) -> None:
    from IPython.display import display

    display(_Output(markup, alt))


def _require_alt(alt: str) -> None:
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError("a figure needs an alt text: say in it what is seen")


def _in_figure(classes: str, body: str, alt: str, caption: str, root: str = "") -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(caption))
    text = re.sub(r"\*(\S[^*]*)\*", r"<em>\1</em>", text)
    if text:
        style = (
            "color:inherit;font-size:.9em;font-weight:normal;text-align:center;"
            "max-width:40em;margin:.4em auto 0"
        )
        text = f'<figcaption style="{style}">{text}</figcaption>'
    # JupyterLab strips SVG and <template> tags from a notebook it does not trust: this is left.
    untrusted = f"{html.escape(alt)} (Run the cell, or trust the notebook, to see the figure.)"
    name = f' id="{root}"' if root else ""
    return (
        f'<figure class="{classes}"{name} style="margin:1em 0">{body}'
        f"<template><p>{untrusted}</p></template>{text}</figure>"
    )


def _scrubber_dpi(frames: Sequence[Figure | np.ndarray]) -> int:
    """The resolution of point clouds, lowered where the animation would grow too heavy."""
    ends = [frame for frame in (frames[0], frames[-1]) if isinstance(frame, Figure)]
    sizes = [len(svg.markup(svg.of_figure(frame, 100, INK))) for frame in ends]
    weight = max(sizes, default=0) * len(frames)
    return round(100 * min(1, max(0.75, math.sqrt(_SCRUBBER_BYTES / max(weight, 1)))))


def _bytes(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
