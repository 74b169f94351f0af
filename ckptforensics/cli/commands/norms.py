"""`ckpt norms`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ckptforensics.cli.options import (
    ModelOptions,
    as_object,
    model_argument,
    model_options,
)
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.errors import UsageError


@dataclass(frozen=True)
class RolloutOptions:
    """Which tokens are rolled out, through what, and what is kept of it."""

    tokens: str | None
    no_attention: bool
    random_embeddings: int
    states: bool
    plot: Path | None
    seed: int


rollout_options = as_object(
    RolloutOptions,
    "how",
    click.option(
        "--tokens",
        help="bos, all, random:N or ids, separated by commas.  [default: bos,random:256]",
    ),
    click.option("--no-attention", is_flag=True, help="FFNs only: the path of noninitial tokens."),
    click.option(
        "--random-embeddings",
        type=click.IntRange(0, 1_000_000),
        default=0,
        metavar="N",
        help="Add N Gaussian vectors with the embeddings' spread.",
    ),
    click.option(
        "--states", is_flag=True, help="Save the hidden states as array 'states' in -o FILE.npz."
    ),
    click.option(
        "--plot", type=click.Path(path_type=Path), help="Draw it: FILE.png, .svg or .pdf."
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Of random tokens and vectors.",
    ),
)


@click.command("norms")
@model_argument
@model_options
@rollout_options
@output_options(
    "Save the result as JSON, or as CSV or HTML by the name's ending, or with --states the hidden "
    "states as .npz.",
    kind="norms",
)
def command(model: Path, opening: ModelOptions, how: RolloutOptions, out: OutputOptions) -> None:
    """Roll single tokens through the network and show their norms after each layer.

    Each token stands alone at position 0, where its path is exact: attention to itself has
    weight 1 whatever the scores are.
    """
    if how.states != (out.output is not None and out.output.suffix == ".npz"):
        raise UsageError("--states and -o FILE.npz go together")
    from ckptforensics.findings import rollout

    out.check_plot(how.plot)
    checkpoint = opening.open(model, out.output, how.plot)
    result = rollout(
        checkpoint,
        tokens=how.tokens,
        attention=not how.no_attention,
        random_embeddings=how.random_embeddings,
        states=how.states,
        seed=how.seed,
        progress=out.progress(checkpoint),
    )
    if out.output is not None and result.states is not None:
        result.save_states(out.output)
        out.hint(f"hidden states saved to {out.output}")
    else:
        out.save(result.document)
    out.plot(result.document, how.plot)
    out.finish(checkpoint, result.document, opening.strict)
