"""GGUF files of every family give the signature and the states of the same model in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ckptforensics
from ckptforensics.architectures.schema import families
from ckptforensics.errors import NothingAnalysable
from ckptforensics.layers import load_block
from tests.families.test_families import CASES, TOKENS
from tests.families.test_hybrids import granite_hybrid, jamba, qwen3_next
from tests.support.families.gguf_files import (
    ARCHITECTURES,
    EXPERTS_FUSED,
    EXPERTS_SEPARATE,
    EXPERTS_SEPARATE_UP,
    MLA_APART,
    QKV_FUSED,
    QKV_SEPARATE,
    ROUTER_FLAT,
    Transform,
    write_gguf,
)
from tests.support.families.harness import (
    Case,
    build_model,
    relative_errors,
    rollout_states,
    save_model,
)

BY_NAME = {case.name: case for case in CASES} | {
    "jamba-hybrid": Case("jamba-hybrid", "jamba", jamba),
    "qwen3-next-hybrid": Case("qwen3-next-hybrid", "qwen3_next", qwen3_next, gains_near=0.0),
    "granite-hybrid": Case("granite-hybrid", "granitemoehybrid", granite_hybrid),
}


@dataclass(frozen=True)
class Row:
    """A case as a GGUF file.

    Attributes
    ----------
    case : name of the case
    architecture : value of `general.architecture`
    form : for the id, where an architecture has files of several forms
    forms : what makes this form
    settings : of config.json, where GGUF has no key and the family assumes a value
    """

    case: str
    architecture: str
    form: str = ""
    forms: tuple[Transform, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join(filter(None, (self.architecture, self.case, self.form)))


YARN = {"rope_type": "yarn", "factor": 32.0, "attention_factor": 1.4}
OWN_FACTOR = {"rope_parameters": YARN}

ROWS = [
    Row("llama-gqa-biases", "llama"),
    Row("internlm-biases", "llama"),
    Row("internlm3-biases", "llama"),
    Row("mistral", "llama"),
    Row("mixtral", "llama"),
    Row("mixtral", "llama", "experts-apart", (EXPERTS_SEPARATE, EXPERTS_SEPARATE_UP)),
    Row("ernie4_5-biases", "ernie4_5"),
    Row("ernie4_5-biases", "paddleocr"),
    Row("seed-oss-biases", "seed_oss"),
    Row("ministral3", "mistral3"),
    Row("arcee", "arcee"),
    Row("smollm3", "smollm3"),
    Row("baichuan", "baichuan"),
    Row("internlm2", "internlm2"),
    Row("qwen", "qwen"),
    Row("qwen2-biases", "qwen2"),
    Row("qwen2-vl", "qwen2vl"),
    Row("qwen3-biases", "qwen3"),
    Row("qwen3-vl", "qwen3vl"),
    Row("exaone", "exaone"),
    Row("exaone4", "exaone4"),
    Row("hunyuan-dense-biases", "hunyuan-dense"),
    Row("gemma", "gemma"),
    Row("gemma2", "gemma2"),
    Row("gemma3", "gemma3"),
    Row("gemma3", "gemma-embedding"),
    Row("granite-multipliers", "granite"),
    Row("granitemoehybrid-without-experts", "granite"),
    Row("granitemoe", "granitemoe"),
    Row("granitemoeshared", "granitemoe"),
    Row("granitemoehybrid-attention-only", "granitehybrid"),
    Row("granitemoehybrid-without-experts", "granitehybrid"),
    Row("granite-hybrid", "granitehybrid"),
    Row("minicpm-multipliers", "minicpm"),
    # GGUF has no keys for the factors.
    Row("minicpm3-multipliers", "minicpm3", settings={"scale_emb": 12.0, "scale_depth": 1.4}),
    Row("olmo", "olmo"),
    Row("olmo-clip", "olmo"),
    Row("olmo2", "olmo2"),
    Row("olmo3", "olmo2"),
    Row("chatglm", "chatglm"),
    Row("glm-biases", "chatglm"),
    Row("glm4", "glm4"),
    Row("phi-2", "phi2"),
    Row("phi-2-first-release", "phi2"),
    Row("phi3", "phi3"),
    # GGUF has no key for the router's threshold.
    Row("phimoe", "phimoe", settings={"router_jitter_noise": 0.01}),
    Row("qwen2-moe", "qwen2moe"),
    Row("qwen2-moe", "qwen2moe", "flat-router", (ROUTER_FLAT,)),
    Row("qwen3-moe", "qwen3moe"),
    Row("qwen3-moe", "qwen3vlmoe"),
    Row("qwen3-next-hybrid", "qwen3next"),
    Row("qwen3-next-hybrid", "qwen3next", "experts-fused", (EXPERTS_FUSED,)),
    Row("olmoe-clipped", "olmoe", settings={"clip_qkv": None}),
    Row("deepseek-v2-groups", "deepseek2"),
    Row("deepseek-v2-groups", "deepseek2", "apart", (MLA_APART, EXPERTS_FUSED)),
    # Published configurations say it; what transformers writes does not.
    Row("deepseek-v3", "deepseek2", settings={"scoring_func": "sigmoid"}),
    Row("deepseek-v3", "deepseek2", "apart", (MLA_APART,), {"scoring_func": "sigmoid"}),
    Row("kimi-k2", "deepseek2", settings={"scoring_func": "sigmoid"}),
    Row("glm4-moe", "glm4moe"),
    Row("ernie4-5-moe", "ernie4_5-moe"),
    Row("minimax-m2", "minimax-m2"),
    # GGUF has no key for the bound of the FFN.
    Row("gpt-oss-yarn", "gpt-oss", settings={"swiglu_limit": 7.0}),
    Row("gpt-oss-yarn", "gpt-oss", "own-factor", settings={"swiglu_limit": 7.0, **OWN_FACTOR}),
    Row("gpt-oss-unscaled", "gpt-oss", settings={"swiglu_limit": 7.0}),
    Row("llama4", "llama4"),
    Row("dbrx", "dbrx"),
    Row("jamba-attention-only", "jamba"),
    Row("jamba-hybrid", "jamba"),
    Row("mpt-alibi", "mpt"),
    Row("mpt-clipped", "mpt"),
    Row("mpt-learned-positions", "mpt"),
    Row("pythia-parallel", "gptneox"),
    Row("gpt-neox-sequential", "gptneox"),
    Row("falcon-7b", "falcon"),
    Row("falcon-40b", "falcon"),
    Row("falcon-2-11b", "falcon"),
    Row("bloom", "bloom"),
    Row("gpt2", "gpt2", settings={"activation_function": "gelu_new"}),
    Row("starcoder-multi-query", "starcoder"),
    Row("starcoder2", "starcoder2"),
    Row("stablelm-2-1.6b", "stablelm"),
    Row("stablelm-2-12b", "stablelm"),
    Row("command-r-plus", "command-r"),
    Row("command-r7b", "cohere2"),
    Row("nemotron", "nemotron"),
    Row("bert", "bert"),
    Row("roberta-other-padding", "bert"),
    Row("distilbert", "bert", settings={"activation": "gelu"}),
]
CLAIMED = {
    name: family
    for family in families().values()
    if family.gguf is not None and family.gguf.tensors
    for name in family.gguf_architectures
}


def test_every_architecture_has_a_row() -> None:
    assert set(CLAIMED) == {row.architecture for row in ROWS}


@pytest.mark.parametrize("architecture", CLAIMED)
def test_names_are_those_of_the_format(architecture: str) -> None:
    layout = CLAIMED[architecture].gguf
    assert layout is not None
    tensors = gguf.MODEL_TENSORS[ARCHITECTURES[architecture]]
    known = {gguf.TENSOR_NAMES[tensor].replace("{bid}", "{layer}") for tensor in tensors}
    for role, spec in layout.tensors.items():
        names = {layout.block + name for form in spec.forms() for name in form.name}
        assert names & known or spec.optional, role


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_gguf_says_the_same_as_safetensors(row: Row, tmp_path: Path) -> None:
    folder, file = saved(row, tmp_path), tmp_path / "model.gguf"
    write_gguf(folder, file, row.architecture, row.forms)
    opened = ckptforensics.open_checkpoint(file).architecture
    assert opened.source == "gguf"
    assert opened.family is CLAIMED[row.architecture]
    assert_same(file, folder)


def saved(row: Row, tmp_path: Path) -> Path:
    """The tiny model of a row in safetensors."""
    case = BY_NAME[row.case]
    folder = save_model(build_model(case), tmp_path / "hf", case)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(row.settings)))
    return folder


def assert_same(file: Path, folder: Path) -> None:
    """One signature, and one single-token path as far as there is one."""
    found, expected = ckptforensics.sign(file), ckptforensics.sign(folder)
    for name in ("u", "v", "sigma", "residual"):
        # GGUF rounds epsilons and factors to float32: 1e-7, which a small gap multiplies.
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-5), name
    assert found.document.fingerprint == expected.document.fingerprint
    try:
        states = rollout_states(folder, TOKENS)
    except NothingAnalysable:
        with pytest.raises(NothingAnalysable):
            rollout_states(file, TOKENS)
        return
    assert relative_errors(rollout_states(file, TOKENS), states).max() < 1e-6


# Of each architecture the first row.
FIRST = {row.architecture: row for row in reversed(ROWS)}
MLA = {"deepseek2", "minicpm3"}


@pytest.mark.parametrize("architecture", sorted(FIRST.keys() - MLA - {"qwen3next"}))
def test_fused_and_separate_tensors(architecture: str, tmp_path: Path) -> None:
    """q, k and v in one tensor or in three."""
    row = FIRST[architecture]
    folder, usual, other = saved(row, tmp_path), tmp_path / "usual.gguf", tmp_path / "other.gguf"
    write_gguf(folder, usual, architecture)
    names = ckptforensics.open_checkpoint(usual).store.tensors
    fused = "blk.0.attn_qkv.weight" in names
    write_gguf(folder, other, architecture, (QKV_SEPARATE if fused else QKV_FUSED,))
    assert ckptforensics.open_checkpoint(other).store.tensors.keys() != names.keys()
    found, expected = (load_block(ckptforensics.open_checkpoint(f), 1) for f in (other, usual))
    assert _equal(found, expected)


def _equal(found: Any, expected: Any) -> bool:
    """Whether dataclasses hold the same arrays."""
    if is_dataclass(found):
        pairs = ((getattr(found, f.name), getattr(expected, f.name)) for f in fields(found))
        return type(found) is type(expected) and all(
            _equal(a, b)
            for (a, b), f in zip(pairs, fields(found), strict=True)
            if f.name != "down_name"
        )
    if isinstance(found, tuple):
        return all(_equal(a, b) for a, b in zip(found, expected, strict=True))
    return bool(np.array_equal(found, expected))
