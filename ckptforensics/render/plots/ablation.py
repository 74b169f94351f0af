"""A model with one thing taken away: norms layer by layer, and perplexity."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from ckptforensics.quantities import counted, number
from ckptforensics.render.plots.drawing import (
    COLORS,
    FAINT,
    MARKS,
    Drawing,
    layer_axis,
    log_axis,
    new_figure,
    plain,
    positive,
)
from ckptforensics.results.ablation import AblationDocument, AblationRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 24


def draw_ablation(document: AblationDocument) -> Drawing:
    """Norms of the first token after each layer, and perplexity, for each row of the document.

    Controls are dashed lines and hatched bars, with the mark of what they belong to.
    """
    rows = document.rows[:_MOST_ROWS]
    height = max(4.6, 2.2 + 0.32 * len(rows))
    what = "norm and perplexity with one thing taken away"
    figure = new_figure(document.model, what, 12.0, height)
    norms, bars = figure.subplots(1, 2, width_ratios=(1.25, 1))
    looks = _looks(rows)
    for row, (color, mark) in zip(rows, looks, strict=True):
        base = row.what == "none"
        norms.plot(
            range(len(row.norms)),
            positive(row.norms),
            color="black" if base else color,
            linestyle="--" if row.what == "control" else "-",
            linewidth=2.6 if base else 1.2,
            marker="" if base else mark,
            fillstyle="none" if row.what == "control" else "full",
            markersize=5,
            markevery=max(1, len(row.norms) // 12),
            zorder=1 if base else 2,
        )
    log_axis(norms, [value for row in rows for value in row.norms])
    layer_axis(norms)
    norms.set_ylabel("norm of the windows' first tokens, median")
    _bars(bars, rows, looks)
    return Drawing(figure, _caption(document))


def _looks(rows: tuple[AblationRow, ...]) -> list[tuple[str, str]]:
    """Colour and mark of each row; a control has those of what it belongs to."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    names = list(dict.fromkeys((row.of or row.what) for row in rows if row.what != "none"))
    count = max(1, len(names) - 1)
    colors = [to_hex(colormaps[COLORS](0.92 * i / count)) for i in range(len(names))]
    known = dict(zip(names, zip(colors, cycle(MARKS), strict=False), strict=True))
    return [known.get(row.of or row.what, (FAINT, "")) for row in rows]


def _name(row: AblationRow) -> str:
    name: str = "as it is" if row.what == "none" else row.what
    if row.of is not None:
        name = f"control of {row.of}"
    layers = ", ".join(map(str, row.layers[:4])) + (", ..." if len(row.layers) > 4 else "")
    return f"{name}, {layers}" if layers else name


def _bars(axes: Axes, rows: tuple[AblationRow, ...], looks: list[tuple[str, str]]) -> None:
    values = [row.perplexity for row in rows]
    low = min((v for v in values if v > 0), default=1.0)
    high = max(values, default=1.0)
    left = low / 2
    for place, (row, (color, mark)) in enumerate(zip(rows, looks, strict=True)):
        control = row.what == "control"
        axes.barh(
            place,
            max(row.perplexity, left) - left,
            left=left,
            color="white" if control else "black" if row.what == "none" else color,
            edgecolor="black" if row.what == "none" else color,
            hatch="///" if control else None,
            height=0.7,
        )
        axes.plot(
            [left],
            [place],
            marker=mark or "|",
            color=color,
            markersize=7,
            clip_on=False,
            fillstyle="none" if control else "full",
            markeredgecolor="black",
            markeredgewidth=0.6,
        )
        axes.annotate(
            number(row.perplexity),
            (max(row.perplexity, left), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    log_axis(axes, values, along="x")
    axes.set_xlim(left, max(high, low) * (max(high, low) / left) ** 0.25)
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=8)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("perplexity (lower is better)")
    plain(axes)


def _caption(document: AblationDocument) -> str:
    rows = document.rows
    text = (
        f"Each row takes one thing away and runs {counted(document.text.tokens, 'token')} of text. "
        "Left: how long the first token's vector is after each layer. Right: perplexity"
    )
    base = next((row for row in rows if row.what == "none"), None)
    changed = [row for row in rows if row.what not in ("none", "control")]
    if base is not None and changed:
        worst = max(changed, key=lambda row: row.perplexity)
        text += (
            f", {number(base.perplexity)} as it is; it suffers most from {_name(worst)}: "
            f"{number(worst.perplexity)}"
        )
    more = len(rows) - _MOST_ROWS
    return f"{text}. Dashed and hatched: controls, which take as much away elsewhere." + (
        f" {counted(more, 'more row')} in the table." if more > 0 else ""
    )
