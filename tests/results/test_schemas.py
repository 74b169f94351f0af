"""The published JSON Schemas and the examples of docs/json.md, against what the tool prints."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from ckptforensics.cli.main import main
from ckptforensics.results import DOCUMENTS
from ckptforensics.results.schemas import schema_text

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "docs" / "schemas"
PLANTED = "fixtures/planted"
TOKENS = ["--token-ids", "3,5,8,1,2,9,11,30,7,4,6,12", "--window", "6"]

COMMANDS = {
    "signature": ["sign", PLANTED],
    "layers": ["layers", PLANTED, "--accumulated"],
    "norms": ["norms", PLANTED, "--tokens", "bos,3", "--random-embeddings", "1"],
    "inspect": ["inspect", PLANTED, "--digest"],
    "families": ["families"],
    "cache": ["cache", "info"],
    "comparison": ["compare", PLANTED, PLANTED],
    "evolution": ["evolve", PLANTED, PLANTED],
    "trace": ["trace", PLANTED, *TOKENS],
    "empirical": ["empirical", PLANTED, *TOKENS, "--threshold", "20"],
    "sinks": ["sinks", PLANTED, *TOKENS],
    "ablation": ["ablate", PLANTED, *TOKENS, "--what", "trigger"],
    "paths": ["paths", PLANTED, "--second", "9"],
    "replication": ["replicate", PLANTED, *TOKENS, "--as", "LLaMA2-13B", "--numbers-only"],
    "report": ["report", PLANTED, *TOKENS],
    "quantization": ["quant", "eval", PLANTED, *TOKENS, "--no-cache", "--alpha", "0.4,0.6"],
    "quantization-plan": ["quant", "plan", PLANTED, "--keep", "2"],
    "quantization-diff": ["quant", "diff", PLANTED, PLANTED],
    "audit": ["audit", PLANTED],
    "catalog": ["catalog", "list"],
    "sketch": ["sketch", PLANTED],
    "find": ["find", PLANTED, "--no-compare"],
    "toy": ["toy", "report", "fixtures/toy"],
}


def printed(*words: str) -> dict:
    """What the command prints, in this process: most of its time would go into importing torch."""
    out = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out):
        assert main([*words, "--format", "json", "-q"]) == 0
    return json.loads(out.getvalue())


def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / f"{kind}.schema.json").read_text()))


@pytest.fixture(scope="module")
def documents() -> dict[str, dict]:
    return {kind: printed(*words) for kind, words in COMMANDS.items()}


def test_every_kind_has_a_schema_and_a_command():
    assert {file.name for file in SCHEMAS.iterdir()} == {f"{k}.schema.json" for k in DOCUMENTS}
    assert set(COMMANDS) == set(DOCUMENTS)


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_committed_schema_is_the_generated_one(kind):
    committed = (SCHEMAS / f"{kind}.schema.json").read_text()
    again = "run 'python -m ckptforensics.results.schemas docs/schemas'"
    assert committed == schema_text(kind), again


def test_module_writes_the_schemas(tmp_path):
    command = [sys.executable, "-m", "ckptforensics.results.schemas", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    for file in SCHEMAS.iterdir():
        assert (tmp_path / file.name).read_text() == file.read_text()


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_schema_is_a_valid_schema(kind):
    found = validator(kind)
    assert found.schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(found.schema)


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_printed_document_fits_its_schema(kind, documents):
    assert documents[kind]["kind"] == kind
    validator(kind).validate(documents[kind])


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_document_fits_no_other_schema(kind, documents):
    for other in DOCUMENTS:
        assert validator(other).is_valid(documents[kind]) == (other == kind)


def objects(value, path=()):
    """Paths of all objects inside a document."""
    if isinstance(value, dict):
        yield path
        for key, part in value.items():
            yield from objects(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value[:2]):
            yield from objects(part, (*path, index))


def at(document, path):
    for step in path:
        document = document[step]
    return document


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_unknown_or_missing_key_is_an_error_at_every_level(kind, documents):
    check = validator(kind)
    for path in objects(documents[kind]):
        if path[-1:] == ("metadata",):  # of any keys
            continue
        changed = copy.deepcopy(documents[kind])
        at(changed, path)["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            check.validate(changed)
        for key in at(documents[kind], path):
            changed = copy.deepcopy(documents[kind])
            del at(changed, path)[key]
            assert not check.is_valid(changed), f"{path} without {key}"


def test_fields_of_every_document_are_explained():
    text = (ROOT / "docs" / "json.md").read_text()
    for kind in DOCUMENTS:
        schema = json.loads(schema_text(kind))
        for part in (schema, *schema["$defs"].values()):
            for name in part["properties"]:
                assert f"`{name}`" in text, f"docs/json.md does not explain '{name}' of {kind}"


def test_versions_of_every_kind_are_said():
    text = (ROOT / "docs" / "json.md").read_text()
    for kind, known in DOCUMENTS.items():
        assert f"| `{kind}` | {known.current_version()} |" in text


EXAMPLE = re.compile(r"```console\n\$ (?P<command>ckpt [^\n]*)\n(?P<output>\{.*?)```", re.S)


def examples() -> list[tuple[str, dict]]:
    found = EXAMPLE.finditer((ROOT / "docs" / "json.md").read_text())
    return [(m["command"], json.loads(m["output"])) for m in found]


def assert_shown(example, printed, path=""):
    """Every key the example shows is printed, and with the value shown.

    Lists are shown in part, in order. Numbers agree as far as they are shown; residuals are
    what an iteration happens to end with and agree in kind only.
    """
    if isinstance(example, dict):
        for key, value in example.items():
            assert key in printed, f"{path}.{key}"
            assert_shown(value, printed[key], f"{path}.{key}")
    elif isinstance(example, list):
        rest = iter(printed)
        for number, value in enumerate(example):
            for candidate in rest:
                try:
                    assert_shown(value, candidate, f"{path}[{number}]")
                except AssertionError:
                    continue
                break
            else:
                pytest.fail(f"{path}[{number}] is not printed: {value}")
    elif isinstance(example, float):
        if path.endswith(".residual"):
            assert 0 <= printed <= (0.1 if path.endswith("eigenvalue.residual") else 1e-4)
        else:
            assert printed == pytest.approx(example, rel=2e-3), path
    else:
        assert printed == example, path


def test_document_shows_every_kind():
    assert {example["kind"] for _, example in examples()} == set(DOCUMENTS)


@pytest.mark.parametrize(("command", "example"), examples(), ids=[c for c, _ in examples()])
def test_examples_of_the_document_are_what_the_tool_prints(command, example):
    words = command.split(" | ")[0].split()[1:]
    words = [w for w in words if w not in ("--format", "json")]
    assert_shown(example, printed(*words))
