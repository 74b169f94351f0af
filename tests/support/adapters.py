"""PEFT adapters under the names PEFT gives them, and what merging them makes, by torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "some-org/some-base",
    "task_type": "CAUSAL_LM",
    "r": 3,
    "lora_alpha": 5,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "init_lora_weights": True,
    "target_parameters": None,
    "layer_replication": None,
}


def base_tensors(folder: Path) -> Tensors:
    """All weights of a checkpoint directory with one safetensors file."""
    return load_file(folder / "model.safetensors")


def write_adapter(folder: Path, tensors: Tensors, *, binary: bool = False, **config: Any) -> Path:
    """An adapter directory; names get the prefix that PEFT saves them with."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{n}": t.clone().contiguous() for n, t in tensors.items()}
    if binary:
        torch.save(named, folder / "adapter_model.bin")
    else:
        save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    return folder


def low_rank(
    base: Tensors, modules: list[str], *, rank: int = 3, in_out: bool = False, seed: int = 0
) -> Tensors:
    """Random A (rank, in) and B (out, rank) of each module; `in_out` if weights are (in, out)."""
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for module in modules:
        shape = base[f"{module}.weight"].shape
        out, width = (shape[1], shape[0]) if in_out else (shape[0], shape[1])
        made[f"{module}.lora_A.weight"] = 0.3 * torch.randn(rank, width, generator=generator)
        made[f"{module}.lora_B.weight"] = 0.3 * torch.randn(out, rank, generator=generator)
    return made


def merged_weight(
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    alpha: float = 5,
    rslora: bool = False,
    magnitude: torch.Tensor | None = None,
    in_out: bool = False,
) -> torch.Tensor:
    """PEFT's documented formula in float64, for a weight stored (out, in) or (in, out)."""
    scaling = alpha / (math.sqrt(len(a)) if rslora else len(a))
    merged = (weight.T if in_out else weight).double() + scaling * (b.double() @ a.double())
    if magnitude is not None:
        norms = torch.linalg.vector_norm(merged, dim=1, keepdim=True)
        merged = magnitude.double()[:, None] * merged / norms
    return (merged.T if in_out else merged).float().contiguous()
