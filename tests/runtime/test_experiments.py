"""Experiments of the running model against plain calls of transformers."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
import transformers

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import NothingAnalysable, UsageError
from ckptforensics.layers import load_block
from ckptforensics.linear import Fit, block_map
from ckptforensics.results import Empirical, load_result
from ckptforensics.results.quantization import RowName
from ckptforensics.runtime.experiments import ablate as ablate_module
from ckptforensics.runtime.experiments import replicate as replicate_module
from ckptforensics.runtime.experiments.ablate import ablate
from ckptforensics.runtime.experiments.empirical import empirical
from ckptforensics.runtime.experiments.paths import paths
from ckptforensics.runtime.experiments.populations import find_plateaus, populations
from ckptforensics.runtime.experiments.quantize import evaluate_quantization
from ckptforensics.runtime.experiments.replicate import replicate
from ckptforensics.runtime.experiments.sinks import sinks
from ckptforensics.runtime.interventions import (
    setting_coordinates,
    without_blocks,
    without_direction,
    without_ffn,
    without_weight,
)
from ckptforensics.runtime.model import start
from ckptforensics.runtime.perplexity import perplexity
from ckptforensics.runtime.texts import Text, windows_of

IDS = [7, 3, 50, 3, 21, 90, 4, 4, 61, 12]


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    return start(smollm2_gguf)


@pytest.fixture(scope="module")
def oracle(smollm2_f32):
    """The same weights, loaded by transformers alone, with weights of attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_f32, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.fixture(scope="module")
def seen(smollm2):
    """What running text shows of it."""
    return empirical(smollm2, text=Text(limit=512))


def test_empirical_of_smollm2(smollm2, seen, oracle, tmp_path):
    """Plateaus, direction, angle and who is high, computed anew from transformers' states."""
    windows, _ = windows_of(smollm2, Text(limit=512))
    found = seen
    plateau = next(p for p in found.document.plateaus if p.layers == (12, 28))
    with torch.inference_mode():
        hidden = oracle(torch.tensor(windows), output_hidden_states=True).hidden_states
    states = torch.stack(hidden[12:29]).double()  # layers 12 to 28: (layers, windows, tokens, d)
    norms = states.norm(dim=-1)
    high = norms > 4000
    assert high.sum() == plateau.states
    assert high[:, :, 0].all()
    assert not high[:, :, 1:].any()
    assert (plateau.count, plateau.initial_share, plateau.initial_found) == (len(windows), 1, 1)
    units = (states[high] / norms[high][:, None]).numpy()
    mean = units.mean(axis=0) / np.linalg.norm(units.mean(axis=0))
    row = [p.layers for p in found.document.plateaus].index((12, 28))
    assert abs(found.direction[row] @ mean) > 1 - 1e-6
    cosines = np.clip(units @ units.T, -1, 1)
    angles = np.degrees(np.arccos(cosines))[~np.eye(len(units), dtype=bool)]
    assert plateau.pairwise_angle_deg == pytest.approx(angles.mean(), rel=1e-3)
    sizes = np.abs(states[high].numpy())
    massive = (sizes > 100) & (sizes > 1000 * np.median(sizes, axis=1, keepdims=True))
    counts = {int(c): int(n) for c, n in enumerate(massive.sum(axis=0)) if n}
    assert {m.coordinate: m.count for m in plateau.massive} == counts
    file = tmp_path / "e.safetensors"
    found.save(file)
    again = load_result(file)
    assert isinstance(again, Empirical)
    assert again.document == found.document
    np.testing.assert_array_equal(again.direction, found.direction)


def test_sinks_of_smollm2(smollm2, smollm2_gguf, oracle):
    text = Text(limit=256, window=64)
    document = sinks(smollm2_gguf, text=text)
    windows, _ = windows_of(smollm2, text)
    with torch.inference_mode():
        out = oracle(torch.tensor(windows), output_attentions=True, output_hidden_states=True)
    # Mean over queries 1 to T, a threshold in each window.
    received = torch.stack([a[:, :, :, 0].mean(dim=2) > 0.3 for a in out.attentions])
    assert document.share == pytest.approx(received.double().mean().item(), abs=1e-12)
    for row, layer in zip(document.layers, received, strict=True):
        assert row.share == pytest.approx(layer.double().mean().item(), abs=1e-12)
    for layer in (1, 13, 30):
        block = oracle.model.layers[layer - 1]
        x = out.hidden_states[layer - 1]
        with torch.inference_mode():
            v = block.self_attn.v_proj(block.input_layernorm(x))
            heads = v.unflatten(2, (-1, 64)).repeat_interleave(3, dim=2).flatten(2)
            norms = block.self_attn.o_proj(heads).norm(dim=-1)
        row = document.layers[layer - 1]
        expected = (norms[:, 0].mean().item(), norms[:, 1:].mean().item())
        assert row.value_norm == pytest.approx(expected, rel=1e-4)
        lengths = x.norm(dim=-1)
        expected = (lengths[:, 0].mean().item(), lengths[:, 1:].mean().item())
        assert row.residual_norm == pytest.approx(expected, rel=1e-4)


def test_sinks_on_two_texts(llama):
    one, other = Text(token_ids=IDS, window=5), Text(token_ids=IDS[::-1], window=5)
    document = sinks(llama.folder, text=one, other=other, threshold=0.4)
    assert document.other_share is not None
    for head in document.switching:
        pair = [
            rows[head.layer - 1].heads[head.head]
            for rows in (document.layers, document.other_layers)
        ]
        assert tuple(pair) == head.shares


def test_perplexity_is_the_loss_of_transformers(small):
    runtime = start(small.folder)
    windows = [IDS[:5], IDS[5:]]
    value, tokens = perplexity(runtime, windows)
    with torch.inference_mode():
        losses = [
            small.model(input_ids=torch.tensor([w]), labels=torch.tensor([w])).loss.item()
            for w in windows
        ]
    assert tokens == 8
    assert value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_with_nothing_ablated_outputs_are_bit_identical(small):
    runtime = start(small.folder)
    with torch.inference_mode():
        expected = runtime.model(input_ids=torch.tensor([IDS]), use_cache=False).logits
    with runtime.watching(lambda *_: None), runtime.watching_middles(lambda *_: None):
        found = runtime.forward([IDS], logits=True).logits
    assert torch.equal(found, expected)
    # And behind an intervention nothing of it is left.
    with without_blocks(runtime, [2]), without_ffn(runtime, [1]):
        changed = runtime.forward([IDS], logits=True).logits
    assert not torch.equal(changed, expected)
    assert torch.equal(runtime.forward([IDS], logits=True).logits, expected)


def test_a_skipped_block_is_the_model_without_it(small):
    runtime = start(small.folder)
    states = {}
    with (
        without_blocks(runtime, [2]),
        runtime.watching(lambda layer, x: states.__setitem__(layer, x.clone())),
    ):
        runtime.forward([IDS])
    assert torch.equal(states[1], states[2])
    assert not torch.equal(states[2], states[3])


def test_without_its_ffn_a_layer_leaves_the_middle(small):
    runtime = start(small.folder)
    states, middles = {}, {}
    with (
        runtime.watching_middles(lambda layer, x: middles.__setitem__(layer, x.clone())),
        without_ffn(runtime, [2]),
        runtime.watching(lambda layer, x: states.__setitem__(layer, x.clone())),
    ):
        runtime.forward([IDS])
    torch.testing.assert_close(states[2], middles[2])


def test_without_a_weight_is_with_zero_in_its_place(llama):
    runtime = start(llama.folder)
    down = runtime.blocks[1].mlp.down_proj
    value = down.weight[5, 7].item()
    plain = runtime.forward([IDS], logits=True).logits
    hidden = []
    handle = down.register_forward_hook(lambda module, args, output: hidden.append(args[0]))
    with without_weight(runtime, 2, (5, 7), value):
        hooked = runtime.forward([IDS], logits=True).logits
    handle.remove()
    added = (value * hidden[0][0, :, 7]).abs()
    with without_weight(runtime, 2, (5, 7), value, below=0.0):
        torch.testing.assert_close(runtime.forward([IDS], logits=True).logits, plain)
    with without_weight(runtime, 2, (5, 7), value, below=added.sort().values[-2].item()):
        restored = runtime.forward([IDS], logits=True).logits
    # No token reads what comes after it: before the one that is restored nothing differs.
    first = int(added.argmax())
    torch.testing.assert_close(restored[:, :first], hooked[:, :first])
    assert not torch.allclose(restored[:, first], hooked[:, first], atol=1e-7)
    with torch.no_grad():
        down.weight[5, 7] = 0
    torch.testing.assert_close(hooked, runtime.forward([IDS], logits=True).logits)


def test_without_a_direction_the_ffn_reads_none_of_it(llama):
    runtime = start(llama.folder)
    v = np.random.default_rng(0).standard_normal(32)
    v /= np.linalg.norm(v)
    seen, states = [], {}
    with (
        without_direction(runtime, 2, v),
        runtime.watching(lambda layer, x: states.__setitem__(layer, x.clone())),
    ):
        norm = runtime.blocks[1].post_attention_layernorm
        handle = norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        runtime.forward([IDS])
        handle.remove()
    along = seen[0][0] @ torch.tensor(v, dtype=torch.float32)
    assert along.abs().max() < 1e-5
    # The stream itself keeps it.
    assert (states[2][0] @ torch.tensor(v, dtype=torch.float32)).abs().max() > 1e-3


def test_coordinates_of_high_norm_tokens_only_are_set(llama):
    runtime = start(llama.folder)
    plain, changed = {}, {}
    with runtime.watching(lambda layer, x: plain.__setitem__(layer, x.clone())):
        runtime.forward([IDS])
    above = plain[2][0].norm(dim=-1).median().item()
    with (
        setting_coordinates(runtime, 2, {3: 0.0, 9: 2.5}, above),
        runtime.watching(lambda layer, x: changed.__setitem__(layer, x.clone())),
    ):
        runtime.forward([IDS])
    high = plain[2][0].norm(dim=-1) > above
    assert torch.equal(changed[2][0][~high], plain[2][0][~high])
    assert (changed[2][0][high][:, 3] == 0).all()
    assert (changed[2][0][high][:, 9] == 2.5).all()


def test_ablations_of_the_planted_model(planted):
    """Its explosion layer 3 and decay layer 7 were planted; their removal must show."""
    ids = [(7 * i) % 60 for i in range(64)]
    document = ablate(planted, text=Text(token_ids=ids, window=16))
    rows = {(row.what, row.of): row for row in reversed(document.rows)}
    base = rows["none", None]
    assert max(base.norms) > 400
    assert max(rows["trigger", None].norms) < 0.5 * max(base.norms)
    assert max(rows["control", "trigger"].norms) == pytest.approx(max(base.norms), rel=0.1)
    assert rows["skip-ffn", None].norms[-1] > 1.5 * base.norms[-1]
    assert all(row.continuation is None for row in document.rows)
    for row in document.rows:
        assert row.what == "none" or row.of or (("control", row.what) in rows)
    assert "trigger" not in {row.what for row in document.skipped}


def test_a_super_weight_works_by_the_tokens_of_high_norm(smollm2, monkeypatch):
    """Restored for the initial token alone, the one that it makes large, nothing is lost."""
    monkeypatch.setattr(ablate_module, "_NEW_TOKENS", 2)  # the text is not looked at
    document = ablate(smollm2, what=("super-weight",), text=Text(limit=64, window=32))
    plain, zeroed, restored, control = document.rows
    assert (plain.what, control.what) == ("none", "control")
    assert zeroed.what == restored.what == "super-weight"
    assert "[507, 1229]" in zeroed.detail
    assert zeroed.perplexity > 2 * plain.perplexity
    assert restored.perplexity == pytest.approx(plain.perplexity, rel=0.02)
    assert restored.norms == pytest.approx(plain.norms, rel=1e-3)


def test_paths_of_the_planted_model(planted):
    """Against the rollout of the same tokens, and coefficients against the running model."""
    import ckptforensics

    document = paths(planted, second=8)
    assert document.trigger_layer == 3
    assert document.noninitial.count == 64 or document.noninitial.count > 0
    rolled = ckptforensics.rollout(planted, tokens="all", attention=False).document
    table = np.column_stack([rolled.embedding_norms, np.array(rolled.norms)])
    np.testing.assert_allclose(document.noninitial.median, np.median(table, axis=0), rtol=1e-5)
    np.testing.assert_allclose(document.noninitial.maximum, table.max(axis=0), rtol=1e-5)
    assert [c.position for c in document.coefficients] == [1, 2]
    assert document.coefficients[0].quantiles[2] > 0
    assert len(document.answers) == document.model.num_layers
    peak = max(document.answers, key=lambda row: row.norms[0])
    assert peak.layer in (3, 7)


def test_populations_by_hand():
    generator = np.random.default_rng(1)
    ordinary = np.exp(generator.normal(4, 0.1, (6, 200)))
    norms = ordinary.copy()
    norms[2:5, :4] = 5000.0
    found = populations(norms)
    assert [p.count for p in found] == [0, 0, 4, 4, 4, 0]
    assert find_plateaus(found) == [(3, 5)]
    assert found[2].threshold == pytest.approx(np.sqrt(ordinary[2].max() * 5000), rel=0.2)
    assert find_plateaus(populations(ordinary)) == []
    # A given threshold decides alone.
    assert [p.count for p in populations(norms, 1e4)] == [0] * 6


def test_an_encoder_has_no_high_norm(minilm):
    ids = [(37 * i) % 30_000 for i in range(256)]
    assert empirical(minilm, text=Text(token_ids=ids, window=64)).document.plateaus == ()


def test_what_cannot_be_meant_is_one_clear_error(llama, minilm):
    runtime = start(llama.folder)
    with pytest.raises(UsageError, match="not in the vocabulary"):
        runtime.forward([[500]])
    with pytest.raises(UsageError, match="positions"):
        runtime.forward([[1] * 129])
    with pytest.raises(UsageError, match="name one text"):
        windows_of(runtime, Text(text="a", token_ids=[1]))
    with pytest.raises(NothingAnalysable, match="no tokenizer"):
        windows_of(runtime, Text(text="a"))
    with pytest.raises(UsageError, match="two tokens"):
        perplexity(runtime, [[1]])
    with pytest.raises(NothingAnalysable, match="no head"):
        perplexity(start(minilm), [[1, 2, 3]])


def test_windows_and_their_record(llama):
    runtime = start(llama.folder)
    windows, record = windows_of(runtime, Text(token_ids=list(range(50)), window=8, limit=30))
    assert windows == [list(range(8 * i, 8 * i + 8)) for i in range(3)]
    assert (record.windows, record.tokens, record.available, record.partial) == (3, 24, 50, True)
    drawn, _ = windows_of(runtime, Text(token_ids=list(range(50)), window=8, limit=30, seed=3))
    assert len(drawn) == 3
    assert drawn == sorted(drawn)
    assert all(w[0] % 8 == 0 and w == list(range(w[0], w[0] + 8)) for w in drawn)
    short, record = windows_of(runtime, Text(token_ids=[5, 6], window=8, bos=True))
    assert short == [[runtime.checkpoint.architecture.bos_token_id, 5, 6]]
    assert not record.partial


def test_token_ids_that_are_no_numbers_are_one_clear_error(llama):
    with pytest.raises(UsageError, match="whole numbers"):
        windows_of(start(llama.folder), Text(token_ids="3,5"))


def test_layers_beside_empirical_directions(seen, smollm2_gguf, smollm2_signature):
    """The paper's Fig. 4 on SmolLM2: u1 of explosion and decay layers lies along what is seen."""
    import ckptforensics

    found = seen
    document = ckptforensics.find_layers(smollm2_gguf, empirical=found)
    (beside,) = [e for e in document.empirical if e.plateau == (12, 28)]
    angles = beside.angles_deg
    direction = found.direction[-1]
    cosines = np.abs(smollm2_signature.u @ direction)
    np.testing.assert_allclose(angles, np.degrees(np.arccos(cosines)), atol=0.1)
    assert angles[11] < 10
    assert angles[28] < 10
    near = beside.eigenvalues[28]
    dense = block_map(load_block(open_checkpoint(smollm2_gguf), 29), Fit())
    values, vectors = scipy.linalg.eig(dense.matmat(np.eye(576, dtype=np.float32)) - np.eye(576))
    nearest = int(np.argmax(np.abs(direction @ vectors)))
    assert near.real == pytest.approx(values[nearest].real, rel=1e-3)
    cosine = abs(direction @ vectors[:, nearest])
    assert near.angle_deg == pytest.approx(np.degrees(np.arccos(cosine)), abs=0.1)
    other = Empirical(found.document, found.direction[:, :100])
    with pytest.raises(UsageError, match="100 coordinates"):
        ckptforensics.find_layers(smollm2_gguf, empirical=other)


def test_replication_of_smollm2(smollm2_gguf):
    """Against what was recorded; another model's figures fail, and whose they are must be known."""
    document = replicate(smollm2_gguf, text=Text(limit=512), pictures=False)
    assert (document.name, document.own) == ("SmolLM2-135M-Instruct", True)
    passed = {row.what: row.passed for row in document.figures}
    assert passed["explosion layers"]
    assert passed["decay layers"]
    assert passed["super weights"]
    assert passed["pairwise angle"]


def test_kept_modules_take_back_what_rtn_costs_smollm2(smollm2):
    """One window; the real table is in docs/quantization.md."""
    names: tuple[RowName, ...] = ("none", "rtn", "rtn+planned")
    document = evaluate_quantization(
        smollm2, rows=names, layers=(2, 3, 10, 12, 29, 30), text=Text(window=128, limit=128)
    )
    losses = {row.row: math.log(row.perplexity) for row in document.rows}
    added = {name: losses[name] - losses["none"] for name in names}
    assert added["rtn"] > 0.3
    assert added["rtn+planned"] < added["rtn"] / 2


def test_table_1(planted, monkeypatch):
    """Each row with its tolerance; kept are the published layers' modules."""
    ids = [(7 * i) % 60 for i in range(32)]
    text = Text(token_ids=ids)
    rows = evaluate_quantization(
        planted,
        rows=("none", "rtn", "rtn+planned", "smoothquant", "smoothquant+planned"),
        layers=(3, 7),
        alphas=(0.85,),
        text=Text(token_ids=ids, window=2048, limit=None),
        calibration=text,
    ).rows
    wanted = [row.perplexity for row in rows]
    wanted[1] *= 2
    figures = {"explosion": [3], "decay": [7], "quantization": wanted}
    monkeypatch.setattr(replicate_module, "published", lambda: {"x": figures})
    monkeypatch.setattr(replicate_module, "_CALIBRATION", text)
    document = replicate(planted, name="x", text=text, quantized=True)
    found = [row for row in document.figures if row.what.startswith("perplexity")]
    assert [row.what.split()[1] for row in found] == [row.row for row in rows]
    assert [row.passed for row in found] == [True, False, True, True, True]
    assert found[0].tolerance == pytest.approx(0.02 * wanted[0])
    assert found[1].tolerance == pytest.approx(0.1 * wanted[1])


def test_figures_of_another_model_fail(planted):
    ids = [(7 * i) % 60 for i in range(64)]
    document = replicate(planted, name="LLaMA2-7B", text=Text(token_ids=ids, window=16))
    kinds = ["trace", "empirical", "layers", "paths", "ablation", "sinks"]
    assert [part.kind for part in document.parts] == kinds
    assert document.skipped == ()
    assert not any(row.passed for row in document.figures if row.tolerance is None)
    with pytest.raises(UsageError, match="--as"):
        replicate(planted)
    with pytest.raises(UsageError, match="nothing is published"):
        replicate(planted, name="x")


def test_a_dataset_is_its_rows_joined_by_empty_lines(llama, monkeypatch):
    """As published code joins WikiText-2; the package datasets itself is not installed for this."""
    asked = []

    def load_dataset(*where, **how):
        asked.append((*where, how))
        return {"text": ["", " = Robert = ", "was an actor"]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    seen = []
    runtime = start(llama.folder)
    tokenizer = SimpleNamespace(ids=lambda words: seen.append(words) or [1, 2, 3, 4])
    runtime.__dict__["tokenizer"] = tokenizer  # where a cached property keeps its value
    windows, record = windows_of(runtime, Text(dataset="wikitext", window=2))
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", {"split": "test"})]
    assert seen == ["\n\n = Robert = \n\nwas an actor"]
    assert (windows, record.source) == ([[1, 2], [3, 4]], "wikitext")
