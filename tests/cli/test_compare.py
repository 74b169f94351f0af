"""`ckpt compare` as a user runs it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from ckptforensics.lineage import compare as comparing
from ckptforensics.render import render
from ckptforensics.results import load_result
from tests.findings.test_damage import zero_bytes
from tests.support.adapters import base_tensors, low_rank, write_adapter
from tests.support.commands import ckpt
from tools import launder, transforms

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "fixtures" / "zoo"
SEED0, TUNED, OTHER = (str(ZOO / name) for name in ("seed0", "finetune", "seed1"))


@pytest.fixture(scope="module", autouse=True)
def cached(tmp_path_factory):
    """Models are signed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """SEED0 with TUNED and with OTHER, compared and saved: what `ckpt` printed, and its file."""
    found = {}
    for name in (TUNED, OTHER):
        saved = tmp_path_factory.mktemp("known") / "saved.json"
        done = ckpt("compare", SEED0, name, "-q", "--format", "json", "-o", saved)
        found[SEED0, name] = done, saved
    return found


@pytest.fixture
def once(known, monkeypatch):
    """`ckpt compare` of those is what it was: for tests of what the command makes of it."""
    documents = {pair: load_result(saved) for pair, (_, saved) in known.items()}

    def compare(models, **_):
        return documents[tuple(model.name for model in models)]

    monkeypatch.setattr(comparing, "compare", compare)


@pytest.fixture(scope="module")
def signatures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signatures")
    made = []
    for name in ("seed0", "finetune", "seed1"):
        made.append(folder / f"{name}.safetensors")
        assert ckpt("sign", ZOO / name, "-q", "-o", made[-1]).returncode == 0
    return made


@pytest.fixture(scope="module")
def related(known):
    done, _ = known[SEED0, TUNED]
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_document_is_what_the_schema_says(related):
    schema = json.loads((ROOT / "docs" / "schemas" / "comparison.schema.json").read_text())
    jsonschema.validate(related, schema)
    assert related["kind"] == "comparison"
    (pair,) = related["pairs"]
    assert (pair["a"], pair["b"]) == (SEED0, TUNED)
    assert (pair["verdict"], pair["relation"]) == ("derived", "finetune")
    assert (pair["direction"]["arrow"], pair["direction"]["strength"]) == ("unknown", "none")
    assert pair["distance_deg"] == min(pair["angles_deg"])
    assert pair["alignment"]["kind"] == "identity"
    assert related["clusters"] == [[SEED0, TUNED]]


def test_every_test_says_what_it_cost_and_proves(related):
    tests = related["pairs"][0]["tests"]
    assert {test["group"] for test in tests} == {"exact", "agreement", "correspondence"}
    assert len({test["name"] for test in tests}) == len(tests)
    for test in tests:
        assert test["seconds"] >= 0
        assert test["bytes_read"] >= 0
        assert (test["statistic"] is None) == (test["skipped"] is not None)
        assert (test["log10_p"] is None) or test["null"]
    for test in tests:
        if test["group"] == "agreement":
            assert test["log10_p"] is None


def test_independent_models_of_one_configuration_are_independent(known):
    done, _ = known[SEED0, OTHER]
    (pair,) = json.loads(done.stdout)["pairs"]
    assert (pair["verdict"], pair["relation"]) == ("independent", None)
    assert done.stderr == ""


def test_a_model_and_itself():
    (pair,) = json.loads(ckpt("compare", SEED0, SEED0, "--format", "json").stdout)["pairs"]
    assert pair["verdict"] == "identical"
    assert pair["a"] != pair["b"]


@pytest.mark.parametrize(
    ("models", "limit", "code"),
    [
        ((SEED0, TUNED), "derived", 1),
        ((SEED0, TUNED), "related", 1),
        ((SEED0, TUNED), "independent", 0),
        ((SEED0, OTHER), "derived", 0),
        ((SEED0, OTHER), "related", 0),
        ((SEED0, OTHER), "independent", 1),
        ((SEED0, OTHER), "inconclusive", 0),
        ((SEED0, OTHER), "not-comparable", 0),
    ],
)
@pytest.mark.usefixtures("once")
def test_fail_on(models, limit, code):
    done = ckpt("compare", *models, "--fail-on", limit, "-q")
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout


def test_signatures_alone_read_no_weights_and_decide_what_they_can(signatures):
    base, tuned, other = signatures
    done = ckpt("compare", base, tuned, "--fast", "--format", "json", "-q")
    document = json.loads(done.stdout)
    (pair,) = document["pairs"]
    assert document["level"] == "fast"
    assert all(test["bytes_read"] == 0 for test in pair["tests"])
    assert pair["verdict"] == "related"
    (apart,) = json.loads(ckpt("compare", base, other, "--fast", "--format", "json", "-q").stdout)[
        "pairs"
    ]
    assert apart["verdict"] == "inconclusive"
    assert any("--fast" in words for words in apart["otherwise"])


def test_a_signature_stands_in_for_its_model(signatures):
    document = json.loads(ckpt("compare", signatures[0], TUNED, "--format", "json", "-q").stdout)
    tests = {test["name"]: test for test in document["pairs"][0]["tests"]}
    assert tests["gate rows"]["skipped"] == "a saved signature has no weights"
    assert tests["direction max"]["skipped"] is None


def test_signatures_of_two_fits_are_refused(signatures, tmp_path):
    paper = tmp_path / "paper.safetensors"
    ckpt("sign", TUNED, "--fit", "paper", "-q", "-o", paper)
    done = ckpt("compare", signatures[0], paper, "--fast")
    assert (done.returncode, done.stdout) == (4, "")
    assert "--fit paper" in done.stderr
    assert done.stderr.count("\n") == 1


def test_formats_and_plot(tmp_path):
    saved, plot = tmp_path / "saved.json", tmp_path / "plot.svg"
    done = ckpt("compare", SEED0, TUNED, OTHER, "-o", saved, "--plot", plot, "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {(row["a"], row["b"]) for row in rows} == {
        (SEED0, TUNED),
        (SEED0, OTHER),
        (TUNED, OTHER),
    }
    assert plot.read_text().lstrip().startswith("<?xml")
    shown = ckpt("show", saved, "--format", "csv")
    assert shown.stdout == done.stdout
    page = ckpt("show", saved, "--format", "html").stdout
    parser = HTMLParser()
    parser.feed(page)
    parser.close()
    assert "derived" in page


def test_a_narrow_terminal_keeps_every_line_within_it(known):
    _, saved = known[SEED0, TUNED]
    shown = render(load_result(saved), "table", width=60)
    assert max(map(len, shown.splitlines())) <= 60


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ((SEED0,), 4, "two models"),
        ((SEED0, "nowhere"), 4, "nowhere"),
        ((SEED0, TUNED, "--plot", "drawing.bmp"), 4, "drawing.bmp"),
        ((SEED0, TUNED, "-o", "result.safetensors"), 4, "result.safetensors"),
        ((SEED0, TUNED, "--format", "yaml"), 4, "yaml"),
    ],
)
def test_mistakes_end_in_one_line(words, code, part):
    done = ckpt("compare", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert part in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_truncated_file_is_no_model(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (ZOO / "finetune").iterdir():
        data = file.read_bytes()
        whole = len(data) if file.suffix != ".safetensors" else len(data) // 2
        (broken / file.name).write_bytes(data[:whole])
    done = ckpt("compare", SEED0, broken)
    assert (done.returncode, done.stdout) == (2, "")
    assert "truncated" in done.stderr


def test_swapped_weights_under_one_path_are_noticed(tmp_path):
    """No answer is kept by path."""
    model = tmp_path / "model"
    environment = {"CKPT_CACHE": str(tmp_path / "cache")}
    base = transforms.read(ZOO / "seed0")
    transforms.write(base, model)
    words = ("compare", SEED0, model, "--format", "json", "-q")
    (before,) = json.loads(ckpt(*words, **environment).stdout)["pairs"]
    transforms.write(transforms.read(ZOO / "seed1"), model)
    (after,) = json.loads(ckpt(*words, **environment).stdout)["pairs"]
    assert before["verdict"] == "identical"
    assert after["verdict"] == "independent"


def test_a_configuration_is_no_evidence(tmp_path):
    """The same configuration with other weights, and a renamed copy with another one."""
    base = transforms.read(ZOO / "seed0")
    strange = transforms.write(transforms.random(base), tmp_path / "random")
    copied = launder.EXACT["renaming"](base, np.random.default_rng(0))
    copy = transforms.write(copied, tmp_path / "copy", "F32")
    (one,) = json.loads(ckpt("compare", SEED0, strange, "--format", "json").stdout)["pairs"]
    (other,) = json.loads(ckpt("compare", SEED0, copy, "--format", "json").stdout)["pairs"]
    assert one["verdict"] == "independent"
    assert other["verdict"] == "re-parameterised"


def test_strict_refuses_what_was_not_decided_or_skipped(signatures):
    done = ckpt("compare", *signatures[::2], "--fast", "--strict")
    assert done.returncode == 2
    assert done.stdout
    assert "inconclusive" in done.stderr


def test_fail_on_what_was_not_decided(signatures, tmp_path):
    """Fast looks at signatures alone: nothing is decided, and of other widths nothing compared."""
    words = ("compare", *signatures[::2], "--fast", "-q")
    assert ckpt(*words, "--fail-on", "inconclusive").returncode == 1
    assert ckpt(*words, "--fail-on", "not-comparable").returncode == 0
    both = ("--fail-on", "derived", "--fail-on", "inconclusive")
    assert ckpt(*words, *both).returncode == 1
    planted = tmp_path / "planted.safetensors"
    ckpt("sign", ROOT / "fixtures" / "planted", "-q", "-o", planted)
    words = ("compare", signatures[0], planted, "--fast", "--format", "json", "-q")
    done = ckpt(*words, "--fail-on", "not-comparable")
    assert done.returncode == 1
    (pair,) = json.loads(done.stdout)["pairs"]
    assert pair["reasons"][0] == "the widths differ: 96 and 64"


def test_adapters_are_merged_as_their_error_says(tmp_path):
    planted = ROOT / "fixtures" / "planted"
    tensors = low_rank(base_tensors(planted), ["model.layers.1.self_attn.v_proj"])
    adapter = write_adapter(
        tmp_path / "adapter", tensors, base_model_name_or_path="fixtures/planted"
    )
    alone = ckpt("compare", planted, adapter)
    assert alone.returncode == 3
    assert "--base fixtures/planted" in alone.stderr
    words = ("compare", planted, adapter, "--base", planted, "--format", "json", "-q")
    (pair,) = json.loads(ckpt(*words).stdout)["pairs"]
    assert (pair["verdict"], pair["relation"]) == ("derived", "adapter")
    side = json.loads(ckpt(*words, "--jobs", "2", "--memory", "4GB", "--no-cache").stdout)
    assert side["pairs"][0]["angles_deg"] == pair["angles_deg"]
    assert side["models"][1]["base"] == str(planted)
    needless = ckpt("compare", planted, planted, "--base", planted)
    assert (needless.returncode, needless.stdout) == (4, "")
    assert "leave --base out" in needless.stderr


def test_a_configuration_for_the_models_without_one(tmp_path):
    lone = tmp_path / "lone" / "model.safetensors"
    lone.parent.mkdir()
    shutil.copy(ZOO / "seed0" / "model.safetensors", lone)
    config = ZOO / "seed0" / "config.json"
    words = ("compare", TUNED, lone, "--config", config, "--format", "json", "-q")
    for more in ((), ("--jobs", "2", "--no-cache")):
        document = json.loads(ckpt(*words, *more).stdout)
        assert [model["family_source"] for model in document["models"]] == ["config", "config"]
        assert document["pairs"][0]["verdict"] == "derived"
    needless = ckpt("compare", SEED0, TUNED, "--config", config)
    assert needless.returncode == 4
    assert "leave --config out" in needless.stderr
    little = ckpt("compare", SEED0, TUNED, "--memory", "1MB", "--no-cache")
    assert little.returncode == 4
    assert "--memory" in little.stderr


def test_a_report_says_what_was_compared_when_and_how(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ZOO / "seed0", copy)
    file = copy / "model.safetensors"
    zero_bytes(file, "model.layers.1.mlp.down_proj.weight", 0, 9000)
    saved = tmp_path / "saved.json"
    done = ckpt("compare", SEED0, copy, "--digest", "-o", saved)
    assert done.returncode == 0, done.stderr
    document = json.loads(saved.read_text())
    (of_copy,) = document["models"][1]["files"]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (of_copy["sha256"], of_copy["bytes"]) == (sha256, file.stat().st_size)
    run = document["run"]
    assert run["command"] == f"ckpt compare {SEED0} {copy} --digest -o {saved}"
    age = datetime.now(UTC) - datetime.fromisoformat(run["date"])
    assert 0 <= age.total_seconds() < 300
    assert run["versions"]["numpy"] == np.__version__
    assert document["models"][0]["damage"] == []
    (damage,) = document["models"][1]["damage"]
    assert (damage["tensor"], damage["what"]) == ("model.layers.1.mlp.down_proj.weight", "zeros")
    page = ckpt("show", saved, "--format", "html").stdout
    for shown in (sha256, f"{file.stat().st_size:,}", run["date"], "header digest", "hold zeros"):
        assert shown in page
    assert sha256 in done.stdout.replace(" ", "").replace("\n", "")
    assert "hold zeros" in " ".join(done.stdout.split())


def test_strict_refuses_models_with_more_than_a_few_damages(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ZOO / "seed0", copy)
    for layer in (1, 2):
        for matrix in ("gate", "up"):
            name = f"model.layers.{layer}.mlp.{matrix}_proj.weight"
            zero_bytes(copy / "model.safetensors", name, 4096, 14_000)
    saved = tmp_path / "saved.json"
    done = ckpt("compare", SEED0, copy, "--strict", "-o", saved, "--thorough")
    assert done.returncode == 2
    assert len(json.loads(saved.read_text())["models"][1]["damage"]) == 4
