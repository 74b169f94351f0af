"""How ranges travel: several at a time, gaps closed within a budget, Ctrl-C, moved addresses."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

import ckptforensics
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import CkptError, FormatError, UsageError
from ckptforensics.findings import rollout
from ckptforensics.layers import load_block
from ckptforensics.sources import mirror
from ckptforensics.sources.parallel import Cancelled, Crew
from ckptforensics.sources.ranges import merged, requests, without
from tests.sources.test_hub_containers import (
    equal_signatures,
    needed_tensors,
    wide_tensors,
    write_config,
)
from tests.support.containers import run
from tests.support.hub import REPO, hub_process

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def model(tmp_path: Path, hub: Any) -> Path:
    folder = write_config(tmp_path / "model")
    save_file(wide_tensors(), folder / "model.safetensors")
    hub.add(folder)
    return folder


# Arithmetic of ranges


def covered(ranges: list[tuple[int, int]]) -> set[int]:
    return {i for begin, end in ranges for i in range(begin, end)}


@pytest.mark.parametrize("seed", range(30))
def test_ranges_against_sets_of_numbers(seed, monkeypatch):
    monkeypatch.setattr("ckptforensics.sources.ranges._LONGEST", 50)
    generator = random.Random(seed)

    def some(count: int) -> list[tuple[int, int]]:
        begins = [generator.randrange(1000) for _ in range(count)]
        return [(b, b + generator.choice([0, 1, 3, 40, 200])) for b in begins]

    raw, raw_present = some(12), some(8)
    wanted, present = merged(raw), merged(raw_present)
    assert covered(wanted) == covered(raw)
    lacking = without(wanted, present)
    assert covered(lacking) == covered(raw) - covered(raw_present)
    asked = requests(lacking)
    assert covered(asked) >= covered(lacking)
    assert len(covered(asked)) == sum(e - b for b, e in asked) <= 1.01 * len(covered(lacking))
    assert all(0 < end - begin <= 50 for begin, end in asked)


def test_narrow_gaps_are_closed_first():
    wanted = [(0, 5000), (5090, 8000), (8020, 10000), (10010, 12000)]
    assert requests(wanted) == [(0, 5000), (5090, 12000)]
    wide = [(0, 1 << 23), ((1 << 23) + (1 << 16) + 1, 1 << 24)]
    assert requests(wide) == wide


# Several at a time


def test_requests_are_under_way_at_the_same_time(hub, model):
    hub.delay = 0.02
    found = rollout(REPO)
    # The server takes a little longer to count an answer as given than the client.
    assert 8 <= hub.most_at_once <= mirror._MOST_REQUESTS + 2
    assert np.array_equal(found.document.norms, rollout(model).document.norms)


@pytest.mark.parametrize(("command", "most"), [(ckptforensics.sign, 40), (rollout, 60)])
def test_round_trips(hub, model, command, most):
    """Above 100 and 500 with a request at a time; near 20 and 35, more on a busy machine."""
    command(model)
    begin = time.monotonic()
    command(model)
    own = time.monotonic() - begin
    hub.delay = 0.05
    begin = time.monotonic()
    command(REPO)
    assert (time.monotonic() - begin - own) / hub.delay < most


def test_redirect_is_asked_for_once_a_file(hub, model):
    ckptforensics.sign(REPO)
    large = [r for r in hub.requests("resolve") if r.path.endswith(".safetensors")]
    assert len(large) == 1
    assert len(hub.requests("cdn")) > 10


@pytest.mark.parametrize("status", [403, 404, 410])
def test_address_that_is_no_longer_valid(hub, model, status):
    """Signed addresses of the Hub's storage expire."""
    checkpoint = open_checkpoint(REPO)
    hub.forget()
    hub.fail("cdn", status=status)
    found = checkpoint.store.read(DOWN)
    assert np.array_equal(found, open_checkpoint(model).store.read(DOWN))
    assert [len(hub.requests(r)) for r in ("resolve", "cdn")] == [1, 2]


def test_access_that_ends(hub, model):
    checkpoint = open_checkpoint(REPO)
    hub.fail("cdn", times=1000, status=403)
    with pytest.raises(UsageError, match=r"refuses access .*403.*hf auth login"):
        checkpoint.store.read(DOWN)


def test_token_is_for_the_hub_alone(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ckptforensics.sign(REPO)
    for request in hub.log:
        sent = {name.lower(): value for name, value in request.headers.items()}
        assert sent.get("authorization") == (None if request.route == "cdn" else "Bearer hf_secret")


def test_one_slow_failure_of_many(hub, model):
    """One connection is cut and one answer is 503 while others succeed."""
    hub.delay = 0.01
    checkpoint = open_checkpoint(REPO)
    hub.fail("cdn", times=2, cut=100)
    hub.fail("cdn", times=2, status=503)
    assert equal_signatures(ckptforensics.sign(checkpoint), ckptforensics.sign(model))


def test_file_that_changes_while_ranges_are_under_way(hub, model, tmp_path):
    checkpoint = open_checkpoint(REPO)
    hub.delay = 0.02
    hub.fail("cdn", headers={"ETag": '"other"'})
    with pytest.raises(FormatError, match="changed on the server"):
        rollout(checkpoint)
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join()
    assert not list((tmp_path / "cache").rglob("model.safetensors.ranges.json"))
    assert equal_signatures(ckptforensics.sign(REPO), ckptforensics.sign(model))


def test_connection_that_breaks_when_the_repository_is_asked_for(hub, model):
    hub.fail("api", times=2, status=200, cut=1)
    assert open_checkpoint(REPO).source.remote is not None


# Stopping


def test_cancelled_work_ends_in_an_exception():
    crew = Crew()
    begun = threading.Event()
    never = threading.Event()

    def stuck(stop: threading.Event) -> None:
        begun.set()
        never.wait(60)

    def cancel() -> None:
        begun.wait()
        crew.cancel()

    threading.Thread(target=cancel).start()
    with pytest.raises(Cancelled):
        crew.run([stuck, stuck], 2, lambda: None)
    never.set()


def test_failure_stops_what_waits():
    done = []

    def fails(stop: threading.Event) -> None:
        raise CkptError("no")

    with pytest.raises(CkptError, match="no"):
        Crew().run([fails, *[lambda stop: done.append(1)] * 5], 1, lambda: None)
    assert not done


def test_leaving_does_not_wait_for_the_next_block(hub, model):
    """A failure in the analysis of one block, while the next is being transferred."""
    checkpoint = open_checkpoint(REPO)
    load_block(checkpoint, 1)
    blocks = ckptforensics.layers.stream_blocks(checkpoint)
    hub.delay = 5
    begin = time.monotonic()
    next(blocks)
    blocks.close()
    assert time.monotonic() - begin < 2


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind")
@pytest.mark.usefixtures("default_interrupt")
@pytest.mark.parametrize("command", ["inspect", "sign"])
def test_interrupt_stops_promptly(tmp_path, command):
    """While headers are read, and while blocks are, which the second command begins with."""
    folder = write_config(tmp_path / "model")
    save_file(wide_tensors(), folder / "model.safetensors")
    arguments = [sys.executable, "-m", "ckptforensics", command, REPO]
    if command == "sign":
        with hub_process(folder, tmp_path) as environment:
            subprocess.run(
                [*arguments[:-2], "inspect", REPO], env=environment, check=True, capture_output=True
            )
    with hub_process(folder, tmp_path, delay=0.5) as environment:
        with subprocess.Popen(
            arguments, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            time.sleep(2.2)
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            code = process.wait()
        took = time.monotonic() - begin
    assert code == 130, said
    assert said.strip() == "ckpt: error: interrupted"
    assert took < 2


# What the user sees


def test_progress_says_what_is_transferred(hub, model, capsys, monkeypatch):
    monkeypatch.setattr("ckptforensics.cli.progress._LINE_EVERY_SECONDS", 0.0)
    ran = run(capsys, "sign", REPO)
    moved = hub.sent()
    lines = ran.err.splitlines()
    assert lines[-1].startswith(f"transferred {moved:,} of ")
    assert any("MB transferred" in line for line in lines[:-1])
    assert run(capsys, "sign", REPO, "-q").err == ""
    assert run(capsys, "sign", REPO, "--no-progress").err.count("\n") == 1


def test_bytes_bound_of_everything(hub, model):
    """All commands together transfer no more than the tensors and headers they need."""
    for command in (ckptforensics.inspect, ckptforensics.sign, ckptforensics.find_layers):
        command(REPO)
    header = 8 + int.from_bytes((model / "model.safetensors").read_bytes()[:8], "little")
    assert hub.sent() <= 1.02 * (needed_tensors(model) + header)
