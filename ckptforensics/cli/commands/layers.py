"""`ckpt layers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from ckptforensics.cli.running import plot_option
from ckptforensics.errors import UsageError

if TYPE_CHECKING:
    from ckptforensics.results import Empirical


@dataclass(frozen=True)
class EvidenceOptions:
    """What is found beside the labels, and whether it is drawn."""

    accumulated: bool
    empirical: Path | None
    plot: Path | None


evidence_options = as_object(
    EvidenceOptions,
    "how",
    click.option(
        "--accumulated",
        is_flag=True,
        help="Also the directions of the products of all layers so far (a second pass).",
    ),
    click.option(
        "--empirical",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Directions saved by 'ckpt empirical -o FILE.safetensors': their angles to u1.",
    ),
    plot_option,
)


@click.command("layers")
@model_argument
@model_options
@fit_options
@evidence_options
@output_options("Save the result as JSON, or as CSV or HTML by the name's ending.", kind="layers")
def command(
    model: Path,
    opening: ModelOptions,
    fitting: FitOptions,
    how: EvidenceOptions,
    out: OutputOptions,
) -> None:
    """Find explosion and decay layers, each with its evidence.

    An explosion layer multiplies the norm of single tokens along one shared direction; a decay
    layer takes it away again. 'None found' is a result too.
    """
    from ckptforensics.findings import find_layers

    out.check_plot(how.plot)
    checkpoint = opening.open(model, out.output, how.plot)
    fit = fitting.fit(checkpoint.architecture.sizes.hidden_size)
    progress = out.progress(checkpoint)
    document = find_layers(
        checkpoint,
        fit=fit,
        accumulated=how.accumulated,
        empirical=None if how.empirical is None else _directions(how.empirical),
        progress=progress,
    )
    out.save(document)
    out.plot(document, how.plot)
    out.finish(checkpoint, document, opening.strict)


def _directions(file: Path) -> Empirical:
    from ckptforensics.results import Empirical, load_result

    found = load_result(file)
    if not isinstance(found, Empirical):
        raise UsageError(
            "the file holds no empirical directions",
            path=file,
            hint="save them with 'ckpt empirical MODEL -o FILE.safetensors'",
        )
    return found
