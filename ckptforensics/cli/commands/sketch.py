"""`ckpt sketch`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import ModelOptions, model_argument, model_options
from ckptforensics.cli.output import OutputOptions, output_options


@click.command("sketch")
@model_argument
@model_options
@click.option("--tokens-only", is_flag=True, help="Leave attention out: a few ranges of one file.")
@click.option("--digest", is_flag=True, help="Also compute the SHA-256 of whole files.")
@output_options("Save the sketch as JSON, which 'ckpt find' takes for a model.", kind="sketch")
def command(
    model: Path, opening: ModelOptions, tokens_only: bool, digest: bool, out: OutputOptions
) -> None:
    """Sketch a model: a small record by which a copy is found.

    It holds how alike the embeddings of some tokens are and the spectra of attention, less than
    100 kB, whatever basis, order, scale and names the files have. Only embeddings of those tokens
    and values and outputs of attention are read.
    """
    from ckptforensics.registry.sketch.make import sketch

    checkpoint = opening.open(model, out.output)
    progress = out.progress(checkpoint)
    document = sketch(checkpoint, heads=not tokens_only, digest=digest, progress=progress)
    out.save(document)
    out.finish(checkpoint, document, opening.strict)
