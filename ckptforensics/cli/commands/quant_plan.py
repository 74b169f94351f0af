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
from ckptforensics.cli.output import OutputOptions, output_options, require_whole

# Those of `render.quantization_lists`, which need not be imported for them.
TOOLS = (
    *("llm-compressor", "bitsandbytes", "torchao", "gptqmodel", "autoawq", "autoround"),
    "llama.cpp",
)


@dataclass(frozen=True)
class PlanOptions:
    """How many modules are kept, and for which tool they are listed."""

    keep: int | None
    tool: str | None


plan_options = as_object(
    PlanOptions,
    "how",
    click.option(
        "--keep",
        type=click.IntRange(0),
        metavar="N",
        help="Keep the first N modules, whatever the evidence says.",
    ),
    click.option(
        "--for",
        "tool",
        type=click.Choice(TOOLS),
        help="Print the kept modules as this tool takes them, in place of the table.",
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
    if how.tool is not None:
        from ckptforensics.render.quantization_lists import plan_list

        listed = plan_list(document, how.tool)
        out.save(document)
        click.echo(listed, nl=False)
        if how.tool == "autoawq":
            out.hint("AutoAWQ leaves a module out in every layer, or in none")
        refs = [ref for layer in checkpoint.architecture.layers for ref in layer.refs.values()]
        if how.tool in ("llm-compressor", "torchao") and any(ref.transposed for ref in refs):
            out.hint(
                f"{how.tool} quantizes torch.nn.Linear alone: transformers' Conv1D, which this "
                "model has, stays as it is whatever the list says"
            )
        if opening.strict:
            require_whole(document)
        return
    out.save(document)
    out.finish(checkpoint, document, opening.strict)
