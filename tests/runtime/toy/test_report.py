"""What a report says of runs, with the right answers known by construction."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ckptforensics.cli.main import main
from ckptforensics.runtime.toy.bigram import BigramBackcopy
from ckptforensics.runtime.toy.measures import measured, token_losses
from ckptforensics.runtime.toy.network import Shape, new_tensors, run
from ckptforensics.runtime.toy.statistics import statistics

SMALL = ["--width", "16", "--context", "32", "--batch", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "run"
    words = ["toy", "train", "-o", str(folder), "-q", *SMALL, "--steps", "20", "--layers", "2"]
    assert main(words) == 0
    return folder


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["toy", "report", "-q", *words]) == 0
    return capsys.readouterr().out


def test_report_is_a_document_a_table_and_csv(trained, capsys):
    document = json.loads(shown(capsys, str(trained), "--format", "json"))
    (found,) = document["runs"]
    assert found["layers"] == 2
    assert [p["step"] for p in found["curve"]] == [0, 20]
    assert {(h["layer"], h["head"]) for h in found["heads"]} == {(1, 1), (2, 1)}
    assert [a["without"] for a in found["ablations"]].count("layer") == 2
    rows = list(csv.DictReader(io.StringIO(shown(capsys, str(trained), "--format", "csv"))))
    assert len(rows) == 4
    text = shown(capsys, str(trained))
    assert "behind triggers" in text


def test_drawing_of_a_run(trained, tmp_path, capsys):
    shown(capsys, str(trained), "--plot", str(tmp_path / "p.svg"))
    assert "who attends to whom" in (tmp_path / "p.svg").read_text()


def test_the_untouched_ablation_is_the_logs_last_line(trained, capsys):
    (found,) = json.loads(shown(capsys, str(trained), "--format", "json"))["runs"]
    assert found["ablations"][0]["loss"] == pytest.approx(found["curve"][-1]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["log.jsonl", "settings.json"])
def test_a_damaged_run_is_one_line(name, tmp_path, capsys):
    words = ["toy", "train", "-o", str(tmp_path / "run"), "-q", *SMALL, "--steps", "0"]
    assert main(words) == 0
    for content in ("{", '{"step": 1}\n', "[]\n"):
        (tmp_path / "run" / name).write_text(content)
        capsys.readouterr()
        code = main(["toy", "report", str(tmp_path / "run"), "-q"])
        told = capsys.readouterr().err
        assert (code, told.count("\n")) in ((2, 1), (0, 0)), told
    assert main(["toy", "report", str(tmp_path), "-q"]) == 4


def built_copier() -> tuple[Shape, dict]:
    """A network that copies by hand: behind a trigger it reads the token before, else `<s>`.

    Width 2 V + 4: the token's own place, a place for what is copied, and marks. Weights are such
    that a query that is a trigger attends to the place before it.
    """
    facts = statistics()
    size = len(facts.symbols)
    context = 32
    shape = Shape(size, 1, 4 * size, 1, context)
    tensors = {n: torch.zeros_like(t) for n, t in new_tensors(shape, 0).items()}
    for name in ("blocks.0.attention_norm.weight", "blocks.0.ffn_norm.weight", "norm.weight"):
        tensors[name] += 1
    tokens, positions = tensors["tokens.weight"], tensors["positions.weight"]
    tokens[:, :size] = 20 * torch.eye(size)
    place = 2 * size + torch.arange(context)
    positions[torch.arange(context), place] = 20
    query, key, value, output = (
        tensors[f"blocks.0.attention.{part}.weight"] for part in ("query", "key", "value", "output")
    )
    # Keys say their place; queries ask for the place before theirs, and others for the first.
    rows = torch.arange(context)
    key[rows, place] = 1
    query[rows[:-1], place[1:]] = 1
    ordinary = [i for i in range(size) if i not in facts.triggers and i > 0]
    query[0, ordinary] = 4
    every = torch.arange(size)
    value[every[1:], every[1:]] = 1
    output[size + every, every] = 1
    return shape, tensors


def test_measures_of_a_network_built_by_hand():
    """It attends to `<s>` unless the query is a trigger, and then to the token before."""
    shape, tensors = built_copier()
    drawn = BigramBackcopy(statistics()).sequences(8, np.random.default_rng(0), shape.context)
    found = measured(shape, tensors, drawn)
    assert found.attention[0] > 0.99
    # `<s>` has no value of its own; what is left is the mean that the norm takes off.
    size, begin = len(statistics().symbols), np.zeros(shape.width)
    begin[[0, 2 * size]] = 20
    normed = (begin - begin.mean()) / np.sqrt(begin.var() + 1e-5)
    assert found.value_norm[0] == pytest.approx(np.linalg.norm(normed[1:size]), rel=1e-3)
    seen = {}
    with torch.no_grad():
        run(
            shape,
            tensors,
            torch.from_numpy(drawn.ids[:, :-1]),
            watch=lambda _, what, t: seen.setdefault(what, t),
        )
    weights = seen["weights"][:, 0].numpy()
    before = np.diagonal(weights, offset=-1, axis1=1, axis2=2)
    assert before[drawn.triggers[:, 1:]].min() > 0.99
    norms = np.linalg.norm(seen["state"].numpy(), axis=-1)
    assert found.residual_norm[0] == pytest.approx(norms[:, 0].mean(), rel=1e-5)
    assert found.others_norm[0] == pytest.approx(norms[:, 1:].mean(), rel=1e-5)
    first, others = seen["logits"][:, 0, :, 0].numpy(), seen["logits"][:, 0].numpy()
    gaps = [
        first[b, q] - others[b, q, 1 : q + 1].mean()
        for b in range(8)
        for q in range(1, shape.context)
        if not drawn.triggers[b, q]
    ]
    assert found.logit_gap[0] == pytest.approx(np.mean(gaps), rel=1e-5)


def test_losses_are_torchs():
    shape = Shape(66, 1, 16, 1, 32)
    tensors = new_tensors(shape, 0)
    drawn = BigramBackcopy(statistics()).sequences(2, np.random.default_rng(0), 32)
    losses = token_losses(shape, tensors, drawn)
    with torch.no_grad():
        logits = run(shape, tensors, torch.from_numpy(drawn.ids[:, :-1])).double()
    probability = torch.softmax(logits, dim=-1).numpy()
    expected = [-np.log(probability[0, t, drawn.ids[0, t + 1]]) for t in range(32)]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    found = measured(shape, tensors, drawn)
    assert found.excess_trigger == pytest.approx(losses[drawn.triggers].mean(), rel=1e-5)
