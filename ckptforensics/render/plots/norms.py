"""Norms of single tokens drawn with matplotlib (optional), in the manner of the paper's Fig. 7."""

from __future__ import annotations

from pathlib import Path

from ckptforensics.errors import one_line
from ckptforensics.quantities import number
from ckptforensics.render.plots.files import (
    MAIN,
    OTHER,
    check_plot_path,
    drawing_settings,
    write_figure,
)
from ckptforensics.results import NormsDocument

_MOST_LINES = 400
_TOKENS = "#9aa5b1"


def plot_norms(document: NormsDocument, path: str | Path) -> None:
    """Draw the norm of every token after each layer on a logarithmic axis, and their median.

    The first token, by default the begin-of-sequence token, is drawn apart. Of very many tokens an
    even choice is drawn; the median is of all.

    Raises
    ------
    UsageError, MissingDependency
        as `check_plot_path`.
    OutputError
        if the file cannot be written.
    """
    check_plot_path(path)
    with drawing_settings():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        stages = document.stages
        layers = range(len(stages))
        count = len(document.tokens)
        step = -(-count // _MOST_LINES)
        for i in range(count - 1, 0, -step):
            axes.plot(layers, [s.norms[i] for s in stages], color=_TOKENS, linewidth=0.5, alpha=0.6)
        median = [stage.median for stage in stages]
        axes.plot(layers, median, color=MAIN, linewidth=2, label=f"median of {count:,} tokens")
        first = document.tokens[0]
        label = "first random vector" if first is None else f"token {first}"
        own = [stage.norms[0] for stage in stages]
        axes.plot(layers, own, color=OTHER, linewidth=1.6, linestyle="--", label=label)
        if all(stage.minimum > 0 for stage in stages):
            axes.set_yscale("log")
            # Powers of ten would be written as formulas, which no name may be.
            axes.yaxis.set_major_formatter(lambda value, _: number(value))
        axes.set_xlabel("layer (0: embedding)")
        axes.set_ylabel("norm of the residual stream")
        how = "" if document.attention else ", attention left out"
        name = one_line(Path(document.model.path).name or document.model.path)
        axes.set_title(f"Single tokens through {name}{how}", fontsize=10)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        write_figure(figure, Path(path))
