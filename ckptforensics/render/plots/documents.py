"""The table of drawings: which function draws a kind of document."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ckptforensics.errors import UsageError
from ckptforensics.render.plots.files import (
    check_plot_path,
    drawing_settings,
    require_matplotlib,
    svg_element,
    write_figure,
)
from ckptforensics.results import Document

if TYPE_CHECKING:
    from ckptforensics.render.plots.drawing import Drawing

# Kind to module and function, which are imported when they are used.
_DRAWINGS: Mapping[str, str] = MappingProxyType(
    {
        "layers": "layers:draw_layers",
        "norms": "norms:draw_norms",
        "comparison": "comparison:draw_comparison",
        "evolution": "evolution:draw_evolution",
        "trace": "trace:draw_trace",
        "empirical": "empirical:draw_empirical",
        "sinks": "sinks:draw_sinks",
        "ablation": "ablation:draw_ablation",
        "paths": "paths:draw_paths",
        "quantization": "quantized:draw_quantization",
        "toy": "toy:draw_toy",
    }
)


def plot_document(document: Document, path: str | Path) -> None:
    """Draw a document to a .png, .svg or .pdf file, the same bytes for the same document.

    Raises
    ------
    UsageError
        if its kind has no drawing, or it has nothing to draw, or as `check_plot_path`.
    MissingDependency
        if matplotlib is not installed.
    OutputError
        if the file cannot be written.
    """
    check_plot_path(path)
    from ckptforensics.render.plots.drawing import put_caption

    with drawing_settings():
        write_figure(put_caption(_drawing(document)), Path(path))


class Picture(NamedTuple):
    """A drawing as an SVG element, and its caption; a notebook's cell shows both."""

    svg: str
    caption: str

    def __repr__(self) -> str:
        return self.caption

    def _repr_html_(self) -> str:
        return f"<figure>{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"


def picture(document: Document) -> Picture:
    """The drawing of a document, to stand inside a page or a notebook.

    Raises
    ------
    UsageError
        if its kind has no drawing, or it has nothing to draw.
    MissingDependency
        if matplotlib is not installed.
    """
    require_matplotlib()
    with drawing_settings():
        drawing = _drawing(document)
        return Picture(svg_element(drawing.figure, document.kind), drawing.caption)


def _drawing(document: Document) -> Drawing:
    home = _DRAWINGS.get(document.kind)
    if home is None:
        raise UsageError(
            f"a {document.kind} document has no drawing",
            hint=f"there are drawings of: {', '.join(sorted(_DRAWINGS))}",
        )
    module, function = home.split(":")
    drawing: Drawing = getattr(import_module(f"ckptforensics.render.plots.{module}"), function)(
        document
    )
    return drawing
