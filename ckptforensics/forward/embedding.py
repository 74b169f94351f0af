"""Single tokens before the first block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.arrays import Floats, Ints
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NotFinite, NothingAnalysable
from ckptforensics.forward.norms import apply_norm
from ckptforensics.layers import Norm


def embed(checkpoint: Checkpoint, tokens: Sequence[int] | Ints) -> Floats:
    """Residual stream of single tokens before the first block.

    Token embeddings, plus those of the first position and segment where they are learned,
    normed, projected and scaled as the architecture says.

    Returns
    -------
    (len(tokens), hidden_size)

    Raises
    ------
    NothingAnalysable
        if the files hold no token embeddings.
    NotFinite
        if it overflows float32.
    """
    name = embedding_name(checkpoint)
    width = checkpoint.store.info(name).shape[-1]
    ids = np.asarray(tokens, np.int64)
    # Runs of consecutive ids are read at once: the whole vocabulary is one run.
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1) if ids.size else []
    bounds = [(int(r[0]), int(r[-1]) + 1) for r in runs]
    checkpoint.store.prefetch_rows(name, bounds)
    rows = [checkpoint.store.read_rows(name, start, stop) for start, stop in bounds]
    x = np.concatenate(rows) if rows else np.zeros((0, width), np.float32)
    return finish_embedding(checkpoint, x)


def finish_embedding(checkpoint: Checkpoint, x: Floats) -> Floats:
    """The residual stream of rows of raw token embeddings; NotFinite if it overflows float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        finished = _finished(checkpoint, x)
    if not np.isfinite(finished).all():
        name = embedding_name(checkpoint)
        raise NotFinite(
            "the residual stream before the first block overflows float32",
            path=checkpoint.store.info(name).path,
            tensor=name,
            hint="the weights are damaged or not of this architecture",
        )
    return finished


def _finished(checkpoint: Checkpoint, x: Floats) -> Floats:
    architecture, store = checkpoint.architecture, checkpoint.store
    refs = architecture.embedding
    assert refs is not None
    if refs.projection is not None:
        x = x @ store.read(refs.projection).T
    if architecture.embedding_scale != 1:
        x = x * np.float32(architecture.embedding_scale)
    if refs.positions is not None:
        x = x + store.read_rows(refs.positions, refs.position_row, refs.position_row + 1)
    if refs.token_types is not None:
        x = x + store.read_rows(refs.token_types, 0, 1)
    if refs.norm is not None:
        bias = None if refs.norm_bias is None else store.read(refs.norm_bias).reshape(-1)
        kind = architecture.family.norm.kind
        gain = store.read(refs.norm).reshape(-1)
        x = apply_norm(x, Norm(kind, gain, bias, architecture.eps))
    return x


def embedding_name(checkpoint: Checkpoint) -> str:
    """Name of the token embeddings; NothingAnalysable if the files hold none."""
    refs = checkpoint.architecture.embedding
    if refs is None:
        family = checkpoint.architecture.family
        if (family.gguf or family.hf).embedding is None:
            raise NothingAnalysable(
                f"models of the family '{family.name}' embed no tokens, so none can be rolled out",
                path=checkpoint.source.path,
            )
        raise NothingAnalysable(
            "the files hold no token embeddings, so no token can be rolled out",
            path=checkpoint.source.path,
            hint="give the whole checkpoint",
        )
    return refs.tokens


def vocabulary_size(checkpoint: Checkpoint) -> int:
    """Number of token embeddings; NothingAnalysable if the files hold none."""
    return checkpoint.store.info(embedding_name(checkpoint)).shape[0]
