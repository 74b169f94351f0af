"""An audit as text for people: what was not read first, then what was found, then the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.console import Console

from ckptforensics.errors import one_line
from ckptforensics.quantities import size
from ckptforensics.render.audit import words
from ckptforensics.render.tables.console import (
    fact,
    make_console,
    make_table,
    print_table,
    say,
    text_of,
)
from ckptforensics.render.view import View
from ckptforensics.results.audit import AuditDocument, AuditedModel, FindingRecord

_STYLES: Mapping[str, str] = MappingProxyType(
    {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
)
# Rows of a rule, of models and of what was not read, unless all are asked for.
_FEW = 10


def audit_table(document: AuditDocument, view: View) -> str:
    """Coverage, findings by severity and rule, models; all rows where the view is verbose."""
    console = make_console(view)
    most = None if view.verbose else _FEW
    _coverage(console, document, most)
    for rule, number, rows in words.by_rule(document):
        severity = rows[0].severity
        name = "" if rule is None else f" {rule.name}: {rule.summary}"
        console.print()
        say(console, one_line(f"{severity} {number}{name}"), style=_STYLES[severity])
        _findings(console, rows, most, view.verbose)
    if document.models:
        console.print()
        _models(console, document, most)
    return text_of(console)


def _coverage(console: Console, document: AuditDocument, most: int | None) -> None:
    coverage = document.coverage
    fact(console, "not read", words.gaps(coverage), "" if words.whole(coverage) else "yellow")
    fact(console, "read", words.read(coverage))
    worst = document.worst
    style = "" if worst is None else _STYLES[worst]
    fact(console, "findings", words.counts(document.findings), style)
    fact(console, "when", words.took(document))
    missing = words.missing(document)
    if missing:
        console.print()
        say(console, "not read", style="bold")
    for what, reason in missing[:most]:
        say(console, one_line(f"{what}: {reason}"), begin="  - ")
    _rest(console, len(missing), most)


def _findings(
    console: Console, rows: Sequence[FindingRecord], most: int | None, verbose: bool
) -> None:
    """Those that count first."""
    ordered = sorted(rows, key=lambda row: not row.counts)
    for row in ordered[:most]:
        standing = words.standing(row)
        said = f"{row.model}, {words.place(row.location)}: {row.message}"
        more = f" ({standing})" if standing else ""
        say(console, one_line(f"{said}{more} [{row.id}]"), begin="  - ")
        for line in row.evidence if verbose else ():
            say(console, one_line(line), begin="      ")
    _rest(console, len(rows), most)


def _rest(console: Console, count: int, most: int | None) -> None:
    if most is not None and count > most:
        say(console, f"and {count - most:,} more (-v shows all)", begin="  - ")


def _models(console: Console, document: AuditDocument, most: int | None) -> None:
    """Models with findings that count first, then in their order."""
    findings = words.by_model(document)
    table = make_table("model", "findings", "state", "family", "relatives", "bytes")
    ordered = sorted(document.models, key=lambda model: words.gravest(findings[model.name]))
    for model in ordered[:most]:
        rows = findings[model.name]
        table.add_row(*_row(model, rows))
    print_table(console, table, ("bytes", "relatives", "family"))
    _rest(console, len(document.models), most)


def _row(model: AuditedModel, findings: Sequence[FindingRecord]) -> tuple[str, ...]:
    relatives = str(len(model.relatives)) if model.state == "signed" else "-"
    return (
        one_line(model.name),
        words.counts(findings),
        words.STATES[model.state],
        one_line(model.family or "-"),
        relatives,
        size(model.bytes),
    )
