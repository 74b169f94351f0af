"""GGUF models split into several files, as gguf's own writer splits them."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

import ckptforensics
from ckptforensics.errors import FormatError, UsageError, exit_code
from ckptforensics.sources import locate
from tests.support.containers import assert_one_error, llama_arrays, run, write_llama_gguf

SHARD = "model-{:05d}-of-{:05d}.gguf"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_llama_gguf(tmp_path_factory.mktemp("whole") / "model.gguf")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    write_llama_gguf(folder / "model.gguf", split_max_tensors=6)
    return folder


@pytest.fixture
def split(made, tmp_path) -> Path:
    """Shards of at most 6 of the 20 tensors; a test may damage them."""
    return shutil.copytree(made, tmp_path / "split")


def shard(number: int, count: int = 4) -> str:
    return SHARD.format(number, count)


def set_value(path: Path, key: str, value: int) -> None:
    reader = gguf.GGUFReader(path, "r+")
    reader.fields[key].parts[reader.fields[key].data[0]][0] = value
    del reader


def test_the_writer_splits_as_the_format_says(split):
    assert sorted(f.name for f in split.iterdir()) == [shard(n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("named", ["", shard(1), shard(3)])
def test_directory_and_any_shard_stand_for_all(named, split, whole):
    source = locate(split / named)
    assert [f.name for f in source.files] == [shard(n) for n in (1, 2, 3, 4)]
    ours, theirs = ckptforensics.sign(split / named), ckptforensics.sign(whole)
    for key in ("u", "v", "sigma", "residual"):
        assert np.array_equal(getattr(ours, key), getattr(theirs, key))
    assert ours.document.fingerprint == theirs.document.fingerprint
    assert len(ours.document.model.files) == 4
    assert ours.document.model.family_source == "gguf"


def test_a_first_shard_of_metadata_only(tmp_path, whole):
    write_llama_gguf(tmp_path / "model.gguf", split_max_tensors=8, small_first_shard=True)
    store = ckptforensics.open_checkpoint(tmp_path).store
    assert [len(c.tensors) for c in store.containers] == [0, 8, 8, 4]
    expected = ckptforensics.open_checkpoint(whole).store
    assert set(store) == set(expected)
    assert all(np.array_equal(store.read(n), expected.read(n)) for n in expected)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_missing_shard_is_named(number, split, capsys):
    (split / shard(number)).unlink()
    named = split / shard(3)
    for model in (split, named):
        ran = run(capsys, "sign", model)
        assert_one_error(ran, 2, shard(number), "missing", "download the missing file")


def test_a_split_counts_as_one_of_several_models(split, capsys):
    shutil.copy(split / shard(1), split / "other.gguf")
    with pytest.raises(UsageError, match=f"several models: {shard(1)}, other.gguf") as caught:
        locate(split)
    assert exit_code(caught.value) == 4
    assert len(locate(split / shard(2)).files) == 4
    (split / "other.gguf").rename(split / "model-00001-of-00002.gguf")
    with pytest.raises(UsageError, match="several models"):
        locate(split)
    with pytest.raises(FormatError, match="missing"):
        locate(split / "model-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("split.count", 3, ["one of 3 shards", "there are 4"]),
        ("split.count", 0, ["not a shard", "there are 4"]),
        ("split.no", 0, ["shard 0", "its name says 1"]),
        ("split.tensors.count", 19, ["hold 19 tensors", "hold 20"]),
    ],
)
def test_shards_that_contradict_each_other(key, value, words, split):
    set_value(split / shard(2), key, value)
    with pytest.raises(FormatError) as caught:
        ckptforensics.open_checkpoint(split)
    assert caught.value.path == split / shard(2)
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


def test_shards_that_changed_places(split):
    (split / shard(2)).rename(split / "x")
    (split / shard(3)).rename(split / shard(2))
    (split / "x").rename(split / shard(3))
    with pytest.raises(FormatError, match=r"shard 2 .*its name says 1"):
        ckptforensics.open_checkpoint(split)


def test_a_tensor_in_two_shards(split):
    shutil.copy(split / shard(2), split / shard(3))
    set_value(split / shard(3), "split.no", 2)
    with pytest.raises(FormatError, match=r"also in model-00002-of-00004\.gguf") as caught:
        ckptforensics.open_checkpoint(split)
    assert caught.value.tensor is not None


def test_a_shard_under_another_name_is_not_taken_for_a_model(split, tmp_path):
    for number, word in ((1, "one of 4 shards"), (2, "one of 4 shards")):
        alone = tmp_path / f"alone{number}.gguf"
        shutil.copy(split / shard(number), alone)
        with pytest.raises(FormatError, match=f"{word}, and there are 1"):
            ckptforensics.open_checkpoint(alone)


def test_names_of_a_split_around_files_that_are_none(tmp_path):
    for number in (1, 2):
        write_llama_gguf(tmp_path / SHARD.format(number, 2), llama_arrays())
    with pytest.raises(FormatError, match="not a shard, and there are 2"):
        ckptforensics.open_checkpoint(tmp_path)


def test_a_whole_model_named_like_the_only_shard(tmp_path):
    path = write_llama_gguf(tmp_path / SHARD.format(1, 1))
    assert ckptforensics.open_checkpoint(path).architecture.family.name == "llama"
