"""`ckpt sign`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ckptforensics.cli.options import (
    Output,
    fit_options,
    make_fit,
    model_options,
    open_model,
    output_options,
)
from ckptforensics.errors import CkptError, UsageError
from ckptforensics.jobs.processes import (
    Job,
    default_memory,
    memory_size,
    output_names,
    run_jobs,
)


@click.command("sign")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=str)
@model_options
@fit_options
@click.option("--layers", help="Sign some layers only, such as 1-4,30: no fingerprint.")
@click.option(
    "--near",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Saved signature of a relative, which the search begins with.",
)
@click.option(
    "--memory",
    callback=memory_size,
    help="Memory that may be used, such as 8GB: by all processes together.",
)
@click.option("--jobs", type=click.IntRange(1), help="Models signed side by side.  [default: 1]")
@click.option("--digest", is_flag=True, help="Also compute the SHA-256 of whole files.")
@click.option("--no-cache", is_flag=True, help="Neither take it from the cache nor keep it there.")
@output_options(
    "Save the signature: .safetensors with its arrays, or .json without. Of several models: the "
    "folder for their signatures.",
    with_arrays=True,
)
def command(models: tuple[str, ...], jobs: int | None, **options: Any) -> int:
    """Sign a checkpoint: its singular defect directions, layer by layer.

    The fingerprint is the same for the same weights in any container, and few bits away for
    fine-tuned or quantized versions. Signatures are kept in a cache, and an interrupted run goes on
    where it stopped.

    Several models make a table, or with --format json one document a line; a model that cannot be
    signed does not keep the others from it.
    """
    if len(models) == 1 and jobs is None:
        _sign_one(Path(models[0]), **options)
        return 0
    return _sign_several(models, jobs or 1, **options)


def _sign_one(
    model: Path,
    *,
    config: Path | None,
    base: Path | None,
    offline: bool,
    strict: bool,
    fit_kind: str,
    samples: int | None,
    seed: int | None,
    calibration: Path | None,
    layers: str | None,
    near: Path | None,
    memory: int | None,
    digest: bool,
    no_cache: bool,
    form: str,
    output: Path | None,
    quiet: bool,
    verbose: bool,
    no_progress: bool,
) -> None:
    if output is not None and output.suffix not in (".safetensors", ".json"):
        raise UsageError(
            "a signature is saved as .safetensors or .json", path=output, hint="change -o"
        )
    from ckptforensics.findings import Scope, SignatureCache, layer_numbers, sign
    from ckptforensics.results import Signature, load_result

    out = Output(form, output, quiet, verbose, not no_progress)
    relative = None if near is None else load_result(near)
    if relative is not None and not isinstance(relative, Signature):
        raise UsageError("this is not a saved signature with its arrays", path=near)
    scope = Scope(None if layers is None else layer_numbers(layers), relative, memory)
    checkpoint = open_model(model, config, output, offline, strict, base)
    width = checkpoint.architecture.sizes.hidden_size
    fit = make_fit(fit_kind, samples, seed, calibration, width)
    cache = None if no_cache else SignatureCache.of_user(out.hint)
    progress = out.progress(checkpoint)
    if verbose:
        from ckptforensics.compute.products import compiled_loops
        from ckptforensics.compute.threads import thread_count

        loops = "none (pip install 'ckptforensics[fast]')" if compiled_loops() is None else "numba"
        out.hint(
            f"threads: {thread_count()}, the BLAS kept to one; loops for large models: {loops}"
        )
    signature = sign(
        checkpoint, fit=fit, digest=digest, progress=progress, cache=cache, scope=scope
    )
    if output is not None and output.suffix == ".safetensors":
        signature.save(output)
        out.hint(f"saved to {output}; 'ckpt show {output}' renders it again")
    else:
        out.save(signature.document)
    out.finish(checkpoint, signature.document, strict)


def _sign_several(models: tuple[str, ...], at_once: int, **options: Any) -> int:
    """Sign each model in a process of its own; the exit code is the largest of theirs."""
    output: Path | None = options["output"]
    for name in ("config", "base"):
        if options[name] is not None:
            raise UsageError(f"--{name} is of one model", hint="sign that model by itself")
    if output is not None:
        if output.exists() and not output.is_dir():
            raise UsageError("several signatures need a folder", path=output, hint="change -o")
        output.mkdir(parents=True, exist_ok=True)
    memory = options["memory"] or default_memory()
    paths = [None] * len(models) if output is None else output_names(models, output)
    jobs = [_job(m, p, options, memory) for m, p in zip(models, paths, strict=True)]
    out = Output(options["form"], None, options["quiet"], options["verbose"], with_progress=False)
    worst, rows = 0, []
    passed = _passed_on(options)
    for number, job in enumerate(run_jobs(jobs, passed, at_once=at_once, memory=memory), 1):
        worst = max(worst, job.code)
        printed = job.printed().strip()
        if job.code or not printed:
            click.echo(job.complaint(), err=True)
            continue
        document = json.loads(printed)
        if options["form"] == "json":
            click.echo(json.dumps(document))
        else:
            rows.append(document)
        out.hint(f"{number} of {len(jobs)}: {job.model}")
    if rows:
        from ckptforensics.render import render_several
        from ckptforensics.results import SignatureDocument

        documents = [SignatureDocument.model_validate(row) for row in rows]
        click.echo(render_several(documents), nl=False)
    return worst


def _job(model: str, output: Path | None, options: dict[str, Any], memory: int) -> Job:
    """The model with the memory it needs, or with what is wrong with it."""
    from ckptforensics.findings import needed_memory

    try:
        checkpoint = open_model(
            Path(model), None, None, options["offline"], options["strict"], None
        )
        return Job(model, needed_memory(checkpoint, memory), output)
    except CkptError as problem:
        return Job(model, problem=problem)


def _passed_on(options: dict[str, Any]) -> list[str]:
    """The options as every process gets them."""
    passed = ["--format", "json", "--no-progress"]
    for name in ("samples", "seed", "calibration", "layers", "near"):
        if options[name] is not None:
            passed += [f"--{name}", str(options[name])]
    for name in ("offline", "strict", "digest", "no_cache", "quiet"):
        if options[name]:
            passed.append("--" + name.replace("_", "-"))
    return [*passed, "--fit", options["fit_kind"]]
