"""One pass over the weights that measures everything the findings need, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ckptforensics.architectures import Architecture
from ckptforensics.arrays import Doubles, Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.products import loops_compiled
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import NothingAnalysable
from ckptforensics.findings.overflow import overflow_named
from ckptforensics.findings.scope import Scope, is_prefix
from ckptforensics.findings.skipped import skipped_layers
from ckptforensics.forward import embed, vocabulary_size
from ckptforensics.layers import Block, Ffn, Moe, stream_blocks
from ckptforensics.linear import BlockMap, ExpertsMap, FfnMap, Fit, ResidualMap, block_map
from ckptforensics.probes import (
    Response,
    Trigger,
    advance,
    probe_pair,
    read_response,
    response,
    start_tokens,
    trigger,
)
from ckptforensics.progress import Progress, running
from ckptforensics.results import Eigenvalue, Skipped
from ckptforensics.spectra import (
    Triplets,
    joint_triplets,
    nearest_eigenpair,
    singular_triplets,
)

# Single tokens rolled out beside the begin-of-sequence token.
ROLLOUT_TOKENS = 64
# Weights of the measured layers from which on the compiled loops are worth loading.
LARGE_MODEL = 1 << 28
# Tokens share a direction where the mean of their unit vectors is at least this long.
SHARED = 0.9
# Singular values this near to 1 are those of the identity, found in float32.
_ONE = 1e-6
# Fixed: two runs must give the same signature. Tokens and start vectors only need to be generic.
_SEED = 0


@dataclass(frozen=True)
class TokenState:
    """Where the rolled-out tokens stand between two blocks.

    Attributes
    ----------
    norms : (tokens,)
    direction : (hidden_size,) unit mean of their unit vectors
    concentration : length of that mean before it was made unit; 1 if all point the same way
    """

    norms: Doubles
    direction: Doubles
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
    near : like `eigenvalue`, nearest to each direction that was given
    """

    layer: int
    prefix: str
    spectrum: Triplets
    trigger_direction: Doubles
    trigger: Trigger
    probe_direction: Doubles
    probe_size: float
    probed_tokens: bool
    response: Response | None
    experts: tuple[ExpertMeasurement, ...]
    eigenvalue: Eigenvalue | None
    before: TokenState | None
    after: TokenState | None
    lowest: float | None = None
    near: tuple[Eigenvalue | None, ...] = ()

    @property
    def sigma(self) -> tuple[float, float]:
        """The two leading singular values of L."""
        return float(self.spectrum.values[0]), float(self.spectrum.values[1])

    @property
    def gap(self) -> float:
        """s1 / s2 of L; 1 where both are zero."""
        s1, s2 = self.sigma
        return s1 / s2 if s2 > 0 else 1.0

    @property
    def idle(self) -> bool:
        """Whether the layer passes on what it gets: its map is 1, and its FFN answers nothing."""
        tokens = [state.norms for state in (self.before, self.after) if state is not None]
        if self.trigger.norm or any(not np.array_equal(norms, tokens[0]) for norms in tokens):
            return False
        return max(abs(s - 1) for s in self.sigma) < _ONE


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
    def idle(self) -> bool:
        """Whether no layer does anything, so that no direction means anything."""
        return all(m.idle for m in self.layers)

    @property
    def u(self) -> Floats:
        """(layers, hidden_size) leading left singular vectors of L."""
        return np.stack([m.spectrum.left[:, 0] for m in self.layers]).astype(np.float32)

    @property
    def sigma(self) -> Floats:
        """(layers, 2) leading singular values of L."""
        return np.array([m.sigma for m in self.layers], np.float32)


class Journal(Protocol):
    """Keeps the finished layers of one measurement, so that another run can go on behind them."""

    def restore(self) -> tuple[list[LayerMeasurement], Floats | None]:
        """The layers an interrupted run has finished, and the tokens after the last of them."""

    def save(self, layers: Sequence[LayerMeasurement], x: Floats | None) -> None:
        """Keep the layers finished so far and the tokens after the last; None if there are none."""


@all_cores()
def measure(
    checkpoint: Checkpoint,
    fit: Fit,
    *,
    eigenpairs: Sequence[Doubles] | None,
    progress: Progress | None = None,
    journal: Journal | None = None,
    scope: Scope | None = None,
) -> Measurements:
    """Measure every layer in one pass over the weights.

    Every layer has random vectors of its own, so a run that goes on behind the layers of a journal
    measures the others exactly as one that measured all of them.

    Parameters
    ----------
    fit : how the FFN is fitted
    eigenpairs : also find the eigenpair of R nearest the probed direction, and nearest each of
        these (hidden_size,); None for no eigenpair at all
    progress : told of each layer
    journal : of the same measurement, begun before; it is told of each layer but the last
    scope : what is measured, by default everything; tokens are rolled out as long as no layer is
        left out

    Raises
    ------
    CkptError
        if a weight cannot be decoded, is not finite, or the activation is unknown.
    NothingAnalysable
        if the residual stream has one coordinate only.
    """
    if checkpoint.architecture.sizes.hidden_size == 1:
        raise NothingAnalysable(
            "the residual stream is 1 wide: all its vectors have one direction",
            path=checkpoint.source.path,
        )
    scope = scope or Scope()
    wanted = scope.wanted(checkpoint)
    expert_memory = scope.expert_memory(checkpoint)
    tokens, skipped = _tokens(checkpoint, np.random.default_rng(_SEED))
    skipped = [*scope.left_out(checkpoint), *skipped]
    if not is_prefix(wanted, checkpoint.architecture.analysed) and tokens is not None:
        tokens = None
        reason = "needs every layer from the first on; layers get no label without it"
        skipped.append(Skipped(what="single-token rollout", reason=reason))
    gap = checkpoint.architecture.first_gap
    skipped = [*skipped_layers(checkpoint.architecture), *skipped]
    if gap is not None and tokens is not None:
        skipped.append(_rollout_ends(checkpoint.architecture, gap))
    measured, x = ([], None) if journal is None else journal.restore()
    if not measured and tokens is not None:
        x = embed(checkpoint, tokens)
    before = None if x is None else token_state(x)
    large = _is_large(checkpoint, wanted)
    wanted = wanted[len(measured) :]
    with running(progress, "layers", len(wanted)) as step, loops_compiled(large):
        for block in stream_blocks(checkpoint, wanted, expert_memory=expert_memory, keep=large):
            if gap is not None and block.layer >= gap:
                x, before = None, None
            with overflow_named(checkpoint, block.layer):
                x, probe, answer = _advance(block, x, before)
                after = None if x is None else token_state(x)
                layer = _measure_layer(
                    block, fit, scope, (before, after), (probe, answer), eigenpairs
                )
            measured.append(replace(layer, lowest=_lowest(before, measured)))
            before = after
            if journal is not None and block.layer != wanted[-1]:
                journal.save(measured, x)
            step(block.prefix)
            del block  # before the next one is read
    return Measurements(tuple(measured), tuple(skipped), None if tokens is None else tuple(tokens))


def _is_large(checkpoint: Checkpoint, layers: Sequence[int]) -> bool:
    plans = checkpoint.architecture.layers
    names = {name for layer in layers for name, _ in plans[layer - 1].names()}
    return sum(math.prod(checkpoint.store.info(name).shape) for name in names) >= LARGE_MODEL


def _lowest(before: TokenState | None, measured: Sequence[LayerMeasurement]) -> float | None:
    """Smallest median norm of the tokens so far; None where there are none."""
    if before is None:
        return None
    return min([before.median, *(m.lowest for m in measured[-1:] if m.lowest is not None)])


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


@dataclass(frozen=True)
class _Probe:
    """Direction u and norm c of the response probe; `of_tokens` if u is their shared direction."""

    direction: Doubles
    size: float
    of_tokens: bool


def _advance(
    block: Block, x: Floats | None, before: TokenState | None
) -> tuple[Floats | None, _Probe | None, Response | None]:
    """The tokens after the block, and the probe of their shared direction in the same products."""
    if x is None or before is None:
        return None, None, None
    if before.concentration < SHARED:
        return advance(block, x), None, None
    probe = _Probe(before.direction, before.median, of_tokens=True)
    pair = probe_pair(probe.direction, probe.size)
    after = advance(block, np.concatenate([x, pair]))
    return after[:-2], probe, read_response(pair, after[-2:], probe.direction)


def _measure_layer(
    block: Block,
    fit: Fit,
    scope: Scope,
    tokens: tuple[TokenState | None, TokenState | None],
    probed: tuple[_Probe | None, Response | None],
    eigenpairs: Sequence[Doubles] | None,
) -> LayerMeasurement:
    generator = np.random.default_rng([_SEED, block.layer])
    before, after = tokens
    probe, answer = probed
    with np.errstate(over="ignore", invalid="ignore"):  # the spectra report it as an error
        operator = block_map(block, fit)
        experts, start = _experts(block.ffn, operator.ffn, generator)
        # The heaviest neuron or expert of F is a good guess of the leading direction of L too.
        near = scope.start(block.layer, operator.shape[0])
        spectrum, lead = joint_triplets(
            operator,
            operator.ffn,
            start=start if near is None else near,
            part_start=start,
            generator=generator,
        )
    v1 = lead.right[:, 0]
    if probe is None:
        # Nothing enters along a shared direction yet: probe what the layer itself prefers, at the
        # size of what enters (a unit mean square where no token is known).
        u1 = spectrum.left[:, 0]
        size = float(np.sqrt(u1.size)) if before is None else before.median
        probe = _Probe(u1, size, of_tokens=False)
        if block.mixer is None:
            answer = response(block, u1, size)
    return LayerMeasurement(
        layer=block.layer,
        prefix=block.prefix,
        spectrum=spectrum,
        trigger_direction=v1,
        trigger=trigger(block.ffn, v1),
        probe_direction=probe.direction,
        probe_size=probe.size,
        probed_tokens=probe.of_tokens,
        response=answer,
        experts=experts,
        eigenvalue=None if eigenpairs is None else _nearest_eigenvalue(operator, probe.direction),
        before=before,
        after=after,
        near=tuple(_nearest_eigenvalue(operator, given) for given in eigenpairs or ()),
    )


def _experts(
    ffn: Ffn | Moe, operator: FfnMap | ExpertsMap, generator: np.random.Generator
) -> tuple[tuple[ExpertMeasurement, ...], Floats | Doubles]:
    """What each expert does, and a guess of the leading left singular vector of F."""
    if isinstance(ffn, Ffn) or isinstance(operator, FfnMap):
        assert isinstance(operator, FfnMap)
        return (), operator.heaviest_neuron()
    measured = []
    strongest, start = -1.0, np.zeros(operator.shape[0])
    for i, (own, weight) in enumerate(operator.parts()):
        lead = singular_triplets(own, 1, start=own.heaviest_neuron(), generator=generator)
        routed = i < len(ffn.experts)
        expert = ffn.experts[i] if routed else ffn.shared
        assert expert is not None
        answer = trigger(replace(expert, norm=ffn.norm), lead.right[:, 0])
        sigma = float(lead.values[0])
        name = f"expert {i}" if routed else "shared expert"
        measured.append(ExpertMeasurement(name, weight, sigma, answer))
        if weight * sigma > strongest:
            strongest, start = weight * sigma, lead.left[:, 0]
    return tuple(measured), start


def _nearest_eigenvalue(operator: BlockMap, direction: Doubles) -> Eigenvalue | None:
    pair = nearest_eigenpair(ResidualMap(operator), direction)
    if pair is None:
        return None
    return Eigenvalue(
        real=pair.value.real,
        imag=pair.value.imag,
        angle_deg=float(np.degrees(np.arccos(pair.cosine))),
        residual=pair.residual,
    )
