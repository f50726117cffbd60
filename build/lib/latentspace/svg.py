"""Figures as small SVG that a page can hold: short numbers, its own ids, the text's colour.

What `figures` puts on a page is made of this. Elements are trees of the standard library.
"""

import base64
import hashlib
import io
import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

__all__ = ["make_ids_unique", "markup", "of_array", "of_figure", "share_glyphs"]

_MAX_VECTOR_POINTS = 400
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"#([\w.-]+)")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def of_figure(fig: Figure, dpi: int, ink: str) -> ET.Element:
    """Render a figure as a small SVG tree: short numbers, no metadata.

    Point clouds and meshes are pixels, ``dpi`` an inch; what is drawn in the colour ``ink`` takes
    that of the text around the figure.
    """
    with _rasterised(fig), mpl.rc_context({"svg.hashsalt": "latentspace", "svg.fonttype": "path"}):
        buffer = io.BytesIO()
        fig.savefig(buffer, format="svg", dpi=dpi)
    svg = ET.fromstring(buffer.getvalue())
    for parent in list(svg.iter()):
        for child in list(parent):
            # matplotlib's style sheet would reach every drawing of the page
            if child.tag == f"{_SVG}metadata" or child.find(f"{_SVG}style") is not None:
                parent.remove(child)
    for element in svg.iter():
        _shorten(element, ink)
    width, height = (72 * inches for inches in fig.get_size_inches())
    return _sized(svg, width, height, pixels=width * 96 / 72)


def of_array(array: np.ndarray) -> ET.Element:
    """An uint8 image, (H, W) or (H, W, 3), as an SVG tree; ValueError for another array."""
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"a frame is a figure or a uint8 image, not {array.dtype} {array.shape}")
    height, width = array.shape[:2]
    svg = ET.Element("svg")
    image = ET.SubElement(svg, "image", width=str(width), height=str(height))
    image.set("href", _data_uri(Image.fromarray(array)))
    image.set("style", "image-rendering:pixelated" if width < 300 else "")
    return _sized(svg, width, height, pixels=max(width, 300))


def _sized(svg: ET.Element, width: float, height: float, pixels: float) -> ET.Element:
    """As wide as the page allows, at most its natural size, centred."""
    svg.attrib = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "style": f"display:block;width:100%;max-width:{pixels:.0f}px;height:auto;margin:0 auto;"
        "stroke-linejoin:round",
    }
    return svg


class _rasterised:
    """Within it, the artists of a figure with very many points are drawn as pixels."""

    def __init__(self, fig: Figure) -> None:
        self.artists = [a for a in fig.findobj(_is_large) if not a.get_rasterized()]

    def __enter__(self) -> None:
        for artist in self.artists:
            artist.set_rasterized(True)

    def __exit__(self, *_: object) -> None:
        for artist in self.artists:
            artist.set_rasterized(False)


def _is_large(artist: mpl.artist.Artist) -> bool:
    if isinstance(artist, Line2D):
        marked = artist.get_marker() not in ("", " ", "None", None)
        return np.size(artist.get_xdata()) > (_MAX_VECTOR_POINTS if marked else 20_000)
    if not isinstance(artist, Collection):
        return False
    vertices = sum(np.shape(path.vertices)[0] for path in artist.get_paths())
    return np.shape(artist.get_offsets())[0] > _MAX_VECTOR_POINTS or vertices > 20_000


def _shorten(element: ET.Element, ink: str) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    element.text = element.tail = None
    if _XLINK in element.attrib:
        element.set("href", element.attrib.pop(_XLINK))
    for name, value in element.attrib.items():
        if name == "href" and value.startswith("data:"):
            png = base64.b64decode(value.partition(",")[2])
            element.set(name, _data_uri(Image.open(io.BytesIO(png))))
        elif name in ("d", "x", "y", "points", "width", "height"):
            element.set(name, _NUMBER.sub(_two_decimals, " ".join(value.split())))
        elif name == "style":
            short = value.replace(": ", ":").replace("; ", ";")
            element.set(name, short.replace(ink, "currentColor"))


def _two_decimals(match: re.Match) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _data_uri(image: Image.Image) -> str:
    """Encode small: point clouds in 64 colours, pictures so that no eye sees the loss."""
    if _has_soft_edges(image):
        image = image.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        kind, best = "png", _encode(image, "PNG", optimize=True)
    else:
        lossless = _encode(image, "WEBP", lossless=True)
        lossy = _encode(image, "WEBP", quality=88)
        kind, best = "webp", lossy if 1.5 * len(lossy) < len(lossless) else lossless
    return f"data:image/{kind};base64," + base64.b64encode(best).decode()


def _has_soft_edges(image: Image.Image) -> bool:
    if image.mode != "RGBA":
        return False
    alpha = np.asarray(image)[..., 3]
    return bool(np.mean((alpha > 0) & (alpha < 255)) > 0.01)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def share_glyphs(svgs: list[ET.Element]) -> ET.Element:
    """Move the letters of all frames, each once, into one SVG that takes no room."""
    shared = ET.Element("svg", width="0", height="0", style="position:absolute")
    home, seen = ET.SubElement(shared, "defs"), set()
    for svg in svgs:
        for parent in list(svg.iter()):
            for defs in parent.findall("defs"):
                for item in list(defs):
                    if item.tag == "path":
                        defs.remove(item)
                        if item.get("id") not in seen:
                            seen.add(item.get("id"))
                            home.append(item)
                if len(defs) == 0:
                    parent.remove(defs)
    return shared


def make_ids_unique(svgs: list[ET.Element], salt: str) -> str:
    """Drop the ids nobody refers to, and begin the others with a hash of the content."""
    content = salt + "".join(map(markup, svgs))
    prefix = "ls" + hashlib.sha256(content.encode()).hexdigest()[:10]
    elements = [element for svg in svgs for element in svg.iter()]
    used = {
        name
        for element in elements
        for key, value in element.attrib.items()
        if key in ("href", "clip-path", "style", "fill") and not value.startswith("data:")
        for name in _REFERENCE.findall(value)
    }
    for element in elements:
        if element.attrib.get("id") in used:
            element.set("id", f"{prefix}-{element.get('id')}")
        else:
            element.attrib.pop("id", None)
        for key in ("href", "clip-path", "style", "fill"):
            value = element.get(key)
            if value and (value.startswith("#") or "url(#" in value):
                element.set(key, re.sub(r"(^|url\()#", rf"\1#{prefix}-", value))
    return prefix


def markup(svg: ET.Element) -> str:
    """The tree as text."""
    return ET.tostring(svg, encoding="unicode")
