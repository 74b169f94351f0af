"""Tokens of high norm in running text: both populations of norms, plateaus, their direction."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ckptforensics.quantities import counted, number, percent
from ckptforensics.render.plots.drawing import (
    MAIN,
    OTHER,
    Drawing,
    layer_axis,
    log_axis,
    new_figure,
    plain,
    positive,
    rows_of,
    token_label,
)
from ckptforensics.results.empirical import EmpiricalDocument, Plateau

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PLATEAUS, _MOST_BARS = 4, 8


def draw_empirical(document: EmpiricalDocument) -> Drawing:
    """Norms of ordinary tokens and of high ones after each layer, and the plateaus' directions.

    Of many plateaus the directions of those with the most states are drawn.
    """
    what = "tokens of high norm in running text"
    largest = sorted(document.plateaus, key=lambda p: -p.states)[:_MOST_PLATEAUS]
    shown = sorted(largest, key=lambda p: p.layers)
    figure = new_figure(document.model, what, 9.0, 6.4 if shown else 4.2)
    if shown:
        top, bottom = rows_of(figure, 1.9, 1)
        axes = top.subplots()
        below = bottom.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for i, (panel, plateau) in enumerate(zip(below, shown, strict=True)):
            _direction(panel, plateau)
            if i == 0:
                panel.set_ylabel("component of the\nmean direction", fontsize=9)
    else:
        axes = figure.subplots()
    _populations(axes, document)
    return Drawing(figure, _caption(document))


def _populations(axes: Axes, document: EmpiricalDocument) -> None:
    from matplotlib.transforms import blended_transform_factory

    rows = document.layers
    layers = [row.layer for row in rows]
    high = [None if row.ratio is None or row.high is None else row.high for row in rows]
    # The ratio is that of the populations' medians; nearly all tokens are ordinary.
    top = [None if row.ratio is None else row.ratio * row.median for row in rows]
    for layer, low, middle in zip(layers, high, top, strict=True):
        if low is not None and middle is not None:
            axes.plot([layer, layer], [low, max(low, middle)], color=OTHER, linewidth=5, alpha=0.35)
    axes.plot(
        layers,
        positive(row.median for row in rows),
        "o-",
        color=MAIN,
        markersize=3,
        label="median of all tokens",
    )
    axes.plot(
        layers,
        positive(row.ordinary for row in rows),
        color=MAIN,
        linestyle=":",
        label="highest ordinary token",
    )
    axes.plot(
        layers,
        positive(top),
        "D-",
        color=OTHER,
        markersize=4,
        linewidth=0.8,
        label="median of the high (about)",
    )
    axes.plot(
        layers,
        positive(high),
        "v",
        color=OTHER,
        markersize=5,
        fillstyle="none",
        label="lowest high token",
    )
    axes.plot(
        layers,
        positive(row.threshold for row in rows),
        "--",
        color="black",
        linewidth=1.2,
        label="threshold",
    )
    values = [*(row.median for row in rows), *high, *top, *(row.ordinary for row in rows)]
    log_axis(axes, [*values, *(row.threshold for row in rows)])
    layer_axis(axes)
    axes.set_ylabel("norm")
    place = blended_transform_factory(axes.transData, axes.transAxes)
    ends = [plateau.layers for plateau in document.plateaus]
    crowded = any(b[0] - a[0] < len(layers) / 12 for a, b in pairwise(sorted(ends)))
    for plateau in document.plateaus:
        first, last = plateau.layers
        axes.axvspan(
            first - 0.5,
            last + 0.5,
            facecolor="0.9",
            edgecolor="0.6",
            linewidth=0.6,
            zorder=0,
        )
        axes.text(
            (first + last) / 2,
            1.02,
            _span(plateau),
            transform=place,
            ha="center",
            va="bottom",
            fontsize=8,
            rotation=60 if crowded else 0,
        )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def _span(plateau: Plateau) -> str:
    first, last = plateau.layers
    return f"layers {first}-{last}"


def _direction(axes: Axes, plateau: Plateau) -> None:
    top = plateau.direction_top[:_MOST_BARS]
    colors = [MAIN if value >= 0 else OTHER for _, value in top]
    axes.bar(range(len(top)), [value for _, value in top], color=colors, edgecolor="black", lw=0.5)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(top)), [str(i) for i, _ in top], rotation=90, fontsize=8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel("coordinate", fontsize=9)
    axes.set_title(_span(plateau), fontsize=9)
    plain(axes)


def _caption(document: EmpiricalDocument) -> str:
    read = f"Norms in the residual stream over {counted(document.text.tokens, 'token')} of text."
    if not document.plateaus:
        return f"{read} No tokens stand out in two layers or more."
    most = max(document.plateaus, key=lambda p: p.states)
    names = ", ".join(dict.fromkeys(token_label(t.token, t.text) for t in most.tokens[:3]))
    span = _span(most)
    return (
        f"{read} Shaded: plateaus, layers after which the same few tokens have a high norm. Most "
        f"are in {span}: {counted(most.count, 'token')} with norm {number(most.median_norm)}, "
        f"{percent(most.initial_share)} of them the first of their window"
        + (f" (most often: {names})" if names else "")
        + ". Bars below: the largest coordinates of the direction that they share."
    )
