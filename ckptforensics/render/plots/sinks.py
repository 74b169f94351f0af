"""Attention sinks: which heads have one, and norms of the token that they attend to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforensics.quantities import percent
from ckptforensics.render.plots.drawing import (
    MAIN,
    OTHER,
    Drawing,
    columns_of,
    heat_map,
    layer_axis,
    log_axis,
    new_figure,
    positive,
)
from ckptforensics.results.running import TextRecord
from ckptforensics.results.sinks import SinkLayer, SinksDocument

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_sinks(document: SinksDocument) -> Drawing:
    """Share of windows in which each head has a sink, of one text or two; norms layer by layer."""
    maps = [(document.text, document.layers)]
    if document.other is not None and document.other_layers:
        maps.append((document.other, document.other_layers))
    what = f"attention heads that attend to token {document.k}"
    figure = new_figure(document.model, what, 5.0 + 3.6 * len(maps), 5.2)
    left, right = columns_of(figure, 3.6 * len(maps), 4.6)
    panels = left.subplots(1, len(maps), squeeze=False)[0]
    for axes, (text, layers) in zip(panels, maps, strict=True):
        _map(axes, text, layers)
    values, stream = right.subplots(2, 1, sharex=True)
    named = f"token {document.k}"
    given = [row.value_norm for row in document.layers]
    numbers = [row.layer for row in document.layers]
    first = [None if pair is None else pair[0] for pair in given]
    others = [None if pair is None else pair[1] for pair in given]
    _norms(values, numbers, (first, others), named)
    values.set_ylabel("norm of what attention\nreads from it", fontsize=9)
    values.set_xlabel("")
    values.legend(frameon=False, fontsize=8, loc="best")
    if all(pair is None for pair in given):
        values.text(0.5, 0.5, "not known", ha="center", va="center", transform=values.transAxes)
        values.set_yticks([])
    residual = [row.residual_norm for row in document.layers]
    _norms(stream, numbers, ([a for a, _ in residual], [b for _, b in residual]), named)
    stream.set_ylabel("norm in the residual\nstream before the layer", fontsize=9)
    return Drawing(figure, _caption(document))


def _map(axes: Axes, text: TextRecord, layers: tuple[SinkLayer, ...]) -> None:
    from ckptforensics.errors import one_line

    heads = max(len(row.heads) for row in layers)
    rows = [[*row.heads, *[float("nan")] * (heads - len(row.heads))] for row in layers]
    heat_map(axes, rows, "share of windows in which the head has a sink", (0.0, 1.0))
    axes.set_yticks(*_ticks([row.layer for row in layers]))
    axes.set_xticks(*_ticks(list(range(heads))))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    name = one_line(text.source)
    axes.set_title(name if len(name) <= 36 else f"{name[:33]}...", fontsize=9)


def _ticks(numbers: list[int]) -> tuple[list[int], list[str]]:
    """Places and names of at most a dozen of them."""
    step = max(1, -(-len(numbers) // 12))
    places = list(range(0, len(numbers), step))
    return places, [str(numbers[i]) for i in places]


def _norms(
    axes: Axes,
    layers: list[int],
    pair: tuple[list[float | None] | list[float], list[float | None] | list[float]],
    named: str,
) -> None:
    first, others = pair
    axes.plot(layers, positive(first), "o-", color=OTHER, markersize=4, label=named)
    axes.plot(layers, positive(others), "s--", color=MAIN, markersize=3, label="other tokens, mean")
    log_axis(axes, [*first, *others])
    layer_axis(axes, embedding=False)


def _caption(document: SinksDocument) -> str:
    least, token = f"{document.threshold:g}", f"token {document.k}"
    text = (
        f"Bright cells: heads that give more than {least} of their attention to {token} in most "
        f"windows; over all windows, layers and heads that is {percent(document.share)}"
    )
    if document.other_share is not None:
        text += f" (other text: {percent(document.other_share)})"
    return (
        f"{text}. Right: the norm of what attention reads from {token} beside that of other tokens "
        "in the mean; below, how long their vectors in the residual stream are."
    )
