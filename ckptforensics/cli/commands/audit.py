"""`ckpt audit`: all models of a registry, what they claim and what their weights show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ckptforensics.cli.options import (
    Between,
    as_object,
    level_option,
    memory_option,
    workers_option,
)
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.errors import CkptError, ExitCode, OutputError, UsageError

if TYPE_CHECKING:
    from ckptforensics.registry.options import AuditOptions
    from ckptforensics.registry.policy import Policy
    from ckptforensics.results.audit import AuditDocument
    from ckptforensics.results.comparison import Level

_SEVERITIES = ("error", "warning", "note")
_LEAST_MEMORY = 200_000_000
# Of a process on a cluster, whose machines are not this one.
_CLUSTER_MEMORY = 4_000_000_000
_MOST_LIST_BYTES = 100_000_000
# Where the ending of a file's name is not the form's.
_ENDINGS = {
    "table": "txt",
    "markdown": "md",
    "cyclonedx": "cdx.json",
    "intoto": "intoto.jsonl",
}


@dataclass(frozen=True)
class RegistryOptions:
    """What is audited, how thoroughly, with what means, and by whose rules."""

    ids: Path | None
    catalog: Path | None
    policy: Path | None
    baseline: Path | None
    level: str
    workers: int
    dask: str | None
    memory: int | None
    timeout: float | None
    neighbours: int
    headers_only: bool
    offline: bool

    def options(self) -> AuditOptions:
        """These as the audit takes them; UsageError if a file among them cannot be read."""
        from ckptforensics.jobs.memory import default_memory
        from ckptforensics.registry.options import AuditOptions

        if self.dask is not None and self.workers > 1:
            raise UsageError("--workers is of this machine, --dask of a cluster", hint="give one")
        if self.memory is not None and self.memory < self.workers * _LEAST_MEMORY:
            raise UsageError(
                f"a process needs {_LEAST_MEMORY / 1e6:.0f} MB or more, and there are "
                f"{self.workers} at a time",
                hint="raise --memory or lower --workers",
            )
        return AuditOptions(
            catalog=self.catalog or default_catalog(),
            level=cast("Level", self.level),
            workers=self.workers,
            memory=self.memory or (default_memory() if self.dask is None else _CLUSTER_MEMORY),
            seconds=self.timeout,
            neighbours=self.neighbours,
            weights=not self.headers_only,
            offline=self.offline,
            policy=self._policy(),
            known=self._known(),
        )

    @contextmanager
    def somewhere(self, options: AuditOptions, out: OutputOptions) -> Iterator[AuditOptions]:
        """The options with the cluster of --dask, if there is one, as long as it is used."""
        if self.dask is None:
            yield options
            return
        from ckptforensics.jobs.cluster import Cluster

        with Cluster(self.dask, tell=out.hint) as cluster:
            yield replace(options, elsewhere=cluster)

    def _policy(self) -> Policy:
        from ckptforensics.registry.policy import NAME, Policy, read_policy
        from ckptforensics.registry.rules.table import BY_ID

        path = self.policy or Path(NAME)
        if self.policy is None and not path.is_file():
            return Policy()
        return read_policy(path, frozenset(BY_ID))

    def _known(self) -> frozenset[str]:
        """Identifiers of the findings in the baseline."""
        from ckptforensics.results import load_document
        from ckptforensics.results.audit import AuditDocument

        if self.baseline is None:
            return frozenset()
        document = load_document(self.baseline)
        if not isinstance(document, AuditDocument):
            raise UsageError(
                f"a baseline is a saved audit, and this is a {document.kind}",
                path=self.baseline,
                hint="make one with 'ckpt audit SOURCE -o FILE.json'",
            )
        return frozenset(finding.id for finding in document.findings)


registry_options = as_object(
    RegistryOptions,
    "how",
    click.option(
        "--from",
        "ids",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A text file with more SOURCEs, one a line.",
    ),
    click.option(
        "--catalog",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The catalog's file, made where there is none.  [default: one of the user's own]",
    ),
    click.option(
        "--policy",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Severities, selected rules, suppressions, trusted roots.  [default: ckpt.toml]",
    ),
    click.option(
        "--baseline",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A saved audit, whose findings are marked as known and do not count.",
    ),
    level_option("pairs of models"),
    workers_option("Models and pairs"),
    click.option(
        "--dask",
        metavar="ADDRESS",
        help="Run them on a dask cluster, whose scheduler is at tcp://host:port or tls://host:port.",
    ),
    memory_option,
    click.option(
        "--timeout",
        type=Between(min=0, min_open=True),
        help="Seconds after which the process of a model or a pair is ended.  [default: by size]",
    ),
    click.option(
        "--neighbours",
        type=click.IntRange(0),
        default=3,
        show_default=True,
        help="Models near by their signatures that each model is compared with.",
    ),
    click.option("--headers-only", is_flag=True, help="Read headers and claims and no weights."),
    click.option("--offline", is_flag=True, help="Ask no server."),
)


@click.command("audit")
@click.argument("sources", metavar="SOURCE...", nargs=-1)
@registry_options
@click.option("--plan", is_flag=True, help="List models, bytes and an estimate; read nothing else.")
@click.option(
    "--fail-on",
    type=click.Choice([*_SEVERITIES, "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 if there is a finding of that severity or a graver one.",
)
@click.option("--strict", is_flag=True, help="Exit with 2 if a model could not be read.")
@output_options(
    "Save the result in the form of the file's extension, or in all forms into a directory.",
    kind="audit",
    own_check=True,
)
def command(
    sources: tuple[str, ...],
    how: RegistryOptions,
    plan: bool,
    fail_on: str,
    strict: bool,
    out: OutputOptions,
) -> int:
    """Audit a registry: what each model is, what it claims, what its weights show.

    SOURCE is a directory, a weight file, a store (huggingface:, ollama:, lmstudio:, each with a
    directory after the colon if it is elsewhere), org/name or hub:org/* on the Hugging Face Hub, or
    an fsspec URL such as s3://bucket/models/.

    What was measured is kept in the catalog: the next run reads only what is new or changed, and a
    run that was ended goes on.
    """
    sources = (*sources, *_listed(how.ids))
    if not sources:
        raise UsageError(
            "nothing to audit is named", hint="give a SOURCE, such as a directory of models"
        )
    options = how.options()
    if plan:
        _plan(sources, options, out)
        return ExitCode.DONE
    from ckptforensics.registry.audit import audit

    forms = _forms(out.output)
    with how.somewhere(options, out) as options:
        document = audit(sources, options, progress=out.progress())
    for file, form in forms.items():
        _save(document, file, form)
        out.hint(f"saved to {file}")
    out.emit(document)
    return _code(document, fail_on, strict)


def default_catalog() -> Path:
    """The user's own catalog, below `$XDG_DATA_HOME` (by default `~/.local/share`)."""
    import os

    try:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError:
        raise UsageError("there is no home directory", hint="name a file with --catalog") from None
    return base / "ckptforensics" / "catalog.db"


def _forms(output: Path | None) -> dict[Path, str]:
    """The files to write, with their forms: one, or one of each form in a directory.

    Raises
    ------
    UsageError
        if the name of a file says no form.
    OutputError
        if the directory cannot be made.
    """
    from ckptforensics.render import formats_of

    if output is None:
        return {}
    endings = {f".{_ENDINGS.get(form, form)}": form for form in formats_of("audit")}
    for ending in sorted(endings, key=len, reverse=True):
        if output.name.endswith(ending):
            return {output: endings[ending]}
    if output.suffix and not output.is_dir():
        raise UsageError(
            f"an audit is saved as {', '.join(endings)}, or into a directory in all of these",
            path=output,
            hint="change -o",
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputError(
            f"cannot make the directory: {problem.strerror}", path=output, hint="change -o"
        ) from None
    return {output / f"audit{ending}": form for ending, form in endings.items()}


def _save(document: AuditDocument, file: Path, form: str) -> None:
    from ckptforensics.render import render
    from ckptforensics.results import write_bytes_atomically

    write_bytes_atomically(file, render(document, form, verbose=True).encode())


def _listed(file: Path | None) -> list[str]:
    """The sources in a file, without empty lines and comments."""
    if file is None:
        return []
    from ckptforensics.registry.stores.files import read_small

    rows = (
        read_small(file.resolve(), _MOST_LIST_BYTES).decode("utf-8", "surrogateescape").splitlines()
    )
    return [row.strip() for row in rows if row.strip() and not row.lstrip().startswith("#")]


def _code(document: AuditDocument, fail_on: str, strict: bool) -> int:
    coverage = document.coverage
    if strict and (coverage.unread or coverage.vanished):
        first = next(m for m in document.models if m.state in ("unread", "vanished"))
        raise CkptError(
            f"--strict: {coverage.unread + coverage.vanished} models were not read, the first is "
            f"{first.name}"
        )
    if coverage.models == 0 or coverage.unread + coverage.vanished == coverage.models:
        click.echo("ckpt: nothing was read: see what was not, and why, in the result", err=True)
        return ExitCode.NOTHING
    worst = document.worst
    if fail_on == "never" or worst is None:
        return ExitCode.DONE
    graver = _SEVERITIES.index(worst) <= _SEVERITIES.index(fail_on)
    return ExitCode.FINDINGS if graver else ExitCode.DONE


def _plan(sources: tuple[str, ...], options: AuditOptions, out: OutputOptions) -> None:
    """Print what a run would read."""
    from ckptforensics.registry.plan import plan_of

    found = plan_of(sources, options)
    if out.form == "json":
        click.echo(json.dumps(found.as_json(), indent=2))
        return
    for line in found.lines():
        click.echo(line)
