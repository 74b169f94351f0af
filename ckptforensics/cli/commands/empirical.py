"""`ckpt empirical`."""

from __future__ import annotations

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


@click.command("empirical")
@model_argument
@model_options
@text_options(256, 4096, "help topics of Python")
@placement_options
@click.option(
    "--threshold",
    type=Between(0, min_open=True),
    help="Norm above which a token counts.  [default: the gap between two populations]",
)
@plot_option
@output_options(
    "Save the result: JSON, CSV or HTML, or FILE.safetensors with the directions.",
    kind="empirical",
)
def command(
    model: Path,
    opening: ModelOptions,
    what: TextOptions,
    where: PlacementOptions,
    threshold: float | None,
    plot: Path | None,
    out: OutputOptions,
) -> None:
    """Find the tokens of high norm in running text, and the direction that they share.

    Layers are grouped into plateaus after which the same tokens have a high norm; of each the
    mean direction, the mean angle between two tokens and the massive coordinates are given.
    Needs torch and transformers.
    """
    out.check_plot(plot)
    checkpoint = opening.open(model, out.output, plot)
    from ckptforensics.runtime.experiments.empirical import empirical

    result = empirical(
        checkpoint,
        text=what.chosen(),
        threshold=threshold,
        placement=where.placement(),
        progress=out.progress(checkpoint),
    )
    if out.output is not None and out.output.suffix == ".safetensors":
        result.save(out.output)
        out.tell_saved()
    else:
        out.save(result.document)
    out.plot(result.document, plot)
    out.finish(checkpoint, result.document, opening.strict)
