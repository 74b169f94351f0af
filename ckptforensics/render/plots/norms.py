"""Norms of single tokens drawn with matplotlib (optional), in the manner of the paper's Fig. 7."""

from __future__ import annotations

from ckptforensics.quantities import number
from ckptforensics.render.plots.drawing import (
    MAIN,
    OTHER,
    Drawing,
    layer_axis,
    log_axis,
    new_figure,
    positive,
)
from ckptforensics.results import NormsDocument

_MOST_LINES = 400
_TOKENS = "#9aa5b1"


def draw_norms(document: NormsDocument) -> Drawing:
    """The norm of every token after each layer on a logarithmic axis, and their median.

    The first token, by default the begin-of-sequence token, is drawn apart. Of very many tokens an
    even choice is drawn; the median is of all.
    """
    how = "" if document.attention else ", attention left out"
    figure = new_figure(document.model, f"norms of single tokens{how}", 7.2, 4.6)
    axes = figure.subplots()
    stages = document.stages
    layers = range(len(stages))
    count = len(document.tokens)
    step = -(-count // _MOST_LINES)
    for i in range(count - 1, 0, -step):
        axes.plot(
            layers, positive(s.norms[i] for s in stages), color=_TOKENS, linewidth=0.5, alpha=0.6
        )
    median = [stage.median for stage in stages]
    axes.plot(
        layers, positive(median), color=MAIN, linewidth=2, label=f"median of {count:,} tokens"
    )
    first = document.tokens[0]
    label = "first random vector" if first is None else f"token {first}"
    own = [stage.norms[0] for stage in stages]
    axes.plot(layers, positive(own), color=OTHER, linewidth=1.6, linestyle="--", label=label)
    log_axis(axes, [value for stage in stages for value in stage.norms])
    layer_axis(axes)
    axes.set_ylabel("norm of the residual stream")
    axes.legend(frameon=False, fontsize=8)
    peak = max(range(len(stages)), key=lambda i: median[i])
    where = "before layer 1" if peak == 0 else f"after layer {peak}"
    return Drawing(
        figure,
        "Each thin line is one token alone at position 0, followed through the weights. Their "
        f"median is highest {where}: {number(median[peak])}.",
    )
