"""`ckpt inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import ModelOptions, model_argument, model_options
from ckptforensics.cli.output import OutputOptions, output_options


@click.command("inspect")
@model_argument
@model_options
@click.option("--digest", is_flag=True, help="Also compute the SHA-256 of whole files.")
@output_options("Save the result as JSON.", kind="inspect")
def command(model: Path, opening: ModelOptions, digest: bool, out: OutputOptions) -> None:
    """Show family, shapes and files; what is read and what is not, and why.

    Only headers are read. With -v every tensor is listed.
    """
    from ckptforensics.findings import inspect

    checkpoint = opening.open(model, out.output)
    document = inspect(checkpoint, digest=digest, progress=out.progress(checkpoint))
    out.save(document)
    out.finish(checkpoint, document, opening.strict)
