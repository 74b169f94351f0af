"""Norms and directions along checkpoints drawn with matplotlib (the paper's Fig. 11, 12 and 14)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import nan
from typing import TYPE_CHECKING

from ckptforensics.quantities import number
from ckptforensics.render.plots.drawing import (
    FAINT,
    MAIN,
    MARKS,
    OTHER,
    Drawing,
    log_axis,
    new_figure,
    plain,
    positive,
)
from ckptforensics.results.evolution import AngleRecord, EvolutionDocument, LayerEvolution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More would not be told apart.
_MOST_LAYERS = 8


def draw_evolution(document: EvolutionDocument) -> Drawing:
    """Largest norms, and angles of u1 to the last checkpoint and to the one before, by step.

    Of the layers that ever have a label; of all where none has. Where u1 is not clear, the mark is
    hollow.
    """
    figure = new_figure(document.model, "norms and directions along checkpoints", 7.6, 7.4)
    norms, last, before = figure.subplots(3, 1, sharex=True)
    steps = [one.step for one in document.checkpoints]
    peaks = [one.norm_peak for one in document.checkpoints]
    typical = [None if p.typical is None else p.typical.norm for p in peaks]
    initial = [None if p.initial is None else p.initial.norm for p in peaks]
    norms.plot(steps, positive(typical), "o-", color=MAIN, markersize=4, label="tokens, median")
    if any(initial):
        norms.plot(steps, positive(initial), "s--", color=OTHER, markersize=4, label="begin token")
    log_axis(norms, [*typical, *initial])
    norms.set_ylabel("largest norm", fontsize=9)
    if not any(typical) and not any(initial):
        norms.text(0.5, 0.5, "not known", ha="center", va="center", transform=norms.transAxes)
    layers = _shown(document)
    for axes, name in ((last, "to the last one"), (before, "to the one before")):
        for layer, mark in zip(layers, cycle(MARKS)):
            states = layer.checkpoints
            angles = [s.u_last if axes is last else s.u_previous for s in states]
            _line(axes, steps, angles, mark, f"layer {layer.layer}")
        axes.set_ylim(-3, 93)
        axes.set_yticks([0, 30, 60, 90])
        axes.set_ylabel(f"degrees of u1\n{name}", fontsize=9)
    last.axhline(document.settles_deg, color=FAINT, linewidth=0.8, linestyle=":")
    for axes in (norms, last, before):
        _labelled(axes, document)
        plain(axes)
    before.set_xlabel("checkpoint" if document.steps_from == "order" else "step")
    norms.legend(frameon=False, fontsize=8)
    last.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return Drawing(figure, _caption(document, len(layers)))


def _shown(document: EvolutionDocument) -> list[LayerEvolution]:
    """The layers with the largest gaps at the end, in order."""
    found = document.labelled_layers or list(document.layers)
    largest = sorted(found, key=lambda one: -one.checkpoints[-1].gap)[:_MOST_LAYERS]
    return sorted(largest, key=lambda one: one.layer)


def _line(
    axes: Axes, steps: Sequence[int], angles: Sequence[AngleRecord | None], mark: str, name: str
) -> None:
    """A line through all angles, its marks filled where u1 is clear."""
    degrees = [nan if one is None else one.degrees for one in angles]
    axes.plot(steps, degrees, "-", color=FAINT, linewidth=0.8)
    for clear, fill in ((True, "black"), (False, "white")):
        chosen = [
            (step, one.degrees)
            for step, one in zip(steps, angles, strict=True)
            if one is not None and one.clear == clear
        ]
        axes.plot(
            [step for step, _ in chosen],
            [value for _, value in chosen],
            mark,
            color="black",
            markerfacecolor=fill,
            markersize=5,
        )
    axes.plot([], [], f"{mark}-", color="black", markersize=5, linewidth=0.8, label=name)


def _labelled(axes: Axes, document: EvolutionDocument) -> None:
    """A line where the defect layer's label begins."""
    defect = document.defect
    if defect is not None and defect.labelled is not None:
        axes.axvline(defect.labelled, color=OTHER, linewidth=1, linestyle="--", alpha=0.7)


def _caption(document: EvolutionDocument, layers: int) -> str:
    defect, peak = document.defect, document.norm_peak.typical
    told = "From the weights alone. "
    if peak is not None:
        told += (
            f"The median norm of single tokens is largest, {number(peak.norm)}, after layer "
            f"{peak.layer} at step {peak.step:,}. "
        )
    if defect is None:
        told += "The last checkpoint has no explosion or decay layer. "
    else:
        begins = [
            f"{word} at step {step:,}"
            for word, step in (("appears", defect.appears), ("settles", defect.settles))
            if step is not None
        ]
        told += f"The direction of layer {defect.layer} "
        told += f"{' and '.join(begins)}" if begins else "is that of the last checkpoint alone"
        told += (
            "; the layer is labelled an "
            if defect.label == "explosion"
            else "; the layer is labelled a "
        )
        told += f"{defect.label} layer from step {defect.labelled:,} on (dashed line). "
    which = "layers that have a label" if document.labelled_layers else "layers"
    told += (
        f"Angles are those of the {layers} {which} whose s1 stands out most. Marks are hollow "
        f"where s1 is less than {document.clear_gap:g} times s2 in one of the two: u1 is "
        "hardly determined there. The dotted line is the angle below which a direction has settled."
    )
    return told
