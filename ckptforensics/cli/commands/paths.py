"""`ckpt paths`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import ModelOptions, model_argument, model_options
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.cli.running import (
    PlacementOptions,
    placement_options,
    plot_option,
    seed_option,
)


@click.command("paths")
@model_argument
@model_options
@click.option(
    "--vocabulary",
    type=click.IntRange(1),
    metavar="N",
    help="N tokens, drawn at random.  [default: all]",
)
@click.option(
    "--second",
    type=click.IntRange(0),
    default=2000,
    show_default=True,
    metavar="N",
    help="Tokens that are run at the second position, which needs torch.",
)
@placement_options
@seed_option
@plot_option
@output_options("Save the result as JSON, or as CSV or HTML by the name's ending.", kind="paths")
def command(
    model: Path,
    opening: ModelOptions,
    vocabulary: int | None,
    second: int,
    where: PlacementOptions,
    choices: int,
    plot: Path | None,
    out: OutputOptions,
) -> None:
    """Roll the vocabulary through the network, with attention and without, and see what triggers.

    Tokens without attention take the path of noninitial ones; random vectors are the control.
    All but the second position comes from the weights alone.
    """
    out.check_plot(plot)
    checkpoint = opening.open(model, out.output, plot)
    from ckptforensics.runtime.experiments.paths import paths

    document = paths(
        checkpoint,
        vocabulary=vocabulary,
        second=second,
        seed=choices,
        placement=where.placement(),
        progress=out.progress(checkpoint),
    )
    out.save(document)
    out.plot(document, plot)
    out.finish(checkpoint, document, opening.strict)
