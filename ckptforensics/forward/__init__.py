"""The true, nonlinear block: norms, activations, routing, branches, embedding."""

from ckptforensics.forward.activations import Activation, activation, sigmoid
from ckptforensics.forward.branches import (
    apply_linear,
    attention_forward,
    block_forward,
    branch_result,
    dense_forward,
    experts_forward,
    ffn_forward,
    ffn_hidden,
    finish_branch,
)
from ckptforensics.forward.embedding import embed, embedding_name, finish_embedding, vocabulary_size
from ckptforensics.forward.norms import (
    affine,
    apply_norm,
    fold_in_place,
    fold_into,
    fold_norm,
    normalise,
)
from ckptforensics.forward.routing import expert_shares, routing_weights

__all__ = [
    "Activation",
    "activation",
    "affine",
    "apply_linear",
    "apply_norm",
    "attention_forward",
    "block_forward",
    "branch_result",
    "dense_forward",
    "embed",
    "embedding_name",
    "expert_shares",
    "experts_forward",
    "ffn_forward",
    "ffn_hidden",
    "finish_branch",
    "finish_embedding",
    "fold_in_place",
    "fold_into",
    "fold_norm",
    "normalise",
    "routing_weights",
    "sigmoid",
    "vocabulary_size",
]
