"""Runs: the same bits however often they stop, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ckptforensics.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["--width", "16", "--context", "32", "--batch", "4", "--threads", "1"]
TIMES = ["--log-every", "5", "--save-every", "10"]


def train(folder: Path, *words: str) -> int:
    return main(["toy", "train", "-o", str(folder), "-q", *SMALL, *TIMES, *words])


def left(folder: Path) -> tuple[dict, list]:
    """What must be the same of two runs: every file's content but times."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("log.jsonl", "state.safetensors")
    }
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return files, [{**line, "seconds": 0} for line in log]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_goes_on_with_the_same_bits(optimizer, tmp_path, capsys):
    assert train(tmp_path / "whole", "--steps", "25", "--optimizer", optimizer) == 0
    for steps in ("12", "20", "25"):
        assert train(tmp_path / "parts", "--steps", steps, "--optimizer", optimizer) == 0
    whole, parts = left(tmp_path / "whole"), left(tmp_path / "parts")
    # The shorter runs ended with a measurement and a checkpoint of their own.
    extra = {n for n in parts[0] if n.startswith("checkpoint-12/")}
    assert {n: c for n, c in parts[0].items() if n not in extra} == whole[0]
    steps = [line["step"] for line in whole[1]]
    assert steps == [0, 5, 10, 15, 20, 25]
    assert [line for line in parts[1] if line["step"] in steps] == whole[1]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_ends_with_the_same_bits(how, tmp_path):
    words = ["toy", "train", *SMALL, "--log-every", "5", "--save-every", "20", "--steps", "400"]
    folder = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptforensics", *words, "-q", "-o", str(folder)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint-40").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (folder / "checkpoint-400").exists()
    assert main([*words, "-q", "-o", str(folder)]) == 0
    assert main([*words, "-q", "-o", str(tmp_path / "whole")]) == 0
    assert left(folder) == left(tmp_path / "whole")


def test_other_settings_are_refused_in_a_folder_that_holds_a_run(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "0") == 0
    assert train(tmp_path / "run", "--steps", "0", "--seed", "1") == 4
    told = capsys.readouterr().err
    assert "recipe" in told
    assert "new folder" in told
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert train(tmp_path / "other", "--steps", "0") == 4
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["state.safetensors", "settings.json"])
def test_a_damaged_run_is_one_line(name, tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "10") == 0
    (tmp_path / "run" / name).write_bytes(b"{" * 40)
    assert train(tmp_path / "run", "--steps", "20") == 2
    told = capsys.readouterr().err
    assert name in told
    assert told.count("\n") == 1


def test_a_line_cut_off_in_the_log_is_measured_again(tmp_path):
    assert train(tmp_path / "run", "--steps", "10") == 0
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 15, "los')
    assert train(tmp_path / "run", "--steps", "20") == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, 5, 10, 15, 20]


def test_seeds_differ_and_a_fine_tune_begins_where_it_is_told(tmp_path):
    for seed in ("0", "1"):
        assert train(tmp_path / seed, "--steps", "0", "--seed", seed) == 0
    base = tmp_path / "0" / "checkpoint-0"
    words = ["--steps", "10", "--seed", "5", "--from", str(base)]
    assert train(tmp_path / "tuned", *words) == 0
    one, other, begun = (
        load_file(tmp_path / name / "checkpoint-0" / "model.safetensors")
        for name in ("0", "1", "tuned")
    )
    assert all(np.array_equal(one[n], begun[n]) for n in one)
    assert not np.array_equal(one["tokens.weight"], other["tokens.weight"])
    assert train(tmp_path / "wide", "--from", str(base), "--layers", "2") == 4


def test_a_log_has_what_is_promised(tmp_path):
    assert train(tmp_path / "run", "--steps", "0", "--layers", "2") == 0
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    for name in ("attention", "logit_gap", "value_norm", "residual_norm"):
        assert len(line[name]) == 2
    for name in ("step", "seconds", "loss", "excess_trigger", "excess_other"):
        assert isinstance(line[name], int | float)


def test_a_language_model_learns(tmp_path):
    words = ["--task", "language", "--width", "32", "--layers", "1", "--heads", "2"]
    assert train(tmp_path / "run", *words, "--steps", "80", "--dtype", "BF16") == 0
    lines = [json.loads(t) for t in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert len(lines[-1]["highest"]) == 1
    assert main(["sign", str(tmp_path / "run" / "checkpoint-80"), "-q", "--no-cache"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--mask", "bidirectional"],
        ["--task", "language", "--heads", "5"],
        ["--task", "language", "--sinks", "--attention", "relu"],
        ["--task", "language", "--sinks", "--qk-norm"],
        ["--from", "no/such/checkpoint"],
        ["--device", "nonsense"],
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(words, tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "0", *words) == 4
    assert "Traceback" not in capsys.readouterr().err
