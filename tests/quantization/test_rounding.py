"""The rounding view: the rows asked for are those of the whole, whatever the layout of the file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf.quants as quants
import numpy as np
import pytest

from ckptforensics import Fit, SignatureCache, open_checkpoint, sign
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import UsageError
from ckptforensics.findings.cache.key import signature_keys
from ckptforensics.quantization.encoders import SCHEMES
from ckptforensics.quantization.rounding import RoundedReader, rounded
from ckptforensics.tensors import TensorInfo, matrix_shape
from ckptforensics.tensors.files import FileReader
from tests.support.containers import assert_one_error, run
from tests.support.models import tiny_gpt2

ROOT = Path(__file__).parents[2]
PLANTED = ROOT / "fixtures" / "planted"
ZOO = ROOT / "fixtures" / "zoo"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("gpt2")
    tiny_gpt2(n_embd=160, n_head=4).save_pretrained(folder)
    return open_checkpoint(folder)


def as_outputs(checkpoint: Checkpoint, name: str, *, transposed: bool) -> np.ndarray:
    w = checkpoint.store.read(name)
    return np.ascontiguousarray(w.T) if transposed else w


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("family", ["gpt2", "llama", "experts"])
def test_any_rows_are_those_of_the_whole(scheme, family, gpt2):
    places = {"llama": PLANTED, "experts": ZOO / "experts"}
    checkpoint = gpt2 if family == "gpt2" else open_checkpoint(places[family])
    view = rounded(checkpoint, scheme)
    seen = 0
    for name in list(view.store.names)[:12]:
        whole, plain = view.store.read(name), checkpoint.store.read(name)
        assert whole.shape == plain.shape
        assert not np.array_equal(whole, plain), name
        columns, rows = matrix_shape(view.store.info(name))
        flat = whole.reshape(rows, columns)
        for a, b in ((0, 1), (rows // 3, rows // 2 + 1), (rows - 1, rows), (5, 5)):
            assert np.array_equal(view.store.read_rows(name, a, b), flat[a:b]), (name, a, b)
        seen += 1
    assert seen > 3


@pytest.mark.parametrize("scheme", ["int8", "int8-channel", "int4-g128", "q8_0"])
def test_a_transposed_weight_is_rounded_by_its_outputs(scheme, gpt2):
    """GPT-2's maps are stored as (in, out); what shares a scale runs along the input all the same.

    GGUF's converter turns them round before it rounds.
    """
    name = "transformer.h.0.mlp.c_fc.weight"
    if name not in gpt2.store:
        name = "h.0.mlp.c_fc.weight"
    view = rounded(gpt2, scheme)
    w = as_outputs(gpt2, name, transposed=True)
    got = as_outputs(view, name, transposed=True)
    if scheme == "q8_0":
        number = quants.GGMLQuantizationType.Q8_0
        assert np.array_equal(got, quants.dequantize(quants.quantize(w, number), number))
        return
    if scheme == "int4-g128":
        groups = [w[:, :128], w[:, 128:]]
        steps = [np.abs(g).max(axis=1, keepdims=True) / np.float32(7.5) for g in groups]
        parts = [np.clip(np.rint(g / s), -8, 7) * s for g, s in zip(groups, steps, strict=True)]
        assert np.array_equal(got, np.hstack(parts))
        return
    step = np.abs(w).max(axis=1 if "channel" in scheme else None, keepdims=True) / np.float32(127)
    assert np.array_equal(got, np.rint(w / step) * step)


def test_small_chunks_make_no_difference(gpt2, monkeypatch):
    whole = {s: rounded(gpt2, s).store for s in ("int8-channel", "int4-g128", "q4_0")}
    before = {s: {n: store.read(n) for n in store.names} for s, store in whole.items()}
    monkeypatch.setattr("ckptforensics.quantization.rounding._AT_ONCE", 500)
    for scheme, tensors in before.items():
        store = rounded(gpt2, scheme).store
        for name, values in tensors.items():
            assert np.array_equal(store.read(name), values), (scheme, name)


def test_what_quantizers_leave_alone_stays(gpt2):
    for checkpoint in (gpt2, open_checkpoint(PLANTED), open_checkpoint(ZOO / "experts")):
        architecture = checkpoint.architecture
        assert architecture.embedding is not None
        view = rounded(checkpoint, "int8")
        embedding = architecture.embedding.tokens
        same = [n for n in checkpoint.store if n not in view.store.names]
        assert embedding in same
        for name in same:
            assert np.array_equal(view.store.read(name), checkpoint.store.read(name))
        norms = [n for n in checkpoint.store if "norm" in n or "ln_" in n or n.endswith("bias")]
        assert norms
        assert set(norms) <= set(same)
        assert not [n for n in view.store.names if "router" in n or n.endswith("mlp.gate.weight")]
    # Every linear weight of the layers, those of queries and keys among them.
    names = rounded(open_checkpoint(PLANTED), "int8").store.names
    linear = [n for n in open_checkpoint(PLANTED).store if "_proj" in n]
    assert sorted(names) == sorted(linear)


def test_llama_cpp_rounds_embeddings_too():
    view = rounded(open_checkpoint(PLANTED), "q8_0")
    assert "model.embed_tokens.weight" in view.store.names


def test_a_signature_says_how_it_was_rounded_and_is_kept_apart(tmp_path):
    plain = open_checkpoint(PLANTED)
    views = {scheme: rounded(plain, scheme) for scheme in SCHEMES}
    keys = {signature_keys(c, Fit(), {})[0] for c in (plain, *views.values())}
    assert len(keys) == 1 + len(SCHEMES)
    cache = SignatureCache(tmp_path)
    first = sign(plain, cache=cache)
    other = sign(views["int4-g128"], cache=cache)
    again = sign(rounded(open_checkpoint(PLANTED), "int4-g128"), cache=cache)
    assert first.document.model.notes == ()
    (note,) = other.document.model.notes
    assert "rounded as int4-g128" in note
    assert other.document.fingerprint != first.document.fingerprint
    assert again.document == other.document
    assert sign(plain, cache=cache).document == first.document


def test_sign_as(capsys, monkeypatch):
    monkeypatch.setenv("CKPT_CACHE", "")
    ran = run(capsys, "sign", PLANTED, "--as", "int8", "-q")
    assert ran.code == 0
    assert "rounded as int8" in ran.out
    from ckptforensics.cli.commands.sign import ROUNDINGS

    assert tuple(SCHEMES) == ROUNDINGS
    assert_one_error(run(capsys, "sign", PLANTED, "--as", "int3"), 4, "int3")


def test_nothing_to_round_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no way to round is called 'int3'; use int8"):
        rounded(open_checkpoint(PLANTED), "int3")
    tiny_gpt2(n_embd=36, n_head=4).save_pretrained(tmp_path)
    view = rounded(open_checkpoint(tmp_path), "int8")
    assert view.store.names


@pytest.mark.parametrize("scheme", ["int8", "int8-channel", "int4-g128-asym", "q8_0"])
@pytest.mark.parametrize("transposed", [False, True])
def test_some_rows_of_a_large_matrix_take_little_memory(scheme, transposed):
    """Its largest entry is found, and its groups are rounded, a few rows at a time."""
    held = np.random.default_rng(0).standard_normal((4096, 2048), dtype=np.float32)
    info = TensorInfo("w", "F32", held.shape, Path("w"), 0, held.nbytes)

    class Held(FileReader):
        def __init__(self) -> None:
            self.containers, self.tensors, self.metadata = (), {"w": info}, {}
            self.watch = None  # type: ignore[assignment]

        def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
            return held[start:stop].copy()

    class Linear:
        layers, unused, embedding = (), {}, None

    reader = RoundedReader(Held(), Linear(), scheme)  # type: ignore[arg-type]
    reader.names = {"w": transposed}
    tracemalloc.start()
    reader.read_rows("w", 1000, 1300)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < held.nbytes
