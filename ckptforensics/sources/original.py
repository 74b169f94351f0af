"""Files as Meta and Mistral publish them: `consolidated.*` with `params.json` beside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptforensics.errors import NothingAnalysable
from ckptforensics.sources.strictjson import read_json_object

_RANK = re.compile(r"consolidated[.-]\d+\.(pth|pt)")
# Keys of params.json, to those of config.json.
_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
}


def config_of_params(folder: Path) -> Mapping[str, Any] | None:
    """What `params.json` says, in the words of `config.json`; None where there is none."""
    path = folder / "params.json"
    if not path.exists():
        return None
    params = read_json_object(path, what="configuration")
    if not {"dim", "n_layers", "n_heads"} <= params.keys() or "moe" in params:
        return None
    said = {ours: params[key] for key, ours in _KEYS.items() if params.get(key) is not None}
    if type(params.get("vocab_size")) is int and params["vocab_size"] > 0:  # -1 in LLaMA 1 and 2
        said["vocab_size"] = params["vocab_size"]
    return {"model_type": "llama", **said}


def refuse_ranks(path: Path) -> None:
    """NothingAnalysable if a file holds one rank's share of every matrix."""
    if not _RANK.fullmatch(path.name):
        return
    ranks = [f for f in path.parent.iterdir() if _RANK.fullmatch(f.name)]
    if len(ranks) > 1:
        raise NothingAnalysable(
            f"this is one of {len(ranks)} tensor-parallel ranks, each a part of every matrix",
            path=path,
            hint="give the same model in the Hugging Face layout, or join the ranks with "
            "convert_llama_weights_to_hf.py of transformers 4",
        )
