"""What all drawings share: which files they go to, and settings that no user changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ckptforensics.errors import MissingDependency, UsageError
from ckptforensics.results import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The same bytes every time: no dates, and no names drawn at random.
_METADATA: Mapping[str, dict[str, Any]] = MappingProxyType(
    {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
)
# A user's own settings must not change the drawing; a name is no formula, whatever is in it.
_SETTINGS: Mapping[Any, Any] = MappingProxyType(
    {"svg.hashsalt": "ckptforensics", "text.parse_math": False}
)


def check_plot_path(path: str | Path) -> None:
    """Refuse, before anything is computed, a file that could not be drawn to.

    Raises
    ------
    UsageError
        if the name does not end in .png, .svg or .pdf.
    MissingDependency
        if matplotlib is not installed.
    """
    file = Path(path)
    if file.suffix.lower() not in _METADATA:
        raise UsageError(
            "a plot is a .png, .svg or .pdf file", path=file, hint="change the name's ending"
        )
    require_matplotlib()


def require_matplotlib() -> None:
    """MissingDependency if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingDependency("a plot needs matplotlib", hint="pip install matplotlib") from None


@contextmanager
def drawing_settings() -> Iterator[None]:
    """Matplotlib's own settings, so that one document and one matplotlib give the same bytes."""
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_SETTINGS}
    del settings["backend"]  # the figure chooses by the format
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A character that the font lacks is drawn as a box, which says as much.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def write_figure(figure: Figure, file: Path) -> None:
    """Write the figure in the format of the file's ending; OutputError if that cannot be."""
    suffix = file.suffix.lower()
    write_atomically(
        file,
        lambda target: figure.savefig(
            target, format=suffix[1:], dpi=150, metadata=_METADATA[suffix]
        ),
    )


def svg_element(figure: Figure, prefix: str) -> str:
    """The figure as an SVG element to stand inside an HTML page, which loads nothing.

    Words stay words, which the page's reader can search and whose letters come from the reader's
    fonts.

    Parameters
    ----------
    prefix : of the element's ids, which must differ between the figures of a page
    """
    import matplotlib

    target = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(target, format="svg", dpi=110, metadata={"Date": None})
    root = ElementTree.fromstring(target.getvalue())  # noqa: S314 - matplotlib wrote it
    for parent in list(root.iter()):
        # What describes the figure is said by the page, and a style would be that of all of it.
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    ids: set[str] = set()
    for element in root.iter():
        # Inside HTML an SVG needs no namespaces.
        element.tag = element.tag.partition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            plain = name.rpartition("}")[2]
            if plain == "id":
                value = f"{prefix}-{value}"
                if value in ids:  # equal images have equal ids, which nothing refers to
                    continue
                ids.add(value)
            elif plain == "href" and value.startswith("#"):
                value = f"#{prefix}-{value[1:]}"
            element.set(plain, value.replace("url(#", f"url(#{prefix}-"))
    root.set("class", "plot")
    root.set("role", "img")
    return ElementTree.tostring(root, encoding="unicode")
