"""Small networks along their training, and which heads do something where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import UsageError, one_line
from ckptforensics.render.plots.drawing import (
    COLORS,
    FAINT,
    MAIN,
    MARKS,
    OTHER,
    Drawing,
    log_axis,
    plain,
    positive,
)
from ckptforensics.results.toy import ToyDocument, ToyHead, ToyPoint, ToyRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Lines of more runs would not be told apart.
_COLORS = (MAIN, OTHER, "#3f7d20", "#7a3e9d", FAINT, "#a86a00", "#00838f", "#ad1457")


def draw_toy(document: ToyDocument) -> Drawing:
    """Sink attention, drained value, logit gap, residual norms and losses by step, a line a run.

    Below them, of each of the first runs of the Bigram-Backcopy task, who attends to whom in the
    beginning of a sequence.

    Raises
    ------
    UsageError
        if nothing was measured yet.
    """
    from matplotlib.figure import Figure

    runs = [run for run in document.runs if run.curve][: len(_COLORS)]
    if not runs:
        raise UsageError("no run has a measured step: there is nothing to draw")
    pictured = [run for run in runs if run.sample is not None][:2]
    heads = max((len(run.heads) for run in pictured), default=0)
    height = 6.6 + 3.4 * len(pictured)
    figure: Any = Figure(figsize=(9.6, height), layout="constrained")
    figure.suptitle("extreme tokens along training", fontsize=11)
    parts = figure.subfigures(
        1 + len(pictured), 1, height_ratios=[6.6, *[3.4] * len(pictured)], squeeze=False
    )[:, 0]
    axes = parts[0].subplots(2, 3).ravel()
    _curves(axes, runs)
    for part, run in zip(parts[1:], pictured, strict=True):
        _attention(part, run, heads)
    return Drawing(figure, _caption(pictured, document.needed_nats))


def _curves(axes: Sequence[Axes], runs: list[ToyRun]) -> None:
    """Six panels; of each run, the layer after which the first token stands out most at the end."""
    panels: list[tuple[str, Callable[[ToyPoint, int], float | None]]] = [
        ("attention to the first token", lambda p, i: p.attention[i]),
        ("|W_O v| of the first token", lambda p, i: p.value_norm[i]),
        ("logit gap", lambda p, i: p.logit_gap[i] if p.logit_gap else None),
        ("norm: first token, others thin", lambda p, i: p.residual_norm[i]),
        ("excess loss behind triggers", lambda p, i: p.excess_trigger),
        ("excess loss elsewhere", lambda p, i: p.excess_other),
    ]
    if all(run.task == "language" for run in runs):
        panels[2] = ("largest norm over the median", lambda p, i: p.highest[i])
        panels[4] = ("loss", lambda p, i: p.loss)
        panels[5] = ("share of heads with a sink", lambda p, i: p.sinks)
    for panel, (name, value) in zip(axes, panels, strict=True):
        drawn: list[float | None] = []
        for number, run in enumerate(runs):
            layer = run.curve[-1].peak
            steps = [point.step for point in run.curve]
            values = [value(point, layer) for point in run.curve]
            color = _COLORS[number]
            mark = MARKS[number]
            panel.plot(
                steps,
                [float("nan") if v is None else v for v in values],
                "-",
                color=color,
                linewidth=1.3,
                marker=mark,
                markersize=4,
                markevery=max(len(steps) // 6, 1),
                label=_label(run, layer),
            )
            drawn += values
            if name.startswith("norm"):
                others = [point.others_norm[layer] for point in run.curve]
                panel.plot(steps, others, "-", color=color, linewidth=0.6)
        if name.startswith(("norm", "largest")):
            panel.set_yscale("log")
            log_axis(panel, positive(drawn))
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        plain(panel)
    axes[0].legend(frameon=False, fontsize=7, loc="best")


def _label(run: ToyRun, layer: int) -> str:
    return f"{run.name} (layer {layer + 1})" if run.layers > 1 else run.name


def _attention(part: Any, run: ToyRun, columns: int) -> None:
    """Who attends to whom: a map a head, triggers marked along both axes."""
    sample = run.sample
    assert sample is not None
    part.suptitle(f"{run.name}: who attends to whom", fontsize=9)
    panels = part.subplots(1, max(columns, 1), squeeze=False)[0]
    for panel in panels[len(run.heads) :]:
        panel.set_axis_off()
    places = range(len(sample.symbols))
    names = [_symbol(s) for s in sample.symbols]
    for panel, head in zip(panels, run.heads, strict=False):
        map_ = sample.attention[head.layer - 1][head.head - 1]
        panel.imshow(map_, cmap=COLORS, vmin=0, vmax=1, aspect="equal")
        panel.set_xticks(places, names, fontsize=5)
        panel.set_yticks(places, names, fontsize=5)
        for ticks in (panel.get_xticklabels(), panel.get_yticklabels()):
            for tick, trigger in zip(ticks, sample.triggers, strict=True):
                tick.set_color(OTHER if trigger else "black")
                tick.set_fontweight("bold" if trigger else "normal")
        panel.set_title(_told(head), fontsize=8)
        panel.set_xlabel("key", fontsize=7)
        panel.set_ylabel("query", fontsize=7)


def _told(head: ToyHead) -> str:
    return (
        f"layer {head.layer}, head {head.head}\ntriggers: {head.trigger.state}\n"
        f"others: {head.other.state}"
    )


def _symbol(symbol: str) -> str:
    shown = {" ": "␣", "\n": "↵", "\t": "⇥"}.get(symbol, symbol)
    return one_line(shown) if shown.isprintable() else f"U+{ord(shown):04X}"


def _caption(pictured: list[ToyRun], needed: float) -> str:
    told = (
        "Measured on sequences that were not trained on; of each run the layer after which the "
        "first token's norm stands out most at the end. "
    )
    if pictured:
        told += (
            "Maps: each query's attention to the keys of one sequence, from none (dark) to all "
            "(bright); triggers are coloured. A head that reads the token before a trigger and the "
            "first token otherwise copies behind triggers and rests elsewhere. Active: without the "
            f"head the loss there rises by more than {needed:g} nats. "
        )
    return told
