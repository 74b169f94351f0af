"""`ckpt sign`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptforensics.cli.options import (
    MODEL_NAME,
    FitOptions,
    ModelOptions,
    as_arguments,
    as_object,
    fit_options,
    jobs_option,
    memory_option,
    model_options,
)
from ckptforensics.cli.output import OutputOptions, output_options, screen
from ckptforensics.errors import CkptError, ExitCode, UsageError
from ckptforensics.jobs.memory import default_memory
from ckptforensics.sources import as_path

if TYPE_CHECKING:
    from ckptforensics.findings import Scope
    from ckptforensics.jobs.processes import Job


# Those of `quantization.encoders`, which need not be imported for them.
ROUNDINGS = (
    *("int8", "int8-channel", "w8a8", "int4-g128", "int4-g128-asym", "q4_0", "q4_1", "q5_0"),
    *("q5_1", "q8_0", "mxfp4", "fp8", "fp8-channel", "fp8-e5m2"),
)


@dataclass(frozen=True)
class SignOptions:
    """What is signed of a model, with what means."""

    layers: str | None
    near: Path | None
    memory: int | None
    jobs: int | None
    digest: bool
    no_cache: bool
    rounded_as: str | None

    def scope(self) -> Scope:
        """What is measured; UsageError if the layers or the relative's signature cannot be read."""
        from ckptforensics.findings import Scope, layer_numbers
        from ckptforensics.results import Signature, load_result

        relative = None if self.near is None else load_result(self.near)
        if relative is not None and not isinstance(relative, Signature):
            raise UsageError("this is not a saved signature with its arrays", path=self.near)
        layers = None if self.layers is None else layer_numbers(self.layers)
        return Scope(layers, relative, self.memory)


sign_options = as_object(
    SignOptions,
    "how",
    click.option("--layers", help="Sign some layers only, such as 1-4,30: no fingerprint."),
    click.option(
        "--near",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Saved signature of a relative, which the search begins with.",
    ),
    memory_option,
    jobs_option,
    click.option("--digest", is_flag=True, help="Also compute the SHA-256 of whole files."),
    click.option(
        "--no-cache", is_flag=True, help="Neither take it from the cache nor keep it there."
    ),
    click.option(
        "--as",
        "rounded_as",
        type=click.Choice(ROUNDINGS),
        help="Sign what a quantizer would leave of the weights, which are rounded when read.",
    ),
)


@click.command("sign")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=MODEL_NAME)
@model_options
@fit_options
@sign_options
@output_options(
    "Save the signature: .safetensors with its arrays, or .json without, or into a folder that is "
    "there. Of several models: the folder for their signatures.",
    own_check=True,
)
def command(
    models: tuple[str, ...],
    opening: ModelOptions,
    fitting: FitOptions,
    how: SignOptions,
    out: OutputOptions,
) -> int:
    """Sign a checkpoint: its singular defect directions, layer by layer.

    The fingerprint is the same for the same weights in any container, and few bits away for
    fine-tuned or quantized versions. Signatures are kept in a cache, and an interrupted run goes on
    where it stopped.

    Several models make a table, or with --format json one document a line; a model that cannot be
    signed does not keep the others from it.
    """
    if len(models) == 1 and how.jobs is None:
        _sign_one(as_path(models[0]), opening, fitting, how, out)
        return ExitCode.DONE
    return _sign_several(models, opening, how, out)


def _sign_one(
    model: Path, opening: ModelOptions, fitting: FitOptions, how: SignOptions, out: OutputOptions
) -> None:
    output = out.output
    if output is not None and output.is_dir():
        (output,) = _output_files((str(model),), output)
        out = replace(out, output=output)
    if output is not None and output.suffix not in (".safetensors", ".json"):
        raise UsageError(
            "a signature is saved as .safetensors or .json", path=output, hint="change -o"
        )
    from ckptforensics.findings import SignatureCache, sign

    scope = how.scope()
    checkpoint = opening.open(model, output)
    if how.rounded_as is not None:
        from ckptforensics.quantization.rounding import rounded

        checkpoint = rounded(checkpoint, how.rounded_as)
    fit = fitting.fit(checkpoint.architecture.sizes.hidden_size)
    cache = None if how.no_cache else SignatureCache.of_user(out.hint)
    progress = out.progress(checkpoint)
    if out.verbose:
        from ckptforensics.compute.products import compiled_loops
        from ckptforensics.compute.threads import thread_count

        loops = "none (pip install numba)" if compiled_loops() is None else "numba"
        out.hint(
            f"threads: {thread_count()}, the BLAS kept to one; loops for large models: {loops}"
        )
    signature = sign(
        checkpoint, fit=fit, digest=how.digest, progress=progress, cache=cache, scope=scope
    )
    if output is not None and output.suffix == ".safetensors":
        signature.save(output)
        out.tell_saved()
    else:
        out.save(signature.document)
    out.finish(checkpoint, signature.document, opening.strict)


def _sign_several(
    models: tuple[str, ...], opening: ModelOptions, how: SignOptions, out: OutputOptions
) -> int:
    """Sign each model in a process of its own; the exit code is the largest of theirs."""
    from ckptforensics.jobs.processes import run_jobs

    for name, value in (("config", opening.config), ("base", opening.base)):
        if value is not None:
            raise UsageError(f"--{name} is of one model", hint="sign that model by itself")
    folder = out.output
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise UsageError("several signatures need a folder", path=folder, hint="change -o")
        folder.mkdir(parents=True, exist_ok=True)
    memory = how.memory or default_memory()
    paths = [None] * len(models) if folder is None else _output_files(models, folder)
    jobs = [_job(m, opening, memory, p) for m, p in zip(models, paths, strict=True)]
    worst: int = ExitCode.DONE
    rows = []
    for number, job in enumerate(run_jobs(jobs, at_once=how.jobs or 1, memory=memory), 1):
        worst = max(worst, job.code)
        printed = job.printed().strip()
        if job.code or not printed:
            click.echo(job.complaint(), err=True)
            continue
        document = json.loads(printed)
        if out.form == "json":
            click.echo(json.dumps(document))
        else:
            rows.append(document)
        out.hint(f"{number} of {len(jobs)}: {job.model}")
    if rows:
        from ckptforensics.render import render_several
        from ckptforensics.results import SignatureDocument

        documents = [SignatureDocument.model_validate(row) for row in rows]
        width, color = screen()
        click.echo(render_several(documents, width=width, color=color), nl=False)
    return worst


def sign_job(model: str, given: Mapping[str, Any], memory: int, output: Path | None) -> Job:
    """The job that signs a model by itself and prints its document as JSON.

    Parameters
    ----------
    given : options of this command by parameter name; what is missing or None is not passed on
    memory : bytes that it needs, and may use
    output : file of the signature, None for none
    """
    from ckptforensics.jobs.processes import Job

    own = {"jobs": None, "memory": memory, "output": output, "form": "json", "no_progress": True}
    values = dict.fromkeys(option.name for option in command.params) | dict(given) | own
    return Job(model, ["sign", *as_arguments(command, values), "--", model], memory)


def _job(model: str, opening: ModelOptions, memory: int, output: Path | None) -> Job:
    """The model with the memory it needs, or with what is wrong with it."""
    from ckptforensics.findings import needed_memory
    from ckptforensics.jobs.processes import Job

    try:
        needed = needed_memory(opening.open(as_path(model)), memory)
    except CkptError as problem:
        return Job(model, problem=problem)
    return sign_job(model, click.get_current_context().params, needed, output)


def _output_files(models: tuple[str, ...], folder: Path) -> list[Path]:
    """A file for each model's signature in the folder, by the models' last names, all different."""
    taken: set[str] = set()
    paths = []
    for model in models:
        stem = Path(model.partition("@")[0]).name or "model"
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name)
        paths.append(folder / f"{name}.safetensors")
    return paths
