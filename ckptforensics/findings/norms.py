"""Norms of single tokens after each layer, by exact rollout (docs/mathematics.md, section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import NothingAnalysable, UsageError
from ckptforensics.findings.damage import with_damage
from ckptforensics.findings.model import model_record, opened
from ckptforensics.findings.overflow import overflow_named
from ckptforensics.forward import embed, finish_embedding, vocabulary_size
from ckptforensics.layers import stream_blocks
from ckptforensics.probes import advance, start_tokens
from ckptforensics.progress import Progress, running
from ckptforensics.results import NormsDocument, Skipped, write_atomically
from ckptforensics.version import __version__

DEFAULT_TOKENS = "bos,random:256"
_TOKENS_HINT = "use bos, all, random:N or ids: 1,504,30"

# Hidden states of all tokens after all layers that are kept at most.
_LARGEST_STATES = 8 << 30
# Rows of the embeddings whose spread random embeddings imitate.
_SPREAD_ROWS = 1024


@dataclass(frozen=True)
class Rollout:
    """Norms of single tokens, and on request their hidden states.

    Attributes
    ----------
    document : the norms
    states : (tokens, num_layers, hidden_size), layer i being the residual stream after block i;
        None if not asked for
    """

    document: NormsDocument
    states: Floats | None

    def save_states(self, path: str | Path) -> None:
        """Write the hidden states as array `states` of an .npz file; OutputError if that fails."""
        states = self.states
        if states is None:
            raise UsageError("the hidden states were not kept", hint="roll out with states=True")

        def write(file: Path) -> None:
            with file.open("wb") as stream:
                np.savez(stream, states=states)

        write_atomically(path, write)


@all_cores()
def rollout(
    model: Checkpoint | str | Path,
    *,
    tokens: str | Sequence[int] | None = None,
    attention: bool = True,
    random_embeddings: int = 0,
    states: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Rollout:
    """Roll single tokens through the network, each alone at position 0.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes
    tokens : ids, or a specification of comma-separated parts: `bos`, `all`, `random:N`, an id.
        By default `bos` (where the checkpoint names one) and `random:256`, or nothing if
        `random_embeddings` is given
    attention : False leaves attention out: the path of the paper's Fig. 6
    random_embeddings : number of Gaussian vectors with the embeddings' spread added as tokens
        without id: the control of the paper's Fig. 7
    states : also keep the hidden states
    seed : of the random tokens and vectors
    progress : told of each layer

    Raises
    ------
    UsageError
        if a token does not exist, none is left, or the states would not fit in memory.
    CkptError
        if the checkpoint cannot be opened, decoded or analysed; see `open_checkpoint`.
    """
    checkpoint = opened(model)
    generator = np.random.default_rng(seed)
    require_whole(checkpoint)
    ids, skipped = _token_ids(checkpoint, tokens, random_embeddings, generator)
    x = embed(checkpoint, ids)
    if random_embeddings:
        x = np.concatenate([x, gaussian_embeddings(checkpoint, random_embeddings, generator)])
    count, width = x.shape
    if count == 0:
        raise UsageError("no token is left to roll out", hint="name tokens with --tokens")
    num_layers = checkpoint.architecture.sizes.num_layers
    kept = None
    if states:
        if 4 * count * num_layers * width > _LARGEST_STATES:
            raise UsageError(
                f"the states of {count:,} tokens would take "
                f"{4 * count * num_layers * width / 2**30:.1f} GiB",
                hint="ask for fewer tokens",
            )
        kept = np.empty((count, num_layers, width), np.float32)
    start = _norms(x)
    norms = np.empty((count, num_layers))
    with running(progress, "layers", num_layers) as step:
        for i, block in enumerate(stream_blocks(checkpoint)):
            with overflow_named(checkpoint, block.layer):
                x = advance(block, x, with_attention=attention)
            norms[:, i] = _norms(x)
            if kept is not None:
                kept[:, i] = x
            step(block.prefix)
            del block  # before the next one is read
    document = NormsDocument(
        tool_version=__version__,
        model=with_damage(model_record(checkpoint), checkpoint, range(1, num_layers + 1)),
        attention=attention,
        tokens=(*ids, *[None] * random_embeddings),
        embedding_norms=tuple(start.tolist()),
        norms=tuple(tuple(row) for row in norms.tolist()),
        median=tuple(np.median(norms, axis=0).tolist()),
        skipped=skipped,
    )
    return Rollout(document, kept)


def require_whole(checkpoint: Checkpoint) -> None:
    """NothingAnalysable if a layer is not analysed, or not whole: no token gets through it."""
    layers = checkpoint.architecture.layers
    gap = checkpoint.architecture.first_gap
    if gap is not None:
        plan = layers[gap - 1]
        raise NothingAnalysable(
            f"no token can be rolled through layer {gap} ({plan.prefix.rstrip('.')}): {plan.gap}",
            path=checkpoint.source.path,
        )


def _token_ids(
    checkpoint: Checkpoint,
    tokens: str | Sequence[int] | None,
    random_embeddings: int,
    generator: np.random.Generator,
) -> tuple[list[int], tuple[Skipped, ...]]:
    vocabulary = vocabulary_size(checkpoint)
    if tokens is not None and not isinstance(tokens, str):
        return [_in_vocabulary(int(t), vocabulary) for t in tokens], ()
    if tokens is None and random_embeddings:
        return [], ()
    if tokens is not None and not tokens.strip():
        raise UsageError("no tokens are named", hint=_TOKENS_HINT)
    ids: list[int] = []
    skipped: list[Skipped] = []
    for part in (tokens or DEFAULT_TOKENS).split(","):
        word = part.strip()
        if word == "bos":
            bos = checkpoint.architecture.bos_token_id
            if bos is not None and bos < vocabulary:
                ids.append(bos)
            elif tokens is None:
                skipped.append(Skipped(what="bos", reason="the checkpoint names no such token"))
            else:
                raise UsageError(
                    "the checkpoint names no begin-of-sequence token", hint="give its id"
                )
        elif word == "all":
            ids.extend(range(vocabulary))
        elif word.startswith("random:") and _is_count(word[7:]):
            ids.extend(start_tokens(vocabulary, int(word[7:]), generator))
        elif _is_count(word):
            ids.append(_in_vocabulary(int(word), vocabulary))
        else:
            raise UsageError(f"cannot read the tokens {word!r}", hint=_TOKENS_HINT)
    return list(dict.fromkeys(ids)), tuple(skipped)


def _is_count(word: str) -> bool:
    """A natural number, short enough to be one that is meant."""
    return word.isascii() and word.isdecimal() and len(word) <= 18


def _in_vocabulary(token: int, vocabulary: int) -> int:
    if not 0 <= token < vocabulary:
        raise UsageError(f"token {token} is not in the vocabulary of {vocabulary:,}")
    return token


def gaussian_embeddings(
    checkpoint: Checkpoint, count: int, generator: np.random.Generator
) -> Floats:
    """Gaussian vectors with the embeddings' spread, as they enter layer 1, (count, hidden_size)."""
    refs = checkpoint.architecture.embedding
    assert refs is not None
    rows = min(_SPREAD_ROWS, vocabulary_size(checkpoint))
    seen = checkpoint.store.read_rows(refs.tokens, 0, rows)
    vectors = generator.standard_normal((count, seen.shape[1]), dtype=np.float32)
    return finish_embedding(checkpoint, vectors * np.float32(seen.std(dtype=np.float64)))


def _norms(x: Floats) -> Doubles:
    norms: Doubles = np.linalg.norm(x.astype(np.float64), axis=1)
    return norms
