"""A comparison as one HTML page that loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ckptforensics.errors import one_line
from ckptforensics.render.dendrogram import lay_out
from ckptforensics.render.svg import angle_profile, dendrogram_drawing
from ckptforensics.render.wording import (
    ABSTENTIONS,
    CHANGE_COLUMNS,
    GROUPS,
    KIN,
    RANDOM_SHARE,
    alignment_line,
    angle_layers,
    change_row,
    cost,
    distance_line,
    distance_text,
    edge_line,
    invariances,
    label,
    labels,
    largest_changes,
    layers_line,
    merge_line,
    model_line,
    names,
    nulls,
    pairs_by_place,
    random_angle_deg,
    short_labels,
    short_names,
    skipped,
    test_notes,
    test_row,
    verdict_line,
    width_of,
)
from ckptforensics.results import ComparisonDocument, CriterionRecord, PairRecord

_LONGEST_NAME = 40
_TEST_COLUMNS = ("test", "statistic", "p", "time", "read")
_NUMBERS = ("statistic", "p", "time", "read", "equal", "relative", "rank")
# Nothing may be loaded, whatever a name holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--paper:#fff;--faint:#6b6b6b;--rule:#d8d8d8;
--curve:#0b62a8;--band:#e6e6e6;--kin:#dcecf9;--unsure:#fbf0cf}
@media (prefers-color-scheme:dark){:root{--ink:#e4e4e4;--paper:#161616;--faint:#9b9b9b;
--rule:#3d3d3d;--curve:#6db5f2;--band:#2b2b2b;--kin:#16344c;--unsure:#463a10}}
@media print{:root{--ink:#000;--paper:#fff;--faint:#444;--rule:#bbb;--curve:#0b62a8;--band:#e6e6e6;
--kin:#dcecf9;--unsure:#fbf0cf}tr,figure{break-inside:avoid}h1,h2{break-after:avoid}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:72rem;margin:2rem auto;padding:0 1rem;overflow-wrap:break-word}
table{border-collapse:collapse;margin:.6rem 0;font-size:.9em}
th,td{padding:.2rem .6rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{font-weight:600}.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.faint,caption,figcaption{color:var(--faint)}caption{text-align:left;white-space:nowrap}
td.words{overflow-wrap:anywhere;min-width:8em}.kin{background:var(--kin)}
.unsure{background:var(--unsure)}.verdict{font-weight:600;padding:.3rem .6rem}
figure{margin:.8rem 0}svg{max-width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}.band{fill:var(--band)}.dot{fill:var(--curve)}
.grid{stroke:var(--rule)}.curve{stroke:var(--curve);stroke-width:1.5}
section{border-top:2px solid var(--rule);margin-top:1.5rem}.wide{overflow-x:auto}
"""


def comparison_html(document: ComparisonDocument) -> str:
    """All of a comparison as a page in one file: tables, and drawings as inline SVG."""
    several = len(document.models) > 2
    body = ["<h1>Comparison of checkpoints</h1>", _models(document)]
    if several:
        body += [_matrices(document), _dendrogram(document), _tree(document)]
    if not document.pairs:
        body.append("<p>No pairs: nothing was compared.</p>")
    called = labels(document)
    for pair in document.pairs:
        a, b = label(pair.a, called), label(pair.b, called)
        title = f"A is {a}, {pair.a}; B is {b}, {pair.b}" if several else "Verdict"
        body.append(f"<section><h2>{_text(title)}</h2>{_pair(document, pair)}</section>")
    body.append("<section><h2>How it was compared</h2>")
    body.append(_list("left out", document.left_out))
    body.append(f"<p>{_text(cost(document))}; ckptforensics {_text(document.tool_version)}</p>")
    body.append("</section>")
    return _page(body)


def _page(body: Iterable[str]) -> str:
    content = "\n".join(part for part in body if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comparison of checkpoints</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{content}\n</body>\n</html>\n"
    )


def _models(document: ComparisonDocument) -> str:
    rows = []
    shorts = short_labels(len(document.models))
    for name, short, model in zip(names(document), shorts, document.models, strict=True):
        notes = "".join(f"; assumed: {note}" for note in model.notes)
        rows.append((short, model_line(model, name) + notes))
    return _table(("", "model"), rows)


def _pair(document: ComparisonDocument, pair: PairRecord) -> str:
    facts = [("distance", distance_line(pair)), ("map", alignment_line(pair))]
    layers = layers_line(pair)
    if layers is not None:
        facts.append(("layers", layers))
    return "\n".join(
        (
            f'<p class="verdict {_shade(pair)}">{_text(verdict_line(pair))}</p>',
            _list("because", pair.reasons),
            _list("what would change it", pair.otherwise),
            _table(("", ""), facts),
            _profile(document, pair),
            _tests(pair.tests),
            _changes(pair),
        )
    )


def _shade(pair: PairRecord | None) -> str:
    if pair is None:
        return ""
    return "kin" if pair.verdict in KIN else "unsure" if pair.verdict in ABSTENTIONS else "plain"


def _profile(document: ComparisonDocument, pair: PairRecord) -> str:
    if all(value is None for value in pair.angles_deg):
        return ""
    width = width_of(document, pair)
    limit = None if width is None else random_angle_deg(width)
    drawing = angle_profile(angle_layers(pair), pair.angles_deg, limit)
    shaded = ""
    if limit is not None:
        shaded = (
            f" Shaded: {RANDOM_SHARE:.0%} of random directions in {width:,} dimensions. Those of "
            "real models lie near single coordinates, so a small angle alone decides nothing."
        )
    caption = f"Angle between u1 of corresponding layers, in degrees.{shaded}"
    return f"<figure>{drawing}<figcaption>{_text(caption)}</figcaption></figure>"


def _tests(tests: Sequence[CriterionRecord]) -> str:
    ran = [test for test in tests if test.skipped is None]
    rows = []
    for group, title in GROUPS.items():
        members = [test for test in ran if test.group == group]
        if members:
            rows.append(f'<tr><th colspan="{len(_TEST_COLUMNS)}">{_text(title)}</th></tr>')
        rows += [_row(_TEST_COLUMNS, test_row(test)) for test in members]
    return "\n".join(
        (
            _wrapped(_TEST_COLUMNS, rows) if rows else "",
            _list("p holds under the null hypothesis", nulls(ran)),
            _list("unmoved by", invariances(ran)),
            _list("not run", skipped(tests)),
            _list("notes", test_notes(ran)),
        )
    )


def _changes(pair: PairRecord) -> str:
    if not pair.changes:
        return ""
    changed = largest_changes(pair)
    caption = f"{len(changed):,} of {len(pair.changes):,} tensors differ (zeros and rounding: A, B)"
    if not changed:
        return f"<p>{caption}</p>"
    return _table(CHANGE_COLUMNS, map(change_row, changed), caption)


def _matrices(document: ComparisonDocument) -> str:
    pairs = pairs_by_place(document)
    heads = short_labels(len(document.models))
    verdicts, distances = [], []
    for i, head in enumerate(heads):
        said, far = [f"<th>{head}</th>"], [f"<th>{head}</th>"]
        for j in range(len(heads)):
            pair = None if i == j else pairs.get(frozenset((i, j)))
            shade = _shade(pair)
            said.append(f'<td class="{shade}">{"" if pair is None else pair.verdict}</td>')
            text = "" if i == j else distance_text(document.matrix_deg[i][j], pair)
            far.append(f'<td class="number {shade}">{text}</td>')
        verdicts.append(f"<tr>{''.join(said)}</tr>")
        distances.append(f"<tr>{''.join(far)}</tr>")
    undecided = "; in brackets: nothing was decided about the pair"
    return "\n".join(
        (
            "<h2>All models</h2>",
            _wrapped(("", *heads), verdicts, "verdicts"),
            _wrapped(("", *heads), distances, f"distances in degrees{undecided}"),
        )
    )


def _dendrogram(document: ComparisonDocument) -> str:
    tree = lay_out(document.linkage, len(document.models))
    if tree is None:
        return ""
    drawing = dendrogram_drawing(tree, short_names(document, _LONGEST_NAME))
    caption = "Dendrogram of the distances (average linkage). It shows angles, not verdicts."
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _tree(document: ComparisonDocument) -> str:
    called = labels(document)
    clusters = [", ".join(label(name, called) for name in group) for group in document.clusters]
    return "\n".join(
        (
            _list("clusters of related models", clusters),
            _list(
                "proposed tree ('--': which came first is unknown)",
                [edge_line(edge, called) for edge in document.tree],
            ),
            _list("mixtures", [merge_line(merge, called) for merge in document.merges]),
        )
    )


def _list(title: str, values: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(value)}</li>" for value in values)
    return f"<p>{_text(title)}</p><ul>{items}</ul>" if values else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    return _wrapped(columns, [_row(columns, row) for row in rows], caption)


def _row(columns: Sequence[str], cells: Sequence[str]) -> str:
    made = (
        f"<td{_class(column)}>{_text(cell)}</td>"
        for column, cell in zip(columns, cells, strict=True)
    )
    return f"<tr>{''.join(made)}</tr>"


def _wrapped(columns: Sequence[str], rows: Iterable[str], caption: str = "") -> str:
    """A table of finished rows, which a narrow screen scrolls."""
    heads = "".join(f"<th{_class(column)}>{_text(column)}</th>" for column in columns)
    head = f"<thead><tr>{heads}</tr></thead>" if any(columns) else ""
    title = f"<caption>{_text(caption)}</caption>" if caption else ""
    body = "\n".join(rows)
    return f'<div class="wide"><table>{title}{head}<tbody>{body}</tbody></table></div>'


def _class(column: str) -> str:
    return f' class="{"number" if column in _NUMBERS else "words"}"' if column else ""


def _text(text: str) -> str:
    """Text of the document as it may stand in a page: one line, escaped."""
    return escape(one_line(text))
