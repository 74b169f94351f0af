"""Which linear modules to keep in 16 bits, from the weights (docs/quantization.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.threads import all_cores
from ckptforensics.findings import find_layers
from ckptforensics.findings.model import opened
from ckptforensics.findings.norms import require_whole
from ckptforensics.findings.overflow import overflow_named
from ckptforensics.forward import embed, vocabulary_size
from ckptforensics.layers import stream_blocks
from ckptforensics.linear import Fit
from ckptforensics.probes import start_tokens
from ckptforensics.progress import Progress, running
from ckptforensics.quantities import counted, number, percent
from ckptforensics.quantization.names import gguf_name, module_name
from ckptforensics.quantization.predicted import LayerErrors, ModuleError, TokenPath, layer_errors
from ckptforensics.results import LayersDocument
from ckptforensics.results.quantization_plan import (
    PlannedModule,
    PredictedError,
    QuantizationPlanDocument,
)
from ckptforensics.version import __version__

# Tokens rolled out as initial ones, beside the begin-of-sequence token, and as ordinary ones.
INITIAL_TOKENS, ORDINARY_TOKENS = 16, 128
# A module is kept where the initial token's scale adds this many times the error that the median
# module has anyway. On SmolLM2 the least of those kept has 2.5, the largest of the others 1.1.
CLEAR = 2.0


@dataclass(frozen=True)
class _Found:
    """A module with its prediction, before it has a place in the order.

    `saves` is its error, `added` the part of it that the initial token's scale is to blame for,
    both as a share of the residual stream on an ordinary token.
    """

    layer: int
    error: ModuleError
    saves: float
    added: float


@all_cores()
def plan_quantization(
    model: Checkpoint | str | Path,
    *,
    keep: int | None = None,
    fit: Fit | None = None,
    progress: Progress | None = None,
) -> QuantizationPlanDocument:
    """Which linear modules to keep in 16 bits under per-tensor int8, in which order, and why.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes
    keep : how many modules are kept; by default as many as the evidence says
    fit : of the FFN, for labels and super weights; `canonical` by default
    progress : told of each layer, in two passes

    Raises
    ------
    CkptError
        if the checkpoint cannot be opened, decoded or rolled through; see `open_checkpoint`.
    """
    checkpoint = opened(model)
    require_whole(checkpoint)
    layers = find_layers(checkpoint, fit=fit, progress=progress)
    initial, ordinary = _tokens(checkpoint, layers)
    found = sorted(
        _predicted(checkpoint, initial, ordinary, progress), key=lambda module: -module.saves
    )
    # An expert's error where it is reached: few tokens reach each of many experts.
    reached = [(m.saves / m.error.reaches[1]) for m in found if m.error.reaches[1]]
    typical = float(np.median(reached)) if reached else 0.0
    clear = [m for m in found if m.added > 0 and m.added >= CLEAR * typical]
    order = [*clear, *(m for m in found if m not in clear)]
    kept = len(clear) if keep is None else min(keep, len(order))
    modules = tuple(
        _planned(checkpoint, layers, module, rank, keep=rank <= kept)
        for rank, module in enumerate(order, 1)
    )
    return QuantizationPlanDocument(
        tool_version=__version__,
        model=layers.model,
        explosion=layers.explosion,
        decay=layers.decay,
        chosen="evidence" if keep is None else "asked",
        conclusion=_conclusion(layers, clear, typical),
        initial=tuple(initial),
        ordinary=tuple(ordinary),
        bytes_16=sum(m.bytes_16 for m in modules),
        bytes_8=sum(m.bytes_8 for m in modules),
        modules=modules,
        skipped=layers.skipped,
    )


def _tokens(checkpoint: Checkpoint, layers: LayersDocument) -> tuple[list[int], list[int]]:
    """Initial and ordinary tokens; a begin-of-sequence token that stands out is alone initial."""
    generator = np.random.default_rng(0)
    vocabulary = vocabulary_size(checkpoint)
    initial = start_tokens(vocabulary, INITIAL_TOKENS, generator)
    ordinary = start_tokens(vocabulary, ORDINARY_TOKENS, generator)
    begin = layers.begin_token
    if begin is not None:
        alone = begin.growth != "like the others"
        initial = [begin.token] if alone else list(dict.fromkeys([begin.token, *initial]))
    return initial, ordinary


def _predicted(
    checkpoint: Checkpoint,
    initial: Sequence[int],
    ordinary: Sequence[int],
    progress: Progress | None,
) -> Iterator[_Found]:
    plans = checkpoint.architecture.layers
    x: Mapping[TokenPath, Floats] = {
        "initial": embed(checkpoint, initial),
        "ordinary": embed(checkpoint, ordinary),
    }
    with running(progress, "layers", len(plans)) as step:
        for block in stream_blocks(checkpoint):
            with overflow_named(checkpoint, block.layer):
                errors = layer_errors(block, plans[block.layer - 1], checkpoint.store, x)
            x = errors.after
            step(block.prefix)
            yield from (_found(block.layer, m, errors) for m in errors.modules)
            del block  # before the next one is read


def _found(layer: int, module: ModuleError, errors: LayerErrors) -> _Found:
    attention = module.role.split(", ")[0] in ("value", "output", "latent", "attention_gate")
    branch: Literal["attention", "ffn"] = "attention" if attention else "ffn"
    # What is rounded away is at most the branch, whose size beside the stream is known.
    weight = min(1.0, errors.shares[branch][1]) * module.reaches[1]
    _, beside, alone = module.relative
    if beside is None or alone is None:
        return _Found(layer, module, 0.0, 0.0)
    return _Found(layer, module, beside * weight, (beside - alone) * weight)


def _planned(
    checkpoint: Checkpoint, layers: LayersDocument, found: _Found, rank: int, *, keep: bool
) -> PlannedModule:
    error = found.error
    initial, ordinary, alone = error.relative
    evidence = next(row for row in layers.layers if row.layer == found.layer)
    name = error.tensor if error.expert is None else f"{error.tensor}[{error.expert}]"
    weights = tuple(w for w in layers.super_weights if w.tensor == name)
    why = []
    if ordinary is not None and alone is not None and found.added > 0 and ordinary > alone:
        why.append(
            f"the initial token's scale takes an ordinary token's error from {percent(alone)} to "
            f"{percent(ordinary)}"
        )
    if evidence.label is not None:
        why.append(f"{evidence.label} layer: {evidence.evidence[0]}")
    if evidence.label is not None and evidence.response is not None and "down" in error.role:
        plus = number(evidence.response.plus, signed=True)
        size = number(evidence.response.size)
        why.append(f"the block adds {plus} along the probed direction at norm {size}")
    return PlannedModule(
        rank=rank,
        module=module_name(checkpoint, error.tensor, found.layer, error.expert),
        tensor=error.tensor,
        gguf=gguf_name(checkpoint, error.tensor, found.layer, error.expert),
        layer=found.layer,
        role=error.role,
        label=evidence.label,
        keep=keep,
        why=tuple(why),
        bytes_16=2 * error.elements,
        bytes_8=error.elements,
        error=PredictedError(initial=initial, ordinary=ordinary, ordinary_alone=alone),
        saves=found.saves if ordinary is not None else None,
        super_weights=weights,
    )


def _conclusion(layers: LayersDocument, clear: Sequence[_Found], typical: float) -> str:
    """In a sentence, how many modules the evidence says to keep."""
    if not clear:
        explosions = "no layer explodes or decays, and " if not layers.explosion else ""
        return f"nothing to keep: {explosions}no initial token's scale costs the others much"
    share = percent(min(m.added for m in clear), 1)
    return (
        f"keep {counted(len(clear), 'module')}: in each, the initial token's scale costs ordinary "
        f"tokens at least {share} of the residual stream (the median module's error is "
        f"{percent(typical, 1)})"
    )
