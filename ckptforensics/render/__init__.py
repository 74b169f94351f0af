"""Renderers: a result document in, text out. They see documents and nothing else."""

from typing import TYPE_CHECKING

from ckptforensics.deferred import on_first_use
from ckptforensics.render.renderers import FORMATS, formats_of, render, render_several

if TYPE_CHECKING:
    from ckptforensics.render.plots.documents import Picture, picture, plot_document
    from ckptforensics.render.plots.files import check_plot_path

__all__ = [
    "FORMATS",
    "Picture",
    "check_plot_path",
    "formats_of",
    "picture",
    "plot_document",
    "render",
    "render_several",
]

__getattr__ = on_first_use(
    __name__,
    {
        "Picture": "plots.documents",
        "check_plot_path": "plots.files",
        "picture": "plots.documents",
        "plot_document": "plots.documents",
    },
)
