"""The contract of the command line: streams, exit codes, formats, files, tokens."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptforensics
from ckptforensics.errors import ExitCode
from ckptforensics.results import DOCUMENTS
from tests.cli.test_docs import commands, options
from tests.support.containers import Model, assert_one_error, run, write_llama_gguf

COMMANDS = ("sign", "layers", "norms", "inspect", "show")
ANALYSES = COMMANDS[:4]
KIND = {"sign": "signature", "layers": "layers", "norms": "norms", "inspect": "inspect"}
LAYERS, WIDTH, VOCABULARY = 8, 64, 256

# Keys that other programs rely on.
KEYS = {
    "signature": {"schema_version", "kind", "fingerprint", "model", "fit", "layers", "direction",
                  "explosion", "decay"},
    "layers": {"schema_version", "kind", "explosion", "decay", "layers", "super_weights"},
    "norms": {"schema_version", "kind", "tokens", "norms", "median"},
    "inspect": {"schema_version", "kind", "model", "tensors"},
}  # fmt: skip
LAYER_KEYS = {
    "signature": {"layer", "prefix", "sigma", "gap", "residual", "direction_top"},
    "layers": {"layer", "prefix", "sigma", "gap", "trigger_norm", "rollout_ratio", "response",
               "eigenvalue", "label", "evidence"},
}  # fmt: skip


def ckpt(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; one thread is faster on a model this small."""
    how = {"capture_output": True, "text": True, "check": False, "timeout": 60, **how}
    how["env"] = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **how.get("env", {})}
    return subprocess.run([sys.executable, "-m", "ckptforensics", *map(str, arguments)], **how)


def as_json(capsys: Any, *arguments: object) -> dict[str, Any]:
    ran = run(capsys, *arguments, "--format", "json", "-q")
    assert (ran.code, ran.err) == (0, "")
    document: dict[str, Any] = json.loads(ran.out)
    return document


# Help and usage.


def test_help_lists_every_command(capsys):
    ran = run(capsys, "--help")
    assert ran.code == 0
    assert ran.err == ""
    for command in COMMANDS:
        assert re.search(rf"^  {command}  +\w", ran.out, re.MULTILINE)
    for code in "0234":
        assert re.search(rf"\b{code}\b", ran.out)
    assert run(capsys, "-h") == ran


def test_help_has_sections(capsys):
    help_text = run(capsys, "--help").out
    titles = re.findall(r"^(\w[\w ()]*):$", help_text, re.MULTILINE)
    running = "Running the model (needs torch and transformers)"
    assert titles == ["Options", "From the weights", "Many models", running, "Help"]
    parts = [help_text.partition(f"{title}:\n")[2].partition("\n\n")[0] for title in titles[1:]]
    assert [re.findall(r"^  (\w+)", part, re.MULTILINE) for part in parts] == [
        ["sign", "layers", "compare", "evolve", "norms", "report", "inspect", "quant"],
        ["audit", "find", "sketch", "catalog", "serve"],
        ["trace", "empirical", "paths", "ablate", "sinks", "replicate", "toy"],
        ["families", "show", "explain", "cache"],
    ]


@pytest.mark.parametrize(
    ("typed", "meant"), [("sgin", "sign"), ("compair", "compare"), ("layer", "layers")]
)
def test_a_mistyped_command_gets_a_suggestion(typed, meant, capsys):
    ran = run(capsys, typed, "MODEL")
    assert_one_error(ran, 4, f"'{typed}'", f"Did you mean '{meant}'?")


def test_nothing_is_suggested_for_what_is_like_no_command(capsys):
    assert "mean" not in run(capsys, "xyzzy").err


def test_exit_codes_are_those_documented():
    text = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    table = text.partition("## Exit codes")[2].partition("## ")[0]
    documented = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert documented == [*ExitCode]


def test_the_saved_help_is_what_click_prints():
    """`ckpt --help` prints this file on a terminal of 80 columns or more, and in a pipe."""
    code = "from ckptforensics.cli.main import main; main(['--help'])"
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    saved = Path(ckptforensics.__file__).parent / "cli" / "help.txt"
    assert saved.read_text(encoding="utf-8") == done.stdout
    without = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    module = [sys.executable, "-m", "ckptforensics", "--help"]
    printed = subprocess.run(module, capture_output=True, text=True, check=True, env=without)
    assert printed.stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_for_every_option(command, capsys):
    ran = run(capsys, command, "--help")
    assert (ran.code, ran.err) == (0, "")
    for option in ("--format", "-q, --quiet", "-v, --verbose", "--no-progress"):
        assert option in ran.out
    assert ("-o, --output" in ran.out) == (command != "show")
    # No option without an explanation: text follows it on its line or the next.
    for match in re.finditer(r"^  (-[^\n]*?)(  +\S.*|\n {10,}\S.*)?$", ran.out, re.MULTILINE):
        assert match[2], match[1]


def test_help_comes_without_the_heavy_modules():
    code = (
        "import sys; from ckptforensics.cli.main import main; main(['--help'])\n"
        "print(*(m for m in ('numpy', 'scipy', 'torch', 'rich', 'pydantic', 'gguf', 'jinja2', "
        "'safetensors', 'huggingface_hub') if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def test_a_signature_is_shown_without_the_heavy_modules(planted, tmp_path):
    saved = tmp_path / "x.safetensors"
    code = (
        "import sys; from ckptforensics.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'numpy', 'huggingface_hub', 'ckptforensics.tensors.files',"
        " 'ckptforensics.sources.hub', 'ckptforensics.results.comparison',"
        " 'ckptforensics.results.layers', 'ckptforensics.results.norms', 'jinja2',"
        " 'ckptforensics.render.tables.comparison', 'ckptforensics.render.plots'}"
        " & set(sys.modules)"
    )
    ckptforensics.sign(planted).save(saved)
    command = [sys.executable, "-c", code, "show", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fingerprint" in done.stdout


def test_signing_never_imports_torch(planted):
    code = (
        "import sys; from ckptforensics.cli.main import main\n"
        f"for c in {ANALYSES!r}: assert main([c, {str(planted)!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'gguf', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    assert run(capsys, "--version").out.split()[-1] == ckptforensics.__version__


def test_no_command_at_all_is_a_usage_error(capsys):
    ran = run(capsys)
    assert ran.code == 4
    assert ran.out == ""
    assert "Usage: ckpt" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("--nosuch",),
        ("sign",),
        ("layers", "MODEL", "extra"),
        ("sign", "MODEL", "--nosuch"),
        ("sign", "MODEL", "--format", "yaml"),
        ("sign", "MODEL", "--fit", "best"),
        ("sign", "MODEL", "--fit", "sampled", "--samples", "0"),
        ("sign", "MODEL", "--fit", "sampled", "--samples", "many"),
        ("sign", "MODEL", "--fit", "sampled", "--seed", "-1"),
        ("sign", "MODEL", "--fit", "sampled", "--calibration", "/nowhere"),
        ("sign", "MODEL", "--config", "/nowhere"),
        ("norms", "MODEL", "--random-embeddings", "-1"),
        ("norms", "MODEL", "--random-embeddings", "x"),
        ("norms", "MODEL", "--seed", "-1"),
        ("show",),
        ("show", "MODEL"),
        ("show", "/nowhere"),
        ("inspect", "MODEL", "-o", "/"),
        # Options that contradict each other.
        ("sign", "MODEL", "--samples", "100"),
        ("sign", "MODEL", "--seed", "1"),
        ("sign", "MODEL", "--fit", "paper", "--samples", "100"),
        ("layers", "MODEL", "--fit", "paper", "--seed", "0"),
        ("layers", "MODEL", "--fit", "canonical", "--calibration", "CALIBRATION"),
        ("sign", "MODEL", "--fit", "sampled", "--calibration", "CALIBRATION", "--samples", "9"),
        ("sign", "MODEL", "--fit", "sampled", "--calibration", "CALIBRATION", "--seed", "9"),
        ("sign", "MODEL", "--fit", "sampled", "--calibration", "NARROW"),
        ("sign", "MODEL", "--fit", "sampled", "--samples", "10"),
        ("sign", "MODEL", "-o", "x.txt"),
        ("sign", "MODEL", "-o", "x"),
        ("layers", "MODEL", "-o", "x.safetensors"),
        ("norms", "MODEL", "-o", "x.safetensors"),
        ("inspect", "MODEL", "-o", "x.safetensors"),
        ("norms", "MODEL", "--states"),
        ("norms", "MODEL", "--states", "-o", "x.json"),
        ("norms", "MODEL", "-o", "x.npz"),
        ("norms", "MODEL", "--random-embeddings", "0", "--tokens", "random:0"),
    ],
)
def test_usage_errors(arguments, planted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"x": np.ones((100, WIDTH), np.float32)}, tmp_path / "good.safetensors")
    save_file({"x": np.ones((100, 3), np.float32)}, tmp_path / "narrow.safetensors")
    names = {
        "MODEL": planted,
        "CALIBRATION": tmp_path / "good.safetensors",
        "NARROW": tmp_path / "narrow.safetensors",
    }
    ran = run(capsys, *(names.get(a, a) for a in arguments))
    assert_one_error(ran, 4)
    assert sorted(os.listdir(tmp_path)) == ["good.safetensors", "narrow.safetensors"]


# Results.


@pytest.mark.parametrize("command", ANALYSES)
def test_json_is_the_documented_document(command, planted, capsys):
    document = as_json(capsys, command, planted)
    kind = KIND[command]
    assert document["kind"] == kind
    assert KEYS[kind] <= set(document)
    model = document["model"]
    assert {"path", "family", "family_source", "hidden_size", "num_layers", "files"} <= set(model)
    assert (model["family"], model["family_source"]) == ("llama", "config")
    assert (model["hidden_size"], model["num_layers"]) == (WIDTH, LAYERS)
    (file,) = model["files"]
    assert {"name", "bytes", "header_sha256", "sha256"} == set(file)
    assert file["bytes"] == (planted / "model.safetensors").stat().st_size
    for i, layer in enumerate(document.get("layers", [])):
        assert LAYER_KEYS[kind] <= set(layer)
        assert layer["layer"] == i + 1
        assert layer["prefix"] == f"model.layers.{i}"
    schema = DOCUMENTS[kind].model_json_schema(mode="serialization")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "surprise": 1}, schema)


def test_the_planted_layers_are_found(planted, capsys):
    """The fixture was made with an explosion at layer 3 and a decay at layer 7."""
    for command in ("sign", "layers"):
        document = as_json(capsys, command, planted)
        assert document["explosion"] == [3]
        assert document["decay"] == [7]
    table = run(capsys, "sign", planted, "-q").out
    assert re.search(r"^explosion +3$", table, re.MULTILINE)
    assert re.search(r"^decay +7$", table, re.MULTILINE)


def test_inspect_lists_every_tensor_once_with_a_role_or_a_reason(planted, capsys):
    from safetensors import safe_open

    document = as_json(capsys, "inspect", planted)
    with safe_open(planted / "model.safetensors", "pt") as reference:
        stored = {n: reference.get_slice(n) for n in reference.keys()}  # noqa: SIM118
    listed = {t["name"]: t for t in document["tensors"]}
    assert set(listed) == set(stored)
    assert len(document["tensors"]) == len(stored)
    for name, t in listed.items():
        assert t["shape"] == stored[name].get_shape()
        assert t["dtype"] == stored[name].get_dtype()
        assert (t["role"] is None) != (t["skipped"] is None)
    assert document["parameters"] == sum(
        int(np.prod(s.get_shape(), dtype=np.int64)) for s in stored.values()
    )
    verbose = run(capsys, "inspect", planted, "-v", "-q").out
    for name in stored:
        if len(name) < 36:  # longer ones fold
            assert name in verbose


def test_digest_is_that_of_the_file(planted, capsys):
    import hashlib

    expected = hashlib.sha256((planted / "model.safetensors").read_bytes()).hexdigest()
    for command in ("sign", "inspect"):
        assert as_json(capsys, command, planted)["model"]["files"][0]["sha256"] is None
        document = as_json(capsys, command, planted, "--digest")
        assert document["model"]["files"][0]["sha256"] == expected


@pytest.mark.parametrize("command", ANALYSES)
def test_one_file_and_its_directory_give_the_same_numbers(command, planted, capsys):
    one = as_json(capsys, command, planted)
    other = as_json(capsys, command, planted / "model.safetensors")
    for document in (one, other):
        document["model"].pop("path")
    assert one == other


def test_shards_index_and_single_file_have_one_fingerprint(planted, tmp_path, capsys):
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_torch

    tensors = load_file(planted / "model.safetensors")
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map = {}
    for i in range(3):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        part = {n: tensors[n] for n in sorted(tensors)[i::3]}
        save_torch(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "config.json").write_bytes((planted / "config.json").read_bytes())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    expected = as_json(capsys, "sign", planted)["fingerprint"]
    assert as_json(capsys, "sign", folder)["fingerprint"] == expected
    assert as_json(capsys, "sign", index)["fingerprint"] == expected
    index.unlink()
    assert as_json(capsys, "sign", folder)["fingerprint"] == expected


def test_gguf_and_safetensors_of_the_same_weights_agree(tmp_path, capsys):
    model = Model.llama(tmp_path / "model")
    path = write_llama_gguf(tmp_path / "x.gguf")
    one = as_json(capsys, "sign", model.path)
    other = as_json(capsys, "sign", path)
    assert other["model"]["family_source"] == "gguf"
    assert one["fingerprint"] == other["fingerprint"]
    tokens = ("--tokens", "all")
    one, other = (as_json(capsys, "norms", m, *tokens) for m in (model.path, path))
    assert one["norms"] == other["norms"]


def test_config_in_place_of_the_one_beside_the_weights(planted, tmp_path, capsys):
    config = json.loads((planted / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    document = as_json(capsys, "inspect", planted, "--config", tmp_path / "config.json")
    assert document["epsilon"] == 0.5
    assert as_json(capsys, "inspect", planted)["epsilon"] == 1e-5


def test_sampled_fit_follows_its_seed_and_says_so(planted, capsys):
    def signed(*more: object) -> dict[str, Any]:
        return as_json(capsys, "sign", planted, "--fit", "sampled", "--samples", 500, *more)

    one, again, other = signed("--seed", 3), signed("--seed", 3), signed("--seed", 4)
    assert one == again
    assert one["layers"] != other["layers"]
    assert one["fit_options"]["samples"] == 500
    assert one["fit_options"]["seed"] == 3


def test_calibration_vectors_are_used_and_named_by_digest(planted, tmp_path, capsys):
    import hashlib

    file = tmp_path / "calibration.safetensors"
    vectors = np.random.default_rng(0).standard_normal((400, WIDTH)).astype(np.float32)
    save_file({"vectors": vectors}, file)
    document = as_json(capsys, "sign", planted, "--fit", "sampled", "--calibration", file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert document["fit_options"]["calibration_sha256"] == digest


@pytest.mark.parametrize("damage", ["truncated", "nan"])
def test_damaged_calibration_vectors(damage, planted, tmp_path, capsys):
    file = tmp_path / "calibration.safetensors"
    vectors = np.ones((100, WIDTH), np.float32)
    vectors[3, 4] = np.nan
    save_file({"vectors": vectors}, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-9])
    words = ("truncated",) if damage == "truncated" else ("row 3", "column 4")
    ran = run(capsys, "sign", planted, "--fit", "sampled", "--calibration", file)
    assert_one_error(ran, 2, "calibration.safetensors", *words)


# Files and streams.


@pytest.mark.parametrize("command", ANALYSES)
def test_show_renders_a_saved_result_alike(command, planted, tmp_path, capsys):
    files = [tmp_path / "x.json"] + ([tmp_path / "x.safetensors"] if command == "sign" else [])
    for file in files:
        for more in ((), ("-v",), ("--format", "json")):
            first = run(capsys, command, planted, "-q", "-o", file, *more)
            assert (first.code, first.err) == (0, "")
            again = run(capsys, "show", file, "-q", *more)
            assert (again.code, again.err) == (0, "")
            assert again.out == first.out
    if command == "sign":
        assert (
            run(capsys, "show", files[0], "--format", "json").out
            == run(capsys, "show", files[1], "--format", "json").out
        )


def test_show_needs_neither_the_model_nor_numpy(planted, tmp_path):
    assert ckpt("layers", planted, "-o", tmp_path / "x.json").returncode == 0
    done = ckpt("show", tmp_path / "x.json", cwd=tmp_path)
    assert done.returncode == 0
    assert "explosion" in done.stdout


@pytest.mark.parametrize("command", ANALYSES)
def test_stdout_has_results_only(command, planted, tmp_path, capsys):
    quiet = run(capsys, command, planted, "-q")
    saved = run(capsys, command, planted, "-o", tmp_path / "x.json")
    assert (quiet.code, quiet.err) == (0, "")
    assert saved.out == quiet.out
    assert str(tmp_path / "x.json") in saved.err
    assert run(capsys, command, planted, "-q", "-o", tmp_path / "x.json").err == ""
    assert run(capsys, command, planted, "--no-progress").out == quiet.out


def test_errors_are_told_even_when_quiet(tmp_path, capsys):
    assert_one_error(run(capsys, "sign", tmp_path, "-q"), 3)


def test_an_older_result_is_replaced_as_a_whole(planted, tmp_path, capsys):
    file = tmp_path / "x.json"
    file.write_text("x" * 1_000_000)
    assert run(capsys, "inspect", planted, "-o", file).code == 0
    assert json.loads(file.read_text())["kind"] == "inspect"
    assert os.listdir(tmp_path) == ["x.json"]


def test_where_nothing_can_be_written(planted, tmp_path, capsys):
    for command in ANALYSES:
        target = tmp_path / "missing" / "x.json"
        assert_one_error(run(capsys, command, planted, "-q", "-o", target), 2, "cannot write")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("command", ANALYSES)
def test_the_checkpoint_is_never_overwritten(command, name, tmp_path, capsys):
    model = Model.llama(tmp_path / "model")
    before = (model.path / name).read_bytes()
    link = tmp_path / ("link" + Path(name).suffix)
    link.symlink_to(model.path / name)
    for target in (model.path / name, link):
        for named in (model.path, model.weights):
            assert_one_error(run(capsys, command, named, "-o", target), 4)
    assert (model.path / name).read_bytes() == before
    assert link.is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="shell redirections of POSIX")
class TestStreams:
    @pytest.mark.parametrize("command", ["inspect", "layers"])
    def test_a_reader_that_stops_early(self, command, planted, tmp_path):
        """More output than a pipe holds, so that the writer does notice."""
        config = json.loads((planted / "config.json").read_text())
        model = Model(tmp_path / "model", _many_tensors(planted), config)
        line = f'"{sys.executable}" -m ckptforensics {command} "{model.path}" -v'
        script = f"{line} | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stderr == ""
        assert done.stdout.splitlines()[0].startswith("model ")
        assert done.stdout.splitlines()[1] == "0"

    def test_a_reader_that_is_gone(self, planted):
        line = f'"{sys.executable}" -m ckptforensics sign "{planted}"'
        done = subprocess.run(
            ["bash", "-c", f"{line} | true; echo ${{PIPESTATUS[0]}}"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("0\n", "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_a_full_disk(self, planted):
        with open("/dev/full", "w") as full:
            done = ckpt("sign", planted, capture_output=False, stdout=full, stderr=-1)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "No space left" in done.stderr
        assert "internal error" not in done.stderr

    def test_a_closed_stdout(self, planted, tmp_path):
        line = f'"{sys.executable}" -m ckptforensics sign "{planted}" -q -o x.json >&-'
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads((tmp_path / "x.json").read_text())["explosion"] == [3]

    def test_an_encoding_without_box_characters(self, planted):
        done = ckpt("sign", planted, env={"PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"explosion +3", done.stdout)

    def _on_a_terminal(self, columns: int, *arguments: object, **environment: str) -> str:
        """What the command writes to a terminal of this width."""
        import pty

        primary, secondary = pty.openpty()
        variables = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        variables |= {"COLUMNS": str(columns), "TERM": "xterm-256color"}
        variables |= {"OPENBLAS_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(
            [sys.executable, "-m", "ckptforensics", *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=secondary, stderr=subprocess.PIPE, env=variables,
        )  # fmt: skip
        os.close(secondary)
        chunks = []
        try:
            while chunk := os.read(primary, 65536):
                chunks.append(chunk)
        except OSError:  # how Linux ends a terminal whose other side has closed
            pass
        os.close(primary)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 0
        return b"".join(chunks).decode().replace("\r\n", "\n")

    def test_colour_only_on_a_terminal_and_never_against_no_color(self, planted):
        assert "\x1b[" in self._on_a_terminal(120, "sign", planted)
        assert "\x1b" not in self._on_a_terminal(120, "sign", planted, NO_COLOR="1")
        assert "\x1b" not in ckpt("sign", planted).stdout
        plain = self._on_a_terminal(100, "sign", planted, NO_COLOR="1")
        assert plain == ckpt("sign", planted).stdout

    def test_a_wide_terminal_is_used(self, planted):
        wide = self._on_a_terminal(180, "inspect", planted, NO_COLOR="1")
        assert "weight 1" in wide.splitlines()[-2]

    @pytest.mark.parametrize(
        "command",
        ["sign", "layers", "norms", "inspect"],
    )
    def test_a_narrow_terminal_loses_no_number(self, command, planted):
        """At 40 columns some columns are left out; what is there is there in full."""
        narrow = self._on_a_terminal(40, command, planted, NO_COLOR="1")
        assert "…" not in narrow
        full = ckpt(command, planted).stdout
        number = r"(?<![\w.])[-+]?[\d,]*\d(?:\.\d+)?(?:e[-+]\d+)?(?![\w.])"
        found = set(re.findall(number, re.sub(r"\(too narrow for.*\)", "", narrow)))
        assert found <= set(re.findall(number, full))
        assert "(too narrow for: " in narrow or command == "layers"
        assert len(found) > 10


def _many_tensors(planted: Path) -> dict[str, np.ndarray]:
    """The planted model's names with enough other components that a list of them is long."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(planted / "model.safetensors")
    arrays = {n: t.to(torch.float32).numpy() for n, t in tensors.items()}
    other = {f"vision.block.{i}.weight": np.ones(1, np.float32) for i in range(3_000)}
    return {**arrays, **other}


# Tokens.


def tokens_of(capsys: Any, planted: Path, specification: str | None, *more: object) -> list[Any]:
    options = () if specification is None else ("--tokens", specification)
    document = as_json(capsys, "norms", planted, *options, *more)
    count = len(document["tokens"])
    assert len(document["norms"]) == len(document["embedding_norms"]) == count
    assert all(len(row) == LAYERS for row in document["norms"])
    assert document["median"] == pytest.approx(np.median(document["norms"], axis=0), rel=1e-12)
    tokens: list[Any] = document["tokens"]
    return tokens


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ("bos", [0]),
        ("all", list(range(VOCABULARY))),
        ("5", [5]),
        ("1,200,30", [1, 200, 30]),
        (" 7 , 3 ", [7, 3]),
        ("0,255", [0, 255]),
        ("bos,9,bos,9,0", [0, 9]),
        ("9,all", [9, *(i for i in range(VOCABULARY) if i != 9)]),
        ("007", [7]),
    ],
)
def test_tokens_are_those_asked_for(specification, expected, planted, capsys):
    assert tokens_of(capsys, planted, specification) == expected


def test_random_tokens_are_different_ones_of_the_vocabulary(planted, capsys):
    tokens = tokens_of(capsys, planted, "random:40")
    assert len(set(tokens)) == len(tokens) == 40
    assert set(tokens) <= set(range(VOCABULARY))
    assert tokens_of(capsys, planted, "random:40") == tokens
    assert tokens_of(capsys, planted, "random:40", "--seed", 1) != tokens
    assert sorted(tokens_of(capsys, planted, "random:9999")) == list(range(VOCABULARY))
    assert set(tokens_of(capsys, planted, "bos,random:5,77")) >= {0, 77}


def test_by_default_the_first_token_and_a_sample(planted, capsys):
    tokens = tokens_of(capsys, planted, None)
    assert tokens[0] == 0
    assert len(tokens) == VOCABULARY


def test_random_embeddings_are_tokens_without_id(planted, capsys):
    assert tokens_of(capsys, planted, None, "--random-embeddings", 3) == [None] * 3
    assert tokens_of(capsys, planted, "4,5", "--random-embeddings", 2) == [4, 5, None, None]


def test_the_order_of_tokens_does_not_change_their_norms(planted, capsys):
    one = as_json(capsys, "norms", planted, "--tokens", "9,200,3")
    every = as_json(capsys, "norms", planted, "--tokens", "all")
    for token, row in zip(one["tokens"], one["norms"], strict=True):
        assert row == pytest.approx(every["norms"][token], rel=1e-5)


@pytest.mark.parametrize(
    "specification",
    ["256", "-1", "1.5", "x", "bos;all", "random", "random:", "random:-1", "random:x", "all:3",
     "1,,2", ",", "1e3", "0x10", "random:0", "99999999999999999999", "\x1b[31m\n", "²", "one",
     "9" * 5000,
     "random:" + "9" * 5000],
)  # fmt: skip
def test_tokens_that_do_not_exist(specification, planted, capsys):
    assert_one_error(run(capsys, "norms", planted, "--tokens", specification), 4)


def test_bos_where_the_checkpoint_names_none(planted, tmp_path, capsys):
    config = json.loads((planted / "config.json").read_text())
    for bos in (None, -1, "0", [], True):
        (tmp_path / "config.json").write_text(json.dumps({**config, "bos_token_id": bos}))
        options = ("--config", tmp_path / "config.json")
        ran = run(capsys, "norms", planted, *options, "--tokens", "bos")
        assert_one_error(ran, 4, "begin-of-sequence")
        document = as_json(capsys, "norms", planted, *options)
        assert [s["what"] for s in document["skipped"]] == ["bos"]


def test_states_are_what_the_norms_are_of(planted, tmp_path, capsys):
    file = tmp_path / "x.npz"
    document = as_json(
        capsys, "norms", planted, "--tokens", "bos,7,200", "--random-embeddings", 1,
        "--states", "-o", file,
    )  # fmt: skip
    with np.load(file) as saved:
        assert saved.files == ["states"]
        states = saved["states"]
    assert states.shape == (4, LAYERS, WIDTH)
    assert states.dtype == np.float32
    assert np.linalg.norm(states.astype(np.float64), axis=2) == pytest.approx(
        np.array(document["norms"]), rel=1e-6
    )
    # The planted explosion: after layer 3 tokens are long, after layer 7 they are not.
    median = np.median(np.linalg.norm(states, axis=2), axis=0)
    assert median[2] > 5 * median[1]
    assert median[6] < median[5] / 2
    assert os.listdir(tmp_path) == ["x.npz"]


def test_without_attention_the_path_is_another(planted, capsys):
    one = as_json(capsys, "norms", planted, "--tokens", "3")
    other = as_json(capsys, "norms", planted, "--tokens", "3", "--no-attention")
    assert (one["attention"], other["attention"]) == (True, False)
    assert one["embedding_norms"] == other["embedding_norms"]
    assert one["norms"] != other["norms"]
    table = run(capsys, "norms", planted, "--tokens", "3", "--no-attention", "-q").out
    assert "no attention" in table


# The library behind the command.


@pytest.mark.parametrize("command", ANALYSES)
def test_the_documented_function_gives_the_same_document(command, planted, capsys):
    functions = {
        "sign": lambda: ckptforensics.sign(planted).document,
        "layers": lambda: ckptforensics.find_layers(planted),
        "norms": lambda: ckptforensics.rollout(planted).document,
        "inspect": lambda: ckptforensics.inspect(planted),
    }
    document = json.loads(functions[command]().model_dump_json())
    assert document == as_json(capsys, command, planted)


def test_every_public_name_exists():
    for name in ckptforensics.__all__:
        assert getattr(ckptforensics, name) is not None
    assert (Path(ckptforensics.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError):
        _ = ckptforensics.nosuch


def test_an_empty_name_is_no_model(capsys):
    """An empty path would be the directory one happens to be in."""
    for command in ("sign", "inspect", "layers", "norms"):
        assert_one_error(run(capsys, command, ""), 4, "MODEL is empty")
    assert_one_error(run(capsys, "compare", "", "b"), 4, "MODEL is empty")


def test_show_reads_a_pipe(planted, capsys, monkeypatch):
    printed = run(capsys, "inspect", planted, "--format", "json").out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
    shown = run(capsys, "show", "-")
    assert shown.code == 0
    assert shown.out == run(capsys, "inspect", planted).out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"no JSON")))
    assert_one_error(run(capsys, "show", "-"), 2, "not a saved result")


def test_a_saved_file_holds_what_its_name_says(planted, tmp_path, capsys):
    seed0 = planted.parent / "zoo" / "seed0"
    pages = {}
    for name in ("pair.json", "pair.html", "pair.csv"):
        ran = run(capsys, "compare", "--fast", seed0, seed0, "-o", tmp_path / name)
        assert ran.code == 0
        pages[name] = (tmp_path / name).read_text()
    assert json.loads(pages["pair.json"])["kind"] == "comparison"
    assert pages["pair.html"].lstrip().lower().startswith("<!doctype html>")
    assert pages["pair.csv"].startswith("a,b,verdict")
    for name in ("pair.txt", "pair.safetensors"):
        ran = run(capsys, "compare", "--fast", seed0, seed0, "-o", tmp_path / name)
        assert_one_error(ran, 4, "saved as .json")
        assert not (tmp_path / name).exists()
    assert_one_error(run(capsys, "inspect", planted, "-o", tmp_path / "x.html"), 4, ".json")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_option_takes_what_is_no_number(value):
    numbers = [
        option
        for command in commands().values()
        for option in options(command)
        if isinstance(option.type, click.types.FloatParamType)
    ]
    assert len(numbers) >= 6
    for option in numbers:
        with pytest.raises(click.BadParameter):
            option.type.convert(value, option, None)
