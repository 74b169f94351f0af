"""GGUF against the `gguf` package: places, values of every type, and what must be refused."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptforensics.errors import FormatError, NotFinite, TensorError
from ckptforensics.tensors.containers.gguf import read_gguf
from tests.support.containers import attempt, store_of, write_llama_gguf

# Every type that the package has a dequantizer for, whatever version is installed.
QUANTIZED = sorted(set(gguf.quants._type_traits) - {Type.BF16}, key=lambda t: t.value)
COLUMNS, ROWS = 512, 6


def can_quantize(kind: Type) -> bool:
    try:
        gguf.quants.quantize(np.zeros((1, COLUMNS), np.float32), kind)
    except NotImplementedError:
        return False
    return True


def stored(kind: Type) -> np.ndarray:
    """Bytes of a (ROWS, COLUMNS) tensor that is finite everywhere."""
    rng = np.random.default_rng(kind.value)
    if can_quantize(kind):
        return gguf.quants.quantize(rng.standard_normal((ROWS, COLUMNS)).astype(np.float32), kind)
    elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    wanted = ROWS * COLUMNS // elements
    blocks = rng.integers(0, 256, (8 * wanted, nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks, kind)
    finite = np.isfinite(values).all(axis=1)
    assert finite.sum() >= wanted
    return blocks[finite][:wanted].reshape(ROWS, -1)


def write(path: Path, tensors: dict[str, Any], types: dict[str, Type] | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, data in tensors.items():
        writer.add_tensor(name, data, raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_list_of_types_is_not_empty():
    """So that a renamed table in the package does not silently test nothing."""
    assert len(QUANTIZED) >= 20
    assert {Type.Q4_1, Type.Q8_0, Type.Q6_K, Type.IQ2_XXS} <= set(QUANTIZED)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda t: t.name)
def test_every_type_is_dequantized_like_the_package_does(kind, tmp_path):
    data = stored(kind)
    expected = gguf.quants.dequantize(data, kind)
    assert expected.shape == (ROWS, COLUMNS)
    assert np.ptp(expected) > 0
    path = write(tmp_path / "w.gguf", {"w": data, "z": np.ones(3, np.float32)}, {"w": kind})
    store = store_of(path)
    assert store.info("w").dtype == kind.name
    assert store.info("w").shape == (ROWS, COLUMNS)
    assert store.info("w").nbytes == data.nbytes
    assert np.array_equal(store.read("w"), expected)
    for start, stop in ((0, 1), (1, 4), (5, 6), (2, 2), (0, 6)):
        assert np.array_equal(store.read_rows("w", start, stop), expected[start:stop])


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q8_0], ids=lambda t: t.name)
def test_stacked_experts_are_rows(kind, tmp_path):
    """Three axes, as mixture-of-experts tensors have; more elements than one block holds."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 500, 1024)).astype(np.float32)
    data = gguf.quants.quantize(values, kind)
    store = store_of(write(tmp_path / "w.gguf", {"w": data}, {"w": kind}))
    expected = gguf.quants.dequantize(data, kind)
    assert store.info("w").shape == (3, 500, 1024)
    assert np.array_equal(store.read("w"), expected)
    assert np.array_equal(store.read_rows("w", 990, 1010), expected.reshape(1500, 1024)[990:1010])


def test_plain_types_have_numpys_and_torchs_values(tmp_path):
    rng = np.random.default_rng(1)
    f64 = rng.standard_normal((4, 6))
    bf16 = torch.from_numpy(f64).to(torch.bfloat16)
    tensors = {
        "f64": f64,
        "f32": f64.astype(np.float32),
        "f16": f64.astype(np.float16),
        "bf16": bf16.view(torch.uint8).numpy(),
    }
    store = store_of(write(tmp_path / "w.gguf", tensors, {"bf16": Type.BF16}))
    assert {store.info(n).dtype for n in store} == {"F64", "F32", "F16", "BF16"}
    for name in ("f64", "f32", "f16"):
        assert np.array_equal(store.read(name), tensors[name].astype(np.float32))
    assert np.array_equal(store.read("bf16"), bf16.float().numpy())
    assert np.array_equal(store.read_rows("bf16", 1, 3), bf16.float().numpy()[1:3])


@pytest.mark.parametrize("name", ["I8", "I16", "I32", "I64"])
def test_integers_are_listed_and_not_decoded(name, tmp_path):
    data = np.arange(6).astype(f"i{int(name[1:]) // 8}").reshape(2, 3)
    store = store_of(write(tmp_path / "w.gguf", {"w": data}))
    assert (store.info("w").dtype, store.info("w").shape) == (name, (2, 3))
    with pytest.raises(TensorError, match=f"type {name} cannot be decoded"):
        store.read("w")


@pytest.mark.parametrize("kind", [Type.Q8_1, Type.Q8_K], ids=lambda t: t.name)
def test_types_without_a_dequantizer_are_listed_and_not_decoded(kind, tmp_path):
    elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.zeros((2, nbytes), np.uint8)
    store = store_of(write(tmp_path / "w.gguf", {"w": data}, {"w": kind}))
    assert store.info("w").shape == (2, elements)
    with pytest.raises(TensorError, match=f"type {kind.name} cannot be decoded"):
        store.read("w")


@pytest.mark.parametrize(("scale", "word"), [(0x7C00, "nan|inf"), (0x7E00, "nan")])
def test_a_damaged_scale_is_reported_with_its_row_and_column(scale, word, tmp_path):
    data = gguf.quants.quantize(np.ones((4, 64), np.float32), Type.Q8_0)
    data[2, 34:36] = np.array([scale], np.uint16).view(np.uint8)
    store = store_of(write(tmp_path / "w.gguf", {"w": data}, {"w": Type.Q8_0}))
    with pytest.raises(NotFinite, match=rf"row 2, column 32 is ({word})"):
        store.read("w")
    assert np.array_equal(store.read_rows("w", 3, 4), gguf.quants.dequantize(data[3:], Type.Q8_0))


def test_places_are_those_of_the_packages_reader(tmp_path):
    path = write_llama_gguf(tmp_path / "w.gguf")
    container, reader = read_gguf(path), gguf.GGUFReader(path)
    assert set(container.tensors) == {t.name for t in reader.tensors}
    for theirs in reader.tensors:
        ours = container.tensors[theirs.name]
        assert ours.offset == theirs.data_offset
        assert ours.nbytes == theirs.n_bytes
        assert ours.shape == tuple(theirs.shape[::-1].tolist())
        assert ours.dtype == theirs.tensor_type.name


def test_metadata_is_that_of_the_packages_reader(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "llama")
    values = {
        "uint8": 200, "int8": -5, "uint16": 60_000, "int16": -30_000, "uint32": 1 << 31,
        "int32": -(1 << 30), "float32": 0.5, "bool": True, "string": "Ünï\ncode",
        "uint64": 1 << 63, "int64": -(1 << 62), "float64": 1e-300,
    }  # fmt: skip
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.numbers", [1, 2, 3])
    writer.add_array("x.words", ["a", "bc", ""])
    writer.add_uint32("x.after", 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = read_gguf(tmp_path / "w.gguf").metadata
    for kind, value in values.items():
        assert metadata[f"x.{kind}"] == value
        assert type(metadata[f"x.{kind}"]) is type(value)
    assert metadata["general.architecture"] == "llama"
    assert metadata["x.numbers"].length == 3
    assert metadata["x.words"].length == 3
    assert metadata["x.after"] == 7


def test_another_alignment(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "llama")
    writer.add_custom_alignment(256)
    arrays = {f"t{i}": np.full(5, i, np.float32) for i in range(3)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    store = store_of(tmp_path / "w.gguf")
    for name, array in arrays.items():
        assert store.info(name).offset % 256 == 0
        assert np.array_equal(store.read(name), array)


# Files built byte by byte.


def text(value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(
    name: bytes | str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0
) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def build(
    pairs: list[bytes] = (),  # type: ignore[assignment]
    tensors: list[bytes] = (),  # type: ignore[assignment]
    *,
    data: int = 64,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    count = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, *count) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


def refuse(path: Path, content: bytes, match: str) -> FormatError:
    path.write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(FormatError, match=match) as caught:
        read_gguf(path)
    # A length field must not be believed: nothing is allocated or counted in its name.
    assert time.monotonic() - begun < 20
    assert caught.value.path == path
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3_000
    return caught.value


def test_what_the_builder_builds_is_valid(tmp_path):
    """Else the refusals below would prove nothing."""
    path = tmp_path / "w.gguf"
    path.write_bytes(
        build([pair("k", 4, struct.pack("<I", 9))], [tensor("a"), tensor("b", offset=32)])
    )
    assert read_gguf(path).metadata == {"k": 9}
    assert {t.name for t in gguf.GGUFReader(path).tensors} == {"a", "b"}
    path.write_bytes(build([], [tensor("a")], version=2))
    assert set(read_gguf(path).tensors) == {"a"}


HUGE = struct.pack("<Q", 1 << 60)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"GGUF", "too short"),
        (build(magic=b"GGML"), "begin with 'GGUF'"),
        (build(magic=b"gguf"), "begin with 'GGUF'"),
        (build(version=1), "version 1"),
        (build(version=4), "version 4"),
        (build(version=3 << 24), "big-endian"),
        (build(counts=(1 << 60, 0)), "."),
        (build(counts=(0, 1 << 60)), "."),
        (build([text(b"\xff") + struct.pack("<IB", 0, 1)]), "UTF-8"),
        (build([HUGE]), "past the end"),
        (build([pair("k", 13, bytes(8))]), "unknown metadata type 13"),
        (build([pair("k", 8, HUGE)]), "past the end"),
        (build([pair("k", 9, struct.pack("<I", 4) + HUGE)]), "past the end"),
        (build([pair("k", 9, struct.pack("<I", 8) + HUGE)]), "past the end"),
        (build([pair("k", 9, struct.pack("<IQ", 0, (1 << 64) - 1))]), "past the end"),
        (build([pair("k", 9, struct.pack("<IQ", 9, 1))]), "nested array"),
        (build([pair("k", 0, b"\x01")] * 2), "duplicate metadata key 'k'"),
        (build([], [tensor("a"), tensor("a", offset=32)]), "duplicate tensor"),
        (build([], [tensor("a"), tensor("b")]), "overlaps"),
        (build([], [tensor("a", (16,)), tensor("b", offset=32)]), "overlaps"),
        (build([], [tensor("a", (17,))]), "ends at byte"),
        (build([], [tensor("a", offset=1 << 60)]), "ends at byte"),
        (build([], [tensor("a", offset=(1 << 64) - 32)]), "ends at byte"),
        (build([], [tensor("a", offset=8)]), "not a multiple"),
        (build([], [tensor("a", (1,) * 5)]), "5 dimensions"),
        (build([], [struct.pack("<Q1sI", 1, b"a", (1 << 32) - 1)]), "dimensions"),
        (build([], [tensor("a", (1 << 62,) * 4)]), "too large"),
        (build([], [tensor("a", (0, 1 << 62))]), "too large"),
        (build([], [tensor("a", (1 << 40,))]), "ends at byte"),
        (build([], [tensor("a", kind=4)]), "unknown element type 4"),
        (build([], [tensor("a", kind=9999)]), "unknown element type 9999"),
        (build([], [tensor("a", (16,), kind=2)]), "do not divide into Q4_0 blocks"),
        (build([], [tensor("a", (), kind=2)]), "do not divide into Q4_0 blocks"),
        (build([], [tensor(b"\xff\xfe")]), "UTF-8"),
        (build([], [tensor(b"x" * 5000)]), "a name of 5,000 bytes"),
        (build([], [tensor("\x1b[31m\nevil", (17,))]), "ends at byte"),
        (build([pair("general.alignment", 4, bytes(4))]), "alignment 0"),
        (build([pair("general.alignment", 4, struct.pack("<I", 48))]), "alignment 48"),
        (build([pair("general.alignment", 8, text("32"))]), "alignment '32'"),
        (build([pair("general.alignment", 6, struct.pack("<f", 32))]), "alignment 32.0"),
    ],
)  # fmt: skip
def test_impossible_files(content, match, tmp_path):
    refuse(tmp_path / "w.gguf", content, match)


def test_every_truncation_is_refused(tmp_path):
    content = write_llama_gguf(tmp_path / "good.gguf").read_bytes()
    last = max(t.data_offset + t.n_bytes for t in gguf.GGUFReader(tmp_path / "good.gguf").tensors)
    for size in [*range(1200), *range(1200, last, 97), last - 1]:
        refuse(tmp_path / "w.gguf", content[:size], "end|empty|short|truncated")


def test_an_enormous_alignment_costs_nothing(tmp_path):
    pairs = [pair("general.alignment", 10, struct.pack("<Q", 1 << 63))]
    (tmp_path / "w.gguf").write_bytes(build(pairs))
    assert not read_gguf(tmp_path / "w.gguf").tensors


def test_a_directory_in_place_of_the_file(tmp_path):
    with pytest.raises(FormatError):
        read_gguf(tmp_path)


# Mutations.

SMALL = build(
    [
        pair("general.architecture", 8, text("llama")),
        pair("llama.block_count", 4, struct.pack("<I", 1)),
        pair("t", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc")),
        pair("f", 6, struct.pack("<f", 1e-5)),
    ],
    [tensor("a", (4, 2)), tensor("b", (32,), kind=8, offset=32), tensor("c", (4,), 30, 96)],
    data=128,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "w.gguf"


def survives(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    store = attempt(lambda: store_of(path))
    if isinstance(store, str):
        return
    for name in store:
        info = store.info(name)
        assert info.offset + info.nbytes <= len(content)
        read = attempt(lambda name=name: store.read(name))
        assert isinstance(read, str) or read.shape == info.shape


quickly = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_the_unmutated_file_is_read(scratch):
    scratch.write_bytes(SMALL)
    assert set(store_of(scratch)) == {"a", "b", "c"}


@quickly
@given(
    flips=st.lists(
        st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    cut=st.integers(0, len(SMALL)),
    insert=st.tuples(st.integers(0, len(SMALL)), st.binary(max_size=12)),
)
def test_mutated_bytes_are_refused_or_read(scratch, flips, cut, insert):
    content = bytearray(SMALL)
    for at, value in flips:
        content[at] = value
    survives(scratch, bytes(content))
    at, extra = insert
    content[at:at] = extra
    survives(scratch, bytes(content))
    survives(scratch, bytes(content[:cut]))


@quickly
@given(
    at=st.integers(8, len(SMALL) - 8),
    value=st.sampled_from([0, 1, 2, 1 << 31, (1 << 32) - 1, 1 << 60, 1 << 63, (1 << 64) - 1]),
)
def test_mutated_lengths_are_refused_or_read(scratch, at, value):
    content = bytearray(SMALL)
    struct.pack_into("<Q", content, at, value)
    survives(scratch, bytes(content))


SIZES = st.one_of(st.integers(0, 40), st.sampled_from([1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1]))


@quickly
@given(
    shapes=st.lists(
        st.tuples(
            st.lists(SIZES, max_size=5),
            st.one_of(st.integers(0, 42), st.sampled_from([99, (1 << 32) - 1])),
            st.one_of(st.sampled_from([0, 32, 64]), SIZES),
        ),
        max_size=3,
    )
)
def test_mutated_tables_are_refused_or_read(scratch, shapes):
    tensors = [tensor(f"t{i}", tuple(s), k, o) for i, (s, k, o) in enumerate(shapes)]
    survives(scratch, build([], tensors, data=128))
