"""`ckpt explain`: the page of a rule, or a finding with all its evidence."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ckptforensics.cli.commands.audit import default_catalog
from ckptforensics.errors import UsageError, one_line

_RULE = re.compile(r"ckpt\d{3}", re.IGNORECASE)


@click.command("explain")
@click.argument("what", metavar="[CKPT000|FINDING]", required=False)
@click.option(
    "--catalog",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The catalog that has the finding.  [default: the user's own]",
)
def command(what: str | None, catalog: Path | None) -> None:
    """Explain a rule of audits, or a finding by its identifier.

    Without an argument it lists the rules.
    """
    from ckptforensics.registry.rules.table import BY_ID, RULES

    if what is None:
        for rule in RULES:
            click.echo(f"{rule.id}  {rule.severity:<8} {rule.name}")
        return
    if _RULE.fullmatch(what):
        if what.upper() not in BY_ID:
            raise UsageError(f"there is no rule {what}", hint="'ckpt explain' lists them")
        click.echo(BY_ID[what.upper()].page, nl=False)
        return
    from ckptforensics.registry.catalog.findings import find_finding

    finding, state = find_finding(catalog or default_catalog(), what)
    rule = BY_ID[finding.rule]
    where = finding.location
    place = where.file + (f", line {where.line}" if where.line else "")
    rows = [
        f"{finding.id}  {finding.rule} {rule.name} ({finding.severity}, {state})",
        f"model     {finding.model}",
        f"where     {place}" + (f", tensor {where.tensor}" if where.tensor else ""),
        f"what      {finding.message}",
        *(f"evidence  {sentence}" for sentence in finding.evidence),
    ]
    if finding.suppressed is not None:
        rows.append(f"accepted  {finding.suppressed}")
    for row in rows:
        click.echo(one_line(row))
    click.echo()
    click.echo(rule.page, nl=False)
