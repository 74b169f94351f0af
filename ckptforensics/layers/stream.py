"""One block in memory, and the stream of all blocks of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from ckptforensics.architectures import LayerPlan, Role, WeightRef
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute import buffers
from ckptforensics.errors import NothingAnalysable
from ckptforensics.layers.reader import BlockReader
from ckptforensics.layers.views import Attention, Block

# Bytes that the routed experts of one block may take.
EXPERT_MEMORY = 4 << 30
_FLOAT_BYTES = 4


def load_block(
    checkpoint: Checkpoint,
    layer: int,
    *,
    expert_memory: int = EXPERT_MEMORY,
    keep: bool = False,
) -> Block:
    """Read block `layer` (from 1) into memory as float32.

    Parameters
    ----------
    keep : leave large matrices in BF16 as they are stored, where that is possible
    expert_memory : bytes that its routed experts and their linear fits may take; where they need
        more, each expert is read when it is used

    Raises
    ------
    NothingAnalysable
        if nothing of the block is analysed.
    NotFinite
        if a weight of the block is NaN or infinite.
    TensorError
        if an element type cannot be decoded.
    """
    plan = checkpoint.architecture.layers[layer - 1]
    if plan.skipped is not None:
        raise NothingAnalysable(
            f"layer {layer} ({plan.prefix.rstrip('.')}) has nothing to analyse: {plan.skipped}",
            path=checkpoint.source.path,
        )
    if checkpoint.source.remote is not None:  # all ranges together, not one tensor after another
        checkpoint.store.prefetch(_names(checkpoint, plan, expert_memory))
    reader = BlockReader(checkpoint, plan, keep=keep)
    return Block(
        layer=layer,
        prefix=plan.prefix.rstrip("."),
        residual=checkpoint.architecture.residual,
        attention=reader.attention() if "value" in plan.refs else None,
        ffn=reader.moe(hold=_hold(checkpoint, plan, expert_memory))
        if plan.experts
        else reader.ffn(),
        mixer=plan.mixer,
    )


# What a token's value is made by, and written with.
_VALUE_ROLES: tuple[Role, ...] = ("attention_norm", "latent", "latent_norm", "value", "output")
# What the weight of a single token's value depends on, and what is done with what it adds.
_ATTENTION_ROLES: tuple[Role, ...] = (
    *_VALUE_ROLES,
    *("attention_gate", "attention_post_norm", "attention_after_norm", "attention_scale"),
)
_SINK_ROLES: tuple[Role, ...] = ("sinks", "query", "key")


def load_attention(checkpoint: Checkpoint, layer: int) -> Attention:
    """Read the attention branch of block `layer` (from 1) alone; errors as `load_block`."""
    sinks = "sinks" in checkpoint.architecture.layers[layer - 1].refs
    return _branch(checkpoint, layer, (*_ATTENTION_ROLES, *(_SINK_ROLES if sinks else ())))


def load_values(checkpoint: Checkpoint, layer: int) -> Attention:
    """Read only what block `layer` (from 1) makes values with and writes them: no gate, no sinks.

    Raises
    ------
    CkptError
        as `load_block`.
    """
    return _branch(checkpoint, layer, _VALUE_ROLES)


def values_bytes(checkpoint: Checkpoint, layer: int) -> int:
    """Stored bytes of the tensors that `load_values` reads, whole where it reads a part of one."""
    names = {name for name, _ in _part(checkpoint, layer, _VALUE_ROLES).names()}
    return sum(checkpoint.store.info(name).nbytes for name in names)


def _branch(checkpoint: Checkpoint, layer: int, roles: Sequence[Role]) -> Attention:
    plan = _part(checkpoint, layer, roles)
    if checkpoint.source.remote is not None:
        checkpoint.store.prefetch([name for name, _ in plan.names()])
    return BlockReader(checkpoint, plan).attention()


def _part(checkpoint: Checkpoint, layer: int, roles: Sequence[Role]) -> LayerPlan:
    plan = checkpoint.architecture.layers[layer - 1]
    refs = {role: plan.refs[role] for role in roles if role in plan.refs}
    return replace(plan, refs=refs, experts=())


def stream_blocks(
    checkpoint: Checkpoint,
    layers: Sequence[int] | None = None,
    *,
    expert_memory: int = EXPERT_MEMORY,
    keep: bool = False,
) -> Iterator[Block]:
    """Yield the blocks in order; one is in memory at a time if the caller lets go of the last.

    While the caller computes, the next block's bytes are fetched, or read into the operating
    system's cache. Without `layers`, those of which something is analysed; NothingAnalysable if
    there are none.
    """
    architecture = checkpoint.architecture
    wanted = layers or architecture.analysed
    if not wanted:
        raise NothingAnalysable(
            f"none of the {len(architecture.layers)} layers has anything to analyse: "
            f"{architecture.layers[0].skipped}",
            path=checkpoint.source.path,
        )
    with buffers.reused(), ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        pending: Future[None] | None = None
        if checkpoint.source.remote is None:  # else the block fetches what it needs
            first = architecture.layers[wanted[0] - 1]
            names = _names(checkpoint, first, expert_memory)
            pending = reader.submit(checkpoint.store.prefetch, names, keep=keep)
        try:
            for layer, following in zip(wanted, [*wanted[1:], None], strict=True):
                if pending is not None:
                    pending.result()
                block = load_block(checkpoint, layer, expert_memory=expert_memory, keep=keep)
                if following is not None:
                    names = _names(checkpoint, architecture.layers[following - 1], expert_memory)
                    pending = reader.submit(checkpoint.store.prefetch, names, keep=keep)
                yield block
                del block
        except BaseException:
            # The caller failed, left or was interrupted: nobody waits for the next block.
            remote = checkpoint.source.remote
            while remote is not None and pending is not None and not pending.done():
                remote.cancel()  # again and again: the reader may not have begun to fetch
                wait([pending], timeout=0.1)
            raise
        finally:
            if pending is not None:
                wait([pending])
                checkpoint.store.prefetch((), keep=keep)  # lets go of what it holds


def _names(checkpoint: Checkpoint, plan: LayerPlan, expert_memory: int) -> list[str]:
    """The tensors of a block that are read whole."""
    read = plan if _hold(checkpoint, plan, expert_memory) else replace(plan, experts=())
    return sorted({name for name, _ in read.names()})


def _hold(checkpoint: Checkpoint, plan: LayerPlan, expert_memory: int) -> bool:
    """Whether the experts and a third more, for their fits, take no more than this."""
    names = {ref.weight for refs in plan.experts for ref in refs.values()}
    elements = sum(math.prod(checkpoint.store.info(name).shape) for name in names)
    return elements * _FLOAT_BYTES * 4 <= 3 * expert_memory


def memory_needed(checkpoint: Checkpoint) -> tuple[int, int]:
    """Bytes that the largest block takes without its routed experts, and that one expert takes.

    As float32 and with its linear fit, which is no larger than a third of it. Tensors that several
    roles share are counted for each.
    """

    def needed(refs: Mapping[Role, WeightRef], share: int) -> int:
        sizes = [math.prod(checkpoint.store.info(ref.weight).shape) for ref in refs.values()]
        stacked = [ref.expert is not None for ref in refs.values()]
        elements = sum(n // share if s else n for n, s in zip(sizes, stacked, strict=True))
        return elements * _FLOAT_BYTES * 4 // 3

    plans = checkpoint.architecture.layers
    experts = ((refs, len(plan.experts)) for plan in plans for refs in plan.experts[:1])
    return (
        max((needed(plan.refs, 1) for plan in plans), default=0),
        max((needed(refs, count) for refs, count in experts), default=0),
    )
