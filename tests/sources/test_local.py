"""Which files make a checkpoint, and which names are not to be trusted."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from ckptforensics.errors import CkptError, FormatError, NothingAnalysable, UsageError, exit_code
from ckptforensics.sources import locate, read_json_object, sha256_of_file


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"weights")
    return folder


def write_index(folder: Path, content: object, name: str = "model.safetensors.index.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def names(source) -> list[str]:
    return [file.name for file in source.files]


def test_a_single_file_and_the_config_beside_it(tmp_path):
    touch(tmp_path, "x.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    source = locate(tmp_path / "x.safetensors")
    assert source.files == (tmp_path / "x.safetensors",)
    assert source.container == "safetensors"
    assert source.config == {"model_type": "llama"}
    assert source.weight_map is None


def test_a_directory_without_config(tmp_path):
    source = locate(touch(tmp_path, "model.safetensors"))
    assert names(source) == ["model.safetensors"]
    assert source.config is None


def test_a_string_is_as_good_as_a_path(tmp_path):
    assert locate(str(touch(tmp_path, "model.safetensors"))) == locate(tmp_path)


def test_the_given_config_wins_over_the_one_beside_it(tmp_path):
    touch(tmp_path, "model.safetensors")
    (tmp_path / "config.json").write_text("not even JSON")
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert locate(tmp_path, tmp_path / "other.json").config == {"a": 1}
    with pytest.raises(FormatError, match="not valid JSON"):
        locate(tmp_path)


def test_gguf(tmp_path):
    touch(tmp_path, "model-Q4.gguf")
    for model in (tmp_path, tmp_path / "model-Q4.gguf"):
        source = locate(model)
        assert source.container == "gguf"
        assert names(source) == ["model-Q4.gguf"]


def test_safetensors_win_over_gguf_and_training_state_is_no_model(tmp_path):
    touch(tmp_path, "model.safetensors", "adapter_model.safetensors", "a.gguf",
          "training_args.safetensors", "other.safetensors", ".hidden.safetensors")  # fmt: skip
    assert names(locate(tmp_path)) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pytorch_files(tmp_path, name):
    touch(tmp_path, name, "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth")
    for model in (tmp_path, tmp_path / name):
        source = locate(model)
        assert source.container == "torch"
        assert names(source) == [name]


def test_pytorch_shards_with_and_without_their_index(tmp_path):
    shards = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    source = locate(touch(tmp_path, *shards, "adapter_model.bin"))
    assert (source.container, names(source), source.weight_map) == ("torch", shards, None)
    index = write_index(
        tmp_path, {"weight_map": {"a": shards[1], "b": shards[0]}}, "pytorch_model.bin.index.json"
    )
    for model in (tmp_path, index):
        source = locate(model)
        assert (source.container, names(source)) == ("torch", shards)
        assert source.weight_map == {"a": tmp_path / shards[1], "b": tmp_path / shards[0]}
    (tmp_path / shards[0]).unlink()
    with pytest.raises(FormatError, match="is missing"):
        locate(tmp_path)
    index.unlink()
    with pytest.raises(FormatError, match="shard is missing"):
        locate(tmp_path)


def test_which_container_wins(tmp_path):
    """The weights as published: safetensors, then pytorch_model.bin, then GGUF, then any .bin."""
    touch(tmp_path, "other.bin")
    assert names(locate(tmp_path)) == ["other.bin"]
    touch(tmp_path, "a.gguf")
    assert names(locate(tmp_path)) == ["a.gguf"]
    touch(tmp_path, "pytorch_model.bin")
    assert names(locate(tmp_path)) == ["pytorch_model.bin"]
    touch(tmp_path, "model.safetensors")
    assert names(locate(tmp_path)) == ["model.safetensors"]


def test_shards_by_their_index_in_order_of_name(tmp_path):
    touch(tmp_path, "model-2.safetensors", "model-1.safetensors", "consolidated.safetensors")
    index = write_index(
        tmp_path, {"weight_map": {"b": "model-2.safetensors", "a": "model-1.safetensors"}}
    )
    for model in (tmp_path, index):
        source = locate(model)
        assert source.path == model
        assert names(source) == ["model-1.safetensors", "model-2.safetensors"]
        assert source.weight_map == {
            "a": tmp_path / "model-1.safetensors",
            "b": tmp_path / "model-2.safetensors",
        }


def test_an_index_of_another_name(tmp_path):
    touch(tmp_path, "w.safetensors")
    write_index(tmp_path, {"weight_map": {"a": "w.safetensors"}}, "w.safetensors.index.json")
    assert names(locate(tmp_path)) == ["w.safetensors"]


def test_shards_without_an_index(tmp_path):
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(locate(touch(tmp_path, *shards))) == shards


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_missing_shard_is_named(tmp_path, gone):
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    touch(tmp_path, *(s for s in shards if s != shards[gone - 1]))
    with pytest.raises(FormatError, match="shard is missing") as caught:
        locate(tmp_path)
    assert caught.value.path == tmp_path / shards[gone - 1]


def test_a_shard_that_the_index_names_and_is_missing(tmp_path):
    touch(tmp_path, "a.safetensors")
    write_index(tmp_path, {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    with pytest.raises(FormatError, match=r"'b\.safetensors' named by .* is missing"):
        locate(tmp_path)
    (tmp_path / "b.safetensors").mkdir()
    with pytest.raises(FormatError, match=r"is no file; remove it"):
        locate(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "..", ".", "", "/etc/passwd", "sub/x.safetensors", "./x.safetensors",
     "x.safetensors/", "sub/../x.safetensors", "../../../../etc/passwd", None, 1, ["x"], {}],
)  # fmt: skip
def test_an_index_may_name_only_its_own_directory(tmp_path, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    touch(tmp_path, "x.safetensors")
    touch(inner, "x.safetensors")
    (inner / "sub").mkdir()
    touch(inner / "sub", "x.safetensors")
    write_index(inner, {"weight_map": {"weight": name}})
    with pytest.raises(FormatError, match="outside its directory") as caught:
        locate(inner)
    assert caught.value.tensor == "weight"


@pytest.mark.parametrize("name", ["x" * 300, "x\x00", "x" * 100_000, "ｘ" * 200])
def test_an_index_with_a_name_no_file_can_have(tmp_path, name):
    touch(tmp_path, "x.safetensors")
    write_index(tmp_path, {"weight_map": {"weight": name}})
    with pytest.raises(FormatError):
        locate(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, "no 'weight_map'"),
        ({"weight_map": {}}, "no 'weight_map'"),
        ({"weight_map": []}, "no 'weight_map'"),
        ({"weight_map": "x"}, "no 'weight_map'"),
        ([], "not a JSON object"),
        ("", "not valid JSON"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "duplicate key 'a'"),
        ('{"weight_map": {}, "weight_map": {}}', "duplicate key 'weight_map'"),
        ('{"weight_map": {"\\ud800": "x.safetensors"}}', "surrogate"),
    ],
)
def test_a_broken_index(tmp_path, content, match):
    touch(tmp_path, "x.safetensors", "y.safetensors")
    index = write_index(tmp_path, content)
    with pytest.raises(FormatError, match=match) as caught:
        locate(tmp_path)
    assert caught.value.path == index


@pytest.mark.parametrize(
    "files",
    [
        ("a.gguf", "b.gguf"),
        ("a.safetensors", "b.safetensors"),
        ("a-00001-of-00001.safetensors", "b-00001-of-00001.safetensors"),
        ("a.safetensors.index.json", "b.safetensors.index.json"),
        ("a.bin", "b.pth"),
        ("a.bin.index.json", "b.bin.index.json"),
    ],
)
def test_several_models_must_be_told_apart_by_the_user(tmp_path, files):
    with pytest.raises(UsageError, match="several models: a"):
        locate(touch(tmp_path, *files))


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ((), r"no \.safetensors, \.bin, .* file"),
        (("config.json.bak", "README.md", "pytorch_model.bin.bak"), r"no \.safetensors, \.bin"),
        (("adapter_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"), "adapter"),
        (("training_args.bin", "rng_state_0.pth", "rng_state_12.pth"), "training state"),
        (("adapter_model.safetensors",), "adapter"),
        ((".model.safetensors", ".pytorch_model.bin"), r"no \.safetensors, \.bin"),
    ],
)
def test_a_directory_without_a_model(tmp_path, files, match):
    with pytest.raises(NothingAnalysable, match=match) as caught:
        locate(touch(tmp_path, *files))
    assert exit_code(caught.value) == 3


@pytest.mark.parametrize("name", ["model.tar", "model", "config.json", "model.SAFETENSORS"])
def test_a_file_of_another_kind(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(NothingAnalysable, match="cannot read a model from"):
        locate(tmp_path / name)


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "a\x00b", "a/b/c.gguf"])
def test_what_does_not_exist(tmp_path, name):
    with pytest.raises(UsageError, match="no such file") as caught:
        locate(tmp_path / name)
    assert exit_code(caught.value) == 4


def test_a_dangling_link(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="no such file"):
        locate(tmp_path / "model.safetensors")


def test_a_link_to_itself(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(CkptError):
        locate(tmp_path / "model.safetensors")


def test_a_directory_that_may_not_be_listed(tmp_path, monkeypatch):
    """Root may list everything, so the refusal is played."""

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(FormatError, match="permission denied") as caught:
        locate(tmp_path)
    assert caught.value.path == tmp_path


def test_spaces_and_other_alphabets_in_paths(tmp_path):
    folder = tmp_path / "модель мира 世界 ☃"
    folder.mkdir()
    touch(folder, "a b.safetensors")
    assert names(locate(folder)) == ["a b.safetensors"]


# JSON.


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate key 'b'"),
        (b'[{"b": 1, "b": 2}]', "duplicate key 'b'"),
        (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "an integer of too many digits"),
        (b'{"\\udc80": 1}', "surrogate"),
        (b'{"a": ["x", {"b": "\\ud800"}]}', "surrogate"),
    ],
)
def test_json_that_is_refused(tmp_path, text, match):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(FormatError, match=match) as caught:
        read_json_object(path, what="the thing")
    assert caught.value.path == path
    assert "the thing" in str(caught.value)


def test_json_that_is_accepted(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": [1, 2.5, null, true], "snow": "\\u2603 \\ud83d\\ude00", "": {"a": 0}}')
    expected = json.loads(path.read_text())
    assert read_json_object(path, what="x") == expected


def test_an_enormous_json_file_is_refused_unread(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="larger than"):
        read_json_object(path, what="x")


def test_json_that_cannot_be_read(tmp_path):
    with pytest.raises(FormatError, match="Is a directory"):
        read_json_object(tmp_path, what="x")


# Digests.


def test_sha256_is_hashlibs_and_is_reported_in_blocks(tmp_path):
    data = os.urandom(5_000_000)
    (tmp_path / "x").write_bytes(data)
    told: list[int] = []
    assert sha256_of_file(tmp_path / "x", told.append) == hashlib.sha256(data).hexdigest()
    assert sum(told) == len(data)
    assert len(told) > 1


def test_sha256_of_what_cannot_be_read(tmp_path):
    with pytest.raises(FormatError, match="No such file"):
        sha256_of_file(tmp_path / "x")
