"""`ckpt audit`, `catalog` and `explain` as their users run them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ckpt
from tests.support.registry import HOSTILE, RELATED, build

NAMES = ("honest", "remote-code", "template", "pickle")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry that was audited once; its catalog is what other audits begin with."""
    folder = tmp_path_factory.mktemp("audited")
    build(folder / "models", tuple(row for row in HOSTILE if row.name in NAMES))
    done = ckpt("audit", "models", "--catalog", "models.db", "-q", cwd=folder)
    assert done.returncode == 1, done.stderr
    return folder


@pytest.fixture
def here(audited: Path, tmp_path: Path) -> Path:
    """A folder with that catalog, and the models where they were."""
    for name in ("models.db", "models.db.arrays"):
        source = audited / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    return tmp_path


def run(here: Path, audited: Path, *options: object) -> Any:
    return ckpt("audit", audited / "models", "--catalog", "models.db", *options, cwd=here)


def document(here: Path, audited: Path, *options: object) -> dict[str, Any]:
    done = run(here, audited, "--format", "json", "-q", *options)
    return dict(json.loads(done.stdout))


def test_nothing_that_is_unchanged_is_read_again(here, audited):
    # The listing's source is another name for the same place, so nothing has to be read.
    found = document(here, audited)
    assert found["coverage"]["reused"] == len(NAMES)
    assert found["coverage"]["signed"] == 3
    rules = {(f["model"], f["rule"]) for f in found["findings"]}
    assert rules == {
        ("remote-code", "CKPT009"),
        ("template", "CKPT010"),
        ("pickle", "CKPT011"),
        ("pickle", "CKPT015"),
    }


def test_what_has_changed_is_read_again_and_only_that(here, audited, tmp_path):
    models = tmp_path / "copy"
    shutil.copytree(audited / "models", models)
    options = ("--catalog", "models.db", "--format", "json", "-q")
    first = json.loads(ckpt("audit", models, *options, cwd=here).stdout)
    assert first["coverage"]["reused"] == 0
    config = models / "remote-code" / "config.json"
    said = json.loads(config.read_text())
    del said["auto_map"]
    config.write_text(json.dumps(said))
    shutil.rmtree(models / "template")
    second = json.loads(ckpt("audit", models, *options, cwd=here).stdout)
    assert second["coverage"]["reused"] == 2
    assert second["coverage"]["vanished"] == 1
    findings = {(f["model"], f["rule"]) for f in second["findings"]}
    assert ("remote-code", "CKPT009") not in findings
    assert ("template", "CKPT015") in findings
    # What it was is not forgotten because it is gone.
    stands = [f for f in second["findings"] if f["model"] == "template" and not f["checked"]]
    assert [f["rule"] for f in stands] == ["CKPT010"]
    with sqlite3.connect(here / "models.db") as db:
        rows = db.execute(
            "SELECT models.name, rule, findings.state FROM findings "
            "JOIN models ON model = models.id WHERE models.path LIKE ?",
            (f"{models}%",),
        )
        states = {(name, rule): state for name, rule, state in rows}
    assert states["remote-code", "CKPT009"] == "fixed"
    assert states["template", "CKPT010"] == "not checked"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), 1),
        (("--fail-on", "never"), 0),
        (("--fail-on", "note"), 1),
        (("--strict", "--fail-on", "never"), 2),
    ],
)
def test_exit_codes(here, audited, options, code):
    assert run(here, audited, "-q", *options).returncode == code


def test_nothing_read_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    done = ckpt("audit", "empty", "--catalog", "c.db", cwd=tmp_path)
    assert done.returncode == 3
    assert "nothing was read" in done.stderr
    assert ckpt("audit", "gone", "--catalog", "c.db", cwd=tmp_path).returncode == 4
    assert ckpt("audit", "--catalog", "c.db", cwd=tmp_path).returncode == 4


def test_policy_and_baseline(here, audited):
    today = datetime.now(UTC).date()
    later, before = today + timedelta(9), today - timedelta(9)
    (here / "ckpt.toml").write_text(
        "ignore = ['CKPT015']\n[severity]\nCKPT009 = 'note'\n"
        f"[[suppressions]]\nrule='CKPT010'\nmodel='templ*'\nreason='known'\nexpires={later}\n"
        f"[[suppressions]]\nrule='CKPT011'\nmodel='pickle'\nreason='old'\nexpires={before}\n"
        f"[[suppressions]]\nrule='CKPT001'\nmodel='none'\nreason='unused'\nexpires={later}\n"
    )
    found = document(here, audited)
    by_rule = {f["rule"]: f for f in found["findings"]}
    assert by_rule["CKPT010"]["suppressed"] == "known"
    assert by_rule["CKPT011"]["suppressed"] is None
    assert by_rule["CKPT009"]["severity"] == "note"
    assert "CKPT015" not in by_rule
    said = sorted(f["message"] for f in found["findings"] if f["rule"] == "CKPT018")
    assert len(said) == 2
    assert "suppresses nothing" in said[0]
    assert "expired" in said[1]
    (here / "last.json").write_text(json.dumps(found))
    again = document(here, audited, "--baseline", "last.json")
    assert all(f["known"] for f in again["findings"])
    assert run(here, audited, "-q", "--baseline", "last.json", "--fail-on", "note").returncode == 0


def test_every_form_at_once_and_by_its_ending(here, audited):
    assert run(here, audited, "-o", "out", "-q").returncode == 1
    names = {file.name for file in (here / "out").iterdir()}
    assert {"audit.json", "audit.csv", "audit.html", "audit.sarif", "audit.md"} <= names
    assert run(here, audited, "-o", "one.sarif", "-q").returncode == 1
    assert json.loads((here / "one.sarif").read_text())["version"] == "2.1.0"
    assert run(here, audited, "-o", "one.pdf", "-q").returncode == 4
    shown = ckpt("show", "out/audit.json", "--format", "csv", cwd=here)
    assert shown.stdout == (here / "out" / "audit.csv").read_bytes().decode()


def test_a_plan_reads_nothing(here, audited):
    plan = json.loads(run(here, audited, "--plan", "--format", "json").stdout)
    assert plan["models"] == len(NAMES)
    assert plan["files_known"] == plan["files"] > 0
    assert plan["seconds"] is not None
    assert "models" in run(here, audited, "--plan").stdout


def test_explained(here, audited):
    rows = ckpt("explain").stdout.splitlines()
    assert rows[0].startswith("CKPT001")
    assert "## How to resolve" in ckpt("explain", "ckpt011").stdout
    finding = next(f for f in document(here, audited)["findings"] if f["rule"] == "CKPT011")
    told = ckpt("explain", finding["id"][:8], "--catalog", "models.db", cwd=here).stdout
    assert finding["message"] in told
    assert "# CKPT011" in told
    for what in ("CKPT999", "zzz", "0000000000000000"):
        assert ckpt("explain", what, "--catalog", "models.db", cwd=here).returncode == 4


def test_a_catalog_is_exported_and_imported(here, audited):
    listed = json.loads(
        ckpt("catalog", "list", "--catalog", "models.db", "--format", "json", cwd=here).stdout
    )
    signed = [m for m in listed["models"] if m["state"] == "signed"]
    done = ckpt("catalog", "export", "roots.zip", "--catalog", "models.db", cwd=here)
    assert done.returncode == 0, done.stderr
    done = ckpt(
        "catalog", "import", "roots.zip", "--catalog", "other.db", "--format", "json", cwd=here
    )
    taken = json.loads(done.stdout)
    assert taken["states"]["signed"] == len(signed)
    again = ckpt("catalog", "export", "again.zip", "--catalog", "other.db", cwd=here)
    assert again.returncode == 0
    assert (here / "again.zip").read_bytes() == (here / "roots.zip").read_bytes()
    assert ckpt("catalog", "vacuum", "--catalog", "other.db", cwd=here).returncode == 0
    data = bytearray((here / "roots.zip").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (here / "bad.zip").write_bytes(data)
    done = ckpt("catalog", "import", "bad.zip", "--catalog", "third.db", cwd=here)
    assert done.returncode == 2
    assert "bad.zip" in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_writer_at_a_time(here, audited):
    from ckptforensics.registry.catalog.writer import open_writer

    with open_writer(here / "models.db"):
        done = run(here, audited, "-q")
    assert done.returncode == 4
    assert "another process" in done.stderr


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"x" * 100, b"text"])
def test_no_catalog(tmp_path, content):
    (tmp_path / "c.db").write_bytes(content)
    done = ckpt("catalog", "list", "--catalog", "c.db", cwd=tmp_path)
    assert done.returncode == 2
    assert "no catalog" in done.stderr


def test_a_catalog_serves_audits_started_elsewhere(tmp_path):
    """Catalogued by a relative path, compared from another directory."""
    related = [row for row in RELATED if row.name in ("zoo/seed0", "lies/silent")]
    for row in related:
        build(tmp_path / row.name.replace("/", "-"), (row,))
    catalog = ("--catalog", tmp_path / "c.db", "-q", "--level", "fast", "--format", "json")
    (tmp_path / "elsewhere").mkdir()
    ckpt("audit", "zoo-seed0", *catalog, cwd=tmp_path)
    done = ckpt("audit", "../lies-silent", *catalog, cwd=tmp_path / "elsewhere")
    document = json.loads(done.stdout)
    assert document["coverage"]["pairs"] == 1
    assert [r["name"] for r in document["models"][0]["relatives"]] == ["zoo/seed0"]
