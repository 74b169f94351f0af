"""Models that are read on another machine than the one that lists them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptforensics.errors import CkptError
from ckptforensics.jobs.memory import default_memory
from ckptforensics.jobs.processes import Job, Processes
from ckptforensics.registry import worker
from ckptforensics.registry.audit import audit
from ckptforensics.registry.code import reading_code
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.reading import Reading
from ckptforensics.registry.request import ReadingRequest
from ckptforensics.registry.stores.listing import list_models


def read(planted: Path, folder: Path, capsys: Any, change: Any) -> tuple[Reading, list[str]]:
    """What a worker reads of the model, whose files are listed in changed states; these states."""
    (found,) = list_models([str(planted)], offline=True).models
    files = tuple(replace(file, changed=change(file.changed)) for file in found.files)
    request = ReadingRequest(
        found=replace(found, files=files),
        memory=10**9,
        catalog=None,
        signature="0.safetensors",
        code=reading_code(),
        weights=False,
        elsewhere=True,
    )
    file = folder / "0.json"
    fields = request.model_dump(mode="python") | {"found": asdict(request.found)}
    file.write_text(json.dumps(fields, default=str))
    capsys.readouterr()
    assert worker.main([str(file)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    return Reading.model_validate_json(last), [one.changed for one in files]


def test_another_machine_has_other_numbers_for_devices(planted, tmp_path, capsys):
    reading, listed = read(planted, tmp_path, capsys, lambda s: "987654:" + s.partition(":")[2])
    assert reading.stumbles == ()
    assert all(file.sha256 for file in reading.files)
    assert [file.changed for file in reading.files] == listed


def test_a_file_that_is_another_there_is_told(planted, tmp_path, capsys):
    reading, _ = read(planted, tmp_path, capsys, lambda state: state + "1")
    assert reading.stumbles
    assert not any(file.sha256 for file in reading.files)


def test_a_model_that_takes_workers_down_is_a_finding_and_the_others_are_read(planted, tmp_path):
    for name in ("bad", "good"):
        (tmp_path / "models" / name).mkdir(parents=True)
        for file in planted.iterdir():
            (tmp_path / "models" / name / file.name).write_bytes(file.read_bytes())

    def run(jobs: Sequence[Job]) -> Iterator[Job]:
        if not jobs:  # pairs to compare
            return
        (bad,) = (job for job in jobs if job.model.endswith("bad"))
        assert bad.needs == [str(tmp_path / "models" / "bad")]
        assert json.loads(bad.sends[0].read_text())["catalog"] is None
        bad.problem = CkptError("the worker that read it was lost 3 times")
        yield bad
        yield from Processes(1, default_memory()).run([job for job in jobs if job is not bad])

    somewhere: Any = SimpleNamespace(run=run)
    options = AuditOptions(
        catalog=tmp_path / "c.db", weights=False, offline=True, elsewhere=somewhere
    )
    document = audit([str(tmp_path / "models")], options)
    states = {model.name: model.state for model in document.models}
    assert states == {"bad": "unread", "good": "headers"}
    told = {f.rule: f for f in document.findings if f.model == "bad"}
    assert "lost 3 times" in told["CKPT017"].message
    assert "lost 3 times" in told["CKPT015"].evidence[0]


@pytest.fixture
def planted() -> Path:
    return Path(__file__).resolve().parents[2] / "fixtures" / "planted"
