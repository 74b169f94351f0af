"""`ckpt inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import Output, model_argument, open_model, output_options


@click.command("inspect")
@model_argument
@click.option("--digest", is_flag=True, help="Also compute the SHA-256 of whole files.")
@output_options("Save the result as JSON.")
def command(
    model: Path,
    config: Path | None,
    base: Path | None,
    offline: bool,
    strict: bool,
    digest: bool,
    form: str,
    output: Path | None,
    quiet: bool,
    verbose: bool,
    no_progress: bool,
) -> None:
    """Show family, shapes and files; what is read and what is not, and why.

    Only headers are read. With -v every tensor is listed.
    """
    from ckptforensics.findings import inspect

    out = Output(form, output, quiet, verbose, not no_progress)
    checkpoint = open_model(model, config, output, offline, strict, base)
    document = inspect(checkpoint, digest=digest, progress=out.progress(checkpoint))
    out.save(document)
    out.finish(checkpoint, document, strict)
