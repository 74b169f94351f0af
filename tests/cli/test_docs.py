"""docs/command-line.md against the command line: complete, true and runnable."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from safetensors.numpy import save_file

from ckptforensics.cli.main import cli
from tests.support import commands as commands_here
from tests.support.adapters import base_tensors, low_rank, write_adapter

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "command-line.md").read_text()
COMMON = "Options of every command"
# Commands whose options have one more section in common.
RUN = ("trace", "empirical", "paths", "ablate", "sinks", "replicate", "report", "quant")
RUNNING = "Running the model"


def commands() -> dict[str, click.Command]:
    context = click.Context(cli, info_name="ckpt")
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def options(command: click.Command) -> list[click.Option]:
    """Of the command, and of the commands below it."""
    # With the group's settings: a command keeps the first help option that it was asked for.
    context = click.Context(command, help_option_names=["-h", "--help"])
    found = [p for p in command.get_params(context) if isinstance(p, click.Option)]
    if isinstance(command, click.Group) and command is not cli:
        below = [command.get_command(context, name) for name in command.list_commands(context)]
        found += [option for one in below if one is not None for option in options(one)]
    return found


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    assert found, f"docs/command-line.md has no section '{title}'"
    return found[1]


def environment(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("_CKPT_COMPLETE", "CKPT_TRACEBACK")}
    return {**clean, **more}


def ckpt(*words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ckptforensics", *words],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", list(commands()))
def test_every_command_has_help_and_a_section(name):
    command = commands()[name]
    assert command.help
    assert command.get_short_help_str(200).endswith(".")
    assert f"ckpt {name}" in section(f"ckpt {name}").replace("`", "")


@pytest.mark.parametrize("name", list(commands()))
def test_every_option_has_help_and_is_documented(name):
    text = section(f"ckpt {name}") + section(COMMON) + section("ckpt")
    text += section(RUNNING) if name in RUN else ""
    for option in options(commands()[name]):
        assert option.help, option.opts
        for flag in (*option.opts, *option.secondary_opts):
            assert re.search(rf"`{re.escape(flag)}[` ]", text), f"{flag} of ckpt {name}"


def test_options_of_the_group_are_documented():
    for option in options(cli):
        for flag in option.opts:
            assert f"`{flag}`" in section("ckpt")


def test_nothing_is_documented_that_does_not_exist():
    known = {flag for c in (cli, *commands().values()) for o in options(c) for flag in o.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) <= known
    assert set(re.findall(r"^## ckpt (\w+)$", TEXT, re.M)) == set(commands())


def test_help_of_the_group_and_of_the_command_agree():
    printed = dict(re.findall(r"^  (\w+) +(\S.*)$", ckpt("--help").stdout, re.M))
    for name, command in commands().items():
        help_text = " ".join((command.help or "").split())
        # The group's line may be shorter; it must not say something else.
        assert help_text.split()[:3] == printed[name].split()[:3], name


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where the examples can run: the fixtures, and calibration vectors."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "fixtures").symlink_to(ROOT / "fixtures")
    vectors = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    save_file({"vectors": vectors}, folder / "calibration.safetensors")
    modules = ["model.layers.2.mlp.down_proj"]
    write_adapter(folder / "adapter", low_rank(base_tensors(ROOT / "fixtures/planted"), modules))
    return folder


def examples() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def test_examples_run_in_their_order(playground):
    names = set()
    for line in examples():
        words = shlex.split(line)
        if words[0] == "python":
            words = words[2:]
        names.add(words[1])
        done = commands_here.ckpt(*words[1:], cwd=playground, CKPT_CACHE="cache")
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert done.stdout, line
    assert set(commands()) <= names


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell):
    done = ckpt(_CKPT_COMPLETE=f"{shell}_source")
    assert done.returncode == 0, done.stderr
    assert f"_CKPT_COMPLETE={shell}_complete" in done.stdout
    assert "_ckpt_completion" in done.stdout
    assert f"_CKPT_COMPLETE={shell}_source" in section("Shell completion")


def test_completion_of_commands_and_options():
    def completed(*words: str) -> set[str]:
        line = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        printed = ckpt(_CKPT_COMPLETE="bash_complete", **line).stdout.split()
        return {word.partition(",")[2] for word in printed}

    assert completed("ckpt", "s") == {"sign", "show", "sinks", "sketch", "serve"}
    assert completed("ckpt", "sign", "--fi") == {"--fit"}
    assert completed("ckpt", "sign", "--fit", "p") == {"paper"}


def test_environment_variables_are_documented():
    names = set()
    for file in (ROOT / "ckptforensics").rglob("*.py"):
        names |= set(re.findall(r"environ\.get\(\"(\w+)\"", file.read_text()))
    assert names
    assert {name for name in names if f"`{name}`" not in section("Environment variables")} == set()


def test_python_examples_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", section("From Python"), re.S)
    assert blocks
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for block in blocks:
        test = doctest.DocTestParser().get_doctest(block, {}, "docs/command-line.md", None, 0)
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", ["open_checkpoint", "sign", "find_layers", "rollout", "inspect"])
def test_signatures_in_the_table_of_functions_are_true(name):
    import inspect as introspection

    import ckptforensics

    shown = re.search(rf"`{name}\((.*?)\)`", section("From Python"))
    assert shown
    parameters = introspection.signature(getattr(ckptforensics, name)).parameters.values()
    expected = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in parameters
        if p.name != "progress"
    ]
    assert shown[1] == ", ".join(expected)
