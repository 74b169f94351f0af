"""Small things that a user of the command line takes for granted."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ckptforensics
from ckptforensics import quantities
from tests.support.containers import Model, assert_one_error, run, write_llama_gguf
from tests.support.models import save, tiny_llama, write_gguf


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("command", ["sign", "layers", "norms", "inspect"])
def test_a_saved_signature_given_as_a_model_says_what_it_is(
    command, suffix, planted, tmp_path, capsys
):
    file = tmp_path / f"my signature.{suffix}"
    assert run(capsys, "sign", planted, "-o", file).code == 0
    ran = run(capsys, command, file)
    assert_one_error(ran, 3, "saved result (signature)", f"ckpt show '{file}'", "compare")
    # The advice works.
    assert "fingerprint" in run(capsys, "show", file).out


def test_a_signature_beside_a_gguf_does_not_break_the_folder(tmp_path, capsys):
    write_llama_gguf(tmp_path / "m.gguf")
    assert run(capsys, "sign", tmp_path, "-o", tmp_path / "signature.safetensors").code == 0
    ran = run(capsys, "sign", tmp_path, "--format", "json")
    assert json.loads(ran.out)["model"]["family_source"] == "gguf"


def test_a_configuration_that_gguf_would_ignore(planted, tmp_path, capsys):
    file = write_llama_gguf(tmp_path / "m.gguf")
    ran = run(capsys, "sign", file, "--config", planted / "config.json")
    assert_one_error(ran, 4, "m.gguf", "leave --config out")
    assert run(capsys, "sign", file).code == 0


def test_a_signature_beside_weights_of_any_name(planted, tmp_path, capsys):
    folder = tmp_path / "m"
    shutil.copytree(planted, folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert run(capsys, "sign", folder, "-o", folder / "signature.safetensors").code == 0
    assert run(capsys, "sign", folder).code == 0


def test_columns_count_in_a_pipe(planted):
    """Every line of a table fits, no name is broken, and what is left out is named."""

    def table(columns: int | None) -> list[str]:
        environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
        if columns is not None:
            environment["COLUMNS"] = str(columns)
        command = [sys.executable, "-m", "ckptforensics", "sign", str(planted), "-q"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        return lines[next(i for i, line in enumerate(lines) if line.startswith("layer ")) :]

    whole, narrow, narrower = table(None), table(60), table(40)
    assert "largest coordinates" in whole[0]
    for lines, width in ((narrow, 60), (narrower, 40)):
        told = [line for line in lines if line.startswith("(too narrow for: ")]
        assert len(told) == 1
        assert "u1: largest coordinates" in told[0]
        rows = lines[2 : lines.index(told[0])]
        assert len(rows) == 8
        assert all(len(line) <= width for line in lines[: lines.index(told[0])])
        assert all(f"model.layers.{i}" in row.split() for i, row in enumerate(rows))
    assert "residual" in narrower[-1]


def test_numbers_are_written_one_way():
    assert quantities.number(23690.1) == "23,690"
    assert quantities.number(-23690.1, signed=True) == "-23,690"
    assert quantities.number(3.0, signed=True) == "+3"
    assert quantities.number(-0.0) == "0"
    assert quantities.percent(-0.0001, 1) == "0.0%"
    assert quantities.percent(-0.004) == "0%"
    assert quantities.percent(-0.01, 1) == "-1.0%"
    assert quantities.percent(0.5) == "50%"
    assert quantities.error_size(0.0) == "0"
    assert quantities.error_size(3e-7) == "3e-07"
    assert quantities.counted(1, "case") == "1 case"
    assert quantities.counted(1200, "case") == "1,200 cases"


def test_large_norms_in_evidence_are_whole_numbers(planted, capsys):
    out = run(capsys, "layers", planted).out
    assert "e+0" not in out


@pytest.mark.parametrize("wait", [0.0, 0.01, 0.02, 0.05, 0.1])
def test_an_interrupt_at_once_leaves_no_traceback(wait, planted, default_interrupt):
    """From when the program's own code begins: what Python does before is its own."""
    code = (
        "import sys, time; sys.argv = ['ckpt', 'sign', sys.argv[1]];"
        "from ckptforensics.cli.entry import run; print('begun', flush=True); run()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(planted)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    # Between two of these lines, before `run` is entered, the interpreter itself is interrupted.
    assert process.returncode in (0, 130, -signal.SIGINT)


def test_an_interrupt_inside_a_callback_is_not_dropped():
    """Python prints and forgets what is raised where it collects objects."""
    code = (
        "import sys, weakref; from ckptforensics.cli import entry\n"
        "class Collected: pass\n"
        "def collect():\n"
        "    def interrupted(_): raise KeyboardInterrupt\n"
        "    thing = Collected(); reference = weakref.ref(thing, interrupted); del thing\n"
        "    print('went on')\n"
        "entry._run = collect; entry.run()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (130, "")
    assert process.stderr == "ckpt: interrupted\n"


def test_dir_shows_what_the_package_offers():
    assert set(ckptforensics.__all__) <= set(dir(ckptforensics))
    assert "sign" in dir(ckptforensics)


def test_inspect_shows_what_headers_say(tmp_path, capsys):
    gguf = write_gguf(tiny_llama(), tmp_path / "m.gguf")
    found = json.loads(run(capsys, "inspect", gguf, "--format", "json").out)["metadata"]
    assert found["general.architecture"] == "llama"
    assert found["llama.block_count"] == 3
    assert "general.architecture: llama" in run(capsys, "inspect", gguf).out
    folder = save(tiny_llama(), tmp_path / "hf")
    assert "metadata      format: pt" in run(capsys, "inspect", folder).out


def test_metadata_is_bounded_and_harmless(tmp_path, capsys):
    model = Model.llama(tmp_path / "m")
    header, buffer = model.header()
    header["__metadata__"] = {"long": "x" * 5000, "evil": "\x1b[31mred\nline"}
    model.repack(header, buffer)
    ran = run(capsys, "inspect", model.path, "--format", "json")
    assert json.loads(ran.out)["metadata"]["long"].endswith("... (5,000 characters)")
    shown = run(capsys, "inspect", model.path).out
    assert "\x1b" not in shown
    assert "\\x1b[31mred\\nline" in shown


def test_layers_and_norms_as_csv(planted, capsys):
    out = run(capsys, "layers", planted, "--format", "csv").out
    rows = list(csv.DictReader(io.StringIO(out)))
    document = ckptforensics.find_layers(planted)
    assert [int(row["layer"]) for row in rows] == [x.layer for x in document.layers]
    assert [row["label"] for row in rows] == [x.label or "" for x in document.layers]
    assert [float(row["s1"]) for row in rows] == pytest.approx(
        [x.sigma[0] for x in document.layers], rel=1e-4
    )
    out = run(capsys, "norms", planted, "--tokens", "3,5", "--format", "csv").out
    rows = list(csv.DictReader(io.StringIO(out)))
    norms = ckptforensics.rollout(planted, tokens=[3, 5]).document
    assert len(rows) == 2 * 9
    assert [float(r["norm"]) for r in rows if r["token"] == "5"][1:] == list(norms.norms[1])


def test_norms_are_drawn(planted, tmp_path, capsys):
    file = tmp_path / "norms.svg"
    ran = run(capsys, "norms", planted, "--plot", file)
    assert ran.code == 0
    text = file.read_text()
    assert "<svg" in text
    again = tmp_path / "again.svg"
    assert run(capsys, "norms", planted, "--plot", again).code == 0
    assert again.read_text() == text
    assert_one_error(run(capsys, "norms", planted, "--plot", tmp_path / "x.gif"), 4, ".png")


def test_layers_names_trigger_tokens(smollm2_gguf, smollm2_layers, smollm2_signature):
    """Against the embeddings read by the gguf package, with the strings of its metadata."""
    import numpy as np
    from gguf import GGUFReader, dequantize

    document = smollm2_layers
    reader = GGUFReader(smollm2_gguf)
    stored = next(t for t in reader.tensors if t.name == "token_embd.weight")
    embeddings = dequantize(stored.data, stored.tensor_type).astype(np.float64)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    signature = smollm2_signature
    strings = reader.fields["tokenizer.ggml.tokens"]
    assert document.explosion
    for layer in document.explosion:
        row = document.layers[layer - 1]
        cosines = units @ signature.v[layer - 1].astype(np.float64)
        top = row.trigger_tokens[0]
        assert top.cosine == pytest.approx(cosines.max(), abs=1e-5)
        assert row.trigger_tokens[-1].cosine == pytest.approx(cosines.min(), abs=1e-5)
        spelled = bytes(strings.parts[strings.data[top.token]]).decode()
        assert top.text is not None
        assert top.text.strip() in spelled.replace("Ġ", "")
    others = [x for x in document.layers if x.layer not in document.explosion]
    assert not any(x.trigger_tokens for x in others)
    assert Path(document.model.path) == smollm2_gguf
