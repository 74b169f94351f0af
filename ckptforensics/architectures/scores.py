"""Where queries and keys are stored: nothing that is measured of a single token needs them."""

from __future__ import annotations

# A part of a value map's name, and what stands there for queries and keys.
_NAMES = (
    ("v_proj", "q_proj", "k_proj"),
    ("attn_v", "attn_q", "attn_k"),
    ("v_lin", "q_lin", "k_lin"),
    (".value.", ".query.", ".key."),
    (".wv.", ".wq.", ".wk."),
    ("to_v", "to_q", "to_k"),
)


def query_and_key(value: str) -> tuple[str, str] | None:
    """Names of the query and key tensors beside a value tensor; None where none are known."""
    for mark, query, key in _NAMES:
        if mark in value:
            return value.replace(mark, query), value.replace(mark, key)
    return None
