"""`ckpt trace`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import ModelOptions, model_argument, model_options
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.cli.running import (
    PlacementOptions,
    TextOptions,
    placement_options,
    plot_option,
    text_options,
)


@click.command("trace")
@model_argument
@model_options
@text_options(1024, None, "the sentence of the paper's figures")
@placement_options
@plot_option
@output_options("Save the result as JSON, or as CSV or HTML by the name's ending.", kind="trace")
def command(
    model: Path,
    opening: ModelOptions,
    what: TextOptions,
    where: PlacementOptions,
    plot: Path | None,
    out: OutputOptions,
) -> None:
    """Run a text and show the norm of every token after every layer.

    What attention and FFN add is shown apart, and beside the first token's path what the weights
    alone predict of it. Needs torch and transformers.
    """
    out.check_plot(plot)
    checkpoint = opening.open(model, out.output, plot)
    from ckptforensics.runtime.experiments.trace import trace

    document = trace(
        checkpoint,
        text=what.chosen(),
        placement=where.placement(),
        progress=out.progress(checkpoint),
    )
    out.save(document)
    out.plot(document, plot)
    out.finish(checkpoint, document, opening.strict)
