"""What marks explosion and decay layers, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforensics.quantities import number
from ckptforensics.render.plots.drawing import (
    FAINT,
    MAIN,
    OTHER,
    Drawing,
    layer_axis,
    log_axis,
    new_figure,
    positive,
)
from ckptforensics.results import LayersDocument
from ckptforensics.results.records import rollout_incomplete

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_layers(document: LayersDocument) -> Drawing:
    """Rollout ratio, answer to the trigger and gap of each layer, those with a label marked."""
    figure = new_figure(document.model, "explosion and decay layers and their evidence", 8.5, 7.0)
    panels: dict[str, list[float | None]] = {
        "growth of single\ntokens' norm, median": [row.rollout_ratio for row in document.layers],
        "norm of the FFN's\nanswer to its trigger": [row.trigger_norm for row in document.layers],
        "gap of L:\ns1 / s2": [row.gap for row in document.layers],
    }
    numbers = [row.layer for row in document.layers]
    drawn = figure.subplots(len(panels), 1, sharex=True)
    for i, (axes, (name, values)) in enumerate(zip(drawn, panels.items(), strict=True)):
        if i == 0:
            axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
        _marked(axes, document, with_labels=i == 0)
        axes.plot(numbers, positive(values), "o-", color="black", markersize=3, linewidth=1)
        log_axis(axes, [*values, 1] if i == 0 else values)
        layer_axis(axes, embedding=False)
        axes.set_ylabel(name, fontsize=9)
        if i < len(panels) - 1:
            axes.set_xlabel("")
        if not any(value is not None and value > 0 for value in values):
            axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes)
            axes.set_yticks([])
    if document.explosion or document.decay:
        drawn[0].legend(fontsize=9, framealpha=0.9)
    return Drawing(figure, _caption(document))


def _marked(axes: Axes, document: LayersDocument, *, with_labels: bool) -> None:
    """A line through each layer that has a label, and its mark above."""
    kinds = (
        ("explosion layer", document.explosion, OTHER, "-", "^"),
        ("decay layer", document.decay, MAIN, "--", "v"),
    )
    for name, layers, color, line, mark in kinds:
        for layer in layers:
            axes.axvline(layer, color=color, linestyle=line, linewidth=1.6, alpha=0.7)
        if layers and with_labels:
            axes.plot(
                layers,
                [1.05] * len(layers),
                color=color,
                linestyle=line,
                marker=mark,
                markersize=9,
                linewidth=0,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
            axes.plot([], [], color=color, linestyle=line, marker=mark, markersize=8, label=name)


def _caption(document: LayersDocument) -> str:
    found = {"explosion": document.explosion, "decay": document.decay}
    told = "; ".join(
        f"{name} layers: {', '.join(map(str, layers)) or 'none found'}"
        for name, layers in found.items()
    )
    growth = [(row.rollout_ratio, row.layer) for row in document.layers if row.rollout_ratio]
    if growth:
        ratio, layer = max(growth)
        told += f". Layer {layer} multiplies the norm of single tokens most, in the median by "
        told += number(ratio)
    if rollout_incomplete(document.skipped):
        told += ". No token was followed through every layer"
    return (
        f"From the weights alone: {told}. An explosion layer multiplies the norm of single tokens "
        "along one direction; a decay layer takes it away again."
    )
