"""Where single tokens go: with and without attention, and what triggers (Fig. 6 to 9, 20 to 23)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import CkptError, NothingAnalysable
from ckptforensics.findings import find_layers
from ckptforensics.findings.model import model_record, opened
from ckptforensics.findings.norms import gaussian_embeddings, require_whole
from ckptforensics.forward import attention_forward, embed, vocabulary_size
from ckptforensics.layers import Block, stream_blocks
from ckptforensics.linear import Fit, block_map
from ckptforensics.probes import advance, trigger
from ckptforensics.progress import Progress, running
from ckptforensics.results import Skipped
from ckptforensics.results.paths import (
    AnswerRecord,
    CoefficientRecord,
    PathRecord,
    PathsDocument,
    TokenNorm,
)
from ckptforensics.results.running import TokenText
from ckptforensics.runtime.model import Runtime, start
from ckptforensics.runtime.weights import Placement
from ckptforensics.spectra import singular_triplets
from ckptforensics.tokens import read_vocabulary
from ckptforensics.version import __version__

# Gaussian vectors, and tokens at the first position whose whole path is kept.
_RANDOM, _INITIAL = 1024, 2048
_NAMED = 8
_VECTORS = 4
# Tokens whose second position is run, two tokens each, and how many run together.
SECOND = 2000
_PAIRS_AT_ONCE = 256
# Tokens rolled out of larger vocabularies, whose states would not fit into memory.
_MOST_STATES = 1 << 31


@dataclass
class _Path:
    """Tokens on their way: their states, norms so far, and the largest norm of each."""

    tokens: list[int] | None
    states: Floats
    quantiles: list[Doubles] = field(default_factory=list)
    best: Doubles = field(init=False)
    layer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.best = np.zeros(len(self.states))
        self.layer = np.zeros(len(self.states), np.int64)
        self.note(0)

    def note(self, layer: int) -> None:
        norms = np.sqrt(np.einsum("ij,ij->i", self.states, self.states, dtype=np.float64))
        self.quantiles.append(np.quantile(norms, [0, 0.5, 1]))
        higher = norms > self.best
        self.best[higher], self.layer[higher] = norms[higher], layer


def paths(
    model: Runtime | Checkpoint | str | Path,
    *,
    vocabulary: int | None = None,
    second: int = SECOND,
    seed: int = 0,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> PathsDocument:
    """Roll the whole vocabulary through the network, with attention and without.

    All but the second position comes from the weights alone, and needs no torch.

    Parameters
    ----------
    model : an opened checkpoint, what `open_checkpoint` takes, or a running model
    vocabulary : tokens, drawn at random, in place of all
    second : tokens, drawn at random, that are run at the second position; 0 for none
    seed : of random tokens and vectors
    placement : device and element type of what is run
    progress : told of each layer

    Raises
    ------
    CkptError
        as `open_checkpoint`, and as `rollout` if a layer is not analysed.
    """
    runtime = model if isinstance(model, Runtime) else None
    checkpoint = runtime.checkpoint if runtime else opened(model)  # type: ignore[arg-type]
    require_whole(checkpoint)
    generator = np.random.default_rng(seed)
    labels = find_layers(checkpoint, progress=progress)
    strength = {row.layer: row.trigger_norm for row in labels.layers}
    peak = max(labels.explosion, key=lambda n: strength[n], default=None)
    tokens, skipped = _tokens(checkpoint, vocabulary, generator)
    texts = _texts(checkpoint)
    some = _drawn(tokens, _INITIAL, generator)
    embedded = embed(checkpoint, tokens)
    # All tokens at the first position, as far as the layer that they may trigger.
    whole = embedded.copy() if peak is not None else None
    flows = {
        "noninitial": _Path(tokens, embedded),
        "initial": _Path(some, embed(checkpoint, some)),
        "random": _Path(None, gaussian_embeddings(checkpoint, _RANDOM, generator)),
    }
    answers, inputs, v1 = [], None, None
    count = checkpoint.architecture.sizes.num_layers
    with running(progress, "paths", count) as step:
        for layer, block in enumerate(stream_blocks(checkpoint), 1):
            answer, v = _answer(block, layer, generator)
            answers.append(answer)
            if layer == peak and whole is not None:
                v1, inputs, whole = v, _ffn_inputs(block, whole), None
            elif whole is not None:
                whole = advance(block, whole)
            for name, flow in flows.items():
                flow.states = advance(block, flow.states, with_attention=name != "noninitial")
                flow.note(layer)
            step(block.prefix)
            del block  # before the next one is read
    coefficients, first = [], None
    if peak is not None and v1 is not None and inputs is not None:
        first_ones = inputs @ v1
        sign = 1.0 if float(np.median(first_ones)) >= 0 else -1.0
        coefficients.append(_coefficients(1, tokens, sign * first_ones, texts))
        if second:
            try:
                runtime = runtime or start(checkpoint, placement)
                front = _front(checkpoint, tokens)
                chosen = _drawn(tokens, second, generator)
                behind = _second_inputs(runtime, peak, front, chosen, progress) @ v1
                coefficients.append(_coefficients(2, chosen, sign * behind, texts))
                first = TokenText(token=front, text=texts.get(front))
            except CkptError as problem:
                skipped.append(Skipped(what="second position", reason=problem.message))
    return PathsDocument(
        tool_version=__version__,
        model=model_record(checkpoint),
        noninitial=_record(flows["noninitial"], texts),
        initial=_record(flows["initial"], texts),
        random=_record(flows["random"], texts),
        answers=tuple(answers),
        trigger_layer=peak,
        coefficients=tuple(coefficients),
        first=first,
        skipped=tuple(skipped),
    )


def _tokens(
    checkpoint: Checkpoint, wanted: int | None, generator: np.random.Generator
) -> tuple[list[int], list[Skipped]]:
    """The whole vocabulary; of one whose states are too large, as many tokens as fit."""
    count, width = vocabulary_size(checkpoint), checkpoint.architecture.sizes.hidden_size
    most = min(_MOST_STATES // (8 * width), wanted or count)
    if count <= most:
        return list(range(count)), []
    chosen = _drawn(list(range(count)), most, generator)
    reason = f"their states do not fit into {_MOST_STATES >> 30} GiB"
    if most == wanted:
        reason = "not asked for"
    return chosen, [Skipped(what=f"{count - most:,} of {count:,} tokens", reason=reason)]


def _drawn(tokens: list[int], count: int, generator: np.random.Generator) -> list[int]:
    if count >= len(tokens):
        return tokens
    return sorted(generator.choice(tokens, count, replace=False).tolist())


def _texts(checkpoint: Checkpoint) -> dict[int, str]:
    try:
        vocabulary = read_vocabulary(checkpoint) or {}
    except CkptError:  # of nothing else in the result
        return {}
    found: dict[int, str] = {}
    for text, token in vocabulary.items():
        found.setdefault(token, text.encode("utf-8", "backslashreplace").decode())
    return found


def _answer(
    block: Block, layer: int, generator: np.random.Generator
) -> tuple[AnswerRecord, Doubles]:
    """What the true FFN makes of its leading right singular vectors, and the first of them."""
    operator = block_map(block, Fit()).ffn
    count = min(_VECTORS, *operator.shape)
    found = singular_triplets(operator, count, generator=generator)
    right = found.right.astype(np.float64)
    right /= np.linalg.norm(right, axis=0)
    norms = [trigger(block.ffn, right[:, i]).norm for i in range(count)]
    record = AnswerRecord(
        layer=layer,
        sigma=tuple(float(s) for s in found.values[:count]),
        norms=tuple(float(n) for n in norms),
    )
    return record, right[:, 0]


def _ffn_inputs(block: Block, x: Floats) -> Doubles:
    """What the FFN reads of single tokens, at root mean square 1, (tokens, hidden_size)."""
    if block.residual == "sequential" and block.attention is not None:
        x = x + attention_forward(block.attention, x)
    return _at_unit_size(x, block)


def _at_unit_size(x: Floats, block: Block) -> Doubles:
    rows = x.astype(np.float64)
    norm = block.ffn.norm
    if norm is not None and norm.kind == "layer":
        rows = rows - rows.mean(axis=1, keepdims=True)
    size = np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
    return rows / np.maximum(size, np.finfo(np.float64).tiny)


def _front(checkpoint: Checkpoint, tokens: list[int]) -> int:
    """The token in front of those at the second position: begin-of-sequence, or the first one."""
    bos = checkpoint.architecture.bos_token_id
    return bos if bos is not None and bos in tokens else tokens[0]


def _second_inputs(
    runtime: Runtime, layer: int, front: int, tokens: list[int], progress: Progress | None
) -> Doubles:
    """What the FFN of a layer reads of tokens behind another one, at root mean square 1."""
    if not runtime.causal:
        raise NothingAnalysable("an encoder's tokens have no order of reading")
    from ckptforensics.layers import load_block

    kept: list[Floats] = []

    class _Enough(Exception):
        """The layers behind need not run."""

    # Both branches of a parallel block read what the layer before left.
    parallel = runtime.checkpoint.architecture.residual == "parallel"
    watching = runtime.watching if parallel else runtime.watching_middles
    wanted = layer - 1 if parallel else layer

    def on_state(number: int, state: Any) -> None:
        if number == wanted:
            kept.append(state[:, 1].float().cpu().numpy())
            raise _Enough

    batches = [tokens[i : i + _PAIRS_AT_ONCE] for i in range(0, len(tokens), _PAIRS_AT_ONCE)]
    with running(progress, "second position", len(batches)) as step:
        for batch in batches:
            try:
                with watching(on_state):
                    runtime.forward([[front, token] for token in batch])
            except _Enough:
                pass
            step("")
    return _at_unit_size(np.concatenate(kept), load_block(runtime.checkpoint, layer))


def _record(flow: _Path, texts: dict[int, str]) -> PathRecord:
    low, middle, high = zip(*(q.tolist() for q in flow.quantiles), strict=True)
    top = np.argsort(-flow.best)[:_NAMED]
    tokens = flow.tokens
    return PathRecord(
        count=len(flow.best),
        minimum=low,
        median=middle,
        maximum=high,
        highest=tuple(
            TokenNorm(
                token=None if tokens is None else tokens[i],
                text=None if tokens is None else texts.get(tokens[i]),
                layer=int(flow.layer[i]),
                norm=float(flow.best[i]),
            )
            for i in top
        ),
    )


def _coefficients(
    position: int, tokens: list[int], values: Doubles, texts: dict[int, str]
) -> CoefficientRecord:
    order = np.argsort(-values)

    def named(places: Any) -> tuple[tuple[TokenText, float], ...]:
        found = ((tokens[i], float(values[i])) for i in places)
        return tuple((TokenText(token=t, text=texts.get(t)), value) for t, value in found)

    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return CoefficientRecord(
        position=position,
        count=len(values),
        quantiles=tuple(quantiles),
        highest=named(order[:_NAMED]),
        lowest=named(order[::-1][:_NAMED]),
    )
