"""Documents of other versions: older minor ones are read, newer ones as far as they are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckptforensics.errors import ResultError
from ckptforensics.render import render
from ckptforensics.results import (
    DOCUMENTS,
    Document,
    ModelRecord,
    Signature,
    SignatureDocument,
    kinds,
    load_document,
    load_result,
)
from ckptforensics.results.kinds import Registry
from tests.support.containers import run

# Files as releases wrote them. They are never written again, and new ones join them.
OLD = Path(__file__).parent / "old"
# Of another major version than is written now.
REFUSED = tuple(f"comparison-{version}.json" for version in ("1.0", "2.0", "2.1", "2.2"))
READ = sorted(file.name for file in OLD.iterdir() if file.name not in REFUSED)

SIGNATURE_1_0 = """{
  "schema_version": "1.0", "tool_version": "0.1.0", "kind": "signature",
  "fingerprint": "cf1-d7e6be601f1ff8aad815c97aad037345",
  "model": {"path": "old/model", "family": "llama", "family_source": "config",
            "hidden_size": 3, "num_layers": 2, "files": [], "commit": null, "notes": [],
            "base": null},
  "fit": "canonical", "fit_options": null,
  "layers": [
    {"layer": 1, "prefix": "model.layers.0", "sigma": [3.0, 1.5], "gap": 2.0, "residual": 1e-06,
     "direction_top": [[2, 0.8], [0, -0.6]]},
    {"layer": 2, "prefix": "model.layers.1", "sigma": [9.0, 1.0], "gap": 9.0, "residual": 1e-06,
     "direction_top": [[1, 1.0]]}
  ],
  "direction": {"source": "rollout", "layer": 2, "concentration": 0.9, "top": [[1, 1.0]]},
  "explosion": [2], "decay": [], "skipped": []
}"""


class LaterModel(ModelRecord):
    licence: str | None = None


class LaterSignature(SignatureDocument):
    """A signature as a later release of the same major version may have it."""

    schema_version: Literal["1.4"] = "1.4"  # type: ignore[assignment]
    model: LaterModel
    weather: str = "unknown"


@pytest.fixture
def later(monkeypatch) -> None:
    """A release in which signatures are of version 1.3."""
    monkeypatch.setattr(
        Registry, "__getitem__", lambda _, kind: {"signature": LaterSignature}[kind]
    )


def signature_file(folder: Path, text: str = SIGNATURE_1_0) -> Path:
    """A saved signature of 2 layers of width 3 with this document."""
    arrays = {
        "u": np.array([[-0.6, 0, 0.8], [0, 1, 0]], np.float32),
        "v": np.array([[1, 0, 0], [0, 0, 1]], np.float32),
        "sigma": np.array([[3, 1.5], [9, 1]], np.float32),
        "residual": np.full(2, 1e-6, np.float32),
    }
    save_file(arrays, folder / "x.safetensors", metadata={"ckptforensics": text})
    return folder / "x.safetensors"


def written(folder: Path, fields: dict) -> Path:
    (folder / "x.json").write_text(json.dumps(fields))
    return folder / "x.json"


@pytest.mark.parametrize("name", READ)
def test_what_a_release_wrote_is_read(name):
    document = load_result(OLD / name)
    assert isinstance(document, Document)
    kind, version = name.removesuffix(".json").rsplit("-", 1)
    fields = json.loads((OLD / name).read_text())
    assert (fields["kind"], fields["schema_version"]) == (kind, version)
    again = json.loads(document.model_dump_json())
    assert again.pop("schema_version") == type(document).current_version()
    del fields["schema_version"]
    assert_holds(again, fields)
    assert render(document)


def assert_holds(found: object, expected: object) -> None:
    """All that is expected; records may have keys that came later, parts of a report versions."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        for key, value in expected.items():
            if key != "schema_version":
                assert_holds(found[key], value)
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_holds(one, other)
    else:
        assert found == expected


def test_every_kind_has_a_file_of_its_current_version():
    for kind, known in DOCUMENTS.items():
        assert (OLD / f"{kind}-{known.current_version()}.json").exists()


def test_a_kind_has_a_class_of_its_name_and_a_version_of_its_own():
    assert DOCUMENTS is kinds.DOCUMENTS
    for kind, known in DOCUMENTS.items():
        assert known.model_fields["kind"].default == kind
    assert DOCUMENTS["comparison"].current_version() != DOCUMENTS["signature"].current_version()
    assert "nosuch" not in DOCUMENTS


def test_an_old_saved_signature_is_read_with_its_arrays(tmp_path):
    found = load_result(signature_file(tmp_path))
    assert isinstance(found, Signature)
    assert found.document.fingerprint == "cf1-d7e6be601f1ff8aad815c97aad037345"
    assert found.u.tolist() == np.float32([[-0.6, 0, 0.8], [0, 1, 0]]).tolist()
    assert found.sigma.tolist() == [[3, 1.5], [9, 1]]


@pytest.mark.usefixtures("later")
def test_a_catalog_of_signatures_survives_an_upgrade(tmp_path):
    """What is missing has its default, and the document is one of the version that reads it."""
    saved = signature_file(tmp_path)
    for document in (
        load_document(saved),
        load_document(written(tmp_path, json.loads(SIGNATURE_1_0))),
    ):
        assert isinstance(document, LaterSignature)
        assert (document.weather, document.model.licence) == ("unknown", None)
        assert document.schema_version == "1.4"
        assert document.layers[1].sigma == (9.0, 1.0)
    found = load_result(saved)
    assert isinstance(found, Signature)
    found.save(tmp_path / "again.safetensors")
    assert load_document(tmp_path / "again.safetensors") == found.document


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("version", ["1.0", "1.4"])
def test_keys_that_neither_version_has_are_refused(version, tmp_path):
    fields = {**json.loads(SIGNATURE_1_0), "schema_version": version, "surprise": 1}
    with pytest.raises(ResultError, match=r"'surprise'.*make it again"):
        load_result(written(tmp_path, fields))


def test_a_newer_minor_version_is_read_as_far_as_it_is_known(tmp_path):
    fields = json.loads(SIGNATURE_1_0)
    expected = load_document(written(tmp_path, fields))
    fields["schema_version"] = "1.12"
    fields["weather"] = {"today": ["rain"]}
    fields["model"]["licence"] = "MIT"
    fields["layers"][1]["direction_middle"] = []
    text = json.dumps(fields)
    assert load_document(written(tmp_path, fields)) == expected
    assert load_document(signature_file(tmp_path, text)) == expected


def test_a_newer_minor_version_that_does_not_fit_needs_an_upgrade(tmp_path):
    fields = {**json.loads(SIGNATURE_1_0), "schema_version": "1.99", "fit": "better", "new": 1}
    with pytest.raises(ResultError, match=r"at 'fit'.*upgrade ckptforensics") as caught:
        load_result(written(tmp_path, fields))
    assert "make it again" not in str(caught.value)
    del fields["fit"]
    with pytest.raises(ResultError, match="at 'fit'"):
        load_result(written(tmp_path, fields))


@pytest.mark.parametrize("version", ["2.0", "10.0", "2.7"])
def test_a_newer_major_version_is_refused_with_what_to_do(version, tmp_path, capsys):
    text = SIGNATURE_1_0.replace('"schema_version": "1.0"', f'"schema_version": "{version}"')
    for file in (written(tmp_path, json.loads(text)), signature_file(tmp_path, text)):
        ran = run(capsys, "show", file)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == (
            f"ckpt: error: {file}: the saved signature document has schema version {version}, and "
            "this version of ckptforensics reads 1.x; upgrade ckptforensics to read it\n"
        )


@pytest.mark.parametrize("name", REFUSED)
def test_an_older_major_version_is_refused_with_what_to_do(name):
    with pytest.raises(ResultError) as caught:
        load_result(OLD / name)
    assert str(caught.value).endswith("; make it again with this version of ckptforensics")
    assert "reads 3.x" in str(caught.value)


@pytest.mark.parametrize(
    "version", [None, 1, 1.0, "", "1", "1.0.0", "01.0", "1.x", "-1.0", "9" * 99]
)
def test_what_is_no_version(version, tmp_path):
    fields = {**json.loads(SIGNATURE_1_0), "schema_version": version}
    with pytest.raises(ResultError, match="does not fit its schema at 'schema_version'"):
        load_result(written(tmp_path, fields))


def test_a_kind_of_a_later_release_says_so(tmp_path):
    with pytest.raises(ResultError, match=r"its kind is 'horoscope'.*upgrade ckptforensics"):
        load_result(written(tmp_path, {"schema_version": "1.0", "kind": "horoscope"}))


def test_the_parts_of_a_report_have_versions_of_their_own(tmp_path):
    """Older and newer minor ones are read as they would be alone; another major one is refused."""
    fields = json.loads((OLD / "report-1.0.json").read_text())
    expected = load_document(written(tmp_path, fields))
    fields["layers"]["schema_version"] = "1.0"
    del fields["layers"]["fit_options"]  # which has a default
    fields["norms"] |= {"schema_version": "1.99", "weather": "rain"}
    assert load_document(written(tmp_path, fields)) == expected
    fields["trace"]["schema_version"] = "2.0"
    with pytest.raises(ResultError, match=r"saved trace document has schema version 2\.0"):
        load_document(written(tmp_path, fields))
