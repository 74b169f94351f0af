"""`ckpt compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import click

from ckptforensics.cli.options import (
    MODEL_NAME,
    as_object,
    jobs_option,
    memory_option,
    offline_option,
    refuse_overwriting,
)
from ckptforensics.cli.output import OutputOptions, output_options, require_sound
from ckptforensics.errors import CkptError, ExitCode, UsageError
from ckptforensics.version import __version__

if TYPE_CHECKING:
    from ckptforensics.lineage.models import Model
    from ckptforensics.results import ComparisonDocument
    from ckptforensics.results.comparison import RunRecord
    from ckptforensics.sources import Source

# Verdicts that --fail-on asks for: how related at least, or that nothing shows it, or that nothing
# was decided.
_FAIL_ON = {
    "derived": ("identical", "re-parameterised", "derived"),
    "related": ("identical", "re-parameterised", "derived", "related"),
    "independent": ("independent",),
    "inconclusive": ("not comparable", "inconclusive"),
    "not-comparable": ("not comparable",),
}


@dataclass(frozen=True)
class CompareOptions:
    """How thoroughly models are compared, and what is done with the verdicts."""

    level: Literal["fast", "thorough"] | None
    fail_on: tuple[str, ...]
    plot: Path | None
    config: Path | None
    base: Path | None
    offline: bool
    strict: bool
    memory: int | None
    jobs: int | None
    digest: bool
    no_cache: bool

    def open(self, models: Sequence[str]) -> list[Model]:
        """Open the models; UsageError for a --base or --config that is of none of them."""
        from ckptforensics.lineage.compare import lacks_config, open_model

        opened = [
            open_model(
                model, config=self.config, base=self.base, offline=self.offline, strict=self.strict
            )
            for model in models
        ]
        sources = [one.checkpoint.source for one in opened if one.checkpoint is not None]
        if self.base is not None and all(source.base is None for source in sources):
            raise UsageError(
                "--base is given and none of the models is an adapter", hint="leave --base out"
            )
        places = [source.base or source.path for source in sources]
        if self.config is not None and not any(map(lacks_config, places)):
            raise UsageError(
                "--config is given and every model has a configuration of its own",
                hint="leave --config out",
            )
        return opened

    def of_one(self, source: Source) -> dict[str, Any]:
        """The options of `sign` that sign one model as it was opened."""
        from ckptforensics.lineage.compare import lacks_config

        lacks = lacks_config(source.base or source.path)
        return {
            "config": self.config if lacks else None,
            "base": None if source.base is None else self.base,
            "offline": self.offline,
            "no_cache": self.no_cache,
        }


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
        multiple=True,
        type=click.Choice(list(_FAIL_ON)),
        help="Exit with 1 if a pair is at least so closely related (derived, related), is "
        "independent, is not decided (inconclusive: nor comparable), or if no test could judge it "
        "(not-comparable); may be given several times.",
    ),
    click.option(
        "--plot", type=click.Path(path_type=Path), help="Draw it: FILE.png, .svg or .pdf."
    ),
    click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A config.json for the models that have none beside their weights.",
    ),
    click.option(
        "--base",
        type=click.Path(path_type=Path),
        help="The model that LoRA and DoRA adapters among the models are merged onto.",
    ),
    offline_option,
    click.option(
        "--strict", is_flag=True, help="Fail where a pair is not decided or a test skipped."
    ),
    memory_option,
    jobs_option,
    click.option("--digest", is_flag=True, help="Also compute the SHA-256 of whole files."),
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
    from ckptforensics.lineage.compare import compare

    out.check_plot(how.plot)
    cache = None if how.no_cache else SignatureCache.of_user(out.hint)
    opened = how.open(models)
    checkpoints = [one.checkpoint for one in opened if one.checkpoint is not None]
    for model, one in zip(models, opened, strict=True):
        for written in (out.output, how.plot):
            refuse_overwriting(written, one.checkpoint, Path(model), how.base, how.config)
    progress = out.progress(*checkpoints)
    if how.jobs is not None:
        _sign_side_by_side(opened, how, out)
    document = compare(
        opened,
        level=how.level or "default",
        cache=cache,
        progress=progress,
        memory=how.memory,
        digest=how.digest,
    ).model_copy(update={"run": _run_record()})
    out.save(document)
    out.plot(document, how.plot)
    out.emit(document)
    if how.strict:
        _require_decided(document)
        for record in document.models:
            require_sound(record)
    found = any(_at_least(document, limit) for limit in how.fail_on)
    return ExitCode.FINDINGS if found else ExitCode.DONE


def _sign_side_by_side(opened: Sequence[Model], how: CompareOptions, out: OutputOptions) -> None:
    """Sign the models in processes of their own; what fails there is left to be told here."""
    from ckptforensics.cli.commands.sign import sign_job
    from ckptforensics.findings import needed_memory
    from ckptforensics.jobs.memory import default_memory
    from ckptforensics.jobs.processes import run_jobs
    from ckptforensics.results import Signature, load_result

    memory = how.memory or default_memory()
    with TemporaryDirectory(prefix="ckpt-compare-") as folder:
        jobs, signed = [], []
        for number, one in enumerate(opened):
            if one.checkpoint is None:
                continue
            needed = needed_memory(one.checkpoint, memory)
            file = Path(folder) / f"{number}.safetensors"
            given = how.of_one(one.checkpoint.source) | {"quiet": True}
            jobs.append(sign_job(one.name, given, needed, file))
            signed.append((one, file))
        done = run_jobs(jobs, at_once=how.jobs or 1, memory=memory)
        for number, (job, (one, file)) in enumerate(zip(done, signed, strict=True), 1):
            signature = load_result(file) if job.code == ExitCode.DONE else None
            if isinstance(signature, Signature):
                one.take(signature)
            out.hint(f"signed {number} of {len(jobs)}: {job.model}")


def _run_record() -> RunRecord:
    """This run: now, this command line, these versions and this machine."""
    import platform
    import shlex
    from datetime import UTC, datetime
    from importlib.metadata import version

    from ckptforensics.compute.threads import thread_count
    from ckptforensics.results.comparison import RunRecord, Versions

    words = click.get_current_context().find_root().obj or ("ckpt", "compare")
    return RunRecord(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(words),
        versions=Versions(
            ckptforensics=__version__,
            python=platform.python_version(),
            numpy=version("numpy"),
            scipy=version("scipy"),
        ),
        cores=thread_count(),
        platform=platform.platform(),
    )


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
