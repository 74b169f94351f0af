"""`ckpt quant plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ckptforensics.cli.options import (
    FitOptions,
    ModelOptions,
    as_object,
    fit_options,
    model_argument,
    model_options,
)
from ckptforensics.cli.output import OutputOptions, output_options


@dataclass(frozen=True)
class PlanOptions:
    """How many modules are kept."""

    keep: int | None


plan_options = as_object(
    PlanOptions,
    "how",
    click.option(
        "--keep",
        type=click.IntRange(0),
        metavar="N",
        help="Keep the first N modules, whatever the evidence says.",
    ),
)


@click.command("plan")
@model_argument
@model_options
@fit_options
@plan_options
@output_options("Save the plan as JSON, or as CSV by the name's ending.", kind="quantization-plan")
def command(
    model: Path,
    opening: ModelOptions,
    fitting: FitOptions,
    how: PlanOptions,
    out: OutputOptions,
) -> None:
    """Plan which modules to keep in 16 bits, from the weights."""
    from ckptforensics.quantization.plan import plan_quantization

    checkpoint = opening.open(model, out.output)
    document = plan_quantization(
        checkpoint,
        keep=how.keep,
        fit=fitting.fit(checkpoint.architecture.sizes.hidden_size),
        progress=out.progress(checkpoint),
    )
    out.save(document)
    out.finish(checkpoint, document, opening.strict)
