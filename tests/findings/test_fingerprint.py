"""The fingerprint is reproducible, local, and its distance tells the angle as documented."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import gguf
import numpy as np
import pytest

import ckptforensics
from ckptforensics import Signature
from ckptforensics.findings import fingerprint, fingerprint_distance

BITS = 128
# Small, so that thousands of fingerprints are quick.
HIDDEN = 96


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """The vectors that are the same in every fingerprint of one width take most of its time."""
    module = import_module("ckptforensics.findings.fingerprint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_gaussians", cache(module._gaussians))
        yield


# --- The function itself, on made-up directions ---------------------------------------------


def _units(count: int, random: np.random.Generator, size: int = HIDDEN) -> np.ndarray:
    vectors = random.standard_normal((count, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _turned(u: np.ndarray, degrees: float, random: np.random.Generator) -> np.ndarray:
    """Every row turned by an angle, each in a random plane of its own."""
    other = random.standard_normal(u.shape)
    other -= u * np.sum(u * other, axis=1, keepdims=True)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    angle = np.radians(degrees)
    return np.cos(angle) * u + np.sin(angle) * other


def _clear(layers: int) -> np.ndarray:
    """Singular values with such a gap that every layer counts fully."""
    return np.tile([1e6, 1.0], (layers, 1))


def _spectrum(layers: int, random: np.random.Generator) -> np.ndarray:
    """Gaps as real models have them, from none to 20."""
    return np.stack([1 + np.exp(random.uniform(-5, 3, layers)), np.ones(layers)], axis=1)


def _projector(u: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """P of the module's documentation, as a matrix: sum of w u u', less its mean diagonal."""
    weight = 1 - (sigma[:, 1] / sigma[:, 0]) ** 2
    p = (u.T * weight) @ u
    return p - np.trace(p) / len(p) * np.eye(len(p))


def _matrix_angle(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.arccos(np.sum(p * q) / np.linalg.norm(p) / np.linalg.norm(q)))


def test_form():
    random = np.random.default_rng(0)
    mark = fingerprint(_units(30, random), _clear(30))
    version, _, bits = mark.partition("-")
    assert version == "cf1"
    assert len(bits) == BITS // 4
    int(bits, 16)


def test_stays_the_same_in_later_versions():
    """A stored fingerprint must be comparable for ever: this one was printed by version 0.1."""
    u = np.eye(16)[[3, 5, 3]]
    sigma = np.array([[4.0, 1.0], [2.0, 1.0], [9.0, 1.0]])
    assert fingerprint(u, sigma) == "cf1-e4fc65faa92b78d02072c407d71880e0"


def test_signs_and_units_of_sigma_do_not_matter():
    random = np.random.default_rng(1)
    u, sigma = _units(24, random), _spectrum(24, random)
    signs = random.choice([-1.0, 1.0], (24, 1))
    assert fingerprint(signs * u, sigma) == fingerprint(u, sigma)
    assert fingerprint(u, 1000 * sigma) == fingerprint(u, sigma)


def test_order_and_repetition_of_layers_do_not_matter():
    random = np.random.default_rng(2)
    u, sigma = _units(24, random), _spectrum(24, random)
    order = random.permutation(24)
    assert fingerprint_distance(fingerprint(u[order], sigma[order]), fingerprint(u, sigma)) == 0
    twice = fingerprint(np.r_[u, u], np.r_[sigma, sigma])
    assert fingerprint_distance(twice, fingerprint(u, sigma)) == 0


def test_layers_without_a_gap_do_not_count():
    random = np.random.default_rng(3)
    u, sigma = _units(24, random), _clear(24)
    sigma[10:] = [1.0, 1.0]
    arbitrary = u.copy()
    arbitrary[10:] = _units(14, random)
    assert fingerprint(u, sigma) == fingerprint(arbitrary, sigma)
    # With a gap they would.
    assert fingerprint_distance(fingerprint(u, _clear(24)), fingerprint(arbitrary, _clear(24))) > 20


def test_a_model_without_any_gap_is_not_an_error():
    u = _units(4, np.random.default_rng(4))
    for sigma in (np.ones((4, 2)), np.zeros((4, 2))):
        assert fingerprint_distance(fingerprint(u, sigma), fingerprint(u, sigma)) == 0


@pytest.mark.parametrize("layers", [1, 4, 30])
def test_unrelated_directions_share_half_the_bits(layers: int):
    """Over 60 pairs of independent models the share is 1/2 to within its binomial error."""
    random = np.random.default_rng([5, layers])
    marks = [fingerprint(_units(layers, random), _spectrum(layers, random)) for _ in range(120)]
    distances = [fingerprint_distance(*pair) for pair in zip(marks[::2], marks[1::2], strict=True)]
    error = np.sqrt(0.25 / BITS / len(distances))
    assert np.mean(distances) / BITS == pytest.approx(0.5, abs=4 * error)
    # Single pairs scatter like 128 coins: standard deviation 5.7, known to 9% from 60 pairs.
    assert np.std(distances) == pytest.approx(np.sqrt(BITS) / 2, rel=0.3)
    assert min(distances) > 40


def test_unrelated_axes_share_half_the_bits():
    """Directions of real models lie near coordinate axes: other axes, other bits."""
    random = np.random.default_rng(6)
    axes = random.permutation(HIDDEN)
    marks = []
    for axis in axes:
        u = np.eye(HIDDEN)[[axis] * 12]
        marks.append(fingerprint(_turned(u, 10, random), _clear(12)))
    distances = [fingerprint_distance(*pair) for pair in zip(marks[::2], marks[1::2], strict=True)]
    error = np.sqrt(0.25 / BITS / len(distances))
    assert np.mean(distances) / BITS == pytest.approx(0.5, abs=4 * error)


def _distance_at(degrees: float, layers: int, pairs: int) -> tuple[float, float, float]:
    """Mean share of differing bits, its binomial error, and angle / pi of the matrices P."""
    random = np.random.default_rng([7, int(10 * degrees), layers])
    shares, predicted = [], []
    for _ in range(pairs):
        u, sigma = _units(layers, random), _spectrum(layers, random)
        v = _turned(u, degrees, random)
        shares.append(fingerprint_distance(fingerprint(u, sigma), fingerprint(v, sigma)) / BITS)
        predicted.append(_matrix_angle(_projector(u, sigma), _projector(v, sigma)) / np.pi)
    mean = float(np.mean(predicted))
    return float(np.mean(shares)), np.sqrt(mean * (1 - mean) / BITS / pairs), mean


@pytest.mark.parametrize(("degrees", "layers"), [(3, 12), (10, 4), (30, 12), (60, 12)])
def test_distance_tells_the_angle(degrees: float, layers: int):
    """The share of differing bits is the angle between the P as matrices, over pi."""
    share, error, predicted = _distance_at(degrees, layers, pairs=40)
    # Documented as close: the angle is seen through 8 random vectors, which adds some percent.
    assert share == pytest.approx(predicted, abs=4 * error + 0.05 * predicted)


def test_single_direction_formula():
    """One direction turned by phi: cos theta = (cos^2 phi - 1/d) / (1 - 1/d)."""
    for degrees in (10, 45):
        cosine = (np.cos(np.radians(degrees)) ** 2 - 1 / HIDDEN) / (1 - 1 / HIDDEN)
        share, error, _ = _distance_at(degrees, layers=1, pairs=40)
        theta = np.arccos(cosine) / np.pi
        assert share == pytest.approx(theta, abs=4 * error + 0.05 * theta)


def test_few_degrees_are_few_bits():
    """Three degrees in every layer: the angle of P is sqrt 2 as large, 128 * 4.2 / 180 bits."""
    share, _, _ = _distance_at(3, layers=12, pairs=40)
    assert 1.5 < BITS * share < 5
    # And it grows with the angle, step by step.
    steps = [_distance_at(d, layers=12, pairs=12)[0] for d in (1, 5, 15, 40, 80)]
    assert steps == sorted(steps)


def test_distance():
    assert fingerprint_distance("cf1-" + "0" * 32, "cf1-" + "f" * 32) == 128
    assert fingerprint_distance("cf1-" + "0" * 31 + "3", "cf1-" + "0" * 32) == 2
    with pytest.raises(ValueError, match="cf2"):
        fingerprint_distance("cf1-" + "0" * 32, "cf2-" + "0" * 32)


# --- The real model and its copies ----------------------------------------------------------


@pytest.fixture(scope="module")
def mark(smollm2_signature: Signature) -> str:
    return smollm2_signature.document.fingerprint


def test_same_on_a_second_run(smollm2_gguf: Path, mark: str):
    assert ckptforensics.sign(smollm2_gguf).document.fingerprint == mark


@pytest.mark.parametrize("threads", ["1", "2"])
def test_same_with_any_number_of_threads(smollm2_gguf: Path, mark: str, threads: str):
    """In a process of its own: the number of threads is read when numpy is imported."""
    program = (
        "import sys, ckptforensics; print(ckptforensics.sign(sys.argv[1]).document.fingerprint)"
    )
    limits = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(limits, threads)}
    command = [sys.executable, "-c", program, str(smollm2_gguf)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mark


def test_same_from_safetensors(smollm2_f32: Path, mark: str):
    assert ckptforensics.sign(smollm2_f32).document.fingerprint == mark


def test_bf16_is_few_bits_away(smollm2_bf16: Path, mark: str):
    assert fingerprint_distance(ckptforensics.sign(smollm2_bf16).document.fingerprint, mark) <= 2


# Reading the strings of a vocabulary takes seconds.
_reader = cache(gguf.GGUFReader)


def _copy(source: Path, file: Path, change) -> Path:
    """A GGUF file of the same model whose block matrices went through `change`.

    `change` maps float32 values to (stored array, quantization type).
    """
    reader = _reader(source)
    writer = gguf.GGUFWriter(file, "llama")
    for key in ("embedding_length", "block_count", "attention.head_count"):
        field = reader.get_field(f"llama.{key}")
        writer.add_uint32(f"llama.{key}", int(field.contents()))
    writer.add_head_count_kv(int(reader.get_field("llama.attention.head_count_kv").contents()))
    eps = "llama.attention.layer_norm_rms_epsilon"
    writer.add_layer_norm_rms_eps(float(reader.get_field(eps).contents()))
    for tensor in reader.tensors:
        scores = tensor.name.endswith(("attn_q.weight", "attn_k.weight"))
        if len(tensor.shape) == 1 or scores or not tensor.name.startswith("blk."):
            # The embeddings take no part in the directions, nor do query and key.
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        stored, kind = change(values)
        writer.add_tensor(tensor.name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _quantized(kind: gguf.GGMLQuantizationType):
    return lambda values: (gguf.quants.quantize(values, kind), kind)


def _perturbed(relative: float):
    random = np.random.default_rng(8)

    def change(values: np.ndarray):
        noise = random.standard_normal(values.shape, dtype=np.float32)
        moved = values + relative * values.std() * noise
        return moved.astype(np.float16), gguf.GGMLQuantizationType.F16

    return change


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        # u1 of layers with a gap of 2 turns by 0.3, 4 and 0.5 degrees at most, which is 0.3, 4 and
        # 0.5 bits by the formula tested above; a few more are allowed.
        pytest.param(_quantized(gguf.GGMLQuantizationType.Q8_0), 2, id="int8"),
        pytest.param(_quantized(gguf.GGMLQuantizationType.Q4_0), 8, id="Q4"),
        pytest.param(_perturbed(0.01), 2, id="1% noise"),
    ],
)
def test_copies_are_few_bits_away(smollm2_gguf: Path, mark: str, change, limit: int, tmp_path):
    copy = _copy(smollm2_gguf, tmp_path / "copy.gguf", change)
    found = ckptforensics.sign(copy).document.fingerprint
    # An unrelated model would be within 8 bits with probability below 1e-25.
    assert fingerprint_distance(found, mark) <= limit


def test_another_model_is_far_away(planted: Path, mark: str):
    other = ckptforensics.sign(planted).document.fingerprint
    assert 64 - 5 * 5.7 < fingerprint_distance(other, mark) < 64 + 5 * 5.7
