"""`ckpt quant plan`: what it keeps, under which names, and for which tools."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.quantizers.quantizers_utils import should_convert_module

from ckptforensics import load_result, open_checkpoint, plan_quantization
from ckptforensics.errors import UsageError
from ckptforensics.quantization.plan import CLEAR
from ckptforensics.render.quantization_lists import TOOLS, plan_list
from ckptforensics.results.quantization_plan import QuantizationPlanDocument
from tests.support.containers import assert_one_error, run, write_llama_gguf
from tests.support.models import save, tiny_gpt2, tiny_llama

ROOT = Path(__file__).parents[2]
PLANTED = ROOT / "fixtures" / "planted"


def exploding(folder: Path, *, layer: int = 1) -> Path:
    """A small LLaMA in which one hidden unit gives every initial token, alone, a huge activation.

    Attention's value of a single token triggers it; without attention it stays quiet.
    """
    model = tiny_llama(attention_bias=False, mlp_bias=False, intermediate_size=64)
    block = model.model.layers[layer]
    with torch.no_grad():
        for part in model.model.layers:
            part.self_attn.o_proj.weight *= 0.05
            part.mlp.down_proj.weight *= 0.05
        embed = model.model.embed_tokens.weight
        embed[:, 3], embed[:, 7] = 4.0, 0.0
        for part in model.model.layers:
            part.self_attn.o_proj.weight[7] = 0
            part.mlp.down_proj.weight[7] = 0
        block.self_attn.v_proj.weight[:, 3] = 1.0
        block.self_attn.o_proj.weight[7] = 0.2
        # Whatever the sign of what arrives there, one of two units answers it.
        for unit, sign in ((11, 1), (12, -1)):
            for part in (block.mlp.gate_proj, block.mlp.up_proj):
                part.weight[unit] = 0
                part.weight[unit, 7] = sign * 8.0
            block.mlp.down_proj.weight[7, unit] = 0.02
    return save(model, folder)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> QuantizationPlanDocument:
    return plan_quantization(exploding(tmp_path_factory.mktemp("exploding")))


def test_the_module_whose_scale_the_initial_token_sets_is_kept(plan):
    first = plan.modules[0]
    assert first.module == "model.layers.1.mlp.down_proj"
    assert first.keep
    assert plan.chosen == "evidence"
    error = first.error
    assert error.ordinary is not None
    assert error.ordinary_alone is not None
    assert error.ordinary > 3 * error.ordinary_alone
    (weight,) = first.super_weights
    assert weight.row == 7
    assert weight.column in (11, 12)
    assert first.why
    assert (first.bytes_16, first.bytes_8) == (2 * 36 * 64, 36 * 64)
    assert plan.bytes_16 == sum(m.bytes_16 for m in plan.modules)


def test_the_rule_is_that_of_its_numbers(plan):
    saves = [m.saves for m in plan.modules if m.saves is not None]
    typical = float(np.median(saves))
    for m in plan.modules:
        assert m.saves is not None
        assert m.error.ordinary is not None
        assert m.error.ordinary_alone is not None
        share = m.saves / m.error.ordinary
        added = (m.error.ordinary - m.error.ordinary_alone) * share
        assert m.keep == (added >= CLEAR * typical)
    kept = [m.saves for m in plan.kept]
    assert kept == sorted(kept, reverse=True)
    assert [m.rank for m in plan.modules] == list(range(1, len(plan.modules) + 1))


@pytest.mark.parametrize("place", ["fixtures/zoo/seed0", "fixtures/planted"])
def test_where_no_initial_token_stands_out_the_plan_is_empty_and_says_so(place):
    found = plan_quantization(ROOT / place)
    assert found.kept == ()
    assert found.conclusion.startswith("nothing to keep: ")
    for tool in TOOLS:
        assert plan_list(found, tool) is not None


def test_layers_that_add_nothing_have_nothing_to_keep(tmp_path):
    model = tiny_llama(attention_bias=False, mlp_bias=False)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    found = plan_quantization(save(model, tmp_path))
    assert found.kept == ()
    assert {m.saves for m in found.modules} == {0.0}


def test_keep_overrides_the_evidence():
    found = plan_quantization(PLANTED, keep=3)
    assert [m.rank for m in found.kept] == [1, 2, 3]
    assert found.chosen == "asked"
    assert len(plan_quantization(PLANTED, keep=1000).kept) == 40


def test_two_runs_give_the_same_plan():
    assert plan_quantization(PLANTED) == plan_quantization(PLANTED)


# Names.


def tree(folder: Path) -> set[str]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name for name, _ in model.named_modules()}


def test_names_are_those_of_transformers_tree(tmp_path):
    names = [m.module for m in plan_quantization(save(tiny_gpt2(), tmp_path), keep=1).modules]
    assert len(names) == 12
    assert set(names) <= tree(tmp_path)
    assert "transformer.h.2.mlp.c_proj" in names


def test_names_of_files_without_the_models_prefix_get_it(tmp_path):
    """GPT-2's own files, and those of other base models, leave `transformer.` out."""
    from safetensors.torch import load_file, save_file

    save(tiny_gpt2(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    bare = {n.removeprefix("transformer."): t for n, t in tensors.items() if "lm_head" not in n}
    save_file(bare, file)
    names = {m.module for m in plan_quantization(tmp_path, keep=1).modules}
    assert names <= tree(tmp_path)


def test_a_gguf_file_is_named_as_transformers_names_it(tmp_path):
    file = write_llama_gguf(tmp_path / "x.gguf")
    found = plan_quantization(file, keep=2)
    assert {m.module for m in found.modules} == {
        f"model.layers.{i}.{part}"
        for i in range(found.model.num_layers)
        for part in (
            *("self_attn.v_proj", "self_attn.o_proj"),
            *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        )
    }
    stored = set(open_checkpoint(file).store)
    assert all(f"{m.gguf}.weight" in stored for m in found.modules)
    patterns = re.findall(r"^--tensor-type '(.+)=f16'$", plan_list(found, "llama.cpp"), re.M)
    for pattern, kept in zip(patterns, found.kept, strict=True):
        assert [n for n in stored if re.search(pattern, n)] == [f"{kept.gguf}.weight"]


def test_experts_have_their_numbers(tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2}
    config = Qwen3MoeConfig(vocab_size=64, bos_token_id=1, **sizes, **heads, **experts)
    save(Qwen3MoeForCausalLM(config), tmp_path)
    found = plan_quantization(tmp_path, keep=60)
    down = {m.module: m.gguf for m in found.modules if m.role == "down"}
    layers = [(i, e) for i in range(2) for e in range(4)]
    assert down == {
        f"model.layers.{i}.mlp.experts.{e}.down_proj": f"blk.{i}.ffn_down_exps" for i, e in layers
    }
    # GGUF has the experts of a layer in one tensor: one flag for all of them.
    flags = plan_list(found, "llama.cpp").splitlines()
    assert len(flags) == len(set(flags)) == 2 * 5


def test_a_family_without_gguf_names_has_no_list_for_llama_cpp():
    """Mixtral's GGUF files are of another family."""
    found = plan_quantization(ROOT / "fixtures" / "zoo" / "experts", keep=2)
    assert all(re.search(r"\.experts\.\d+\.w\d$", m.module) for m in found.kept)
    with pytest.raises(UsageError, match=r"no name in GGUF files is known for 'model\.layers"):
        plan_list(found, "llama.cpp")


# Lists.


@pytest.fixture(scope="module")
def asked() -> QuantizationPlanDocument:
    """With names that begin others: layer 1 of eleven and more."""
    found = plan_quantization(PLANTED, keep=2)
    names = ["model.layers.1.mlp.down_proj", "model.layers.11.mlp.up_proj"]
    changed = tuple(
        m.model_copy(update={"module": name, "gguf": f"blk.{1 if i == 0 else 11}.ffn_down"})
        for i, (m, name) in enumerate(zip(found.kept, names, strict=True))
    )
    return found.model_copy(update={"modules": changed})


EVERY = [f"model.layers.{i}.mlp.{p}" for i in range(21) for p in ("down_proj", "up_proj")]
KEPT = {"model.layers.1.mlp.down_proj", "model.layers.11.mlp.up_proj", "lm_head"}


def linear_tree() -> Any:
    root = torch.nn.Module()
    for name in [*EVERY, "lm_head"]:
        place = root
        *parents, last = name.split(".")
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, torch.nn.Module())
            place = getattr(place, parent)
        place.add_module(last, torch.nn.Linear(4, 4))
    return root


def test_llm_compressor(asked):
    yaml = pytest.importorskip("yaml")
    text = plan_list(asked, "llm-compressor")
    stage = yaml.safe_load(text)["quantization_stage"]["quantization_modifiers"]
    assert set(stage["QuantizationModifier"]) == {"targets", "scheme", "ignore"}
    assert set(stage["QuantizationModifier"]["ignore"]) == KEPT


def test_llm_compressors_own_parser(asked):
    pytest.importorskip("llmcompressor")
    from compressed_tensors.utils.match import match_named_modules
    from llmcompressor.recipe import Recipe

    (modifier,) = Recipe.create_instance(plan_list(asked, "llm-compressor")).modifiers
    chosen = match_named_modules(linear_tree(), modifier.resolved_targets, modifier.ignore)
    assert {*EVERY, "lm_head"} - {name for name, _ in chosen} == KEPT


def test_bitsandbytes(asked):
    from transformers import BitsAndBytesConfig

    given = json.loads(plan_list(asked, "bitsandbytes"))
    skipped = BitsAndBytesConfig(load_in_8bit=True, **given).llm_int8_skip_modules
    left = {n for n in [*EVERY, "lm_head"] if not should_convert_module(n, skipped)}
    assert left == KEPT


def test_torchao(asked):
    names: dict[str, Any] = {}
    exec(plan_list(asked, "torchao"), names)
    root = linear_tree()
    left = {
        n for n, m in root.named_modules()
        if isinstance(m, torch.nn.Linear) and not names["filter_fn"](m, n)
    }  # fmt: skip
    assert left == KEPT
    assert not names["filter_fn"](torch.nn.LayerNorm(4), "model.norm")


def test_torchao_itself(asked):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    names: dict[str, Any] = {}
    exec(plan_list(asked, "torchao"), names)
    root = linear_tree()
    quantize_(root, Int8WeightOnlyConfig(), filter_fn=names["filter_fn"])
    linear = [(n, m) for n, m in root.named_modules() if isinstance(m, torch.nn.Linear)]
    assert {n for n, m in linear if type(m.weight) is torch.nn.Parameter} == KEPT


def test_gptqmodel(asked):
    """A rule that begins with `-:` leaves out what its regular expression matches."""
    rules = json.loads(plan_list(asked, "gptqmodel"))["dynamic"]
    assert all(rule.startswith("-:") and value == {} for rule, value in rules.items())
    left = {n for n in EVERY if any(re.match(rule[2:], n) for rule in rules)}
    assert left == KEPT - {"lm_head"}


def test_autoawq(asked):
    """Its quantizer asks for a part of the name inside the block."""
    given = json.loads(plan_list(asked, "autoawq"))["modules_to_not_convert"]
    assert given == ["mlp.down_proj", "mlp.up_proj"]
    from transformers import AwqConfig

    assert AwqConfig(bits=4, modules_to_not_convert=given).modules_to_not_convert == given


def test_autoround(asked):
    given = json.loads(plan_list(asked, "autoround"))["layer_config"]
    assert given == {name: {"bits": 16, "act_bits": 16} for name in KEPT - {"lm_head"}}


def test_autorounds_own_reading(asked):
    pytest.importorskip("auto_round")
    from auto_round.utils.model import check_to_quantized

    given = json.loads(plan_list(asked, "autoround"))["layer_config"]
    assert not any(check_to_quantized(config) for config in given.values())


def test_llama_cpp(asked):
    flags = plan_list(asked, "llama.cpp").splitlines()
    assert flags == [
        r"--tensor-type '^blk\.1\.ffn_down\.weight$=f16'",
        r"--tensor-type '^blk\.11\.ffn_down\.weight$=f16'",
    ]


# The command.


def test_the_command(capsys, tmp_path):
    saved = tmp_path / "plan.json"
    ran = run(capsys, "quant", "plan", PLANTED, "--keep", "1", "-o", saved, "-q")
    assert (ran.code, ran.err) == (0, "")
    assert "nothing to keep" in ran.out
    document = load_result(saved)
    assert isinstance(document, QuantizationPlanDocument)
    ran = run(capsys, "quant", "plan", PLANTED, "--keep", "1", "--format", "csv", "-q")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert len(rows) == 40
    assert [row["keep"] for row in rows].count("true") == 1
    ran = run(capsys, "quant", "plan", PLANTED, "--keep", "1", "--for", "autoround", "-q")
    assert json.loads(ran.out)["layer_config"]
    assert run(capsys, "quant", "plan", PLANTED, "--for", "autoawq").err.count("every layer") == 1
    assert_one_error(run(capsys, "quant", "plan", PLANTED, "--for", "other"), 4, "other")
    assert_one_error(run(capsys, "quant", "pan", PLANTED), 4, "pan")


def test_the_choice_of_tools_is_that_of_the_lists():
    from ckptforensics.cli.commands.quant_plan import TOOLS as OFFERED

    assert tuple(TOOLS) == OFFERED
