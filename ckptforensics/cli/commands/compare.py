"""`ckpt compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ckptforensics.cli.options import MODEL_NAME, as_object, offline_option, refuse_overwriting
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.errors import CkptError, ExitCode

if TYPE_CHECKING:
    from ckptforensics.results import ComparisonDocument

# Verdicts that --fail-on asks for; each includes those above it, and the last stands alone.
_FAIL_ON = {
    "derived": ("identical", "re-parameterised", "derived"),
    "related": ("identical", "re-parameterised", "derived", "related"),
    "independent": ("independent",),
}


@dataclass(frozen=True)
class CompareOptions:
    """How thoroughly models are compared, and what is done with the verdicts."""

    level: Literal["fast", "thorough"] | None
    fail_on: str | None
    plot: Path | None
    offline: bool
    strict: bool
    no_cache: bool


compare_options = as_object(
    CompareOptions,
    "how",
    click.option(
        "--fast", "level", flag_value="fast", help="Signatures alone: no weights are read."
    ),
    click.option(
        "--thorough", "level", flag_value="thorough", help="Sample nothing, run every test."
    ),
    click.option(
        "--fail-on",
        type=click.Choice(list(_FAIL_ON)),
        help="Exit with 1 if a pair is at least so closely related, or is independent.",
    ),
    click.option(
        "--plot", type=click.Path(path_type=Path), help="Draw it: FILE.png, .svg or .pdf."
    ),
    offline_option,
    click.option(
        "--strict", is_flag=True, help="Fail where a pair is not decided or a test skipped."
    ),
    click.option(
        "--no-cache", is_flag=True, help="Neither take signatures from the cache nor keep them."
    ),
)


@click.command("compare")
@click.argument("models", metavar="A B [C...]", nargs=-1, required=True, type=MODEL_NAME)
@compare_options
@output_options("Also save it: FILE.json, .html or .csv.", kind="comparison")
def command(models: tuple[str, ...], how: CompareOptions, out: OutputOptions) -> ExitCode:
    """Compare checkpoints: whether they share a training run, and how.

    A, B and C are models or saved signatures. Configuration is no evidence, weights are: exact
    tests in the stored basis, agreement of neurons whatever the basis, and what changed. The
    verdict is 'inconclusive' where the evidence is.
    """
    from ckptforensics.findings import SignatureCache
    from ckptforensics.lineage.compare import compare, open_model
    from ckptforensics.render import check_plot_path, plot_comparison

    if how.plot is not None:
        check_plot_path(how.plot)
    cache = None if how.no_cache else SignatureCache.of_user(out.hint)
    opened = [open_model(model, offline=how.offline, strict=how.strict) for model in models]
    checkpoints = [one.checkpoint for one in opened if one.checkpoint is not None]
    for model, one in zip(models, opened, strict=True):
        for written in (out.output, how.plot):
            refuse_overwriting(written, one.checkpoint, Path(model))
    progress = out.progress(*checkpoints)
    document = compare(opened, level=how.level or "default", cache=cache, progress=progress)
    out.save(document)
    if how.plot is not None:
        plot_comparison(document, how.plot)
        out.hint(f"drawn to {how.plot}")
    out.emit(document)
    if how.strict:
        _require_decided(document)
    found = how.fail_on is not None and _at_least(document, how.fail_on)
    return ExitCode.FINDINGS if found else ExitCode.DONE


def _at_least(document: ComparisonDocument, limit: str) -> bool:
    return any(pair.verdict in _FAIL_ON[limit] for pair in document.pairs)


def _require_decided(document: ComparisonDocument) -> None:
    """CkptError naming the first pair without a decision or the first skipped test."""
    for pair in document.pairs:
        if pair.verdict in ("inconclusive", "not comparable"):
            raise CkptError(
                f"--strict: {pair.a} and {pair.b} are {pair.verdict}: {pair.reasons[0]}"
            )
        for test in pair.tests:
            if test.skipped is not None:
                raise CkptError(
                    f"--strict: '{test.name}' of {pair.a} and {pair.b} was skipped: {test.skipped}"
                )
