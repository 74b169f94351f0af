"""`ckpt replicate`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import ModelOptions, model_argument, model_options
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.cli.running import (
    PlacementOptions,
    TextOptions,
    placement_options,
    text_options,
)


@click.command("replicate")
@model_argument
@model_options
@click.option("--as", "name", help="Whose figures, where the model's name does not tell.")
@click.option(
    "--quantized", is_flag=True, help="Table 1, too: perplexity with modules rounded. Takes long."
)
@text_options(256, 4096, "help topics of Python")
@placement_options
@output_options("Save the result as JSON, or as CSV by the name's ending.", kind="replication")
def command(
    model: Path,
    opening: ModelOptions,
    name: str | None,
    quantized: bool,
    what: TextOptions,
    where: PlacementOptions,
    out: OutputOptions,
) -> None:
    """Measure what is published of a model, and show both side by side.

    Explosion and decay layers, super weights, angles, massive coordinates, sinks: each with its
    tolerance, passed or failed. Needs torch and transformers for all but the first two.
    """
    checkpoint = opening.open(model, out.output)
    from ckptforensics.runtime.experiments.replicate import replicate

    text = what.chosen()
    document = replicate(
        checkpoint,
        name=name,
        text=text if text.given else None,
        quantized=quantized,
        placement=where.placement(),
        progress=out.progress(checkpoint),
    )
    out.save(document)
    out.finish(checkpoint, document, opening.strict)
