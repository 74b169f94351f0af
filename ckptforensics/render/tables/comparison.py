"""A comparison as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ckptforensics.errors import one_line
from ckptforensics.render.damage import damage_lines, examined_line
from ckptforensics.render.tables.console import make_console, make_table, print_table, text_of
from ckptforensics.render.view import View
from ckptforensics.render.wording import (
    ABSTENTIONS,
    CHANGE_COLUMNS,
    CODES,
    GROUPS,
    alignment_line,
    change_row,
    cluster_lines,
    cost,
    direction_line,
    distance_line,
    distance_text,
    edge_lines,
    file_lines,
    invariances,
    label,
    labels,
    layers_line,
    merge_lines,
    model_line,
    nulls,
    run_lines,
    scales,
    skipped,
    test_notes,
    test_row,
    verdict_line,
)
from ckptforensics.results import ComparisonDocument, CriterionRecord, PairRecord

_CHANGES_SHOWN = 5
_NAME_WIDTH = 12
# In narrower terminals columns are one blank apart: a floor of p needs the room.
_ROOMY = 70
# A cell of a matrix of models and the blanks beside it.
_CELL = 8


def comparison_table(document: ComparisonDocument, view: View) -> str:
    """A comparison: of two models everything, of more the matrices and the tree first.

    Where the view is verbose every pair is shown whole, with every change and the notes of its
    tests; else, of more than two models, those that the tree joins or that are undecided, each with
    one reason.
    """
    console, verbose = make_console(view), view.verbose
    called = labels(document)
    several = len(document.models) > 2
    for name, model in zip(document.names, document.models, strict=True):
        _fact(console, called[name], model_line(model, name))
        for note in model.notes:
            _fact(console, "", f"assumed: {note}", "yellow")
        for line in file_lines(model, len(model.files) if verbose else 5):
            _fact(console, "", line)
        _list(console, "damage", damage_lines(model), "yellow")
        _list(console, "examined", filter(None, [examined_line(model)]))
    if several:
        _matrices(console, document)
        _tree(console, document, called)
    if not document.pairs:
        _fact(console, "pairs", "none: nothing was compared")
    shown = document.pairs if verbose or not several else _telling(document)
    for pair in shown:
        console.print()
        if several:
            a, b = label(pair.a, called), label(pair.b, called)
            _fact(console, "pair", f"A is {a}, {pair.a}; B is {b}, {pair.b}")
        if several and not verbose:
            _verdict(console, pair, most=1)
        else:
            _pair(console, pair, verbose)
    console.print()
    _list(console, "left out", document.left_out, "yellow")
    _fact(console, "compared", cost(document))
    if verbose:
        _list(console, "run", run_lines(document))
    return text_of(console)


def _telling(document: ComparisonDocument) -> list[PairRecord]:
    """The pairs that the matrices do not tell all of: those of the tree, and the undecided."""
    joined = [{edge.a, edge.b} for edge in document.tree]
    return [p for p in document.pairs if p.verdict in ABSTENTIONS or {p.a, p.b} in joined]


def _pair(console: Console, pair: PairRecord, verbose: bool) -> None:
    _verdict(console, pair)
    _list(console, "would change", pair.otherwise)
    _list(console, "rests on", pair.compared)
    _list(console, "not compared", pair.not_compared)
    _fact(console, "distance", distance_line(pair))
    _fact(console, "map", alignment_line(pair))
    layers = layers_line(pair)
    if layers is not None:
        _fact(console, "layers", layers)
    _tests(console, pair, verbose)
    _changes(console, pair, verbose)


def _verdict(console: Console, pair: PairRecord, most: int | None = None) -> None:
    style = "bold yellow" if pair.verdict in ABSTENTIONS else "bold"
    _fact(console, "verdict", verdict_line(pair), style)
    if pair.verdict in ("derived", "related"):
        _fact(console, "direction", direction_line(pair))
    _list(console, "because", pair.reasons[:most])


def _tests(console: Console, pair: PairRecord, verbose: bool) -> None:
    ran = pair.tests_run
    if ran:
        table = make_table("test", "statistic", "p", "time", "read")
        table.padding = (0, int(console.width >= _ROOMY), 0, 0)
        for group, title in GROUPS.items():
            members = [test for test in ran if test.group == group]
            if members:
                table.add_row(title, style="bold")
            for test in members:
                name, *values = test_row(test)
                table.add_row(f"- {name}", *values)
        console.print()
        print_table(console, table)
    _list(console, "scale", scales(ran))
    _list(console, "null", nulls(ran))
    _list(console, "unmoved by", invariances(ran) if verbose else _common_invariances(ran))
    _list(console, "not run", skipped(pair.tests))
    if verbose:
        _list(console, "notes", test_notes(ran))


def _changes(console: Console, pair: PairRecord, verbose: bool) -> None:
    changed = pair.largest_changes
    if not pair.changes:
        return
    shown = changed[: None if verbose else _CHANGES_SHOWN]
    some = f", the {len(shown)} largest relative changes" if len(shown) < len(changed) else ""
    counts = f"{len(changed):,} of {len(pair.changes):,} tensors differ"
    console.print()
    _fact(console, "changed", f"{counts}{some} (zeros and rounding: A, B)")
    if shown:
        table = make_table(*CHANGE_COLUMNS)
        table.padding = (0, int(console.width >= _ROOMY), 0, 0)
        for change in shown:
            table.add_row(*change_row(change))
        print_table(console, table)


def _matrices(console: Console, document: ComparisonDocument) -> None:
    pairs = document.pairs_by_place

    def verdict(i: int, j: int) -> str:
        pair = pairs.get(frozenset((i, j)))
        return "-" if pair is None else CODES[pair.verdict]

    def distance(i: int, j: int) -> str:
        return distance_text(document.matrix_deg[i][j], pairs.get(frozenset((i, j))))

    _matrix(console, len(document.models), "verdicts", verdict)
    used = [word for word in CODES if any(pair.verdict == word for pair in document.pairs)]
    _fact(console, "", ", ".join(f"{CODES[word]}: {word}" for word in used))
    _matrix(console, len(document.models), "distances, degrees", distance)
    if any(word in ABSTENTIONS for word in used):
        _fact(console, "", "in brackets: nothing was decided about the pair")


def _matrix(console: Console, count: int, title: str, cell: Callable[[int, int], str]) -> None:
    """The lower triangle, in blocks of as many columns as the console is wide."""
    console.print(f"\n{title}")
    block = max(1, (console.width - _CELL) // _CELL)
    for start in range(0, count - 1, block):
        columns = range(start, min(start + block, count - 1))
        table = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(len(columns) + 1):
            table.add_column(justify="right", width=_CELL - 1, no_wrap=True)
        table.add_row("", *(str(j + 1) for j in columns), style="bold")
        for i in range(start + 1, count):
            table.add_row(str(i + 1), *(cell(i, j) for j in columns if j < i))
        console.print(table)


def _tree(console: Console, document: ComparisonDocument, called: Mapping[str, str]) -> None:
    console.print()
    _list(console, "clusters", cluster_lines(document, called))
    _list(console, "tree", edge_lines(document, called))
    _list(console, "mixtures", merge_lines(document, called))


def _common_invariances(tests: Sequence[CriterionRecord]) -> list[str]:
    """What changes the statistic of no test of a group: a line for each group."""
    lines = []
    for group, title in GROUPS.items():
        each = [test.invariant_to for test in tests if test.group == group]
        common = [name for name in each[0] if all(name in one for one in each)] if each else []
        if common:
            lines.append(f"all {title}: {', '.join(common)}")
    return lines


def _fact(console: Console, name: str, value: str, style: str = "") -> None:
    _rows(console, name, [value], style)


def _list(console: Console, name: str, values: Iterable[str], style: str = "") -> None:
    _rows(console, name, [f"- {value}" for value in values], style)


def _rows(console: Console, name: str, values: Iterable[str], style: str) -> None:
    """Lines beside a name, wrapped into their own column."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=_NAME_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    for value in values:
        grid.add_row(name, Text(one_line(value), style=style))
        name = ""
    if grid.row_count:
        console.print(grid)
