"""`ckpt norms`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import Output, model_argument, open_model, output_options
from ckptforensics.errors import UsageError


@click.command("norms")
@model_argument
@click.option(
    "--tokens",
    help="bos, all, random:N or ids, separated by commas.  [default: bos,random:256]",
)
@click.option("--no-attention", is_flag=True, help="FFNs only: the path of noninitial tokens.")
@click.option(
    "--random-embeddings",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="N",
    help="Add N Gaussian vectors with the embeddings' spread.",
)
@click.option(
    "--states", is_flag=True, help="Save the hidden states as array 'states' in -o FILE.npz."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of random tokens and vectors.",
)
@output_options("Save the result as JSON, or with --states the hidden states as .npz.")
def command(
    model: Path,
    config: Path | None,
    base: Path | None,
    offline: bool,
    strict: bool,
    tokens: str | None,
    no_attention: bool,
    random_embeddings: int,
    states: bool,
    seed: int,
    form: str,
    output: Path | None,
    quiet: bool,
    verbose: bool,
    no_progress: bool,
) -> None:
    """Roll single tokens through the network and show their norms after each layer.

    Each token stands alone at position 0, where its path is exact: attention to itself has
    weight 1 whatever the scores are.
    """
    if states != (output is not None and output.suffix == ".npz"):
        raise UsageError("--states and -o FILE.npz go together")
    from ckptforensics.findings import rollout

    out = Output(form, output, quiet, verbose, not no_progress)
    checkpoint = open_model(model, config, output, offline, strict, base)
    result = rollout(
        checkpoint,
        tokens=tokens,
        attention=not no_attention,
        random_embeddings=random_embeddings,
        states=states,
        seed=seed,
        progress=out.progress(checkpoint),
    )
    if output is not None and result.states is not None:
        result.save_states(output)
        out.hint(f"hidden states saved to {output}")
    else:
        out.save(result.document)
    out.finish(checkpoint, result.document, strict)
