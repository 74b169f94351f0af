"""`ckpt evolve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ckptforensics.cli.options import (
    MODEL_NAME,
    Between,
    FitOptions,
    ModelOptions,
    as_object,
    fit_options,
    memory_option,
    model_options,
    refuse_overwriting,
)
from ckptforensics.cli.output import (
    OutputOptions,
    output_options,
    require_sound,
    require_whole,
)
from ckptforensics.errors import UsageError


@dataclass(frozen=True)
class EvolveOptions:
    """Which steps and layers are followed, and with what means."""

    steps: str | None
    layers: str | None
    settled: float
    plot: Path | None
    memory: int | None
    no_cache: bool

    def step_numbers(self) -> list[int] | None:
        """The numbers of --steps; UsageError if they are none."""
        if self.steps is None:
            return None
        words = self.steps.replace(",", " ").split()
        if not words or not all(w.isascii() and w.isdecimal() and len(w) < 16 for w in words):
            raise UsageError(
                f"cannot read the steps {self.steps!r}", hint="write them as 0,500,1000"
            )
        return [int(word) for word in words]


evolve_options = as_object(
    EvolveOptions,
    "how",
    click.option(
        "--steps",
        help="The checkpoints' steps, as 0,500,1000.  [default: from names such as "
        "checkpoint-500, else 1, 2, 3]",
    ),
    click.option("--layers", help="Follow some layers only, such as 1-4,30: no labels, no norms."),
    click.option(
        "--settled",
        type=Between(0, 90, min_open=True),
        default=10.0,
        show_default=True,
        help="Degrees to the last checkpoint below which a direction has settled.",
    ),
    click.option(
        "--plot", type=click.Path(path_type=Path), help="Draw it: FILE.png, .svg or .pdf."
    ),
    memory_option,
    click.option(
        "--no-cache", is_flag=True, help="Neither take signatures from the cache nor keep them."
    ),
)


@click.command("evolve")
@click.argument("models", metavar="CKPT CKPT...", nargs=-1, required=True, type=MODEL_NAME)
@model_options
@fit_options
@evolve_options
@output_options(
    "Save the result as JSON, or as CSV or HTML by the name's ending.", kind="evolution"
)
def command(
    models: tuple[str, ...],
    opening: ModelOptions,
    fitting: FitOptions,
    how: EvolveOptions,
    out: OutputOptions,
) -> None:
    """Follow norms and defect directions from checkpoint to checkpoint of a run.

    CKPT is a model or a saved signature: the checkpoints of a training run, or a chain of
    fine-tunes. Shown are norms of single tokens, explosion and decay layers, and the angles of
    every layer's direction to the checkpoint before and to the last one.
    """
    from ckptforensics.findings import Scope, SignatureCache, layer_numbers
    from ckptforensics.lineage.compare import open_model
    from ckptforensics.lineage.evolve import evolve, signatures, steps_of

    out.check_plot(how.plot)
    steps = how.step_numbers()
    steps_of(models, steps)  # before anything is measured
    layers = None if how.layers is None else layer_numbers(how.layers)
    opened = [
        open_model(
            model,
            config=opening.config,
            base=opening.base,
            offline=opening.offline,
            strict=opening.strict,
        )
        for model in models
    ]
    for model, one in zip(models, opened, strict=True):
        for written in (out.output, how.plot):
            refuse_overwriting(written, one.checkpoint, Path(model), opening.base, opening.config)
    signed = signatures(
        opened,
        fit=fitting.fit(opened[0].hidden_size),
        scope=Scope(layers, memory=how.memory),
        cache=None if how.no_cache else SignatureCache.of_user(out.hint),
        progress=out.progress(*(one.checkpoint for one in opened if one.checkpoint is not None)),
    )
    names = [one.name for one in opened]
    document = evolve(names, signed, steps=steps, layers=layers, settles_deg=how.settled)
    out.save(document)
    out.plot(document, how.plot)
    out.emit(document)
    if opening.strict:
        for checkpoint in document.checkpoints:
            require_sound(checkpoint.model)
        require_whole(document)
