"""The true, nonlinear block applied to chosen vectors."""

from ckptforensics.forward.embedding import embed, finish_embedding, vocabulary_size
from ckptforensics.probes.response import (
    Response,
    SuperWeight,
    Trigger,
    probe_pair,
    read_response,
    response,
    trigger,
)
from ckptforensics.probes.rollout import advance, start_tokens

__all__ = [
    "Response",
    "SuperWeight",
    "Trigger",
    "advance",
    "embed",
    "finish_embedding",
    "probe_pair",
    "read_response",
    "response",
    "start_tokens",
    "trigger",
    "vocabulary_size",
]
