"""An audit as Markdown, for the summary of a job on GitHub or a comment.

What comes from a model is escaped, and whatever a renderer might take for a link, a mention or a
reference is code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ckptforensics.errors import one_line
from ckptforensics.quantities import counted
from ckptforensics.render.audit import words
from ckptforensics.render.view import View
from ckptforensics.results.audit import AuditDocument, FindingRecord

# GitHub shows at most 1 MiB of a summary.
_MOST = 900_000
_SIGNS = {"error": "\u274c", "warning": "\u26a0\ufe0f", "note": "\u2139\ufe0f"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#!|~$&^:@])")
# Links, addresses, mentions, references to issues and commits.
_LIVE = re.compile(r"://|www\.|@|#\d|[0-9a-f]{7,40}\b|mailto:", re.I)
_FEW = 10


def audit_markdown(document: AuditDocument, view: View) -> str:
    """Coverage, the findings that count by severity and rule, and what was not read.

    A rule shows its first findings, all of them where the view is verbose; a text that would be
    too long for a summary ends early and says so.
    """
    most = None if view.verbose else _FEW
    text, left = "", 0
    for block in _blocks(document, most):
        if len((text + block).encode()) > _MOST:
            left += 1
        elif not left:
            text += block
    if left:
        text += f"\n{counted(left, 'section')} left out: a summary holds 1 MiB.\n"
    return text


def inline(text: str) -> str:
    """Text of a model inside a sentence: nothing in it is Markdown."""
    return " ".join(
        code(word) if _LIVE.search(word) else _SPECIAL.sub(r"\\\1", word)
        for word in one_line(text).split(" ")
    )


def code(text: str) -> str:
    """Text of a model as code; a bar is escaped as cells of tables need it."""
    shown = one_line(text).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown[:1] in "` " or shown[-1:] in "` " else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _blocks(document: AuditDocument, most: int | None) -> Iterable[str]:
    coverage = document.coverage
    yield (
        "# Audit of "
        f"{counted(coverage.models, 'model')}\n\n"
        f"- **Not read**: {words.gaps(coverage)}.\n"
        f"- **Read**: {words.read(coverage)}.\n"
        f"- **Findings**: {words.counts(document.findings)}.\n"
    )
    for rule, number, rows in words.by_rule(document):
        counting = [row for row in rows if row.counts]
        if counting:
            severity = rows[0].severity
            said = "" if rule is None else f": {inline(rule.summary)}"
            yield f"\n## {_SIGNS[severity]} {severity} {number}{said}\n\n{_table(counting, most)}"
    missing = words.missing(document)
    if missing:
        yield f"\n## Not read\n\n{_missing(missing, most)}"
    yield f"\n{inline(words.took(document))}; ckptforensics {inline(document.tool_version)}\n"


def _table(rows: Sequence[FindingRecord], most: int | None) -> str:
    lines = ["| model | where | finding | id |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {code(row.model)} | {code(words.place(row.location))} | {inline(row.message)} "
        f"| {code(row.id)} |"
        for row in rows[:most]
    ]
    return "\n".join(lines) + "\n" + _rest(len(rows), most)


def _missing(rows: Sequence[tuple[str, str]], most: int | None) -> str:
    lines = [f"- {code(what)}: {inline(reason)}" for what, reason in rows[:most]]
    return "\n".join(lines) + "\n" + _rest(len(rows), most)


def _rest(count: int, most: int | None) -> str:
    return "" if most is None or count <= most else f"\nand {count - most:,} more\n"
