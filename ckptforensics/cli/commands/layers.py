"""`ckpt layers`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import (
    Output,
    fit_options,
    make_fit,
    model_argument,
    open_model,
    output_options,
)


@click.command("layers")
@model_argument
@fit_options
@click.option(
    "--accumulated",
    is_flag=True,
    help="Also the directions of the products of all layers so far (a second pass).",
)
@output_options("Save the result as JSON.")
def command(
    model: Path,
    config: Path | None,
    base: Path | None,
    offline: bool,
    strict: bool,
    fit_kind: str,
    samples: int | None,
    seed: int | None,
    calibration: Path | None,
    accumulated: bool,
    form: str,
    output: Path | None,
    quiet: bool,
    verbose: bool,
    no_progress: bool,
) -> None:
    """Find explosion and decay layers, each with its evidence.

    An explosion layer multiplies the norm of single tokens along one shared direction; a decay
    layer takes it away again. 'None found' is a result too.
    """
    from ckptforensics.findings import find_layers

    out = Output(form, output, quiet, verbose, not no_progress)
    checkpoint = open_model(model, config, output, offline, strict, base)
    width = checkpoint.architecture.sizes.hidden_size
    fit = make_fit(fit_kind, samples, seed, calibration, width)
    progress = out.progress(checkpoint)
    document = find_layers(checkpoint, fit=fit, accumulated=accumulated, progress=progress)
    out.save(document)
    out.finish(checkpoint, document, strict)
