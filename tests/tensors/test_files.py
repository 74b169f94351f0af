"""Row ranges, shards and the promise that a damaged weight is named."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from ckptforensics.errors import FormatError, NotFinite, TensorError
from tests.support.containers import store_of


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """Tensors that are decoded in one block, in several, and in rows longer than a block."""
    rng = np.random.default_rng(0)
    shapes = {
        "vector": (7,),
        "matrix": (5, 3),
        "tall": (40_000, 30),
        "wide": (2, 1_200_000),
        "stacked": (3, 4, 5),
        "empty": (0, 4),
        "thin": (4, 0),
    }
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays["scalar"] = np.array(3.5, np.float32)
    path = tmp_path_factory.mktemp("store") / "w.safetensors"
    save_file(arrays, path)
    return path, arrays


def test_whole_tensors_in_their_own_shape(big):
    path, arrays = big
    store = store_of(path)
    assert set(store) == set(arrays)
    for name, array in arrays.items():
        assert name in store
        read = store.read(name)
        assert read.dtype == np.float32
        assert read.shape == array.shape
        assert np.array_equal(read, array)


@pytest.mark.parametrize(
    ("name", "start", "stop"),
    [("matrix", 0, 5), ("matrix", 1, 3), ("matrix", 4, 5), ("matrix", 2, 2), ("matrix", 5, 5),
     ("tall", 0, 40_000), ("tall", 34_951, 34_953), ("tall", 123, 39_999), ("wide", 1, 2),
     ("stacked", 3, 9), ("vector", 0, 1)],
)  # fmt: skip
def test_row_ranges(big, name: str, start: int, stop: int):
    path, arrays = big
    array = arrays[name]
    expected = array.reshape(-1, array.shape[-1])[start:stop]
    assert np.array_equal(store_of(path).read_rows(name, start, stop), expected)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (3, 2), (6, 6)])
def test_rows_that_do_not_exist(big, start: int, stop: int):
    with pytest.raises(TensorError, match="rows"):
        store_of(big[0]).read_rows("matrix", start, stop)


def test_what_is_read_belongs_to_the_caller(big):
    store = store_of(big[0])
    first = store.read("matrix")
    first[:] = 0
    assert np.array_equal(store.read("matrix"), big[1]["matrix"])


def test_a_missing_tensor_is_named(big):
    with pytest.raises(TensorError, match=r"'no\.such': the tensor is missing") as caught:
        store_of(big[0]).read("no.such")
    assert caught.value.tensor == "no.such"
    assert caught.value.path == big[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (34_952, 17), (39_999, 29)])
def test_the_first_bad_weight_is_named_by_row_and_column(tmp_path, value, row, column):
    array = np.ones((40_000, 30), np.float32)
    array[row, column] = value
    save_file({"w": array}, tmp_path / "w.safetensors")
    store = store_of(tmp_path / "w.safetensors")
    with pytest.raises(NotFinite, match=f"row {row}, column {column} is {value}"):
        store.read("w")
    # Rows around it are still good.
    if row > 0:
        assert store.read_rows("w", 0, row).all()
    if row < 39_999:
        assert store.read_rows("w", row + 1, 40_000).all()


def test_opposite_infinities_do_not_cancel(tmp_path):
    save_file({"w": np.array([[np.inf, -np.inf]], np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(NotFinite, match="row 0, column 0 is inf"):
        store_of(tmp_path / "w.safetensors").read("w")


def test_large_finite_weights_whose_sum_overflows_are_accepted(tmp_path):
    array = np.full((3, 4), 3e38, np.float32)
    save_file({"w": array}, tmp_path / "w.safetensors")
    assert np.array_equal(store_of(tmp_path / "w.safetensors").read("w"), array)


def test_tensors_of_several_files(tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "1.safetensors")
    save_file({"b": np.full(3, 2, np.float32)}, tmp_path / "2.safetensors")
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    store = store_of(one, two, weight_map={"a": one, "b": two})
    assert store.read("a").tolist() == [1, 1]
    assert store.read("b").tolist() == [2, 2, 2]
    assert store.info("b").path == two


def test_a_tensor_in_two_files(tmp_path):
    for name in ("1", "2"):
        save_file({"a": np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FormatError, match=r"also in 1\.safetensors") as caught:
        store_of(tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    assert caught.value.tensor == "a"
    assert caught.value.path == tmp_path / "2.safetensors"


@pytest.mark.parametrize("promised", ["b", "missing"])
def test_an_index_that_promises_what_the_shard_lacks(tmp_path, promised):
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"a": np.ones(2, np.float32)}, one)
    save_file({"b": np.ones(2, np.float32)}, two)
    with pytest.raises(FormatError, match="promises") as caught:
        store_of(one, two, weight_map={"a": one, promised: one})
    assert caught.value.tensor == promised
    assert caught.value.path == one


def test_threads_read_the_same(big):
    path, arrays = big
    store = store_of(path)
    starts = list(range(0, 40_000, 1_000)) * 3
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda s: store.read_rows("tall", s, s + 1_000), starts))
    for start, part in zip(starts, parts, strict=True):
        assert np.array_equal(part, arrays["tall"][start : start + 1_000])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_does_not_keep_the_file_in_memory(tmp_path):
    """A file of 256 MB read 4 MB at a time leaves less than 32 MB of pages behind."""
    import json
    import struct

    rows, columns = 1 << 16, 1 << 10
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}}
    ).encode()
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(file.tell() + 4 * rows * columns)
    store = store_of(path)

    def resident() -> int:
        fields = Path("/proc/self/status").read_text().splitlines()
        return next(int(f.split()[1]) * 1024 for f in fields if f.startswith("RssFile"))

    store.read_rows("w", 0, 1024)
    before = resident()
    for start in range(0, rows, 1024):
        assert not store.read_rows("w", start, start + 1024).any()
    assert resident() - before < 32 << 20


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_file_that_is_cut_while_it_is_read_ends_in_one_line(dtype: str, mapped: bool, tmp_path):
    """In a process of its own: what lies beyond the end of a mapped file would end it."""
    path = tmp_path / "w.safetensors"
    rows = torch.ones(512, 512, dtype=torch.bfloat16 if dtype == "BF16" else torch.float32)
    save_torch({"a": rows, "b": rows.clone()}, path)
    code = f"""
import os, sys
from pathlib import Path
from ckptforensics.errors import FormatError
from tests.support.containers import store_of
store = store_of(Path({str(path)!r}))
if {mapped}:
    store.read("a")
os.truncate({str(path)!r}, 600_000)
for read in (store.kept_rows, store.read_rows):
    try:
        read("b", 0, 512)
    except FormatError as problem:
        print(problem.message, problem.tensor)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    told = set(done.stdout.splitlines())
    assert told == {"the file ends at byte 600,000, within the tensor b"}
