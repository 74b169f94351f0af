"""`ckpt layers`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import (
    FitOptions,
    ModelOptions,
    fit_options,
    model_argument,
    model_options,
    refuse_overwriting,
)
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.cli.running import plot_option


@click.command("layers")
@model_argument
@model_options
@fit_options
@click.option(
    "--accumulated",
    is_flag=True,
    help="Also the directions of the products of all layers so far (a second pass).",
)
@plot_option
@output_options("Save the result as JSON, or as CSV or HTML by the name's ending.", kind="layers")
def command(
    model: Path,
    opening: ModelOptions,
    fitting: FitOptions,
    accumulated: bool,
    plot: Path | None,
    out: OutputOptions,
) -> None:
    """Find explosion and decay layers, each with its evidence.

    An explosion layer multiplies the norm of single tokens along one shared direction; a decay
    layer takes it away again. 'None found' is a result too.
    """
    from ckptforensics.findings import find_layers

    out.check_plot(plot)
    checkpoint = opening.open(model, out.output)
    refuse_overwriting(plot, checkpoint, model, opening.base, opening.config)
    fit = fitting.fit(checkpoint.architecture.sizes.hidden_size)
    progress = out.progress(checkpoint)
    document = find_layers(checkpoint, fit=fit, accumulated=accumulated, progress=progress)
    out.save(document)
    out.plot(document, plot)
    out.finish(checkpoint, document, opening.strict)
