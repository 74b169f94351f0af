"""Peak memory of `ckpt sign` in a process of its own: containers, encodings, and the Hub.

The bound is 3 times the float32 size of the largest block (one in use, one being read, products
and fit of a third) and 300 MB for the interpreter and its libraries.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.findings import test_quantized_models as quantized
from tests.support.hub import REPO, hub_process

_HIDDEN, _FFN, _LAYERS, _VOCABULARY = 384, 14336, 5, 512
_BLOCK_BYTES = 4 * (4 * _HIDDEN**2 + 3 * _HIDDEN * _FFN)
_BASE_BYTES = 300_000_000
_LOG = logging.getLogger(__name__)

# A child's peak includes what its parent held when it forked, so a small process launches it.
_LAUNCHER = """
import os, sys
child = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=sys.stderr)
"""

CONFIG = {
    "model_type": "llama",
    "hidden_size": _HIDDEN,
    "intermediate_size": _FFN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
}
_GGUF = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    tensors = {"model.embed_tokens.weight": random(_VOCABULARY, _HIDDEN)}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}."
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
        ):
            tensors[f"{prefix}{name}.weight"] = random(_HIDDEN, _HIDDEN)
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            tensors[f"{prefix}{name}.weight"] = random(_FFN, _HIDDEN)
        tensors[f"{prefix}mlp.down_proj.weight"] = random(_HIDDEN, _FFN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(_HIDDEN)
        # Two heavy neurons: singular values that stand out take a third of the products to find.
        for unit, size in ((0, 30), (1, 15)):
            tensors[f"{prefix}mlp.up_proj.weight"][unit] *= 10
            tensors[f"{prefix}mlp.down_proj.weight"][:, unit] *= size
    return tensors


def _safetensors(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file({n: t.to(torch.bfloat16) for n, t in weights.items()}, folder / "model.safetensors")
    return folder


def _shards(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    names = list(weights)
    for shard in range(2):
        part = {n: weights[n].clone() for n in names[shard::2]}
        save_file(part, folder / f"model-{shard + 1:05d}-of-00002.safetensors")
    return folder


def _torch(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save({n: t.to(torch.float16) for n, t in weights.items()}, folder / "pytorch_model.bin")
    return folder


def _gguf(weights: dict[str, torch.Tensor], folder: Path) -> Path:
    import gguf

    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in weights.items():
        short = name.removeprefix("model.").removesuffix(".weight")
        if short.startswith("layers."):
            _, number, role = short.split(".", 2)
            short = f"blk.{number}.{_GGUF[role]}"
        values = tensor.numpy()
        short = short.replace("embed_tokens", "token_embd") + ".weight"
        if values.ndim == 2:
            writer.add_tensor(short, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(short, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_ENCODINGS = {
    "fp8": (quantized.fp8, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "gptq": (
        quantized.gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": quantized.GROUP, "desc_act": True},
    ),
    "awq": (quantized.awq, {"quant_method": "awq", "bits": 4, "group_size": quantized.GROUP}),
    "nf4": (quantized.nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "compressed-tensors": (
        quantized.pack,
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"0": {"weights": {"num_bits": 4, "group_size": quantized.GROUP}}},
        },
    ),
}


def _quantized(encoding: str, weights: dict[str, torch.Tensor], folder: Path) -> Path:
    """Every block is the first: encoding one takes long enough."""
    make, configuration = _ENCODINGS[encoding]
    stored = {n: t for n, t in weights.items() if "_proj." not in n}
    for name, weight in weights.items():
        if "layers.0." in name and "_proj." in name:
            for part, tensor in make(weight).items():
                for layer in range(_LAYERS):
                    own = name.removesuffix("weight").replace("layers.0.", f"layers.{layer}.")
                    stored[own + part] = tensor.contiguous().clone()
    save_file(stored, folder / "model.safetensors")
    config = {**CONFIG, "quantization_config": configuration}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


_needs_wait4 = pytest.mark.skipif(
    not hasattr(os, "wait4"), reason="this system does not tell a child's peak"
)


@_needs_wait4
@pytest.mark.parametrize("make", [_safetensors, _shards, _torch, _gguf])
def test_peak_memory_of_sign(
    make: Callable[[dict[str, torch.Tensor], Path], Path],
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    _require_bounded(str(make(weights, tmp_path)))


@_needs_wait4
@pytest.mark.parametrize("encoding", _ENCODINGS)
def test_peak_memory_of_quantized_weights(
    encoding: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    _require_bounded(str(_quantized(encoding, weights, tmp_path)))


@_needs_wait4
@pytest.mark.parametrize("make", [_shards, _torch])
def test_peak_memory_of_a_repository(
    make: Callable[[dict[str, torch.Tensor], Path], Path],
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    make(weights, folder)
    with hub_process(folder, tmp_path) as environment:
        _require_bounded(REPO, environment)


@_needs_wait4
def test_kept_blocks_are_given_back(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Matrices that stay in the file count as memory while they are mapped: one block's at a time.

    Two blocks in BF16, one in float32, are allowed for what differs between runs; five would take
    four blocks more.
    """
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = str(_safetensors(weights, tmp_path))
    start = (
        "import sys\n"
        "from ckptforensics.cli.entry import run\n"
        "from ckptforensics.findings import measure\n"
        "from ckptforensics.layers import reader\n"
        "measure.LARGE_MODEL = reader.KEPT_ELEMENTS = 0\n"
        "run()\n"
    )
    command = ["-c", start, "sign", model, "-q", "--no-cache"]
    one, whole = _peak([*command, "--layers", "1"]), _peak(command)
    assert whole - one < _BLOCK_BYTES


def _require_bounded(model: str, environment: dict[str, str] | None = None) -> None:
    """Sign `model` in a process of its own and compare its peak with the bound."""
    peak = _peak(["-m", "ckptforensics", "sign", model, "-q"], environment)
    assert peak < 3 * _BLOCK_BYTES + _BASE_BYTES


def _peak(arguments: list[str], environment: dict[str, str] | None = None) -> int:
    """Peak resident bytes of Python run with these arguments, which must sign something."""
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    status, peak = (int(word) for word in done.stderr.split()[-2:])
    assert status == 0, done.stderr
    assert "u1:" in done.stdout
    scale = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
    _LOG.info("peak %.0f MB", peak * scale / 1e6)  # shown by --log-cli-level=INFO
    return peak * scale
