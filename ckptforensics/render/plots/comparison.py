"""A comparison drawn with matplotlib (optional), in the manner of the paper's Fig. 14 and 15."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from ckptforensics.errors import UsageError, one_line
from ckptforensics.render.dendrogram import Dendrogram, lay_out
from ckptforensics.render.plots.drawing import MAIN, OTHER, Drawing
from ckptforensics.render.wording import CODES, distance_text, short_names, verdict_line
from ckptforensics.results import ComparisonDocument, PairRecord
from ckptforensics.results.comparison import RANDOM_SHARE, RELATIVES, random_angle_deg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LONGEST_NAME = 32
_MOST_CELLS_WITH_TEXT = 20
_FEW_CELLS = 10
_LINE = 80
_RIGHT_ANGLE = 90.0


def draw_comparison(document: ComparisonDocument) -> Drawing:
    """Draw a comparison; its axes and title say all, and it has no caption.

    Of two models: the angle between u1 of corresponding layers, layer by layer, as stored and after
    the map, with the range in which random directions lie shaded and the verdict as title. Of more:
    the matrix of distances with the verdicts as a heat map, in the order of the dendrogram beside
    it.

    Raises
    ------
    UsageError
        for a comparison without pairs.
    """
    if not document.pairs:
        raise UsageError("there is nothing to plot: no pair was compared")
    from matplotlib.figure import Figure

    if len(document.models) > 2:
        return Drawing(_heat_map(Figure, document), "")
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    _profile(figure.add_subplot(), document, document.pairs[0])
    return Drawing(figure, "")


def _profile(axes: Axes, document: ComparisonDocument, pair: PairRecord) -> None:
    from matplotlib.ticker import MaxNLocator

    layers = pair.angle_layers
    width = document.width_of(pair)
    limit = None if width is None else random_angle_deg(width)
    if limit is not None:
        axes.axhspan(
            limit,
            _RIGHT_ANGLE,
            color="0.88",
            label=f"{RANDOM_SHARE:.0%} of random directions in {width:,} dimensions",
        )
    angles = [float("nan") if value is None else value for value in pair.angles_deg]
    axes.plot(layers, angles, "o-", color=MAIN, markersize=4, label="u1 in the stored basis")
    aligned = [float("nan") if value is None else value for value in pair.aligned_deg]
    if len(aligned) == len(layers):
        axes.plot(layers, aligned, "s--", color=OTHER, markersize=4, label="u1 after the map")
    if all(value is None for value in (*pair.angles_deg, *pair.aligned_deg)):
        words = "no layers whose u1 could be compared"
        axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)
    axes.set_ylim(0, _RIGHT_ANGLE)
    axes.set_yticks([0, 15, 30, 45, 60, 75, 90])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer of A")
    axes.set_ylabel("angle, degrees")
    a, b = (one_line(name)[-_LONGEST_NAME:] for name in document.names)
    # matplotlib's own wrapping would take a name for a formula.
    lines = [*wrap(verdict_line(pair), _LINE), f"A: {a}   B: {b}"]
    axes.set_title("\n".join(lines), fontsize="medium")
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)


def _heat_map(figure_class: type[Figure], document: ComparisonDocument) -> Figure:
    count = len(document.models)
    tree = lay_out(document.linkage, count)
    side = 2.5 + 0.45 * min(count, 60)
    figure = figure_class(figsize=(side + 3.5, side), layout="constrained")
    if tree is None:
        _matrix(figure, figure.add_subplot(), document, tuple(range(count)))
        return figure
    left, right = figure.subplots(1, 2, width_ratios=(1, 3))
    _matrix(figure, right, document, tree.order)
    _dendrogram(left, tree)
    return figure


def _matrix(
    figure: Figure, axes: Axes, document: ComparisonDocument, order: tuple[int, ...]
) -> None:
    import numpy as np

    pairs = document.pairs_by_place

    degrees = np.array(
        [[_drawn(document, i, j) for j in order] for i in order],
        float,
    )
    axes.set_facecolor("0.85")  # of cells without a distance
    image = axes.imshow(degrees, cmap="viridis_r", vmin=0, vmax=_RIGHT_ANGLE, aspect="auto")
    labels = short_names(document, _LONGEST_NAME)
    axes.set_xticks(range(len(order)), [labels[i].split()[0] for i in order])
    axes.set_yticks(range(len(order)), [labels[i] for i in order])
    axes.yaxis.tick_right()
    axes.set_title("verdicts and distances of models", fontsize="medium")
    figure.colorbar(image, ax=axes, location="bottom", label="degrees", shrink=0.6)
    if len(order) > _MOST_CELLS_WITH_TEXT:
        return
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            pair = pairs.get(frozenset((i, j)))
            dark = degrees[row, column] > _RIGHT_ANGLE / 2
            axes.text(
                column,
                row,
                _cell(document.matrix_deg[i][j], pair) if i != j else "",
                ha="center",
                va="center",
                fontsize="small" if len(order) <= _FEW_CELLS else "x-small",
                fontweight="bold" if pair is not None and pair.verdict in RELATIVES else "normal",
                color="white" if dark else "black",
            )
    used = [word for word in CODES if any(pair.verdict == word for pair in document.pairs)]
    lines = [", ".join(f"{CODES[word]}: {word}" for word in used[i : i + 3]) for i in (0, 3, 6)]
    notes = [*filter(None, lines), "bold: related; in brackets: not decided; *: after the map"]
    axes.set_xlabel("\n".join(notes), fontsize="small")


def _cell(degrees: float | None, pair: PairRecord | None) -> str:
    """The distance, and the verdict below it, which it need not agree with."""
    if pair is None:
        return distance_text(degrees, pair)
    stored, drawn = distance_text(degrees, pair), distance_text(pair.drawn_deg, pair)
    moved = pair.drawn_deg is not None and drawn != stored
    return f"{drawn}*\n{CODES[pair.verdict]}" if moved else f"{stored}\n{CODES[pair.verdict]}"


def _drawn(document: ComparisonDocument, i: int, j: int) -> float:
    """What the colour of a cell stands for; not a number where nothing is drawn."""
    pair = document.pairs_by_place.get(frozenset((i, j)))
    value = document.matrix_deg[i][j] if pair is None else pair.drawn_deg
    return float("nan") if value is None else value


def _dendrogram(axes: Axes, tree: Dendrogram) -> None:
    """The brackets on their side, its leaves beside the rows of the heat map."""
    for bracket in tree.brackets:
        (one, one_height), (other, other_height) = bracket.left, bracket.right
        heights = [one_height, bracket.height, bracket.height, other_height]
        axes.plot(heights, [one, one, other, other], color=MAIN, linewidth=1.2)
    count = len(tree.order)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim((tree.height or 1.0) * 1.05, 0)
    axes.set_yticks([])
    axes.set_xlabel("average, degrees", fontsize="small")
    for edge in ("top", "left", "right"):
        axes.spines[edge].set_visible(False)
