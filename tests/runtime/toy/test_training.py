"""Runs: the same bits however often they stop, and what they leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from ckptforensics.cli.main import main
from ckptforensics.runtime.toy import training
from ckptforensics.runtime.toy.network import Shape
from ckptforensics.runtime.toy.recipes import Recipe
from ckptforensics.runtime.toy.saved import alone
from ckptforensics.runtime.toy.training import Stepper
from tests.support.families.cases_toy import llama_config, toy_from_llama

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
        # What a kill leaves half written is hidden and belongs to no run.
        if path.is_file()
        and path.name not in ("log.jsonl", "state.safetensors")
        and not path.name.startswith(".")
    }
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return files, [{**line, "seconds": 0} for line in log]


class _Drawn:
    """Random tokens, as far as a step asks for a task."""

    def batch(self, shape: Shape, recipe: Recipe, step: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.random.default_rng(step).integers(0, shape.vocabulary, (recipe.batch, 17))
        return ids[:, :-1].copy(), ids[:, 1:].copy()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_are_those_of_transformers_and_torch(optimizer):
    """LLaMA in torch's own loop, with its clipping and a schedule of torch."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(llama_config())
    shape = Shape(61, 3, 48, 4, 16, norm="rms", ffn="swiglu", positions="rope")
    tensors = {n: t.clone().requires_grad_() for n, t in toy_from_llama(model.state_dict()).items()}
    recipe = Recipe(optimizer, 0.01, decay=0.1, clip=0.5, warm_up=4, batch=3)
    stepper = Stepper(_Drawn(), shape, recipe, tensors)
    parameters = model.parameters()
    theirs: torch.optim.Optimizer = (
        torch.optim.AdamW(parameters, 0.01, (0.9, 0.99), weight_decay=0.1)
        if optimizer == "adamw"
        else torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=0.1)
    )
    warm_up = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: min(1.0, (step + 1) / 4))
    begun = {n: t.clone() for n, t in toy_from_llama(model.state_dict()).items()}
    for number in range(8):
        inputs, targets = map(torch.from_numpy, _Drawn().batch(shape, recipe, number))
        loss = torch.nn.functional.cross_entropy(
            model(inputs).logits.flatten(0, 1), targets.flatten()
        )
        theirs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        theirs.step()
        warm_up.step()
        stepper.step(number)
    for name, expected in toy_from_llama(model.state_dict()).items():
        moved = (expected - begun[name]).norm()
        assert (tensors[name] - expected).norm() < 1e-3 * moved, name


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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
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
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert not (folder / "checkpoint-400").exists()
    assert main([*words, "-q", "-o", str(folder)]) == 0
    assert main([*words, "-q", "-o", str(tmp_path / "whole")]) == 0
    assert left(folder) == left(tmp_path / "whole")


def test_other_settings_are_refused_in_a_folder_that_holds_a_run(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "0") == 0
    assert train(tmp_path / "run", "--steps", "0", "--seed", "1") == 4
    told = capsys.readouterr().err
    assert "seed 0, not 1" in told
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


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("shape", "layers"), 10**9, "layers"),
        (("shape", "width"), "wide", "width"),
        (("shape", "attention"), "none", "attention"),
        (("recipe", "batch"), None, "batch"),
        (("shape",), [], "shape"),
        (("versions",), "new", "versions"),
    ],
)
def test_settings_that_no_run_has_are_one_line(where, value, told, tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "0") == 0
    path = tmp_path / "run" / "settings.json"
    settings = json.loads(path.read_text())
    inner = settings
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(json.dumps(settings))
    capsys.readouterr()
    assert main(["toy", "report", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "settings.json" in err
    assert told in err
    assert err.count("\n") == 1


def test_a_run_that_diverges_ends_where_it_does(tmp_path, capsys):
    words = ["--optimizer", "sgd", "--rate", "1e10", "--steps", "40"]
    assert train(tmp_path / "run", *words) == 2
    told = capsys.readouterr().err
    assert "is not finite" in told
    assert "--rate" in told
    assert told.count("\n") == 1
    assert main(["toy", "report", str(tmp_path / "run"), "-q"]) == 0
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()


def test_a_start_that_fails_leaves_the_folder_free(tmp_path):
    assert train(tmp_path / "base", "--steps", "0") == 0
    assert train(tmp_path / "run", "--steps", "0", "--from", str(tmp_path / "base")) == 4
    begin = str(tmp_path / "base" / "checkpoint-0")
    assert train(tmp_path / "run", "--steps", "5", "--from", begin) == 0
    # It goes on without what it began from.
    shutil.rmtree(tmp_path / "base")
    assert train(tmp_path / "run", "--steps", "10", "--from", begin) == 0


def test_one_process_trains_in_a_folder(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "5") == 0
    with alone(tmp_path / "run"):
        assert train(tmp_path / "run", "--steps", "10") == 4
    assert "another process" in capsys.readouterr().err
    assert train(tmp_path / "run", "--steps", "10") == 0


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda log: log.replace(b'"step": 5', b'"stop": 5'), "line 2"),
        (lambda log: b"\xff\xfe" + log, "line 1"),
        (lambda log: log.replace(b"{", b"[", 1), "line 1"),
    ],
)
def test_a_damaged_log_is_one_line_and_stays_as_it_is(spoil, told, tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "10") == 0
    log = tmp_path / "run" / "log.jsonl"
    log.write_bytes(spoil(log.read_bytes()))
    damaged = log.read_bytes()
    for words in (["train", "-o"], ["report"]):
        capsys.readouterr()
        rest = [*SMALL, *TIMES, "--steps", "20"] if words[0] == "train" else []
        assert main(["toy", *words, str(tmp_path / "run"), *rest, "-q"]) == 2
        err = capsys.readouterr().err
        assert told in err
        assert err.count("\n") == 1
    assert log.read_bytes() == damaged


def test_layers_that_the_log_lacks_are_one_line(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "5") == 0
    log = tmp_path / "run" / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line | {"attention": []}) + "\n" for line in lines))
    capsys.readouterr()
    assert main(["toy", "report", str(tmp_path / "run"), "-q"]) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_run_on_a_text_is_reported_with_it(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 40)
    assert train(tmp_path / "run", "--steps", "0", "--text-file", str(text)) == 0
    # The text is known by what is drawn from it.
    renamed = text.rename(tmp_path / "renamed.txt")
    assert train(tmp_path / "run", "--steps", "5", "--text-file", str(renamed)) == 0
    for words, heads in (([], 0), (["--text-file", str(renamed)], 1)):
        capsys.readouterr()
        report = ["toy", "report", str(tmp_path / "run"), *words, "--format", "json", "-q"]
        assert main(report) == 0
        document = json.loads(capsys.readouterr().out)
        assert len(document["runs"][0]["heads"]) == heads
        assert len(document["skipped"]) == 1 - heads


def test_a_compiled_network_is_trained_alike(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and there is no g++")
    assert train(tmp_path / "plain", "--steps", "20") == 0
    # In a process of its own: the compiler asks tensors for what warns, and warnings fail a test.
    words = ["toy", "train", *SMALL, *TIMES, "--steps", "20", "--compile", "-q"]
    command = [sys.executable, "-m", "ckptforensics", *words, "-o", str(tmp_path / "compiled")]
    # What is compiled goes with the test: the compiler would leave it among the user's files.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiler")}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    plain, compiled = (
        load_file(tmp_path / name / "checkpoint-20" / "model.safetensors")
        for name in ("plain", "compiled")
    )
    for name, expected in plain.items():
        assert np.abs(compiled[name] - expected).max() < 1e-4, name


def test_without_a_compiler_compiling_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert train(tmp_path / "run", "--steps", "1", "--compile") == 2
    err = capsys.readouterr().err
    assert "C++ compiler" in err
    assert err.count("\n") == 1


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


def test_a_run_that_is_longer_already_stays_as_it_is(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", "20") == 0
    before = left(tmp_path / "run")
    words = ["toy", "train", "-o", str(tmp_path / "run"), *SMALL, *TIMES, "--steps", "10"]
    assert main(words) == 0
    assert "20 steps already" in capsys.readouterr().err
    assert left(tmp_path / "run") == before


def test_what_differs_from_the_published_run_is_named(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 40)
    words = ["--rate", "1e-3", "--text-file", str(text), "--steps", "0"]
    assert train(tmp_path / "run", *words) == 0
    capsys.readouterr()
    assert main(["toy", "report", str(tmp_path / "run"), "--format", "json", "-q"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    said = {row["comparable"] for row in run["published"]}
    assert said == {"width 16, context 32, rate 0.001, another text"}


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


def test_an_interrupt_before_anything_is_saved_promises_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "new_tensors", interrupted)
    assert train(tmp_path / "run", "--steps", "5") == 130
    assert capsys.readouterr().err.strip() == "ckpt: error: interrupted"
