"""Saved results: complete or not at all, readable by others, and refused when they are not ours."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ckptforensics
from ckptforensics.errors import OutputError, ResultError, UsageError
from ckptforensics.results import (
    Signature,
    load_result,
    save_document,
    save_signature,
    write_atomically,
)
from tests.support.containers import pack, unpack


@pytest.fixture(scope="module")
def signature(planted) -> Signature:
    return ckptforensics.sign(planted)


@pytest.fixture
def saved(signature, tmp_path) -> Path:
    save_signature(signature, tmp_path / "sig.safetensors")
    return tmp_path / "sig.safetensors"


@pytest.fixture(scope="module")
def documents(planted, signature) -> dict[str, ckptforensics.results.Document]:
    return {
        "signature": signature.document,
        "layers": ckptforensics.find_layers(planted),
        "norms": ckptforensics.rollout(planted, tokens=[0, 3], random_embeddings=1).document,
        "inspect": ckptforensics.inspect(planted),
    }


KINDS = ("signature", "layers", "norms", "inspect")


def test_the_signature_file_is_an_ordinary_safetensors_file(signature, saved):
    arrays = load_file(saved)
    layers, width = 8, 64
    assert {n: a.shape for n, a in arrays.items()} == {
        "u": (layers, width),
        "v": (layers, width),
        "sigma": (layers, 2),
        "residual": (layers,),
    }
    for name, array in arrays.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, getattr(signature, name))
    with safe_open(saved, "np") as file:
        (text,) = file.metadata().values()
    assert json.loads(text) == json.loads(signature.document.model_dump_json())


def test_a_signature_survives_the_round_trip(signature, saved):
    loaded = load_result(saved)
    assert isinstance(loaded, Signature)
    assert loaded.document == signature.document
    for name in ("u", "v", "sigma", "residual"):
        assert np.array_equal(getattr(loaded, name), getattr(signature, name))


def test_the_arrays_are_what_the_document_says(signature):
    """Unit vectors with a positive largest component, and the printed top of them."""
    for i, layer in enumerate(signature.document.layers):
        u = signature.u[i].astype(np.float64)
        assert np.linalg.norm(u) == pytest.approx(1, abs=1e-5)
        assert u[np.argmax(np.abs(u))] > 0
        assert [k for k, _ in layer.direction_top] == list(
            np.argsort(-np.abs(u))[: len(layer.direction_top)]
        )
        assert [x for _, x in layer.direction_top] == pytest.approx(
            u[[k for k, _ in layer.direction_top]], abs=1e-6
        )
        assert layer.sigma == pytest.approx(signature.sigma[i], rel=1e-5)
        assert layer.gap == pytest.approx(layer.sigma[0] / layer.sigma[1], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_survive_the_round_trip(documents, kind, tmp_path):
    document = documents[kind]
    save_document(document, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["kind"] == kind
    loaded = load_result(tmp_path / "x.json")
    assert type(loaded) is type(document)
    assert loaded == document


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_frozen_and_refuse_unknown_keys(documents, kind, tmp_path):
    document = documents[kind]
    with pytest.raises(ValueError, match="frozen"):
        document.kind = "other"
    fields = json.loads(document.model_dump_json())
    for change in (
        {"surprise": 1},
        {"schema_version": None},
        {"model": {**fields["model"], "surprise": 1}},
        {"model": {**fields["model"], "hidden_size": "wide"}},
        {"model": None},
    ):
        (tmp_path / "x.json").write_text(json.dumps({**fields, **change}))
        with pytest.raises(ResultError, match="does not fit its schema") as caught:
            load_result(tmp_path / "x.json")
        assert caught.value.path == tmp_path / "x.json"
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_finite_are_refused(documents, value, tmp_path):
    text = documents["norms"].model_dump_json(indent=1)
    first = str(documents["norms"].median[0])
    assert first in text
    (tmp_path / "x.json").write_text(text.replace(first, value))
    with pytest.raises(ResultError, match="finite"):
        load_result(tmp_path / "x.json")


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": []},
        {"tokens": [], "norms": [], "embedding_norms": []},
        {"embedding_norms": []},
        {"norms": [[1.0]] * 3},
        {"norms": [[]] * 3},
        {"median": []},
        {"median": [1.0] * 9},
    ],
)
def test_a_table_of_norms_has_one_entry_a_token_and_layer(documents, change, tmp_path):
    fields = json.loads(documents["norms"].model_dump_json()) | change
    (tmp_path / "x.json").write_text(json.dumps(fields))
    with pytest.raises(ResultError, match="one entry a"):
        load_result(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "its kind is None"),
        ('{"kind": []}', "its kind is"),
        ('{"kind": {}}', "its kind is"),
        ('{"kind": 1}', "its kind is 1"),
        ('{"kind": "signature"}', "does not fit its schema"),
        ('{"kind": "norms", "kind": "norms"}', "duplicate key"),
        ('{"model_type": "llama"}', "the configuration of a model; give a file written with -o"),
        ('{"weight_map": {}}', "the index of the shards of a model"),
        ('{"kind": "signature", "\\u001b[31m\\n": 1}', "does not fit its schema"),
    ],
)
def test_files_that_are_not_results(text, match, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ResultError, match=match) as caught:
        load_result(tmp_path / "x.json")
    assert str(caught.value).isprintable()


def test_what_is_no_file_is_called_what_it_is(tmp_path):
    for place, told in ((tmp_path, "a directory, not a saved result"), (tmp_path / "x", "no such")):
        with pytest.raises(UsageError, match=told):
            load_result(place)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(UsageError, match="a pipe or a device"):
            load_result(tmp_path / "pipe.json")


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError):
            load_result(path)


def test_a_checkpoint_is_not_a_signature(planted):
    with pytest.raises(ResultError, match="no signature"):
        load_result(planted / "model.safetensors")


@pytest.mark.parametrize("name", ["u", "v", "sigma", "residual"])
def test_a_signature_that_lacks_an_array_or_has_a_misshapen_one(saved, name):
    arrays = load_file(saved)
    with safe_open(saved, "np") as file:
        metadata = file.metadata()
    less = {n: a for n, a in arrays.items() if n != name}
    for changed in (less, {**less, name: arrays[name][:-1]}, {**less, name: arrays[name][None]}):
        save_file(changed, saved, metadata=metadata)
        with pytest.raises(ResultError, match="missing or misshapen") as caught:
            load_result(saved)
        assert caught.value.tensor == name


def test_a_signature_with_a_damaged_number(saved):
    arrays = load_file(saved)
    with safe_open(saved, "np") as file:
        metadata = file.metadata()
    arrays["u"][2, 5] = np.nan
    save_file(arrays, saved, metadata=metadata)
    with pytest.raises(ResultError, match="row 2, column 5"):
        load_result(saved)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "norms"}', '{"kind": []}', '{"kind": "\ud800"}']
)
def test_a_signature_with_another_document(saved, text):
    header, buffer = unpack(saved.read_bytes())
    (key,) = header["__metadata__"]
    header["__metadata__"][key] = text
    saved.write_bytes(pack(header, buffer))
    with pytest.raises(ResultError):
        load_result(saved)


def test_a_norms_document_in_a_signature_file(saved, documents):
    header, buffer = unpack(saved.read_bytes())
    (key,) = header["__metadata__"]
    header["__metadata__"][key] = documents["norms"].model_dump_json()
    saved.write_bytes(pack(header, buffer))
    with pytest.raises(ResultError, match="'norms' document"):
        load_result(saved)


def test_a_truncated_signature(saved):
    data = saved.read_bytes()
    for size in (0, 4, 100, len(data) - 1):
        saved.write_bytes(data[:size])
        with pytest.raises(ResultError, match="not a saved result"):
            load_result(saved)


# Writing.


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_atomically(target, fail)
    assert caught.value.path == target
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")

    def interrupt(file: Path) -> None:
        file.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, interrupt)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")

    def write(file: Path) -> None:
        assert file.parent == tmp_path
        file.write_text("new")
        assert target.read_text() == "old"

    write_atomically(target, write)
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_result_has_the_permissions_of_any_new_file(documents, tmp_path):
    old = os.umask(0o027)
    try:
        save_document(documents["norms"], tmp_path / "x.json")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["missing/x.json", "x" * 300, "."])
def test_where_nothing_can_be_written(documents, signature, name, tmp_path):
    with pytest.raises(OutputError):
        save_document(documents["norms"], tmp_path / name)
    with pytest.raises(OutputError):
        save_signature(signature, tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_device_is_not_replaced_by_a_file(documents, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        save_document(documents["norms"], tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE")
@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_a_full_disk_is_an_output_error(documents, signature, form, tmp_path):
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    target = tmp_path / f"x.{form}"
    target.write_bytes(b"old")

    def write() -> None:
        if form == "json":
            save_document(documents["inspect"], target)
        else:
            save_signature(signature, target)

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OutputError, match="cannot write"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [target.name]
