"""Tiny models as GGUF files, laid out as llama.cpp's converter lays them out.

Names are those of the gguf package's own table, metadata keys those of its writer. What the
converter does to values (permuted q and k, gains plus 1, stacked experts, split and regrouped
tensors) is written out here, once for each architecture that has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Arrays = dict[str, NDArray[np.float32]]
Config = dict[str, Any]
Transform = Callable[[Arrays, Config], Arrays]

ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
# Not written: constants, heads of pretraining, parts of larger models, pooling.
_LEFT_OUT = re.compile(
    r".*(inv_freq|position_ids|masked_bias|\.attention\.bias|\.attn\.bias)"
    r"|(cls|vocab_\w+|(bert\.)?pooler|(model\.)?visual)\..*"
)
_BEFORE = re.compile(r"^(model\.language_model\.|(distil)?bert\.)")


def setting(config: Config, *keys: str) -> Any:
    """The first of several configuration keys that is set."""
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _heads(config: Config) -> tuple[int, int]:
    """Heads and key-value heads."""
    heads = setting(config, "num_attention_heads", "n_head", "n_heads")
    groups = setting(config, "num_key_value_heads", "num_kv_heads", "multi_query_group_num")
    if isinstance(config.get("attn_config"), dict):
        groups = config["attn_config"].get("kv_n_heads")
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        groups = 1
    return heads, groups or heads


def each(ending: str, change: Callable[[NDArray[Any], Config], NDArray[Any]]) -> Transform:
    """Change every tensor whose name ends like this."""

    def transform(arrays: Arrays, config: Config) -> Arrays:
        fits = re.compile(f".*(?:{ending})")
        return {n: change(a, config) if fits.fullmatch(n) else a for n, a in arrays.items()}

    return transform


def split(ending: str, cut: Callable[[NDArray[Any], Config], dict[str, NDArray[Any]]]) -> Transform:
    """Replace every tensor whose name ends like this by several; their names replace the ending."""

    def transform(arrays: Arrays, config: Config) -> Arrays:
        found: Arrays = {}
        for name, array in arrays.items():
            match = re.fullmatch(f"(.*)(?:{ending})", name)
            if match is None:
                found[name] = array
            else:
                found |= {match[1] + new: part for new, part in cut(array, config).items()}
        return found

    return transform


def renamed(old: str, new: str) -> Transform:
    """Replace a part of every name, a regular expression."""
    return lambda arrays, _: {re.sub(old, new, n): a for n, a in arrays.items()}


def _rotary_pairs(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of each head from halves to neighbours, as llama.cpp's rotary encoding reads them."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _regrouped(array: NDArray[Any], heads: int, groups: int) -> list[NDArray[Any]]:
    """q, k, v of rows that were [q ..., k, v] a group."""
    rest = array.shape[1:]
    by_group = array.reshape(groups, heads // groups + 2, -1, *rest)
    return [
        part.reshape(-1, *rest) for part in (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
    ]


def _halves(array: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    first, second = np.split(array, 2, axis=axis)
    return first, second


def _stack(arrays: Arrays, _config: Config) -> Arrays:
    """Tensors of single experts, or of single heads' norms, as one tensor."""
    found: Arrays = {}
    parts: dict[str, dict[int, NDArray[np.float32]]] = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(.*)\.(experts|norms)\.(\d+)\.(.*)", name)
        if match is None:
            found[name] = array
        else:
            inner = ".experts." if match[2] == "experts" else "."
            parts.setdefault(match[1] + inner + match[4], {})[int(match[3])] = array
    stacked = {n: np.stack([p for _, p in sorted(ps.items())]) for n, ps in parts.items()}
    return found | stacked


def _named(prefix: str, *ends: str) -> Callable[..., dict[str, NDArray[Any]]]:
    """Halves of the output rows under the names of gate and up."""
    return lambda a, _: dict(zip([prefix + e for e in ends], _halves(a, -2), strict=True))


def _only_expert_is_the_ffn(arrays: Arrays, config: Config) -> Arrays:
    if config.get("num_local_experts"):
        return arrays
    return {n.replace("mlp.shared_expert.", "mlp."): a for n, a in arrays.items()}


def _gpt_oss_gate_up(array: NDArray[Any], _config: Config) -> dict[str, NDArray[Any]]:
    """Gate and up, which alternate in the columns."""
    end = ".bias" if array.ndim == 2 else ".weight"
    rows = array if array.ndim == 2 else array.swapaxes(1, 2)
    return {f"gate_proj{end}": rows[:, ::2], f"up_proj{end}": rows[:, 1::2]}


def _q_and_k(q: str, k: str) -> tuple[Transform, Transform]:
    """The permutation of LLaMA's queries and keys."""
    return (
        each(q + r"\.(weight|bias)", lambda a, c: _rotary_pairs(a, _heads(c)[0])),
        each(k + r"\.(weight|bias)", lambda a, c: _rotary_pairs(a, _heads(c)[1])),
    )


def _qkv_by_group(ending: str) -> Transform:
    """Fused rows [q ..., k, v] a group to all q, all k, all v."""
    return each(ending + r"\.(weight|bias)", lambda a, c: np.concatenate(_regrouped(a, *_heads(c))))


def _internlm2(array: NDArray[Any], config: Config) -> dict[str, NDArray[Any]]:
    heads, groups = _heads(config)
    q, k, v = _regrouped(array, heads, groups)
    end = ".weight" if array.ndim == 2 else ".bias"
    parts = {"wq": _rotary_pairs(q, heads), "wk": _rotary_pairs(k, groups), "wv": v}
    return {name + end: part for name, part in parts.items()}


def _baichuan(array: NDArray[Any], config: Config) -> dict[str, NDArray[Any]]:
    q, k, v = np.split(array, 3)
    heads, groups = _heads(config)
    parts = {"q": _rotary_pairs(q, heads), "k": _rotary_pairs(k, groups), "v": v}
    return {f"{name}_proj.weight": part for name, part in parts.items()}


def _dbrx(array: NDArray[Any], config: Config, *, down: bool) -> NDArray[Any]:
    experts = array.reshape(config["ffn_config"]["moe_num_experts"], -1, array.shape[1])
    return experts.swapaxes(1, 2) if down else experts


def _roberta_positions(array: NDArray[Any], config: Config) -> NDArray[Any]:
    """Without the rows of positions that no token has."""
    is_roberta = "roberta" in config["model_type"]
    return array[config["pad_token_id"] + 1 :] if is_roberta else array


_LLAMA = _q_and_k(r"q_proj", r"k_proj")
_PLUS_ONE = (each(r"norm\.weight", lambda a, _: a + np.float32(1)),)
_CONV1D = (each(r"(c_attn|c_proj|c_fc)\.weight", lambda a, _: a.T),)
_GRANITE = (
    split(r"input_linear\.weight", _named("", "gate.weight", "up.weight")),
    renamed(r"block_sparse_moe\.(gate|up)\.", r"block_sparse_moe.experts.\1_proj."),
    renamed(r"block_sparse_moe\.experts\.gate_proj", "mlp.experts.gate_proj"),
    renamed(r"block_sparse_moe\.experts\.up_proj", "mlp.experts.up_proj"),
    renamed(r"shared_mlp\.(gate|up)\.", r"mlp.shared_expert.\1_proj."),
    renamed(r"shared_mlp\.output_linear", "mlp.shared_expert.down_proj"),
    _only_expert_is_the_ffn,
)
_GPT_OSS = (
    split(r"gate_up_proj(?:_bias)?", _gpt_oss_gate_up),
    each(r"experts\.down_proj", lambda a, _: a.swapaxes(1, 2)),
    renamed(r"experts\.down_proj$", "experts.down_proj.weight"),
    renamed(r"experts\.down_proj_bias$", "experts.down_proj.bias"),
    renamed(r"sinks$", "sinks.weight"),
)
_LLAMA4 = (
    each(r"experts\.(gate_up|down)_proj", lambda a, _: a.swapaxes(1, 2)),
    split(r"experts\.gate_up_proj", _named("experts.", "gate_proj.weight", "up_proj.weight")),
    renamed(r"experts\.down_proj$", "experts.down_proj.weight"),
)
_DBRX = (
    each(r"mlp\.(w1|v1)", lambda a, c: _dbrx(a, c, down=False)),
    each(r"mlp\.w2", lambda a, c: _dbrx(a, c, down=True)),
    renamed(r"mlp\.(w1|v1|w2)$", r"mlp.\1.weight"),
)
TRANSFORMS: Mapping[str, tuple[Transform, ...]] = {
    "llama": _LLAMA,
    "mistral3": _LLAMA,
    "arcee": _LLAMA,
    "smollm3": _LLAMA,
    "granite": (*_LLAMA, *_GRANITE),
    "granitemoe": (*_LLAMA, *_GRANITE),
    "granitehybrid": (*_GRANITE, renamed(r"dt_bias$", "dt_proj.bias")),
    "minicpm": _LLAMA,
    "olmo": _LLAMA,
    "llama4": _LLAMA4,
    "internlm2": (split(r"wqkv\.(?:weight|bias)", _internlm2),),
    "baichuan": (split(r"W_pack\.weight", _baichuan),),
    "gemma": _PLUS_ONE,
    "gemma2": _PLUS_ONE,
    "gemma3": _PLUS_ONE,
    "gemma-embedding": _PLUS_ONE,
    "nemotron": _PLUS_ONE,
    "qwen3next": (
        each(r"(?<!linear_attn\.)norm\.weight", lambda a, _: a + np.float32(1)),
        renamed(r"dt_bias$", "dt_proj.bias"),
    ),
    "gpt2": _CONV1D,
    "gptneox": (_qkv_by_group("query_key_value"),),
    "falcon": (_qkv_by_group("query_key_value"),),
    "bloom": (_qkv_by_group("query_key_value"),),
    "bert": (each(r"position_embeddings\.weight", _roberta_positions),),
    "gpt-oss": _GPT_OSS,
    "dbrx": _DBRX,
}


def _mla_apart(array: NDArray[Any], config: Config) -> dict[str, NDArray[Any]]:
    by_head = array.reshape(config["num_attention_heads"], -1, array.shape[1])
    keys = config["qk_nope_head_dim"]
    return {"k_b.weight": by_head[:, :keys].swapaxes(1, 2), "v_b.weight": by_head[:, keys:]}


def _separated(array: NDArray[Any], config: Config) -> dict[str, NDArray[Any]]:
    heads, groups = _heads(config)
    end = ".weight" if array.ndim == 2 else ".bias"
    width = len(array) // (heads + 2 * groups)
    q, k, v = np.split(array, [heads * width, (heads + groups) * width])
    return {f"{name}{end}": part for name, part in (("q", q), ("k", k), ("v", v))}


def _together(old: tuple[str, ...], new: str, axis: int) -> Transform:
    def transform(arrays: Arrays, _config: Config) -> Arrays:
        found = dict(arrays)
        for name in arrays:
            begin, _, end = name.rpartition(old[0])
            if end in (".weight", ".bias"):
                parts = [found.pop(begin + part + end) for part in old]
                found[begin + new + end] = np.concatenate(parts, axis=axis)
        return found

    return transform


def _apart(array: NDArray[Any], _config: Config) -> dict[str, NDArray[Any]]:
    return {f".{number}.weight": expert for number, expert in enumerate(array)}


# Forms in which the same weights are found too, made from the names of GGUF.
QKV_FUSED = _together(("attn_q", "attn_k", "attn_v"), "attn_qkv", 0)
QKV_SEPARATE = split(r"(?<=attn_)qkv\.(?:weight|bias)", _separated)
EXPERTS_FUSED = _together(("ffn_gate_exps", "ffn_up_exps"), "ffn_gate_up_exps", 1)
# The first files with experts.
EXPERTS_SEPARATE = split(r"(?<=ffn_down|ffn_gate)_exps\.weight", _apart)
EXPERTS_SEPARATE_UP = split(r"(?<=ffn_up)_exps\.weight", _apart)
# The router of the shared expert was a vector in older files.
ROUTER_FLAT = each(r"ffn_gate_inp_shexp\.weight", lambda a, _: a.reshape(-1))
# MLA as newer files hold it: keys and values of each head apart, the keys transposed.
MLA_APART = split(r"(?<=attn_)kv_b\.weight", _mla_apart)

# Writer method to the configuration keys that hold its value.
_METADATA = {
    "add_block_count": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "add_embedding_length": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "add_layer_norm_rms_eps": ("rms_norm_eps", "layernorm_epsilon"),
    "add_layer_norm_eps": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "add_expert_count": (
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
    ),
    "add_expert_used_count": ("num_experts_per_tok", "moe_k"),
    "add_expert_group_count": ("n_group",),
    "add_expert_group_used_count": ("topk_group",),
    "add_expert_weights_scale": ("routed_scaling_factor",),
    "add_kv_lora_rank": ("kv_lora_rank",),
    "add_embedding_scale": ("embedding_multiplier", "scale_emb"),
    "add_residual_scale": ("residual_multiplier",),
    "add_clamp_kqv": ("clip_qkv",),
    "add_parallel_residual": ("use_parallel_residual",),
}
# What the converter does not write, though a configuration may have it.
_UNWRITTEN = {
    "olmoe": ("add_clamp_kqv",),
    "minicpm3": ("add_embedding_scale",),
}


def write_gguf(
    folder: Path,
    file: Path,
    architecture: str,
    forms: tuple[Transform, ...] = (),
    metadata: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """The safetensors model of a folder as GGUF F32.

    `forms` are transforms of the tensors under their names in GGUF; `metadata` are whole numbers,
    or lists of them, in place of what is written otherwise.
    """
    config = json.loads((folder / "config.json").read_text())
    config |= config.get("text_config") or {}
    writer = gguf.GGUFWriter(file, architecture)
    _write_metadata(writer, config, architecture)
    for key, value in metadata.items():
        writer.kv_data[0].pop(key, None)
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(key, value)
    arrays = load_file(folder / "model.safetensors")
    arrays = {_BEFORE.sub("", n): a for n, a in arrays.items() if not _LEFT_OUT.fullmatch(n)}
    for transform in (_stack, *TRANSFORMS.get(architecture, ())):
        arrays = transform(arrays, config)
    layers = setting(config, *_METADATA["add_block_count"])
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], layers)
    arrays = {_gguf_name(names, name): array for name, array in arrays.items()}
    for form in forms:
        arrays = form(arrays, config)
    for name, array in arrays.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(names: gguf.TensorNameMap, name: str) -> str:
    dotted = re.sub(r"_bias$", ".bias", name)
    candidates = (name, dotted, f"model.{name}", name.removeprefix("transformer."))
    found = (names.get_name(n, (".weight", ".bias")) for n in candidates)
    new = next(filter(None, found), None)
    assert new is not None, f"the gguf package has no name for {name}"
    return new


def _write_metadata(writer: gguf.GGUFWriter, config: Config, architecture: str) -> None:
    heads, groups = _heads(config)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1 if architecture == "deepseek2" else groups)
    for method, keys in _METADATA.items():
        value = setting(config, *keys)
        if value is not None and method not in _UNWRITTEN.get(architecture, ()):
            getattr(writer, method)(value)
    clip = (config.get("attn_config") or {}).get("clip_qkv")
    if clip is not None:
        writer.add_clamp_kqv(clip)
    if architecture == "dbrx":
        writer.add_expert_count(config["ffn_config"]["moe_num_experts"])
        writer.add_expert_used_count(config["ffn_config"]["moe_top_k"])
    if architecture == "minicpm":
        writer.add_residual_scale(config["scale_depth"] / config["num_hidden_layers"] ** 0.5)
    if config.get("norm_topk_prob") and architecture in ("deepseek2", "glm4moe"):
        writer.add_expert_weights_norm(True)
    if config.get("scoring_func") == "sigmoid" or architecture == "glm4moe":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        if rope.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
