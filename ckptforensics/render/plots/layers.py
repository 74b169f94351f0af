"""What marks explosion and decay layers, layer by layer."""

from __future__ import annotations

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
    layer_axis,
    log_axis,
    new_figure,
    plain,
    positive,
)
from ckptforensics.results import LayersDocument
from ckptforensics.results.records import rollout_incomplete

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# An eigenvector this near to a direction is shown as being about it.
_NEAR_DEG = 45


def draw_layers(document: LayersDocument) -> Drawing:
    """Rollout ratio, answer to the trigger and gap of each layer, those with a label marked.

    Where the directions of running text are known, also the angle of u1 and of the nearest
    eigenvector of R to them, and its eigenvalue (Fig. 4 and 5 of the paper).
    """
    beside = 2 if document.empirical else 0
    height = 7.0 + 2.2 * beside
    figure = new_figure(
        document.model, "explosion and decay layers and their evidence", 8.5, height
    )
    panels: dict[str, list[float | None]] = {
        "growth of single\ntokens' norm, median": [row.rollout_ratio for row in document.layers],
        "norm of the FFN's\nanswer to its trigger": [row.trigger_norm for row in document.layers],
        "gap of L:\ns1 / s2": [row.gap for row in document.layers],
    }
    numbers = [row.layer for row in document.layers]
    drawn = figure.subplots(len(panels) + beside, 1, sharex=True)
    for i, (axes, (name, values)) in enumerate(zip(drawn, panels.items(), strict=False)):
        if i == 0:
            axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
        _marked(axes, document, with_labels=i == 0)
        axes.plot(numbers, positive(values), "o-", color="black", markersize=3, linewidth=1)
        log_axis(axes, [*values, 1] if i == 0 else values)
        layer_axis(axes, embedding=False)
        axes.set_ylabel(name, fontsize=9)
        if i < len(drawn) - 1:
            axes.set_xlabel("")
        if not any(value is not None and value > 0 for value in values):
            axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes)
            axes.set_yticks([])
    if beside:
        _angles(drawn[-2], document)
        _eigenvalues(drawn[-1], document)
    if document.explosion or document.decay:
        drawn[0].legend(fontsize=9, framealpha=0.9)
    return Drawing(figure, _caption(document))


def _angles(axes: Axes, document: LayersDocument) -> None:
    """Angle of u1 (filled) and of the nearest eigenvector of R (hollow) to each direction."""
    numbers = [row.layer for row in document.layers]
    _marked(axes, document, with_labels=False)
    for found, mark in zip(document.empirical, cycle(MARKS)):
        name = "layers {} to {}".format(*found.plateau)
        axes.plot(numbers, found.angles_deg, f"{mark}-", color="black", markersize=3, linewidth=1)
        axes.plot([], [], f"{mark}-", color="black", markersize=4, label=f"u1, {name}")
        nearest = [nan if e is None else e.angle_deg for e in found.eigenvalues]
        if nearest:
            axes.plot(
                numbers,
                nearest,
                f"{mark}:",
                color=FAINT,
                markerfacecolor="white",
                markersize=4.5,
                linewidth=0.8,
                label=f"eigenvector of R, {name}",
            )
    axes.set_ylim(-3, 93)
    axes.set_yticks([0, 30, 60, 90])
    axes.set_ylabel("degrees to tokens\nof running text", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    plain(axes)


def _eigenvalues(axes: Axes, document: LayersDocument) -> None:
    """Real part of the eigenvalue of R nearest each direction, filled where it is near."""
    from matplotlib.ticker import SymmetricalLogLocator

    numbers = [row.layer for row in document.layers]
    _marked(axes, document, with_labels=False)
    axes.axhline(0, color=FAINT, linewidth=0.8, linestyle=":")
    for found, mark in zip(document.empirical, cycle(MARKS)):
        pairs = [(n, e) for n, e in zip(numbers, found.eigenvalues, strict=False) if e is not None]
        for near, color in ((True, "black"), (False, "white")):
            chosen = [(n, e.real) for n, e in pairs if (e.angle_deg < _NEAR_DEG) == near]
            axes.plot(
                [n for n, _ in chosen],
                [value for _, value in chosen],
                mark,
                color=FAINT,
                markerfacecolor=color,
                markersize=5,
            )
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    locator = SymmetricalLogLocator(base=10, linthresh=1)
    locator.set_params(numticks=5)
    axes.yaxis.set_major_locator(locator)
    layer_axis(axes, embedding=False)
    axes.set_ylabel("eigenvalue of R,\nreal part", fontsize=9)


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
    told = (
        f"From the weights alone: {told}. An explosion layer multiplies the norm of single tokens "
        "along one direction; a decay layer takes it away again."
    )
    if document.empirical:
        told += (
            " Where u1 or an eigenvector of R comes down to 0 degrees, the layer writes the "
            "direction that tokens of high norm have in running text. Eigenvalues are filled "
            f"where that angle is below {_NEAR_DEG} degrees; the paper reads growth from a "
            "positive one and decay from a negative one, but they are of the linear map: what the "
            "true block adds decides."
        )
    return told
