"""`ckpt sinks`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from ckptforensics.cli.options import Between, ModelOptions, model_argument, model_options
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.cli.running import (
    PlacementOptions,
    TextOptions,
    placement_options,
    plot_option,
    text_options,
)


@click.command("sinks")
@model_argument
@model_options
@text_options(64, 4096, "help topics of Python")
@click.option(
    "--other-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text of another domain: heads that have a sink on one text only.",
)
@click.option(
    "--k",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The token that may be a sink, from 1.",
)
@click.option(
    "--threshold",
    type=Between(0, 1),
    default=0.3,
    show_default=True,
    help="Mean attention above which it is one.",
)
@placement_options
@plot_option
@output_options("Save the result as JSON, or as CSV or HTML by the name's ending.", kind="sinks")
def command(
    model: Path,
    opening: ModelOptions,
    what: TextOptions,
    other_file: Path | None,
    k: int,
    threshold: float,
    where: PlacementOptions,
    plot: Path | None,
    out: OutputOptions,
) -> None:
    """Show which heads attend to the first token, and what it gives them.

    Layer by layer: the share of heads with a sink, the norm of what the first token and the others
    write when they are read, and their norms in the residual stream. Needs torch and transformers.
    """
    out.check_plot(plot)
    checkpoint = opening.open(model, out.output, plot)
    from ckptforensics.runtime.experiments.sinks import sinks

    text = what.chosen()
    other = None
    if other_file is not None:
        other = replace(text, text=None, file=other_file, dataset=None, token_ids=None)
    document = sinks(
        checkpoint,
        text=text,
        other=other,
        k=k,
        threshold=threshold,
        placement=where.placement(),
        progress=out.progress(checkpoint),
    )
    out.save(document)
    out.plot(document, plot)
    out.finish(checkpoint, document, opening.strict)
