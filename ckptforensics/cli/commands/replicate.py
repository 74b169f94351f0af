"""`ckpt replicate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptforensics.cli.options import ModelOptions, as_object, model_options
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.cli.running import (
    PlacementOptions,
    TextOptions,
    placement_options,
    text_options,
)
from ckptforensics.errors import CkptError, NothingAnalysable, OutputError, UsageError

if TYPE_CHECKING:
    from ckptforensics.checkpoint import Checkpoint


@dataclass(frozen=True)
class FigureOptions:
    """Whose figures, and how many."""

    name: str | None
    every: bool
    numbers_only: bool
    quantized: bool
    pages: Path | None


figure_options = as_object(
    FigureOptions,
    "which",
    click.option("--as", "name", help="Whose figures, where the model's name does not tell."),
    click.option(
        "--all-available",
        "every",
        is_flag=True,
        help="Every model with published figures that is on this machine.",
    ),
    click.option(
        "--numbers-only",
        is_flag=True,
        help="Only what is published as a number: no trace, paths and ablations.",
    ),
    click.option(
        "--quantized",
        is_flag=True,
        help="Table 1, too: perplexity with modules rounded. Takes long.",
    ),
    click.option(
        "--pages",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder for a page with all pictures, and the JSON, of each model.",
    ),
)


@click.command("replicate")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@model_options
@figure_options
@text_options(256, 4096, "help topics of Python")
@placement_options
@output_options("Save it as JSON, or as CSV or HTML by the name's ending.", kind="replication")
def command(
    model: Path | None,
    opening: ModelOptions,
    which: FigureOptions,
    what: TextOptions,
    where: PlacementOptions,
    out: OutputOptions,
) -> None:
    """Measure what is published of a model, and show both side by side.

    MODEL may also be a name of those published. Explosion and decay layers, super weights, angles,
    massive coordinates, sinks: each with its tolerance, passed or failed; and one page with all
    pictures. Needs torch and transformers for all but the first two.
    """
    from ckptforensics.runtime.experiments.replicate import replicate

    if (model is None) != which.every:
        raise UsageError("name a model, or give --all-available")
    if which.every and (out.output is not None or which.name is not None):
        raise UsageError("--all-available goes with --pages, not with -o or --as")
    text = what.chosen()
    for name, checkpoint in _models(model, which, opening, out):
        document = replicate(
            checkpoint,
            name=name,
            text=text if text.given else None,
            pictures=not which.numbers_only,
            quantized=which.quantized,
            placement=where.placement(),
            progress=out.progress(checkpoint),
        )
        out.save(document)
        if which.pages is not None:
            try:
                which.pages.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise OutputError(
                    f"cannot make the folder: {problem.strerror}", path=which.pages
                ) from None
            for ending in ("json", "html"):
                file = which.pages / f"{document.name}.{ending}"
                replace(out, output=file).save(document)
        out.finish(checkpoint, document, opening.strict)


def _models(
    model: Path | None, which: FigureOptions, opening: ModelOptions, out: OutputOptions
) -> Iterator[tuple[str | None, Checkpoint]]:
    """Each model to measure, and whose figures it has where that is known."""
    from ckptforensics.runtime.experiments.replicate import published

    hubs = {name: Path(figures["hub"]) for name, figures in published().items()}
    if model is not None:
        known = {name.lower(): name for name in hubs}.get(str(model).lower())
        name = known if known is not None and not model.exists() else None
        at = model if name is None else hubs[name]
        yield which.name or name, opening.open(at, out.output)
        return
    found = False
    for name, hub in hubs.items():
        try:
            checkpoint = replace(opening, offline=True).open(hub)
        except CkptError:
            continue
        found = True
        yield name, checkpoint
    if not found:
        raise NothingAnalysable(
            "no model with published figures is in the cache of the Hub",
            hint=f"fetch one ('hf download {next(iter(hubs.values()))}'), or name a model",
        )
