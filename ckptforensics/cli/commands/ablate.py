"""`ckpt ablate`."""

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
    seed_option,
    text_options,
)
from ckptforensics.errors import UsageError


@click.command("ablate")
@model_argument
@model_options
@click.option(
    "--what",
    "names",
    help="trigger, massive-zero, massive-mean, super-weight, skip-ffn, skip-block: separated by "
    "commas.",
)
@click.option("--all", "everything", is_flag=True, help="All of them, which is the default.")
@click.option("--layers", help="Layers in place of those with a label: 2,31.")
@click.option("--prompt", help="What the model goes on with.  [default: a sentence]")
@text_options(256, 4096, "help topics of Python", draws=False)
@placement_options
@seed_option
@plot_option
@output_options("Save the result as JSON, or as CSV or HTML by the name's ending.", kind="ablation")
def command(
    model: Path,
    opening: ModelOptions,
    names: str | None,
    everything: bool,
    layers: str | None,
    prompt: str | None,
    what: TextOptions,
    where: PlacementOptions,
    choices: int,
    plot: Path | None,
    out: OutputOptions,
) -> None:
    """Take one thing away at a time and show norms, perplexity and text, beside a control.

    The trigger before the explosion layer's FFN, massive coordinates, a super weight, the FFN or
    the whole of the decay layer. Needs torch and transformers.
    """
    if names is not None and everything:
        raise UsageError("name what to take away with --what, or --all, not both")
    out.check_plot(plot)
    checkpoint = opening.open(model, out.output, plot)
    from ckptforensics.findings.scope import layer_numbers
    from ckptforensics.runtime.experiments.ablate import ABLATIONS, ablate

    document = ablate(
        checkpoint,
        what=ABLATIONS if names is None else [n.strip() for n in names.split(",")],  # type: ignore[misc]
        layers=None if layers is None else layer_numbers(layers),
        text=what.chosen(),
        prompt=prompt,
        seed=choices,
        placement=where.placement(),
        progress=out.progress(checkpoint),
    )
    out.save(document)
    out.plot(document, plot)
    out.finish(checkpoint, document, opening.strict)
