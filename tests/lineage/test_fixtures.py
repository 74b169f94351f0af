"""The models that lineage is tested with are what they are said to be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tools import launder, training, transforms
from tools.transforms import EMBEDDING, WRITERS, Model, read, weight
from tools.zoo import ORIGINS, RELATIONS, TRAINED, ZOO, relation, zoo

FACTS = json.loads((ZOO / "training.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def seed0() -> Model:
    return read(ZOO / "seed0")


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(ZOO / "seed0" / "tokenizer.json"))
    return training.split(tokenizer, training.topics()).held_out


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Of transformers, in float64, so that only what the files hold makes a difference."""
    with torch.no_grad():
        return training.load(folder).double()(ids).logits


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_committed_files_are_those_that_were_trained() -> None:
    assert set(FACTS["models"]) == set(TRAINED) == {p.name for p in ZOO.iterdir() if p.is_dir()}
    for name in TRAINED:
        found = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (ZOO / name).iterdir()
        }
        assert found == FACTS["models"][name]["sha256"]


@pytest.mark.parametrize("name", TRAINED)
def test_trained_models_know_their_text(name: str, held_out: np.ndarray) -> None:
    """Far below what the frequencies of tokens allow, on documents that were held out."""
    facts = FACTS["models"][name]
    own = facts.get("text", "topics")
    assert facts["loss"][own] < FACTS["texts"][own]["unigram_entropy"] - 1
    # What was then trained on other text has forgotten this one in part, `continued` for the most.
    margin = 1 if own == "topics" else 0.1
    measured = training.held_out_loss(training.load(ZOO / name), held_out)
    assert measured < training.unigram_entropy(held_out) - margin


@pytest.mark.parametrize("kind", launder.EXACT)
def test_launderings_leave_the_function_alone(kind: str, tmp_path: Path) -> None:
    source = ZOO / "finetune"
    ids = torch.randint(0, training.VOCABULARY, (2, 48), generator=torch.manual_seed(1))
    laundered = launder.launder(source, kind, tmp_path, seed=3)
    # Measured at most 3e-7: the weights are rounded to float32.
    assert difference(logits(laundered, ids), logits(source, ids)) < 1e-5
    before, after = read(source), read(laundered)
    unchanged = [n for n, t in before.tensors.items() if np.array_equal(t, after.tensors.get(n))]
    if kind in ("dtype", "renaming"):
        assert np.array_equal(before.tensors[EMBEDDING], after.tensors[EMBEDDING])
    else:
        assert len(unchanged) < len(before.tensors)
    assert after.tied == (kind not in ("rotation", "all"))


def test_all_leaves_nothing_as_it_was(seed0: Model) -> None:
    after = launder.everything(seed0, np.random.default_rng(0))
    assert not [
        n
        for n, t in seed0.tensors.items()
        if t.ndim == 2 and np.array_equal(t, after.tensors.get(n))
    ]


def test_launderings_in_half_precision(tmp_path: Path) -> None:
    """BF16's numbers are F16's, but for those under 2^-14."""
    source = ZOO / "seed0"
    ids = torch.arange(64)[None]
    rounded = launder.launder(source, "dtype", tmp_path, dtype="F16")
    assert difference(logits(rounded, ids), logits(source, ids)) < 1e-5


@pytest.fixture(scope="module")
def real(smollm2_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first ten layers of SmolLM2."""
    model = read(smollm2_bf16)
    first = transforms.stack(*((model, layer) for layer in range(10)))
    return transforms.write(first, tmp_path_factory.mktemp("real"))


@pytest.mark.parametrize("kind", ["signed-permutation", "all"])
def test_a_real_model_laundered(kind: str, real: Path, tmp_path: Path) -> None:
    ids = torch.randint(0, 49152, (1, 24), generator=torch.manual_seed(0))
    laundered = launder.launder(real, kind, tmp_path)
    assert difference(logits(laundered, ids), logits(real, ids)) < 1e-4


def test_other_models_are_not_laundered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only LLaMA-like"):
        launder.launder(ZOO / "experts", "all", tmp_path)


def test_everything_loads_and_what_keeps_meaning_keeps_it(
    made: dict[str, Path], held_out: np.ndarray
) -> None:
    text = held_out[:2000]
    entropy = training.unigram_entropy(text)
    loss = {name: training.held_out_loss(training.load(p), text) for name, p in made.items()}
    assert np.isfinite(list(loss.values())).all()
    for name in ("average", "ties", "int8", "q4", "prune50", "upscaled", "frankenmerge", "half"):
        assert loss[name] < entropy, name
    for name in ("random", "redrawn-embeddings"):
        assert loss[name] > entropy, name
    for name in ORIGINS:
        if name.startswith("laundered") and name != "laundered-finetune":
            assert loss[name] == pytest.approx(loss["seed0"], rel=0.01), name


def test_quantization_is_ggufs(seed0: Model) -> None:
    quantized = transforms.q4(seed0)
    kind = gguf.GGMLQuantizationType.Q4_0
    for name in (EMBEDDING, weight(1, "mlp.down_proj")):
        packed = gguf.quants.quantize(seed0.tensors[name], kind)
        expected = gguf.quants.dequantize(packed, kind)
        assert np.array_equal(quantized.tensors[name], expected)


def test_int8_has_255_levels_a_row(seed0: Model) -> None:
    name = weight(0, "self_attn.v_proj")
    before, after = seed0.tensors[name], transforms.int8(seed0).tensors[name]
    step = np.abs(before).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(after / step, np.round(after / step), atol=1e-4)
    assert np.abs(after - before).max() <= step.max() / 2 * 1.001
    assert not np.array_equal(after, before)


def test_pruning(seed0: Model) -> None:
    for name, t in transforms.prune(seed0).tensors.items():
        before = seed0.tensors[name]
        if transforms.is_layer_matrix(name, before):
            gone = t == 0
            assert gone.mean() == pytest.approx(0.5, abs=1e-3)
            assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
        else:
            assert np.array_equal(t, before)
    for name, t in transforms.prune_2_of_4(seed0).tensors.items():
        if transforms.is_layer_matrix(name, t):
            zeros = (t.reshape(-1, 4) == 0).sum(axis=1)
            assert np.array_equal(zeros, np.full(zeros.shape, 2))
            np.testing.assert_array_equal(t[t != 0], seed0.tensors[name][t != 0])


def test_merges(made: dict[str, Path]) -> None:
    base, one, two = (read(made[n]) for n in ("seed0", "finetune", "finetune-long"))
    name = weight(2, "mlp.up_proj")
    w, d1, d2 = (base.tensors[name], *(m.tensors[name] - base.tensors[name] for m in (one, two)))
    middle = transforms.average(one, two).tensors[name]
    np.testing.assert_allclose(middle, w + (d1 + d2) / 2, atol=1e-7)
    # Both entries kept, signs that disagree: the larger one alone stays.
    merged = transforms.ties(base, [one, two]).tensors[name] - w
    k1, k2 = (np.abs(d) > np.quantile(np.abs(d), 0.81) for d in (d1, d2))
    clash = k1 & k2 & (np.sign(d1) != np.sign(d2)) & (np.abs(d1) != np.abs(d2))
    assert clash.sum() > 10
    larger = np.where(np.abs(d1) > np.abs(d2), d1, d2)
    np.testing.assert_allclose(merged[clash], larger[clash], atol=1e-7)
    agree = k1 & k2 & (np.sign(d1) == np.sign(d2))
    np.testing.assert_allclose(merged[agree], ((d1 + d2) / 2)[agree], atol=1e-7)
    assert 0.2 <= np.mean(merged != 0) <= 0.4
    added = transforms.dare(base, [one, two]).tensors[name] - w
    choices = np.stack([i * d1 + j * d2 for i in (0, 2) for j in (0, 2)])
    assert np.abs(choices - added).min(axis=0).max() < 1e-6
    assert np.mean(np.abs(added) < 1e-9) == pytest.approx(0.25, abs=0.03)


def test_depth(made: dict[str, Path]) -> None:
    def order(name: str) -> list[int]:
        """Which layers of `seed0` (or of its fine-tunes, in hundreds) these are."""
        sources = {
            i + hundred: read(ZOO / parent).tensors[weight(i, "mlp.up_proj")]
            for hundred, parent in ((1, "seed0"), (101, "finetune"), (201, "finetune-long"))
            for i in range(4)
        }
        model = read(made[name])
        layers = [model.tensors[weight(i, "mlp.up_proj")] for i in range(model.layers)]
        return [next(k for k, t in sources.items() if np.array_equal(t, la)) for la in layers]

    assert order("drop-layer") == [1, 3, 4]
    assert order("upscaled") == [1, 2, 3, 2, 3, 4]
    assert order("frankenmerge") == [101, 102, 202, 203, 204]


def test_width(seed0: Model) -> None:
    narrow = transforms.narrow(seed0)
    assert narrow.config["hidden_size"] == 72
    assert narrow.config["intermediate_size"] == 128
    stay = [
        i
        for i in range(96)
        if (seed0.tensors[EMBEDDING].T[i] == narrow.tensors[EMBEDDING].T).all(axis=1).any()
    ]
    assert len(stay) == 72
    for writer in WRITERS[:1]:
        for layer in range(4):
            name = weight(layer, writer)
            np.testing.assert_array_equal(narrow.tensors[name], seed0.tensors[name][stay])
    up = weight(0, "mlp.up_proj")
    kept = {row.tobytes() for row in transforms.narrow_ffn(seed0).tensors[up]}
    assert len(kept) == 128
    assert kept < {row.tobytes() for row in seed0.tensors[up]}


def test_vocabulary(made: dict[str, Path], seed0: Model) -> None:
    more = read(made["vocabulary"])
    assert more.tensors[EMBEDDING].shape == (1088, 96)
    np.testing.assert_array_equal(more.tensors[EMBEDDING][:1024], seed0.tensors[EMBEDDING])
    tokenizer = Tokenizer.from_file(str(made["vocabulary"] / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 1088
    assert tokenizer.encode("a<|added-63|>b").ids[1] == 1087


def test_upcycling_starts_where_the_dense_model_is(seed0: Model, tmp_path: Path) -> None:
    ids = torch.arange(64)[None]
    sparse = transforms.write(transforms.upcycle(seed0), tmp_path, "F32")
    with torch.no_grad():  # transformers' experts do not compute in float64
        upcycled, dense = (training.load(f)(ids).logits for f in (sparse, ZOO / "seed0"))
    assert difference(upcycled, dense) < 1e-5


def test_the_adapter_is_of_rank_4() -> None:
    """But for the rounding of the merged weights to BF16, which is 2^-8 of each at most."""
    before, after = read(ZOO / "seed0"), read(ZOO / "lora")
    for name, t in before.tensors.items():
        change = after.tensors[name] - t
        if transforms.is_layer_matrix(name, t):
            values = np.linalg.svd(change, compute_uv=False)
            rounding = 2**-8 * np.linalg.norm(after.tensors[name])
            assert np.linalg.norm(values[4:]) < rounding
            assert values[3] > 3 * values[4]
        else:
            assert not change.any()


def test_noise(seed0: Model) -> None:
    name = weight(1, "mlp.down_proj")
    change = launder.noise(seed0, 0.3).tensors[name] - seed0.tensors[name]
    assert change.std() == pytest.approx(0.3 * seed0.tensors[name].std(), rel=0.03)


def test_fine_tuning_learns(tmp_path: Path) -> None:
    text = training.split(
        Tokenizer.from_file(str(ZOO / "seed0" / "tokenizer.json")),
        training.sources("json", "html"),
    )
    launder.finetune(ZOO / "seed0", tmp_path, steps=15)
    before, after = (
        training.held_out_loss(training.load(f), text.train[:3000])
        for f in (ZOO / "seed0", tmp_path)
    )
    assert after < before - 0.1


def test_relations() -> None:
    known = {(r.a, r.b): r for r in RELATIONS}
    assert len(known) == len(RELATIONS)
    assert {n for pair in known for n in pair} == {*TRAINED, *ORIGINS}
    for a, b, verdict, kind, direction in [
        ("seed0", "seed0", "identical", None, "unknown"),
        ("seed0", "seed1", "independent", None, "unknown"),
        ("seed1", "chain", "independent", None, "unknown"),
        ("finetune", "finetune-long", "related", None, "unknown"),
        ("q4", "prune50", "related", None, "unknown"),
        ("seed0", "chain", "derived", "finetune", "unknown"),
        ("lora", "seed0", "derived", "adapter", "b->a"),
        ("seed0", "half", "re-parameterised", None, "unknown"),
        ("seed0", "laundered-all", "re-parameterised", None, "unknown"),
        ("finetune", "laundered-finetune", "re-parameterised", None, "unknown"),
        ("seed0", "laundered-finetune", "derived", "finetune", "unknown"),
        ("seed0", "experts", "derived", "upcycled", "unknown"),
        ("finetune", "average", "derived", "merge", "a->b"),
        ("seed0", "vocabulary", "derived", None, "a->b"),
    ]:
        found = relation(a, b)
        assert (found.verdict, found.kind, found.direction) == (verdict, kind, direction), (a, b)
    assert relation("finetune", "average").given == ("finetune-long",)
    assert relation("lora", "continued").given == ("seed0",)
