"""The GitHub Action and the pre-commit hook: valid by their schemas, and run as far as it goes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema.validators import validator_for

from ckptforensics.render import formats_of

ROOT = Path(__file__).resolve().parents[1]
OFFICIAL = ROOT / "tests" / "render" / "official"
SAVED = ROOT / "tests" / "results" / "old" / "audit-1.0.json"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def test_the_action_is_one():
    schema = json.loads((OFFICIAL / "github-action.json").read_text())
    validator_for(schema)(schema).validate(ACTION)
    assert set(ACTION["inputs"]) >= {"sources", "fail-on", "format", "output"}
    for step in ACTION["runs"]["steps"]:
        # What a workflow hands in is data: in a script it would be code.
        assert "${{" not in step["run"]
        assert "uses" not in step


@pytest.fixture
def action(tmp_path):
    """Runs the action's last step where `ckpt audit` saves a result and ends with a code."""
    ckpt = tmp_path / "bin" / "ckpt"
    ckpt.parent.mkdir()
    ckpt.write_text(
        f"""#!/usr/bin/env bash
printf '%s\\n' "$@" >> "$CALLS"
if [ "$1" = audit ]; then
  [ "$CODE" = 2 ] || cp {SAVED} "$FOLDER/audit.json"
  exit "$CODE"
fi
exec {sys.executable} -m ckptforensics "$@"
"""
    )
    ckpt.chmod(0o755)
    script = ACTION["runs"]["steps"][-1]["run"]

    def run(code: int, **inputs: str) -> subprocess.CompletedProcess[str]:
        given = {
            "SOURCES": ".",
            "FAIL_ON": "error",
            "FORMATS": "html",
            "CATALOG": "",
            "FOLDER": str(tmp_path / "out"),
        }
        files = {
            name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "CALLS")
        }
        path = f"{ckpt.parent}:{os.environ['PATH']}"
        environment = {**os.environ, **given, **inputs, **files, "CODE": str(code), "PATH": path}
        return subprocess.run(
            # As GitHub calls it for `shell: bash`.
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_action_writes_what_it_is_asked_for_and_keeps_the_exit_code(action, tmp_path):
    forms = [form for form in formats_of("audit") if form != "json"]
    ran = action(1, FORMATS=" ".join(forms), SOURCES="a b\n\n  $(touch x)  \n", CATALOG="c.db")
    assert ran.returncode == 1, ran.stderr
    calls = (tmp_path / "CALLS").read_text().splitlines()
    out = str(tmp_path / "out" / "audit.json")
    expected = ["audit", "--fail-on", "error", "-o", out, "--catalog", "c.db", "--", "a b"]
    assert calls[: len(expected) + 1] == [*expected, "$(touch x)"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("audit.json", "audit.txt", "audit.jsonl", "audit.csv", "audit.md", "audit.sarif"),
        *("audit.cdx.json", "audit.intoto.jsonl", "audit.html"),
    }
    assert (tmp_path / "GITHUB_STEP_SUMMARY").read_text().startswith("# Audit of ")
    told = dict(line.split("=") for line in (tmp_path / "GITHUB_OUTPUT").read_text().splitlines())
    assert told["exit-code"] == "1"
    assert json.loads(Path(told["sarif"]).read_text())["version"] == "2.1.0"


def test_the_action_fails_where_there_is_no_result(action, tmp_path):
    ran = action(2)
    assert ran.returncode == 2
    assert (tmp_path / "GITHUB_OUTPUT").read_text() == "exit-code=2\n"


def test_the_hook_is_one_and_runs_on_weights_and_cards():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["id"], hook["language"], hook["entry"]) == ("ckpt-audit", "python", "ckpt audit")
    files = re.compile(hook["files"])
    for name in ("m/model-00001-of-00002.safetensors", "x.gguf", "a/config.json", "a/README.md"):
        assert files.search(name), name
    for name in ("src/main.py", "a/my_config.json", "docs/OLDREADME.md", "x.gguf.txt"):
        assert not files.search(name), name
