"""`ckpt sign` with several models."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptforensics.cli.main import main
from ckptforensics.jobs import processes
from ckptforensics.jobs.processes import Job, run_jobs

PLANTED = Path(__file__).parents[2] / "fixtures" / "planted"


def test_one_document_a_line(capsys, tmp_path: Path):
    folder = tmp_path / "signatures"
    arguments = [str(PLANTED), str(PLANTED), "--jobs", "2", "--format", "json", "--no-cache"]
    assert main(["sign", *arguments, "--output", str(folder)]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [d["kind"] for d in documents] == ["signature"] * 2
    assert documents[0]["fingerprint"] == documents[1]["fingerprint"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "planted-2.safetensors",
        "planted.safetensors",
    ]
    # As if it had been signed alone.
    assert main(["sign", str(PLANTED), "--format", "json", "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out) == documents[0]


def test_one_that_fails_keeps_no_other_from_it(capsys, tmp_path: Path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    models = [str(tmp_path / "missing"), str(PLANTED), str(broken)]
    code = main(["sign", *models, "--no-cache"])
    printed = capsys.readouterr()
    assert code == 4
    assert printed.out.count("cf1-") == 1
    errors = [line for line in printed.err.splitlines() if line.startswith("ckpt: error: ")]
    assert len(errors) == 2
    assert "missing" in errors[0]
    assert "broken.safetensors" in errors[1]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--config", str(PLANTED / "config.json")], "--config is of one model"),
        (["--output", str(PLANTED / "config.json")], "need a folder"),
        (["--memory", "a lot"], "is no size"),
        (["--memory", "-1GB"], "is no size"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_what_cannot_be_meant(capsys, extra: list[str], said: str):
    assert main(["sign", str(PLANTED), str(PLANTED), *extra]) == 4
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("1.5GiB", 3 << 29), ("500m", 5 * 10**8), ("64", 64)]
)
def test_sizes(text: str, size: int):
    assert processes.memory_size(None, None, text) == size


class _Slow(Job):
    """A job whose process only sleeps."""

    def start(self, options, environment) -> None:
        code = f"import time; time.sleep({self.model})"
        self.process = subprocess.Popen([sys.executable, "-c", code])


def test_memory_and_number_are_kept():
    """However long each takes, those that run together need no more than is allowed."""
    seen = []

    class Watched(_Slow):
        def start(self, options, environment) -> None:
            running = [job for job in watched if job.running]
            seen.append((len(running) + 1, self.memory + sum(job.memory for job in running)))
            super().start(options, environment)

    watched = [Watched(s, memory=m) for s, m in (("0.3", 60), ("0.1", 30), ("0.2", 60))]
    ended = list(run_jobs(watched, [], at_once=2, memory=100))
    assert [job.model for job in ended] == ["0.3", "0.1", "0.2"]
    assert len(seen) == 3
    assert max(count for count, _ in seen) == 2
    assert max(memory for _, memory in seen) <= 100


def test_more_than_all_memory_is_a_problem_of_that_model():
    jobs = [_Slow("0", memory=50), _Slow("0", memory=500)]
    ended = list(run_jobs(jobs, [], at_once=2, memory=100))
    assert ended[0].code == 0
    assert ended[1].code == 4
    assert "allow more with --memory" in ended[1].complaint()


def test_leaving_early_ends_the_others():
    jobs = [_Slow("0", memory=1), _Slow("60", memory=1)]
    begun = time.monotonic()
    running = run_jobs(jobs, [], at_once=2, memory=10)
    next(running)
    running.close()
    assert not jobs[1].running
    assert time.monotonic() - begun < 30
