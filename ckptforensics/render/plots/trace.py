"""A text through a model: bars of norms, their heat map, the first token (Fig. 1, 13, 16, 17)."""

from __future__ import annotations

from math import log10, nan
from typing import TYPE_CHECKING, Any

from ckptforensics.quantities import error_size, number
from ckptforensics.render.plots.drawing import (
    COLORS,
    MAIN,
    OTHER,
    Drawing,
    heat_map,
    layer_axis,
    log_axis,
    new_figure,
    places_shown,
    positive,
    rows_of,
    token_label,
)
from ckptforensics.results.trace import TraceDocument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

_MOST_BARS, _MOST_NAMES = 1000, 12
# In tokens, so that a single one is a row of bars and no wall.
_LEAST_WIDTH = 4


def draw_trace(document: TraceDocument) -> Drawing:
    """Norms as bars over tokens and layers, as a heat map, and the first token's beside others.

    Of a long text the first tokens are shown and of the others those that go highest.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(document.model, "norm of every token after every layer", 12.0, 8.2)
    top, bottom = rows_of(figure, 1.5, 1)
    highest = [max(row) for row in document.norms]
    shown = places_shown(highest)
    _bars(top, document, shown)
    axes = top.add_subplot(1, 2, 2)
    rows = [[log10(v) if v > 0 else nan for v in document.norms[i]] for i in shown]
    heat_map(axes, list(zip(*rows, strict=True)), "log10 of the norm", None)
    axes.set_xticks(range(len(shown)), _names(document, shown), rotation=90, fontsize=8)
    axes.set_xlabel("token of the text, in order")
    axes.set_ylabel("after layer (0: embedding)")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _path(bottom.subplots(), document)
    first = token_label(document.token_ids[0], document.tokens[0])
    count = len(document.token_ids)
    return Drawing(
        figure,
        f"Length of each token's vector in the residual stream while the model reads "
        f"{_tokens(count)}"
        + (
            f"; {len(shown)} are shown: the first and those that go highest"
            if len(shown) < count
            else ""
        )
        + ". High bars and bright cells are tokens of high norm. The token that goes highest is "
        f"{_highest(document, highest)}. Below, the path of the first token, {first}"
        + (
            ", lies on the path that the weights alone predict (largest difference "
            f"{error_size(document.prediction_error)} of the norm)"
            if document.prediction_error is not None and document.prediction_error < 0.01
            else ", and what the weights alone predict of it"
            if document.predicted is not None
            else ""
        )
        + ".",
    )


def _tokens(count: int) -> str:
    return "one token" if count == 1 else f"{count:,} tokens"


def _highest(document: TraceDocument, highest: list[float]) -> str:
    place = max(range(len(highest)), key=highest.__getitem__)
    layer = document.norms[place].index(highest[place])
    name = token_label(document.token_ids[place], document.tokens[place])
    if document.tokens[place] is None:
        name = f"token {name}"
    where = "before layer 1" if layer == 0 else f"after layer {layer}"
    return f"{name} at place {place + 1}, with {number(highest[place])} {where}"


def _names(document: TraceDocument, shown: list[int]) -> list[str]:
    """What the tokens are called, with their places where some between them are not shown."""
    names = [token_label(document.token_ids[i], document.tokens[i]) for i in shown]
    if len(shown) == len(document.token_ids):
        return names
    return [f"{i + 1}: {name}" for i, name in zip(shown, names, strict=True)]


def _bars(figure: FigureBase, document: TraceDocument, shown: list[int]) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    layers = document.model.num_layers + 1
    step = max(1, -(-layers * len(shown) // _MOST_BARS))
    kept = sorted({*range(0, layers, step), layers - 1})
    axes: Any = figure.add_subplot(1, 2, 1, projection="3d")
    heights = np.array([[document.norms[i][layer] for layer in kept] for i in shown])
    x, y = np.meshgrid(np.arange(len(shown)), kept, indexing="ij")
    largest = float(heights.max()) or 1.0
    colors = colormaps[COLORS](heights.ravel() / largest)
    bars = axes.bar3d(
        x.ravel() - 0.3,
        y.ravel() - 0.4 * step,
        np.zeros(x.size),
        0.6,
        0.8 * step,
        heights.ravel(),
        color=colors,
    )
    bars.set_rasterized(True)
    axes.set_ylim(-0.6 * step, layers - 1 + 0.6 * step)
    every = max(1, -(-len(shown) // _MOST_NAMES))
    names = _names(document, shown)
    axes.set_xticks(
        range(0, len(shown), every), names[::every], rotation=45, ha="right", fontsize=7
    )
    axes.set_xlim(-0.5, max(len(shown), _LEAST_WIDTH) - 0.5)
    axes.tick_params(axis="x", pad=-5)
    axes.tick_params(axis="y", labelsize=8, pad=-2)
    axes.tick_params(axis="z", labelsize=8, pad=3)
    axes.zaxis.set_major_formatter(lambda value, _: number(value))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer")
    # Behind the ticks, whose width differs, it would meet the heat map.
    axes.text2D(0.8, 0.84, "norm", transform=axes.transAxes)
    axes.view_init(elev=24, azim=-52)
    axes.set_box_aspect((1.3, 1.3, 0.95), zoom=1.12)


def _path(axes: Axes, document: TraceDocument) -> None:
    layers = range(document.model.num_layers + 1)
    first = document.norms[0]
    name = token_label(document.token_ids[0], document.tokens[0])
    drawn = [*first]
    if len(document.norms) > 1:
        from statistics import median

        others = [median(column) for column in zip(*document.norms[1:], strict=True)]
        drawn += others
        axes.plot(
            layers,
            positive(others),
            color="0.55",
            linestyle=":",
            linewidth=1.8,
            label="other tokens, median",
        )
    axes.plot(layers, positive(first), color=MAIN, linewidth=3, alpha=0.6, label=f"first: {name}")
    if document.predicted is not None:
        drawn += document.predicted
        axes.plot(
            layers,
            positive(document.predicted),
            color=OTHER,
            linestyle="--",
            marker="x",
            markersize=5,
            linewidth=1,
            label="its prediction by the weights alone",
        )
    log_axis(axes, drawn)
    layer_axis(axes)
    axes.set_ylabel("norm")
    axes.legend(frameon=False, fontsize=9)
