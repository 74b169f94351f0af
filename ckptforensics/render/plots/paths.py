"""Paths of single tokens and random vectors, and what triggers them (Fig. 6 to 9)."""

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
    plain,
    positive,
    rows_of,
    token_label,
)
from ckptforensics.results.paths import PathsDocument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMN_MARKS = "s^Dv"


def draw_paths(document: PathsDocument) -> Drawing:
    """Ranges of norms on the paths, answers of the FFNs, coefficients of the trigger."""
    several = bool(document.coefficients)
    figure = new_figure(document.model, "paths of single tokens, and what triggers", 12.0, 6.8)
    top, bottom = rows_of(figure, 1.25, 1)
    records = {
        "tokens, no attention": document.noninitial,
        "tokens, initial": document.initial,
        "random vectors": document.random,
    }
    panels = top.subplots(1, len(records), sharey=True)
    values = [
        v for r in records.values() for part in (r.minimum, r.median, r.maximum) for v in part
    ]
    looks = ((MAIN, "-", "o"), (OTHER, "--", "s"), (FAINT, ":", "^"))
    for axes, (name, record), (color, line, mark) in zip(
        panels, records.items(), looks, strict=True
    ):
        layers = range(len(record.median))
        least, most = positive(record.minimum), positive(record.maximum)
        axes.fill_between(layers, least, most, color=color, alpha=0.18, linewidth=0)
        axes.plot(layers, most, color=color, linewidth=0.9)
        axes.plot(layers, least, color=color, linewidth=0.9)
        axes.plot(
            layers,
            positive(record.median),
            color=color,
            linestyle=line,
            marker=mark,
            markersize=4,
            linewidth=1.8,
            markevery=max(1, len(layers) // 12),
        )
        log_axis(axes, values)
        layer_axis(axes)
        axes.set_title(f"{name} ({record.count:,})", fontsize=9)
    panels[0].set_ylabel("norm: minimum,\nmedian (marked), maximum")
    below = bottom.subplots(1, 1 + several, squeeze=False, width_ratios=(2, 1)[: 1 + several])[0]
    _answers(below[0], document)
    if several:
        _coefficients(below[1], document)
    return Drawing(figure, _caption(document))


def _answers(axes: Axes, document: PathsDocument) -> None:
    layers = [row.layer for row in document.answers]
    most = max((len(row.norms) for row in document.answers), default=0)
    if not most:
        axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes)
    for i in range(most - 1, -1, -1):
        norms = [row.norms[i] if i < len(row.norms) else None for row in document.answers]
        if i == 0:
            axes.plot(layers, positive(norms), "o-", color=OTHER, markersize=5, label="v1")
        else:
            axes.plot(
                layers,
                positive(norms),
                linestyle="",
                color=FAINT,
                markersize=4,
                marker=_COLUMN_MARKS[(i - 1) % len(_COLUMN_MARKS)],
                fillstyle="none",
                label=f"v{i + 1}",
            )
    if document.trigger_layer is not None:
        axes.axvline(document.trigger_layer, color="black", linestyle="--", linewidth=1)
    log_axis(axes, [value for row in document.answers for value in row.norms])
    layer_axis(axes, embedding=False)
    axes.set_ylabel("norm of the FFN's answer")
    axes.set_title("answers to the leading right singular vectors of each layer's FFN", fontsize=9)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        frameon=False,
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )


def _coefficients(axes: Axes, document: PathsDocument) -> None:
    stats = [
        {
            "whislo": row.quantiles[0],
            "q1": row.quantiles[1],
            "med": row.quantiles[2],
            "q3": row.quantiles[3],
            "whishi": row.quantiles[4],
            "label": f"position {row.position}\n({row.count:,} tokens)",
        }
        for row in document.coefficients
    ]
    axes.bxp(
        stats,
        showfliers=False,
        widths=0.5,
        patch_artist=True,
        boxprops={"facecolor": "0.85", "edgecolor": MAIN},
        medianprops={"color": OTHER, "linewidth": 2},
    )
    axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylabel("coefficient along the trigger")
    axes.set_title(f"trigger of layer {document.trigger_layer}", fontsize=9)
    plain(axes)


def _caption(document: PathsDocument) -> str:
    text = (
        "Above: norms of many single tokens after each layer, without attention (as tokens inside "
        "a text go), with it (as the first token goes), and of random vectors."
    )
    highest = document.initial.highest
    if highest:
        top = highest[0]
        text += f" Highest: {token_label(top.token, top.text)}, {number(top.norm)} after layer "
        text += f"{top.layer}."
    text += " Below: how strongly each FFN answers the directions that it amplifies most"
    if document.trigger_layer is not None:
        text += f"; the dashed line is explosion layer {document.trigger_layer}"
    if document.coefficients:
        text += (
            ". Boxes: how much of its trigger tokens bring, at the first position and behind "
            "another token (ends: smallest and largest, box: middle half, line: median)"
        )
    return text + "."
