"""One pass over the weights that measures everything the findings need, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ckptforensics.architectures import Architecture
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NothingAnalysable
from ckptforensics.findings.skipped import skipped_layers
from ckptforensics.layers import Block, Ffn, Floats, Moe, stream_blocks
from ckptforensics.linear import BlockMap, ExpertsMap, FfnMap, Fit, ResidualMap, block_map
from ckptforensics.probes import (
    Response,
    Trigger,
    advance,
    embed,
    response,
    start_tokens,
    trigger,
    vocabulary_size,
)
from ckptforensics.progress import Progress, Silent
from ckptforensics.results import Eigenvalue, Skipped
from ckptforensics.spectra import Triplets, eigenpairs, singular_triplets

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Single tokens rolled out beside the begin-of-sequence token.
ROLLOUT_TOKENS = 64
# Tokens share a direction where the mean of their unit vectors is at least this long.
SHARED = 0.9
_HEAVY_NEURONS = 6


@dataclass(frozen=True)
class TokenState:
    """Where the rolled-out tokens stand between two blocks.

    Attributes
    ----------
    norms : (tokens,)
    direction : (hidden_size,) unit mean of their unit vectors
    concentration : length of that mean before it was made unit; 1 if all point the same way
    """

    norms: Float64
    direction: Float64
    concentration: float

    @property
    def median(self) -> float:
        """Median norm of the tokens."""
        return float(np.median(self.norms))


@dataclass(frozen=True)
class ExpertMeasurement:
    """One expert: its mean weight in F, the leading singular value of its own F, its trigger."""

    name: str
    weight: float
    sigma: float
    trigger: Trigger


@dataclass(frozen=True)
class LayerMeasurement:
    """All that is measured of one layer.

    Attributes
    ----------
    layer, prefix : the layer and its tensors' prefix
    spectrum : two leading singular triplets of L
    trigger_direction : (hidden_size,) v1 of F
    trigger : what the true FFN answers to it
    probe_direction, probe_size, probed_tokens : direction u and norm c of the response probe;
        whether u is the tokens' shared direction (else it is u1 of L)
    response : what the true block adds along u at +-c u; None if its mixer is not analysed
    experts : how each expert counts and answers; empty without experts
    eigenvalue : of R, nearest to u; None if not asked for or none converged
    before, after : the tokens around the block; None without token embeddings
    lowest : smallest median norm of the tokens before the block, the embeddings' included
    """

    layer: int
    prefix: str
    spectrum: Triplets
    trigger_direction: Float64
    trigger: Trigger
    probe_direction: Float64
    probe_size: float
    probed_tokens: bool
    response: Response | None
    experts: tuple[ExpertMeasurement, ...]
    eigenvalue: Eigenvalue | None
    before: TokenState | None
    after: TokenState | None
    lowest: float | None = None

    @property
    def sigma(self) -> tuple[float, float]:
        """The two leading singular values of L."""
        return float(self.spectrum.values[0]), float(self.spectrum.values[1])

    @property
    def gap(self) -> float:
        """s1 / s2 of L; 1 where both are zero."""
        s1, s2 = self.sigma
        return s1 / s2 if s2 > 0 else 1.0


@dataclass(frozen=True)
class Measurements:
    """The measurements of all layers, and what could not be measured.

    Attributes
    ----------
    layers, skipped : see above
    tokens : ids rolled out, in the order of `TokenState.norms`; None without token embeddings
    """

    layers: tuple[LayerMeasurement, ...]
    skipped: tuple[Skipped, ...]
    tokens: tuple[int, ...] | None

    @property
    def u(self) -> Float32:
        """(layers, hidden_size) leading left singular vectors of L."""
        return np.stack([m.spectrum.left[:, 0] for m in self.layers]).astype(np.float32)

    @property
    def sigma(self) -> Float32:
        """(layers, 2) leading singular values of L."""
        return np.array([m.sigma for m in self.layers], np.float32)


def measure(
    checkpoint: Checkpoint,
    fit: Fit,
    *,
    with_eigenvalues: bool,
    progress: Progress | None = None,
) -> Measurements:
    """Measure every layer in one pass over the weights.

    Parameters
    ----------
    fit : how the FFN is fitted
    with_eigenvalues : also find the eigenpair of R nearest the probed direction
    progress : told of each layer

    Raises
    ------
    CkptError
        if a weight cannot be decoded, is not finite, or the activation is unknown.
    """
    progress = progress or Silent()
    # Fixed seed: two runs must give the same signature. The start vectors only need to be generic.
    generator = np.random.default_rng(0)
    tokens, skipped = _tokens(checkpoint, generator)
    gap = checkpoint.architecture.first_gap
    skipped = [*skipped_layers(checkpoint.architecture), *skipped]
    if gap is not None and tokens is not None:
        skipped.append(_rollout_ends(checkpoint.architecture, gap))
    x = None if tokens is None else embed(checkpoint, tokens)
    before = None if x is None else token_state(x)
    measured = []
    lowest = math.inf
    progress.start("layers", len(checkpoint.architecture.analysed))
    try:
        for block in stream_blocks(checkpoint):
            after = None
            if gap is not None and block.layer >= gap:
                x, before = None, None
            if x is not None:
                x = advance(block, x)
                after = token_state(x)
            layer = _measure_layer(block, fit, before, after, with_eigenvalues, generator)
            if before is not None:
                lowest = min(lowest, before.median)
                layer = replace(layer, lowest=lowest)
            measured.append(layer)
            before = after
            progress.step(block.prefix)
    finally:
        progress.finish()
    return Measurements(tuple(measured), tuple(skipped), None if tokens is None else tuple(tokens))


def _rollout_ends(architecture: Architecture, gap: int) -> Skipped:
    plan = architecture.layers[gap - 1]
    name = plan.prefix.rstrip(".")
    reason = f"ends before layer {gap} ({name}), and layers from there on get no label: {plan.gap}"
    return Skipped(what="single-token rollout", reason=reason)


def token_state(x: Floats) -> TokenState:
    """Norms, shared direction and concentration of the rows of x."""
    rows = np.asarray(x, np.float64)
    norms = np.linalg.norm(rows, axis=1)
    units = rows / np.maximum(norms, np.finfo(np.float64).tiny)[:, None]
    mean = units.mean(axis=0)
    length = float(np.linalg.norm(mean))
    return TokenState(norms, mean / length if length > 0 else mean, length)


def _tokens(
    checkpoint: Checkpoint, generator: np.random.Generator
) -> tuple[Sequence[int] | None, list[Skipped]]:
    skipped = []
    try:
        vocabulary = vocabulary_size(checkpoint)
    except NothingAnalysable as problem:
        reason = f"{problem.message}; layers get no label without it"
        return None, [Skipped(what="single-token rollout", reason=reason)]
    tokens = start_tokens(vocabulary, ROLLOUT_TOKENS, generator)
    bos = checkpoint.architecture.bos_token_id
    if bos is None or bos >= vocabulary:
        skipped.append(
            Skipped(what="begin-of-sequence token", reason="the checkpoint does not name one")
        )
    elif bos not in tokens:
        tokens = [bos, *tokens]
    return tokens, skipped


def _measure_layer(
    block: Block,
    fit: Fit,
    before: TokenState | None,
    after: TokenState | None,
    with_eigenvalues: bool,
    generator: np.random.Generator,
) -> LayerMeasurement:
    with np.errstate(over="ignore", invalid="ignore"):  # the spectra report it as an error
        operator = block_map(block, fit)
    heavy = operator.ffn.heaviest_columns(_HEAVY_NEURONS)
    spectrum = singular_triplets(operator, 2, start=heavy, generator=generator)
    v1 = singular_triplets(operator.ffn, 1, start=heavy, generator=generator).right[:, 0]
    probed_tokens = before is not None and before.concentration >= SHARED
    if before is not None and probed_tokens:
        direction, size = before.direction, before.median
    else:
        # Nothing enters along a shared direction yet: probe what the layer itself prefers, at the
        # size of what enters (a unit mean square where no token is known).
        direction = spectrum.left[:, 0]
        size = float(np.sqrt(direction.size)) if before is None else before.median
    return LayerMeasurement(
        layer=block.layer,
        prefix=block.prefix,
        spectrum=spectrum,
        trigger_direction=v1,
        trigger=trigger(block.ffn, v1),
        probe_direction=direction,
        probe_size=size,
        probed_tokens=probed_tokens,
        response=None if block.mixer is not None else response(block, direction, size),
        experts=_experts(block.ffn, operator.ffn, generator),
        eigenvalue=_nearest_eigenvalue(operator, direction) if with_eigenvalues else None,
        before=before,
        after=after,
    )


def _experts(
    ffn: Ffn | Moe, operator: FfnMap | ExpertsMap, generator: np.random.Generator
) -> tuple[ExpertMeasurement, ...]:
    if isinstance(ffn, Ffn) or isinstance(operator, FfnMap):
        return ()
    parts = [
        (f"expert {i}", expert, own, weight)
        for i, (expert, own, weight) in enumerate(
            zip(ffn.experts, operator.experts, operator.weights, strict=True)
        )
    ]
    if ffn.shared is not None and operator.shared is not None:
        parts.append(("shared expert", ffn.shared, *operator.shared))
    measured = []
    for name, expert, own, weight in parts:
        heavy = own.heaviest_columns(_HEAVY_NEURONS)
        lead = singular_triplets(own, 1, start=heavy, generator=generator)
        answer = trigger(replace(expert, norm=ffn.norm), lead.right[:, 0])
        measured.append(ExpertMeasurement(name, weight, float(lead.values[0]), answer))
    return tuple(measured)


def _nearest_eigenvalue(operator: BlockMap, direction: Float64) -> Eigenvalue | None:
    # Three digits are enough for evidence, and each product is a pass over the layer.
    pairs = eigenpairs(ResidualMap(operator), start=direction, tolerance=1e-3, max_products=160)
    if not pairs:
        return None
    cosines = [float(abs(np.vdot(pair.vector, direction))) for pair in pairs]
    best = int(np.argmax(cosines))
    return Eigenvalue(
        real=pairs[best].value.real,
        imag=abs(pairs[best].value.imag),
        angle_deg=float(np.degrees(np.arccos(min(1.0, cosines[best])))),
    )
