"""matplotlib's figures as inline SVG whose colours are the page's, light or dark.

A figure is drawn in placeholder colours. In the SVG each becomes a CSS variable of the page, each
id gets the figure's name in front, so that several figures fit into one page.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, FAINT, PAPER = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0a00{number:02d}" for number in range(1, 9))
HATCHES = ("", "///", "\\\\\\", "xxx", "---", "|||", "+++", "//////")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), "--")
_VARIABLES = {INK: "ink", FAINT: "faint", PAPER: "paper"}
_VARIABLES |= {colour: f"s{number}" for number, colour in enumerate(SERIES, 1)}
_COLOURS = re.compile("|".join(_VARIABLES))
_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Drawing:
    """A figure of the page. svg: its markup, nothing of which is the user's. width: in pixels."""

    caption: str
    svg: str
    width: int
    wide: bool = False


@contextmanager
def style() -> Iterator[None]:
    """Within it figures are drawn as the page needs them."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure (inches), and its axes: one, or an array of them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def plain_axes(axes: Axes, grid: str = "") -> None:
    """Without marks on its sides; grid: "x", "y" or none."""
    axes.tick_params(length=2)
    if grid:
        axes.grid(axis=grid)  # type: ignore[arg-type]
        axes.set_axisbelow(True)


def drawing(
    figure: Figure, name: str, caption: str, links: Mapping[str, str] | None = None
) -> Drawing:
    """The figure as SVG. name: of the figure in its page; links: what each `href` leads to, in
    words; None: it has none, and is one image to a screen reader.
    """
    buffer = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root):
        if element.tag == f"{{{_SVG}}}metadata":
            root.remove(element)
    _own_ids(root, name)
    _own_colours(root)
    pixels = round(figure.get_figwidth() * 96)
    for side in ("width", "height"):
        root.attrib.pop(side, None)
    root.set("aria-label", caption)
    root.set("role", "img" if links is None else "group")
    for anchor in root.iter(f"{{{_SVG}}}a"):
        target = anchor.attrib.get(f"{{{_LINK}}}href", "")
        anchor.set("aria-label", (links or {}).get(target, target))
        anchor.attrib.pop("target", None)
        anchor.set("role", "link")
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    return Drawing(caption, ElementTree.tostring(root, encoding="unicode"), pixels)


def _own_ids(root: ElementTree.Element, name: str) -> None:
    used = {element.attrib[f"{{{_LINK}}}href"] for element in root.iter() if _refers(element)}
    for element in root.iter():
        held = element.attrib.get("id")
        if held is not None and element.tag == f"{{{_SVG}}}g" and f"#{held}" not in used:
            del element.attrib["id"]
        elif held is not None:
            element.set("id", f"{name}-{held}")
        if _refers(element) and element.tag == f"{{{_SVG}}}use":
            href = f"{{{_LINK}}}href"
            element.set(href, f"#{name}-{element.attrib[href][1:]}")
        for key, value in element.attrib.items():
            if "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))


def _refers(element: ElementTree.Element) -> bool:
    return element.attrib.get(f"{{{_LINK}}}href", "").startswith("#")


def _own_colours(root: ElementTree.Element) -> None:
    for element in root.iter():
        for key, value in element.attrib.items():
            if key in ("style", "fill", "stroke") and "#0" in value:
                found = _COLOURS.sub(lambda match: f"var(--{_VARIABLES[match[0]]})", value)
                if key == "style":
                    element.set(key, found)
                else:  # an attribute takes no variable, a style does
                    del element.attrib[key]
                    held = element.attrib.get("style", "")
                    element.set("style", f"{key}: {found}; {held}")
