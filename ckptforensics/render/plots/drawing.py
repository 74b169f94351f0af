"""What the drawings of one model share: title and caption, axes, marks, names of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isfinite, nan
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptforensics.errors import one_line
from ckptforensics.quantities import number
from ckptforensics.results.records import ModelRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# What is drawn first, what is drawn beside it, and what stands beside these two.
MAIN, OTHER = "#0b62a8", "#c2410c"
FAINT = "#5b6570"
# In grey its steps are as far apart as in colour, also for the colour-blind.
COLORS = "cividis"
# Lines are told apart by their marks; colours only help.
MARKS = "os^Dv<>PX*"
LONGEST_NAME = 60
_LONGEST_TOKEN = 14
_CHARACTERS_PER_INCH = 15.5
_DECADE = 10.0
_FIRST_TOKENS, _MOST_TOKENS = 16, 32


class Drawing(NamedTuple):
    """A figure, and what it shows in plain words."""

    figure: Figure
    caption: str


def new_figure(model: ModelRecord, what: str, width: float, height: float) -> Figure:
    """An empty figure whose title names the model and what one sees; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    lines = wrap(f"{model_name(model)}: {what}", int(width * _CHARACTERS_PER_INCH * 0.75))
    figure.suptitle("\n".join(lines), fontsize=11)
    return figure


def rows_of(figure: Figure, *heights: float) -> list[SubFigure]:
    """Parts of the figure below one another, of these relative heights."""
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    return list(parts)


def columns_of(figure: Figure, *widths: float) -> list[SubFigure]:
    """Parts of the figure beside one another, of these relative widths."""
    parts: Any = figure.subfigures(1, len(widths), width_ratios=widths)
    return list(parts)


def put_caption(drawing: Drawing) -> Figure:
    """The figure with its caption, if it has one, below it in lines that fit."""
    figure = drawing.figure
    if not drawing.caption:
        return figure
    width = int(figure.get_figwidth() * _CHARACTERS_PER_INCH)
    text = "\n".join(wrap(drawing.caption, width))
    figure.supxlabel(text, fontsize=8.5, color="0.25", x=0.01, ha="left")
    return figure


def model_name(model: ModelRecord) -> str:
    """The last part of the model's path, on one line, its middle left out if it is long."""
    name = one_line(Path(model.path).name or model.path)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME // 2]}...{name[-LONGEST_NAME // 2 + 3 :]}"


def token_label(token: int | None, text: str | None) -> str:
    """A token as an axis can show it: its text between quotes, or its number."""
    if token is None:
        return "random"
    if text is None:
        return str(token)
    shown = one_line(text)
    return f"'{shown}'" if len(shown) <= _LONGEST_TOKEN else f"'{shown[: _LONGEST_TOKEN - 3]}...'"


def places_shown(highest: Sequence[float]) -> list[int]:
    """Which of many tokens are shown: the first ones, and of the others those that go highest.

    Parameters
    ----------
    highest : each token's highest norm
    """
    count = len(highest)
    if count <= _MOST_TOKENS:
        return list(range(count))
    rest = sorted(range(_FIRST_TOKENS, count), key=lambda i: -highest[i])
    return sorted([*range(_FIRST_TOKENS), *rest[: _MOST_TOKENS - _FIRST_TOKENS]])


def layer_axis(axes: Axes, *, embedding: bool = True) -> None:
    """Whole layers along x; 0 is what enters the first one."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("after layer (0: embedding)" if embedding else "layer")
    plain(axes)


def log_axis(axes: Axes, values: Iterable[float | None], *, along: str = "y") -> None:
    """A logarithmic axis whose ticks are numbers, if any value has a logarithm.

    Parameters
    ----------
    values : all that is drawn along it
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    drawn = [v for v in values if v is not None and isfinite(v) and v > 0]
    if not drawn:
        return
    axis = axes.yaxis if along == "y" else axes.xaxis
    (axes.set_yscale if along == "y" else axes.set_xscale)("log")

    # matplotlib would write powers of ten as formulas, which no text here may be.
    def written(value: float, _: Any) -> str:
        return number(value)

    axis.set_major_formatter(written)
    if max(drawn) / min(drawn) < _DECADE / 2:  # there may be no power of ten among them
        axis.set_minor_formatter(written)
    else:
        axis.set_minor_formatter(NullFormatter())
        if along == "x":  # long numbers stand beside one another
            axis.set_major_locator(LogLocator(numticks=5))
    axes.tick_params(axis="y" if along == "y" else "x", which="minor", labelsize=8)


def positive(values: Iterable[float | None]) -> list[float]:
    """The values as a logarithmic axis can have them: a gap for what is not positive."""
    return [nan if v is None or v <= 0 else v for v in values]


def plain(axes: Axes) -> None:
    """Without the edges that say nothing."""
    axes.spines[["top", "right"]].set_visible(False)


def heat_map(
    axes: Axes, rows: Sequence[Sequence[float]], label: str, limits: tuple[float, float] | None
) -> None:
    """A table of numbers as colours, its first row below; `label` names the colour's scale."""
    import numpy as np

    table = np.array(rows, float)
    low, high = limits or _limits(table.ravel().tolist())
    axes.set_facecolor("0.85")  # where there is no number
    image = axes.imshow(
        table,
        origin="lower",
        aspect="auto",
        cmap=COLORS,
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    bar = axes.figure.colorbar(image, ax=axes, label=label, pad=0.02)
    bar.outline.set_visible(False)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    low, high = inf, -inf
    for value in values:
        if isfinite(value):
            low, high = min(low, value), max(high, value)
    if low > high:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)
