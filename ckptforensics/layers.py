"""One residual block as arrays, and the stream of all blocks of a checkpoint.

A block is what every later stage sees: norms, value and output maps, FFN and how their results
are added. Nothing here or later knows tensor names or families.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ckptforensics.architectures import WeightRef
from ckptforensics.architectures.schema import Role
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NothingAnalysable

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Norm:
    """RMSNorm g x / rms(x), or LayerNorm g (x - mean x) / std(x) + b.

    Attributes
    ----------
    kind : which of the two
    gain : (hidden_size,), as applied
    bias : (hidden_size,) or None
    eps : added to the mean square
    """

    kind: Literal["rms", "layer"]
    gain: Floats
    bias: Floats | None
    eps: float


@dataclass(frozen=True)
class Linear:
    """y = weight x + bias; `weight` is (out, in), `bias` (out,) or None."""

    weight: Floats
    bias: Floats | None = None


@dataclass(frozen=True)
class Attention:
    """What attention does to a single token: output(repeat(value(norm(x)))).

    Attributes
    ----------
    norm : before the value map
    value : (num_kv_heads * head_dim, hidden_size)
    output : (hidden_size, num_heads * head_dim)
    head_dim : width of a value head
    repeats : query heads that share a value head
    """

    norm: Norm
    value: Linear
    output: Linear
    head_dim: int
    repeats: int


@dataclass(frozen=True)
class Ffn:
    """down(s(gate n) * up n), or down(s(up n)) without a gate; n = norm(x).

    Attributes
    ----------
    norm : before the FFN
    gate : (ffn_width, hidden_size) or None
    up : (ffn_width, hidden_size)
    down : (hidden_size, ffn_width)
    activation : name of s, as in the configuration
    down_name : name of the down projection's tensor, for reports
    """

    norm: Norm
    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    down_name: str


@dataclass(frozen=True)
class Block:
    """One residual block.

    Attributes
    ----------
    layer : number from 1
    prefix : of its tensors
    residual : `sequential` x + attention, then + FFN; `parallel` both from the same x
    """

    layer: int
    prefix: str
    residual: Literal["sequential", "parallel"]
    attention: Attention
    ffn: Ffn


def load_block(checkpoint: Checkpoint, layer: int) -> Block:
    """Read block `layer` (from 1) into memory as float32.

    Raises
    ------
    NotFinite
        if a weight of the block is NaN or infinite.
    TensorError
        if an element type cannot be decoded.
    """
    architecture = checkpoint.architecture
    refs = architecture.layers[layer - 1]
    sizes = architecture.sizes

    def linear(role: Role) -> Linear:
        return _read_linear(checkpoint, refs[role])

    attention = Attention(
        norm=_read_norm(checkpoint, refs, "attention_norm"),
        value=linear("value"),
        output=linear("output"),
        head_dim=sizes.head_dim,
        repeats=sizes.num_heads // sizes.num_kv_heads,
    )
    ffn = Ffn(
        norm=_read_norm(checkpoint, refs, "ffn_norm"),
        gate=linear("gate") if "gate" in refs else None,
        up=linear("up"),
        down=linear("down"),
        activation=architecture.activation,
        down_name=refs["down"].weight,
    )
    prefix = architecture.prefixes[layer - 1].rstrip(".")
    return Block(layer, prefix, architecture.family.residual, attention, ffn)


def stream_blocks(checkpoint: Checkpoint, layers: Sequence[int] | None = None) -> Iterator[Block]:
    """Yield the blocks in order, the next one being read while the caller computes.

    At most two blocks are in memory at a time.
    """
    wanted = layers or range(1, checkpoint.architecture.sizes.num_layers + 1)
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        pending = reader.submit(load_block, checkpoint, wanted[0])
        for following in [*wanted[1:], None]:
            block = pending.result()
            if following is not None:
                pending = reader.submit(load_block, checkpoint, following)
            yield block
            del block


def embed(checkpoint: Checkpoint, tokens: Sequence[int] | NDArray[np.int64]) -> Floats:
    """Residual stream of single tokens before the first block.

    Token embeddings, plus the embedding of position 0 where positions are learned.

    Returns
    -------
    (len(tokens), hidden_size)

    Raises
    ------
    NothingAnalysable
        if the files hold no token embeddings.
    """
    architecture = checkpoint.architecture
    name = embedding_name(checkpoint)
    ids = np.asarray(tokens, np.int64)
    # Runs of consecutive ids are read at once: the whole vocabulary is one run.
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1) if ids.size else []
    rows = [checkpoint.store.read_rows(name, int(r[0]), int(r[-1]) + 1) for r in runs]
    x = np.concatenate(rows) if rows else np.zeros((0, architecture.sizes.hidden_size), np.float32)
    if architecture.positions is not None:
        x += checkpoint.store.read_rows(architecture.positions, 0, 1)
    return x


def embedding_name(checkpoint: Checkpoint) -> str:
    """Name of the token embeddings; NothingAnalysable if the files hold none."""
    name = checkpoint.architecture.embedding
    if name is None:
        raise NothingAnalysable(
            "the files hold no token embeddings, so no token can be rolled out",
            path=checkpoint.source.path,
            hint="give the whole checkpoint",
        )
    return name


def vocabulary_size(checkpoint: Checkpoint) -> int:
    """Number of token embeddings; NothingAnalysable if the files hold none."""
    return checkpoint.store.info(embedding_name(checkpoint)).shape[0]


def _read_norm(checkpoint: Checkpoint, refs: Mapping[Role, WeightRef], role: Role) -> Norm:
    architecture = checkpoint.architecture
    gain = checkpoint.store.read(refs[role].weight)
    bias = refs[role].bias
    return Norm(
        kind=architecture.family.norm.kind,
        gain=gain + np.float32(architecture.gain_offset) if architecture.gain_offset else gain,
        bias=None if bias is None else checkpoint.store.read(bias),
        eps=architecture.eps,
    )


def _read_linear(checkpoint: Checkpoint, ref: WeightRef) -> Linear:
    store = checkpoint.store
    bias = None if ref.bias is None else store.read(ref.bias)
    if ref.transposed:
        weight = np.ascontiguousarray(store.read(ref.weight).T)
        if ref.ranges is not None:
            weight = np.concatenate([weight[a:b] for a, b in ref.ranges])
    elif ref.ranges is not None:
        weight = np.concatenate([store.read_rows(ref.weight, a, b) for a, b in ref.ranges])
    else:
        weight = store.read(ref.weight)
    if bias is not None and ref.ranges is not None:
        bias = np.concatenate([bias[a:b] for a, b in ref.ranges])
    return Linear(weight, bias)
