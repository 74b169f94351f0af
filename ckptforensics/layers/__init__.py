"""One residual block as arrays, and the stream of all blocks of a checkpoint."""

from ckptforensics.arrays import Floats
from ckptforensics.layers.stream import (
    EXPERT_MEMORY,
    load_attention,
    load_block,
    load_values,
    memory_needed,
    stream_blocks,
    values_bytes,
)
from ckptforensics.layers.views import Attention, Block, Ffn, Linear, Matrix, Moe, Norm, Sink

__all__ = [
    "EXPERT_MEMORY",
    "Attention",
    "Block",
    "Ffn",
    "Floats",
    "Linear",
    "Matrix",
    "Moe",
    "Norm",
    "Sink",
    "load_attention",
    "load_block",
    "load_values",
    "memory_needed",
    "stream_blocks",
    "values_bytes",
]
