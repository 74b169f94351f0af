"""`ckpt report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptforensics.cli.options import ModelOptions, model_argument, model_options
from ckptforensics.cli.output import OutputOptions, output_options, require_whole
from ckptforensics.cli.running import (
    PlacementOptions,
    TextOptions,
    placement_options,
    text_options,
)
from ckptforensics.errors import CkptError, UsageError

if TYPE_CHECKING:
    from ckptforensics.checkpoint import Checkpoint
    from ckptforensics.progress import Progress
    from ckptforensics.results import Skipped
    from ckptforensics.results.empirical import EmpiricalDocument
    from ckptforensics.results.trace import TraceDocument


@click.command("report")
@model_argument
@model_options
@click.option("--no-run", is_flag=True, help="From the weights alone: the model does not run.")
@click.option(
    "--no-cache", is_flag=True, help="Neither take the signature from the cache nor keep it there."
)
@text_options(256, 2048, "the paper's sentence, and help topics of Python")
@placement_options
@output_options(
    "Save the report: FILE.html, or .json, which 'ckpt show' renders again.", kind="report"
)
def command(
    model: Path,
    opening: ModelOptions,
    no_run: bool,
    no_cache: bool,
    what: TextOptions,
    where: PlacementOptions,
    out: OutputOptions,
) -> None:
    """Put what the weights and the running model show onto one page.

    Signature, explosion and decay layers with their evidence, super weights, tokens that trigger,
    norms of single tokens; and if torch and transformers are installed and the model runs, the
    norms of a text and its tokens of high norm.
    """
    from ckptforensics.findings import SignatureCache, find_layers, rollout, sign
    from ckptforensics.results import Skipped
    from ckptforensics.results.report import ReportDocument
    from ckptforensics.version import __version__

    checkpoint = opening.open(model, out.output)
    progress = out.progress(checkpoint)
    # First, since a text that cannot be run is told before anything long begins.
    trace, empirical, skipped = (
        (None, None, (Skipped(what="running model", reason="left out by --no-run"),))
        if no_run
        else _ran(checkpoint, what, where, progress)
    )
    cache = None if no_cache else SignatureCache.of_user(out.hint)
    signature = sign(checkpoint, progress=progress, cache=cache).document
    document = ReportDocument(
        tool_version=__version__,
        model=signature.model,
        signature=signature,
        layers=find_layers(checkpoint, progress=progress),
        norms=rollout(checkpoint, progress=progress).document,
        trace=trace,
        empirical=empirical,
        skipped=skipped,
    )
    out.save(document)
    # What was left out because it was asked for is no gap.
    out.finish(checkpoint, document, opening.strict and not no_run)
    if opening.strict:
        for part in document.parts:
            require_whole(part)


def _ran(
    checkpoint: Checkpoint, what: TextOptions, where: PlacementOptions, progress: Progress
) -> tuple[TraceDocument | None, EmpiricalDocument | None, tuple[Skipped, ...]]:
    """What the running model shows, and why it shows nothing where it does not.

    Raises
    ------
    UsageError
        if the text or the device cannot be meant.
    """
    from ckptforensics.results import Skipped

    text = what.chosen()
    try:
        from ckptforensics.runtime.experiments.empirical import empirical
        from ckptforensics.runtime.experiments.trace import trace
        from ckptforensics.runtime.model import start

        runtime = start(checkpoint, where.placement())
        traced = trace(runtime, text=text, progress=progress)
    except UsageError:
        raise
    except CkptError as problem:
        return None, None, (Skipped(what="running model", reason=str(problem)),)
    try:
        return traced, empirical(runtime, text=text, progress=progress).document, ()
    except CkptError as problem:
        return traced, None, (Skipped(what="tokens of high norm", reason=str(problem)),)
