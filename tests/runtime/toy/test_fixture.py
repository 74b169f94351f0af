"""fixtures/toy, a trained network: what the weights say against the network that runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ckptforensics
from ckptforensics.cli.main import main
from ckptforensics.runtime.toy.measures import BigramTask
from ckptforensics.runtime.toy.network import run
from ckptforensics.runtime.toy.recipes import Recipe, Schedule
from ckptforensics.runtime.toy.report import report
from ckptforensics.runtime.toy.saved import load, read
from ckptforensics.runtime.toy.statistics import statistics
from ckptforensics.runtime.toy.training import train

FOLDER = Path(__file__).resolve().parents[3] / "fixtures" / "toy"
LAST = FOLDER / "checkpoint-1500"


@pytest.fixture(scope="module")
def norms() -> np.ndarray:
    """(layers, sequences, places) norms after every block of the running network."""
    saved = read(FOLDER)
    drawn = BigramTask(statistics()).held_out(saved.shape, 5)
    found = []
    with torch.no_grad():
        run(
            saved.shape,
            load(saved),
            torch.from_numpy(drawn.ids[:, :-1].copy()),
            watch=lambda _, what, t: found.append(t.norm(dim=-1)) if what == "state" else None,
        )
    return torch.stack(found).numpy()


def test_rollout_of_the_begin_token_is_the_running_networks(norms):
    states = ckptforensics.rollout(LAST, tokens=[0], states=True).states
    ours = np.linalg.norm(states[0], axis=-1)
    assert ours == pytest.approx(norms[:, 0, 0], rel=1e-4)


def test_no_label_where_no_norm_explodes(norms, capsys):
    """The running network has no token ten times the median anywhere; `ckpt layers` says so."""
    highest = norms.max(axis=(1, 2)) / np.median(norms, axis=(1, 2))
    assert highest.max() < 10
    assert main(["layers", str(LAST), "-q", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["explosion"], found["decay"]) == ([], [])


def test_the_copying_head_is_active_on_triggers_and_dormant_elsewhere():
    (found,) = report([FOLDER]).runs
    (head,) = [h for h in found.heads if h.layer == 2]
    assert (head.trigger.state, head.other.state) == ("active", "dormant")
    assert head.trigger.needed > 3
    assert head.trigger.copied > 0.7
    assert head.other.attention > 0.7
    # Its value at `<s>` is drained: it was more than twice as large along training.
    drained = [point.value_norm[1] for point in found.curve]
    assert drained[-1] < max(drained) / 2
    # The stored weights are those that the log was written of, but for BF16.
    assert found.ablations[0].loss == pytest.approx(found.curve[-1].loss, abs=2e-3)


def test_a_fine_tune_keeps_the_direction_and_another_seed_has_its_own(tmp_path, capsys):
    """u1 of every layer that has a clear one, as `ckpt evolve` sees it."""
    tuned, other = tmp_path / "tuned", tmp_path / "other"
    task, shape, recipe = BigramTask(statistics()), read(FOLDER).shape, Recipe(batch=2, seed=9)
    for folder, start in ((tuned, LAST), (other, None)):
        train(task, shape, recipe, Schedule(10, 10, 10), folder, start=start, threads=1)

    def angles(checkpoint: Path) -> list[tuple[float, bool]]:
        capsys.readouterr()
        words = ["evolve", str(LAST), str(checkpoint), "--steps", "1,2", "-q", "--no-cache"]
        assert main([*words, "--format", "json"]) == 0
        layers = json.loads(capsys.readouterr().out)["layers"]
        found = [layer["checkpoints"][-1]["u_previous"] for layer in layers]
        return [(one["degrees"], one["clear"]) for one in found]

    kept, new = angles(tuned / "checkpoint-10"), angles(other / "checkpoint-10")
    clear = [degrees for degrees, is_clear in kept if is_clear]
    assert clear
    assert max(clear) < 15
    assert min(degrees for degrees, _ in new) > 70
