"""The table of drawings: which function draws a kind of document."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from ckptforensics.errors import UsageError
from ckptforensics.results import Document

# Kind to module and function, which are imported when they are used.
_DRAWINGS: Mapping[str, str] = MappingProxyType(
    {
        "norms": "norms:plot_norms",
        "comparison": "comparison:plot_comparison",
    }
)


def plot_document(document: Document, path: str | Path) -> None:
    """Draw a document to a .png, .svg or .pdf file.

    Raises
    ------
    UsageError
        if its kind has no drawing, or as `check_plot_path`.
    OutputError
        if the file cannot be written.
    """
    home = _DRAWINGS.get(document.kind)
    if home is None:
        raise UsageError(
            f"a {document.kind} document has no drawing",
            hint=f"there are drawings of: {', '.join(sorted(_DRAWINGS))}",
        )
    module, function = home.split(":")
    getattr(import_module(f"ckptforensics.render.plots.{module}"), function)(document, path)
