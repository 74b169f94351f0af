"""Directories of models: what is one, which files it has, and what is no file at all."""

from __future__ import annotations

import json
import os
import shutil
import socket

import pytest
import torch

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import CkptError, UsageError
from ckptforensics.findings import sign
from ckptforensics.registry.stores import tree
from ckptforensics.registry.stores.listing import list_models
from ckptforensics.results import save_signature
from tests.support.stores import (
    CARD,
    FIXTURES,
    PLANTED,
    POINTER,
    listed,
    listing,
    planted,
    problems,
    tiny_gguf,
)

WEIGHTS = (PLANTED / "model.safetensors").read_bytes()
CONFIG = (PLANTED / "config.json").read_bytes()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf")


def write(folder, files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def roles(model):
    return {file.name: file.role for file in model.files}


def test_a_repository_is_one_model_with_all_its_files(tmp_path):
    folder = planted(tmp_path / "org" / "name")
    write(
        folder,
        {
            "tokenizer.json": b"{}",
            "tokenizer_config.json": b"{}",
            "chat_template.jinja": b"{{ x }}",
            "generation_config.json": b"{}",
            "modeling_x.py": b"x = 1",
            "training_args.bin": b"PK\x03\x04",
            "1_Pooling/config.json": b'{"word_embedding_dimension": 3}',
            "onnx/model.onnx": b"\x08\x07",
            "onnx/config.json": CONFIG,
        },
    )
    found = listed(tmp_path)
    assert set(found) == {"org/name"}
    model = found["org/name"]
    assert model.opens == model.path == str(folder)
    assert not model.adapter
    assert not model.problems
    assert roles(model) == {
        "README.md": "card",
        "config.json": "configuration",
        "model.safetensors": "weights",
        "tokenizer.json": "tokenizer",
        "tokenizer_config.json": "tokenizer",
        "chat_template.jinja": "tokenizer",
        "generation_config.json": "configuration",
        "modeling_x.py": "other",
        "training_args.bin": "other",
        "1_Pooling/config.json": "configuration",
        "onnx/model.onnx": "other",
        "onnx/config.json": "configuration",
    }
    weights = next(file for file in model.files if file.role == "weights")
    assert weights.path == folder / "model.safetensors"
    assert weights.bytes == len(WEIGHTS)
    assert weights.stated is None
    status = weights.path.stat()
    assert weights.changed.startswith(f"{status.st_dev}:{status.st_ino}:{status.st_size}:")
    assert model.bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_source_itself_may_be_the_model(tmp_path):
    folder = planted(tmp_path / "name")
    write(folder / "checkpoint-5", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    assert set(listed(folder)) == {"name", "checkpoint-5"}


def test_honest_fixtures_have_no_problems(tmp_path):
    found = listing(FIXTURES)
    assert not found.not_read
    assert not any(model.problems for model in found.models)
    names = {model.name for model in found.models}
    assert {"planted", "zoo/seed0", "zoo/lora", "quantized/gptq-4.safetensors"} <= names
    assert list(found.models) == sorted(found.models, key=lambda model: model.name)
    assert found == listing(FIXTURES)


def test_every_gguf_is_a_model_and_a_split_is_one(tmp_path, gguf):
    parts = {f"big-0000{i}-of-00002.gguf": gguf for i in (1, 2)}
    write(tmp_path / "m", {"a-Q4.gguf": gguf, "a-Q8.gguf": gguf, "mmproj-a.gguf": gguf, **parts})
    (tmp_path / "m" / "README.md").write_text(CARD)
    found = listed(tmp_path)
    assert set(found) == {"m/a-Q4.gguf", "m/a-Q8.gguf", "m/big-00001-of-00002.gguf"}
    assert set(roles(found["m/a-Q4.gguf"])) == {"README.md", "a-Q4.gguf", "mmproj-a.gguf"}
    assert set(parts) <= set(roles(found["m/big-00001-of-00002.gguf"]))
    assert open_checkpoint(found["m/a-Q8.gguf"].opens).architecture.sizes.num_layers == 3


def test_a_split_with_a_missing_part(tmp_path, gguf):
    write(tmp_path, {"big-00001-of-00003.gguf": gguf, "big-00003-of-00003.gguf": gguf})
    (model,) = listing(tmp_path).models
    assert model.opens is None
    assert problems(model) == [("not-fetched", "big-00002-of-00003.gguf")]


def test_an_adapter(tmp_path):
    config = json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"}).encode()
    write(tmp_path / "a", {"adapter_config.json": config, "adapter_model.safetensors": WEIGHTS})
    write(tmp_path / "lost", {"adapter_config.json": config})
    folder = planted(tmp_path / "both")
    write(folder, {"adapter_config.json": config, "adapter_model.safetensors": WEIGHTS})
    found = listed(tmp_path)
    assert {name: model.adapter for name, model in found.items()} == {
        "a": True,
        "lost": True,
        "both": False,
        "both/adapter_model.safetensors": True,
    }
    assert found["a"].opens == str(tmp_path / "a")
    assert roles(found["a"]) == dict.fromkeys(
        ("adapter_config.json", "adapter_model.safetensors"), "adapter"
    )
    assert found["lost"].opens is None
    assert problems(found["lost"]) == [("not-fetched", "adapter_config.json")]


def test_loose_files_are_models_and_training_states_are_not(tmp_path):
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "b.bin")
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({}, tmp_path / "optimizer.pt")
    torch.save({}, tmp_path / "training_args.bin")
    write(tmp_path, {"c.safetensors": WEIGHTS, "noise.bin": b"\x01" * 100, "notes.txt": b"hello"})
    assert set(listed(tmp_path)) == {"a.pt", "b.bin", "c.safetensors", "old.pth"}


def test_weights_under_odd_names(tmp_path, gguf):
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "archive.dat")
    write(
        tmp_path,
        {
            "sha256-" + "0" * 64: gguf,
            "w.weights": WEIGHTS,
            "a.zip": b"PK\x03\x04" + b"\0" * 22 + b"\x05\0\0\0a.txt" + b"\0" * 50,
            "sentence.dat": b"\x10\0\0\0\0\0\0\0 plain text",
        },
    )
    found = listed(tmp_path)
    assert set(found) == {"sha256-" + "0" * 64, "w.weights", "archive.dat"}
    checkpoint = open_checkpoint(found["sha256-" + "0" * 64].opens)
    assert checkpoint.architecture.source == "gguf"
    assert checkpoint.source.container == "gguf"


def test_signatures_of_this_program_are_no_models(tmp_path):
    planted(tmp_path / "m")
    save_signature(sign(tmp_path / "m"), tmp_path / "m" / "sign.safetensors")
    save_signature(sign(tmp_path / "m"), tmp_path / "sign.safetensors")
    found = listed(tmp_path)
    assert set(found) == {"m"}
    assert roles(found["m"])["sign.safetensors"] == "other"


def test_a_configuration_alone(tmp_path):
    write(tmp_path, {"m/config.json": CONFIG, "app/config.json": b'{"port": 80}'})
    (model,) = listing(tmp_path).models
    assert (model.name, model.opens) == ("m", None)
    assert problems(model) == [("not-fetched", "config.json")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "Git LFS pointer"),
        (b"# xet version 0\nfilesize = 9\n", "Git Xet pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"", "empty"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "a.gguf"])
def test_what_stands_for_weights(tmp_path, name, content, said):
    write(tmp_path / "m", {"config.json": CONFIG, name: content})
    (model,) = listing(tmp_path).models
    assert model.opens is None
    assert problems(model) == [("not-fetched", name)]
    assert said in model.problems[0].message


@pytest.mark.parametrize("suffix", [".incomplete", ".part", ".crdownload"])
def test_downloads_that_were_not_finished(tmp_path, suffix):
    write(tmp_path, {f"m/model.safetensors{suffix}": b"x" * 9, "m/config.json": CONFIG})
    write(tmp_path, {f"a.gguf{suffix}": b"x" * 9})
    planted(tmp_path / "whole")
    write(tmp_path, {f"whole/.cache/huggingface/download/x{suffix}": b"x"})
    found = listed(tmp_path)
    assert {n: m.opens is None for n, m in found.items()} == {
        "m": True,
        f"a.gguf{suffix}": True,
        "whole": False,
    }
    assert problems(found["m"]) == [("not-fetched", f"model.safetensors{suffix}")]
    assert problems(found["whole"]) == [("not-fetched", f".cache/huggingface/download/x{suffix}")]


def test_an_index_with_missing_shards(tmp_path):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.dumps({"weight_map": {"a": names[0], "b": names[1]}}).encode()
    write(tmp_path / "m", {"config.json": CONFIG, "model.safetensors.index.json": index})
    (model,) = listing(tmp_path).models
    assert model.opens is None
    assert problems(model) == [("not-fetched", name) for name in names]
    write(tmp_path / "m", {names[0]: WEIGHTS})
    (model,) = listing(tmp_path).models
    assert model.opens is None
    assert problems(model) == [("not-fetched", names[1])]
    write(tmp_path / "m", {names[1]: WEIGHTS})
    (model,) = listing(tmp_path).models
    assert model.opens == str(tmp_path / "m")
    assert not model.problems


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "README.md", "tokenizer.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "directory"])
def test_what_is_no_regular_file_is_never_opened(tmp_path, name, kind, monkeypatch):
    folder = planted(tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "socket":
        monkeypatch.chdir(folder)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
    elif kind == "directory":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("/dev/zero")
    found = listed(tmp_path)
    if kind == "directory":
        assert set(found) <= {"m"}
        return
    model = found["m"]
    expected = "link-out" if kind == "device" else "special-file"
    assert problems(model) == [(expected, name)]
    assert (model.opens is None) == (name in ("config.json", "model.safetensors"))
    assert {file.name: file.path for file in model.files}[name] is None


def test_special_files_of_no_model_are_told(tmp_path):
    os.mkfifo(tmp_path / "notes")
    planted(tmp_path / "m")
    found = listing(tmp_path)
    assert found.not_read == ((str(tmp_path / "notes"), "this is a pipe and no file"),)


def test_links(tmp_path):
    root = tmp_path / "root"
    folder = planted(root / "m")
    outside = write(tmp_path / "outside", {"secret.safetensors": WEIGHTS, "README.md": b"x"})
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(outside / "README.md")
    (root / "out.safetensors").symlink_to(outside / "secret.safetensors")
    (root / "outer").symlink_to(outside)
    (root / "broken.gguf").symlink_to("nowhere")
    (root / "circle.gguf").symlink_to("circle.gguf")
    (root / "loop").symlink_to(".")
    (folder / "up").symlink_to("..")
    (root / "alias").symlink_to("m")
    (root / "inside.safetensors").symlink_to("m/model.safetensors")
    os.link(folder / "model.safetensors", root / "hard.safetensors")
    found = listing(root)
    by_name = {model.name: model for model in found.models}
    assert {name: problems(model) for name, model in by_name.items()} == {
        "m": [("link-out", "README.md"), ("link-out", "up")],
        "out.safetensors": [("link-out", "out.safetensors")],
        "broken.gguf": [("broken-link", "broken.gguf")],
        "circle.gguf": [("link-out", "circle.gguf")],
        "inside.safetensors": [],
        "hard.safetensors": [],
    }
    assert by_name["inside.safetensors"].files[0].path == folder / "model.safetensors"
    assert by_name["out.safetensors"].opens is None
    said = dict(found.not_read)
    assert said == {
        str(root / "loop"): "the link leads in a circle",
        str(root / "outer"): f"the link leads out of the source, to {outside}",
    }


def test_the_source_may_be_a_link(tmp_path):
    planted(tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    (model,) = listing(tmp_path / "link").models
    assert not model.problems
    assert open_checkpoint(model.opens).architecture.family.name == "llama"


def test_a_directory_that_may_not_be_listed(tmp_path, monkeypatch):
    planted(tmp_path / "m")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = listing(tmp_path)
    assert [model.name for model in found.models] == ["m"]
    assert found.not_read == ((str(tmp_path / "closed"), "cannot be listed: Permission denied"),)


def test_depth_and_count_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "DEEPEST", 3)
    write(tmp_path / "a/b/c", {"x.safetensors": WEIGHTS, "d/y.safetensors": WEIGHTS})
    found = listing(tmp_path)
    assert [model.name for model in found.models] == ["a/b/c/x.safetensors"]
    assert [what for what, _ in found.not_read] == [str(tmp_path / "a/b/c/d")]
    monkeypatch.setattr(tree, "_MOST_FILES", 2)
    write(tmp_path / "e", {f"{i}.safetensors": WEIGHTS for i in range(5)})
    found = listing(tmp_path)
    assert len(found.models) == 2
    assert found.not_read[-1][1] == "only the first 2 files were listed"


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"a\x1b[31mb", b"<script>", "\u202egnp".encode(), b"=cmd()", b"a\nb"]
)
def test_names_are_kept_without_harm(tmp_path, name):
    folder = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(folder)
    for file in PLANTED.iterdir():
        shutil.copy(os.fsencode(file), folder)
    with open(os.path.join(folder, name + b".gguf"), "wb") as file:
        file.write(POINTER)
    found = listing(tmp_path)
    assert len(found.models) == 2
    for model in found.models:
        for text in (model.name, model.path, *(f.name for f in model.files)):
            assert text == text.encode("utf-8").decode("utf-8")
    whole = next(model for model in found.models if model.opens is not None)
    assert open_checkpoint(whole.opens).architecture.family.name == "llama"


def test_one_file(tmp_path, gguf):
    planted(tmp_path)
    write(tmp_path, {"a.gguf": gguf, "b.gguf": gguf, "blob": gguf, "notes.txt": b"hello"})
    for name in ("model.safetensors", "a.gguf", "blob"):
        (model,) = listing(tmp_path / name).models
        assert (model.name, model.opens) == (name, str(tmp_path / name))
        assert {"README.md", name} <= set(roles(model))
        assert "b.gguf" not in roles(model)
    assert listing(tmp_path / "notes.txt").not_read == (
        (str(tmp_path / "notes.txt"), "the file holds no weights"),
    )


def test_several_sources_name_each_model_once(tmp_path):
    for top in ("a", "b"):
        planted(tmp_path / top / "m")
    found = listing(tmp_path / "a", tmp_path / "b", tmp_path / "a")
    assert [m.name for m in found.models] == [str(tmp_path / top / "m") for top in ("a", "b")]


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "", "x:", "x" * 300, "a\0b", "/nowhere"])
def test_a_source_that_does_not_exist(source):
    with pytest.raises(UsageError, match="there is no such file, directory or store"):
        list_models([source])


def test_a_directory_without_models_is_told(tmp_path):
    assert listing(tmp_path).not_read == ((str(tmp_path), "there are no models in it"),)


def test_a_model_named_twice_is_listed_once(tmp_path, monkeypatch):
    planted(tmp_path / "a" / "m")
    monkeypatch.chdir(tmp_path)
    assert len(listing(tmp_path, "a", "a/m", "./a").models) == 1


def test_pickles_that_their_names_call_weights(tmp_path):
    for name in ("old.ckpt", "old.pkl", "notes.dat"):
        torch.save([1], tmp_path / name, _use_new_zipfile_serialization=False)
    planted(tmp_path / "m")
    (tmp_path / "m" / "vocab.pkl").write_bytes(b"\x80\x04\x95\0")
    (tmp_path / "plain.pkl").write_bytes(b"\x80\x04\x95\0")
    found = listed(tmp_path)
    assert set(found) == {"old.ckpt", "old.pkl", "notes.dat", "plain.pkl", "m"}
    with pytest.raises(CkptError):
        open_checkpoint(found["plain.pkl"].opens)


def test_a_repository_with_every_format(tmp_path):
    """As large ones on the Hub are: one model, whatever copies of it lie beside."""
    folder = planted(tmp_path / "m")
    torch.save({"w": torch.ones(2, 2)}, folder / "pytorch_model.bin")
    write(
        folder,
        {
            "tf_model.h5": b"\x89HDF\r\n",
            "flax_model.msgpack": b"\x81",
            "rust_model.ot": (folder / "pytorch_model.bin").read_bytes(),
            "onnx/model.onnx": b"\x08\x07",
            "openvino/openvino_model.bin": b"\x01" * 100,
            "openvino_model.bin": b"\x01" * 100,
            "consolidated.safetensors": WEIGHTS,
            "params.json": b"{}",
            "checkpoint-5/model.safetensors": WEIGHTS,
            "checkpoint-5/config.json": CONFIG,
            "checkpoint-5/optimizer.pt": b"PK\x03\x04",
        },
    )
    found = listed(tmp_path)
    assert set(found) == {"m", "m/checkpoint-5"}
    weights = {file.name for file in found["m"].files if file.role == "weights"}
    assert weights == {"model.safetensors", "pytorch_model.bin", "consolidated.safetensors"}
    assert not found["m"].problems


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"weight_map": 3}',
        b'{"weight_map": {"a": "../secret.safetensors"}}',
        b'{"weight_map": {"a": ["x"]}}',
        b'{"weight_map": {"a": "x", "a": "y"}}',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_an_index_that_cannot_be_followed(tmp_path, content, whole):
    files = {"model-00001-of-00001.safetensors": WEIGHTS} if whole else {}
    index = {"model.safetensors.index.json": content}
    write(tmp_path / "m", {"config.json": CONFIG, **index, **files})
    (tmp_path / "secret.safetensors").write_bytes(WEIGHTS)
    model = listed(tmp_path)["m"]
    assert problems(model) == [("layout", "model.safetensors.index.json")]
    assert (model.opens is None) != whole
    assert not any("secret" in file.name for file in model.files)
    if whole:
        with pytest.raises(CkptError):
            open_checkpoint(model.opens)
