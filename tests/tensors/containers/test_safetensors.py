"""The header parser against the reference implementation, and everything it must refuse."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from ckptforensics.errors import FormatError
from ckptforensics.tensors.containers.safetensors import read_safetensors
from tests.support.containers import attempt, entry, pack, store_of, unpack

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.bias": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros((2, 3, 2), dtype=torch.float16),
    "q": torch.ones((4, 4)).to(torch.float8_e4m3fn),
    "none": torch.zeros((0, 3)),
    "scalar": torch.tensor(2.0, dtype=torch.float64),
    "ids": torch.arange(3),
}
GOOD = save(TENSORS, metadata={"format": "pt", "snow": "☃"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "w.safetensors"


def refuse(file: Path, data: bytes, match: str) -> FormatError:
    file.write_bytes(data)
    with pytest.raises(FormatError, match=match) as caught:
        read_safetensors(file)
    assert caught.value.path == file
    assert "\n" not in str(caught.value)
    return caught.value


def test_agrees_with_the_reference_implementation(file):
    save_file(TENSORS, file, metadata={"format": "pt", "snow": "☃"})
    container = read_safetensors(file)
    with safe_open(file, "pt") as reference:
        assert set(container.tensors) == set(reference.keys())
        assert dict(container.metadata) == reference.metadata()
        for name, info in container.tensors.items():
            part = reference.get_slice(name)
            assert list(info.shape) == part.get_shape()
            assert info.dtype == part.get_dtype()
            stored = reference.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes()
            assert file.read_bytes()[info.offset : info.offset + info.nbytes] == stored
    assert container.size == file.stat().st_size


def test_values_are_the_reference_implementations(file):
    save_file(TENSORS, file)
    store = store_of(file)
    with safe_open(file, "pt") as reference:
        for name in set(TENSORS) - {"ids"}:
            assert np.array_equal(store.read(name), reference.get_tensor(name).float().numpy())


def test_the_header_digest_is_that_of_the_header_bytes(file):
    file.write_bytes(GOOD)
    (length,) = struct.unpack("<Q", GOOD[:8])
    expected = hashlib.sha256(GOOD[: 8 + length]).hexdigest()
    assert read_safetensors(file).header_sha256 == expected
    # The digest is of the header only: other weights under the same header do not change it.
    file.write_bytes(GOOD[:-1] + b"\x01")
    assert read_safetensors(file).header_sha256 == expected


def test_a_space_padded_header_is_accepted(file):
    header, buffer = unpack(GOOD)
    file.write_bytes(pack(json.dumps(header) + " " * 13, buffer))
    assert set(read_safetensors(file).tensors) == set(TENSORS)


def test_a_file_without_tensors(file):
    file.write_bytes(pack({"__metadata__": {"a": "b"}}, b""))
    container = read_safetensors(file)
    assert not container.tensors
    assert container.metadata == {"a": "b"}


@pytest.mark.parametrize("size", [0, 1, 7])
def test_too_short_for_a_length(file, size):
    refuse(file, GOOD[:size], "empty" if size == 0 else "too short")


def test_every_truncation_is_refused(file):
    for size in range(8, len(GOOD)):
        refuse(file, GOOD[:size], "truncated|needs|header")


def test_trailing_bytes_are_refused(file):
    refuse(file, GOOD + b"\x00", "1 bytes at the end belong to no tensor")


@pytest.mark.parametrize("length", [100_000_001, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_header_over_the_limit_is_refused_unread(file, length):
    header, buffer = unpack(GOOD)
    error = refuse(file, pack(header, buffer, length=length), "100 MB")
    assert error.offset == 0


def test_a_large_header_in_a_large_file_is_refused_unread(file):
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_001))
        stream.truncate(200_000_000)
    with pytest.raises(FormatError, match="100 MB"):
        read_safetensors(file)


def test_a_header_longer_than_the_file(file):
    for excess in (1, 1000):
        data = struct.pack("<Q", len(GOOD) - 8 + excess) + GOOD[8:]
        refuse(file, data, "the header claims .* and the file has")


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ((0, 8), (4, 12), "overlaps"),
        ((0, 8), (0, 8), "overlaps"),
        ((0, 8), (12, 20), "hole"),
        ((4, 12), (12, 20), "hole"),
        ((0, 8), (8, 17), "9 bytes stored where F32 of shape .* needs 8"),
        ((0, 8), (16, 8), "not a begin and an end"),
    ],
)
def test_extents(file, first, second, match):
    header = {"a": entry("F32", [2], *first), "b": entry("F32", [2], *second)}
    error = refuse(file, pack(header, bytes(20)), match)
    assert error.tensor in ("a", "b")
    # The reference implementation refuses the same files.
    with pytest.raises(SafetensorError), safe_open(file, "np"):
        pass


def test_the_order_of_the_header_does_not_matter(file):
    header = {"b": entry("F32", [2], 8, 16), "z": entry("F32", [0], 8, 8),
              "a": entry("F32", [2], 0, 8)}  # fmt: skip
    file.write_bytes(pack(header, np.arange(4, dtype=np.float32).tobytes()))
    store = store_of(file)
    assert store.read("a").tolist() == [0, 1]
    assert store.read("b").tolist() == [2, 3]


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        '{"__metadata__":{"k":"1","k":"2"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0061":{}}',
    ],
)
def test_duplicate_keys(file, header):
    refuse(file, pack(header, bytes(4)), "duplicate key")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("1" * 5000, "an integer of too many digits"),
        (b'{"\xff": 1}', "UTF-8"),
        ("\ufeff{}", "not valid JSON"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ('{"a": {"shape": ' + '{"a":' * 5_000 + "1" + "}" * 5_000 + "}}", "nested"),
        ('{"__metadata__": {"a": 1}}', "__metadata__"),
        ('{"__metadata__": []}', "__metadata__"),
        ('{"a\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "surrogate"),
        ('{"__metadata__": {"a": "\\udfff"}}', "surrogate"),
    ],
)
def test_headers_that_are_not_a_table_of_tensors(file, header, match):
    refuse(file, pack(header, bytes(4)), match)


def test_a_surrogate_pair_is_one_character(file):
    file.write_bytes(
        pack('{"\\ud83d\\ude00":' + json.dumps(entry("F32", [1], 0, 4)) + "}", bytes(4))
    )
    assert list(read_safetensors(file).tensors) == ["\U0001f600"]


NESTED: Any = []
for _ in range(300):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "broken",
    [
        None, 1, "x", [], {},
        {"dtype": "F32", "shape": [1]},
        entry("f32", [1], 0, 4), entry("F128", [1], 0, 16), entry("", [1], 0, 4),
        {**entry("F32", [1], 0, 4), "dtype": None},
        {**entry("F32", [1], 0, 4), "dtype": ["F32"]},
        {**entry("F32", [1], 0, 4), "dtype": {}},
        entry("F32", [-1], 0, 4), entry("F32", [1.0], 0, 4), entry("F32", [True], 0, 4),
        entry("F32", ["1"], 0, 4), entry("F32", 1, 0, 4), entry("F32", None, 0, 4),
        entry("F32", {"0": 1}, 0, 4), entry("F32", [[1]], 0, 4), entry("F32", [2], 0, 4),
        entry("F32", [1 << 62, 4], 0, 4), entry("F32", [1 << 64], 0, 4),
        entry("F32", [10**400], 0, 4), entry("F32", [(1 << 63) - 1] * 400, 0, 4),
        entry("F32", NESTED, 0, 4),
        entry("F32", [1], -4, 0), entry("F32", [1], 0, 4.0), entry("F32", [1], False, 4),
        entry("F32", [1], 0, None), entry("F32", [1], 1 << 62, (1 << 62) + 4),
        entry("F32", [1], 0, 10**400),
        {**entry("F32", [1], 0, 4), "data_offsets": [0]},
        {**entry("F32", [1], 0, 4), "data_offsets": [0, 4, 8]},
        {**entry("F32", [1], 0, 4), "data_offsets": "04"},
        entry("F4", [1], 0, 0), entry("F4", [3], 0, 2), entry("F6_E2M3", [1], 0, 1),
    ],
)  # fmt: skip
def test_impossible_entries(file, broken):
    error = refuse(file, pack({"weight": broken}, bytes(4)), ".")
    assert len(str(error)) < 2_000


def test_a_shape_of_a_million_sizes_is_refused_at_once(file):
    """The product of that many sizes would take minutes."""
    header = {"weight": entry("F32", [(1 << 62) + 1] * 1_000_000, 0, 4)}
    error = refuse(file, pack(header, bytes(4)), "shape")
    assert len(str(error)) < 2_000


def test_a_tensor_called_like_a_control_sequence(file):
    name = "\x1b[31mred\nline\u202e"
    error = refuse(file, pack({name: entry("F32", [2], 0, 4)}, bytes(4)), "bytes stored")
    assert error.tensor == name
    assert str(error).isprintable()


def test_a_directory_in_place_of_the_file(file):
    file.mkdir()
    with pytest.raises(FormatError) as caught:
        read_safetensors(file)
    assert caught.value.path == file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_and_not_waited_for(file):
    os.mkfifo(file)
    with pytest.raises(FormatError, match="regular file"):
        read_safetensors(file)


# Mutations. The header is kept small, so that few bytes make many mistakes.

HEADER, BUFFER = unpack(
    save({"a": torch.ones((2, 3)), "b": torch.ones(4, dtype=torch.bfloat16)}, {"format": "pt"})
)
SMALL = pack(HEADER, BUFFER)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([0, 1, 2, 4, 8, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63]),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["F32", "BF16", "F4", "F8_E4M3", "I64", "\ud800", "__metadata__"]),
    st.lists(st.integers(0, 1 << 63), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
PATHS = st.sampled_from(
    [("a",), ("b",), ("new",), ("__metadata__",), ("__metadata__", "format")]
    + [(t, k) for t in ("a", "b") for k in ("dtype", "shape", "data_offsets", "more")]
    + [(t, k, i) for t in ("a", "b") for k in ("shape", "data_offsets") for i in (0, 1)]
)  # fmt: skip


def survives(file: Path, data: bytes) -> None:
    """The file is read in full, or refused with a CkptError; what is accepted is consistent."""
    file.write_bytes(data)
    store = attempt(lambda: store_of(file))
    if isinstance(store, str):
        return
    for name in store:
        info = store.info(name)
        assert 8 <= info.offset <= info.offset + info.nbytes <= len(data)
        read = attempt(lambda name=name: store.read(name))
        assert isinstance(read, str) or read.shape == info.shape


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "w.safetensors"


quickly = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quickly
@given(changes=st.lists(st.tuples(PATHS, ODD), min_size=1, max_size=3))
@example(changes=[(("a", "shape"), [0, 1 << 62])])
def test_mutated_json_is_refused_or_read(scratch, changes):
    header = copy.deepcopy(HEADER)
    for path, value in changes:
        place: Any = header
        for key in path[:-1]:
            place = place[key] if isinstance(place, dict) and key in place else {}
        if isinstance(place, dict) or (isinstance(place, list) and path[-1] < len(place)):
            place[path[-1]] = value
    survives(scratch, pack(header, BUFFER))


@quickly
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, len(SMALL)),
    insert=st.tuples(st.integers(0, len(SMALL)), st.binary(max_size=12)),
)
def test_mutated_bytes_are_refused_or_read(scratch, flips, cut, insert):
    data = bytearray(SMALL)
    for at, value in flips:
        data[at] = value
    at, extra = insert
    data[at:at] = extra
    survives(scratch, bytes(data))
    survives(scratch, bytes(data[:cut]))


@quickly
@given(data=st.binary(max_size=200))
def test_any_header_text_is_refused_or_read(scratch, data):
    survives(scratch, data)
    survives(scratch, pack(data, b""))


@quickly
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4),
    padding=st.integers(0, 9),
)
def test_what_the_reference_accepts_is_read_alike(scratch, shapes, padding):
    rng = np.random.default_rng(0)
    arrays = {
        f"t{i}": torch.from_numpy(np.asarray(rng.standard_normal(s), np.float32))
        for i, s in enumerate(shapes)
    }
    header, buffer = unpack(save(arrays))
    scratch.write_bytes(pack(json.dumps(header) + " " * padding, buffer))
    store = store_of(scratch)
    for name, array in arrays.items():
        assert np.array_equal(store.read(name), array.numpy())
