"""`ckpt find`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ckptforensics.cli.commands.audit import default_catalog
from ckptforensics.cli.commands.catalog import catalog_option
from ckptforensics.cli.options import (
    MODEL_NAME,
    Between,
    ModelOptions,
    level_option,
    memory_option,
    model_options,
    workers_option,
)
from ckptforensics.cli.output import OutputOptions, output_options, require_whole

if TYPE_CHECKING:
    from ckptforensics.results.comparison import Level


@click.command("find")
@click.argument("model", type=MODEL_NAME)
@model_options
@catalog_option
@click.option(
    "-k",
    "most",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Candidates that are compared and shown.",
)
@level_option("candidates")
@click.option("--no-compare", is_flag=True, help="Name candidates by their sketches only.")
@workers_option("Comparisons")
@memory_option
@click.option(
    "--timeout",
    type=Between(min=0, min_open=True),
    help="Seconds after which a comparison is ended.  [default: no limit]",
)
@output_options("Save the result as JSON.", kind="find")
def command(
    model: str,
    opening: ModelOptions,
    catalog: Path | None,
    most: int,
    level: str,
    no_compare: bool,
    workers: int,
    memory: int | None,
    timeout: float | None,
    out: OutputOptions,
) -> None:
    """Find whose copy a model is, among all models of a catalog.

    MODEL is a checkpoint or a saved sketch. Every sketch of the catalog is looked at; models whose
    sketches are near are candidates, and their weights are compared with MODEL's. A saved sketch
    has no weights: its candidates are only named.
    """
    from ckptforensics.jobs.memory import default_memory
    from ckptforensics.registry.find import FindOptions, find

    options = FindOptions(
        catalog=catalog or default_catalog(),
        most=most,
        level=cast("Level", level),
        compare=not no_compare,
        workers=workers,
        memory=memory or default_memory(),
        seconds=timeout,
        offline=opening.offline,
        config=opening.config,
        base=opening.base,
        strict=opening.strict,
    )
    document = find(model, options, progress=out.progress())
    out.save(document)
    out.emit(document)
    if opening.strict:
        require_whole(document)
