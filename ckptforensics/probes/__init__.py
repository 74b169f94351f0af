"""The true, nonlinear block applied to chosen vectors."""

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
    "probe_pair",
    "read_response",
    "response",
    "start_tokens",
    "trigger",
]
