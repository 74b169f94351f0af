"""Norms and directions along checkpoints, beside dense decompositions and runs that are known."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ckptforensics
from ckptforensics.errors import UsageError
from ckptforensics.layers import load_block
from ckptforensics.lineage.compare import open_model
from ckptforensics.lineage.evolve import evolve, signatures
from ckptforensics.linear import Fit, block_map
from ckptforensics.render import render
from ckptforensics.results import Signature, document_text, load_result
from ckptforensics.results.evolution import EvolutionDocument
from tests.support import models
from tests.support.commands import ckpt
from tests.support.containers import assert_one_error, run
from tests.support.runs import GROWTH, write_run
from tests.support.signatures import signature, unit

ZOO = Path(__file__).parents[2] / "fixtures" / "zoo"


def evolved(*places: Path, **how) -> EvolutionDocument:
    opened = [open_model(place) for place in places]
    return evolve([str(place) for place in places], signatures(opened), **how)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def signed(checkpoints) -> list[Signature]:
    return signatures([open_model(place) for place in checkpoints])


@pytest.fixture(scope="module")
def grown(checkpoints, signed) -> EvolutionDocument:
    return evolve([str(place) for place in checkpoints], signed)


@pytest.fixture(scope="module")
def saved(checkpoints, signed, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("saved")
    for place, one in zip(checkpoints, signed, strict=True):
        one.save(folder / f"{place.name}.safetensors")
    return [folder / f"{place.name}.safetensors" for place in checkpoints]


def dense(place: Path, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u1 of L, v1 of F and the singular values of L, by NumPy's own decomposition."""
    block = block_map(load_block(ckptforensics.open_checkpoint(place), layer), Fit())
    left, sigma, _ = np.linalg.svd(block.dense())
    return left[:, 0], np.linalg.svd(block.ffn.dense())[2][0], sigma


def test_angles_are_those_of_dense_decompositions(checkpoints, grown):
    """Of the layers in which a direction grows, at every checkpoint where L has a gap."""
    for layer in (3, 7):
        found = grown.layers[layer - 1]
        true = [dense(place, layer) for place in checkpoints]
        for i, state in enumerate(found.checkpoints):
            assert state.gap == pytest.approx(true[i][2][0] / true[i][2][1], rel=1e-3)
            for angle, other in ((state.u_previous, i - 1), (state.u_last, len(true) - 1)):
                if angle is not None and angle.clear:
                    expected = models.angle(true[i][0], true[other][0])
                    assert angle.degrees == pytest.approx(expected, abs=0.05)
            if i:
                expected = models.angle(true[i][1], true[i - 1][1])
                assert state.v_previous_deg == pytest.approx(expected, abs=0.2)


def test_norms_are_those_of_transformers(checkpoints, grown):
    bos = [models.initial_states(models.load(place), [0])[0] for place in checkpoints]
    for i, states in enumerate(bos):
        norms = np.linalg.norm(states, axis=1)
        found = [layer.checkpoints[i].initial_norm for layer in grown.layers]
        np.testing.assert_allclose(found, norms, rtol=1e-4)
        peak = grown.checkpoints[i].norm_peak.initial
        assert peak is not None
        assert peak.norm == pytest.approx(norms.max(), rel=1e-4)
        assert peak.layer == np.argmax(norms) + 1


def test_when_a_direction_appears_and_settles(grown):
    """The planted direction is 70, 30, 4 and 0 degrees away from where it ends."""
    assert [one.step for one in grown.checkpoints] == [step for step, *_ in GROWTH]
    assert grown.steps_from == "names"
    defect = grown.defect
    assert defect is not None
    assert (defect.layer, defect.label) == (3, "explosion")
    assert (defect.appears, defect.settles, defect.labelled) == (500, 1000, 100)
    assert grown.layers[6].label == "decay"
    assert grown.norm_peak.typical is not None
    assert grown.norm_peak.typical.step == 1000
    assert grown.label_comes == "before"
    (first, *others) = grown.checkpoints
    assert (first.explosion, first.u_previous, first.u_last) == ((), None, None)
    assert [one.explosion for one in others] == [(3,)] * 4
    angles = [one.u_last.degrees for one in others if one.u_last is not None]
    np.testing.assert_allclose(angles, [70, 30, 4], atol=0.5)
    # At step 0 nothing stands out, so that an angle to it says nothing.
    previous = [one.u_previous for one in others]
    assert [angle.clear for angle in previous if angle is not None] == [False, True, True, True]
    assert others[-1].u_last is None


def test_another_limit_settles_elsewhere(checkpoints, signed):
    for limit, settles in ((35, 500), (3, None)):
        document = evolve([p.name for p in checkpoints], signed, settles_deg=limit)
        assert document.settles_deg == limit
        assert document.defect is not None
        assert document.defect.settles == settles


def test_two_seeds_are_90_degrees_apart_and_a_fine_tune_stays():
    stays, apart = (evolved(ZOO / "seed0", ZOO / other) for other in ("finetune", "seed1"))
    clear = [layer.checkpoints[0].u_last for layer in stays.layers]
    turned = [angle.degrees for angle in clear if angle is not None and angle.clear]
    assert len(turned) >= 2
    assert max(turned) < 25
    # The one layer whose s1 is 1.01 times s2 turned by 80 degrees, and says that this means little.
    assert [angle.clear for angle in clear if angle is not None and angle.degrees > 25] == [False]
    for layer in apart.layers:
        angle = layer.checkpoints[1].u_previous
        assert angle is not None
        assert angle.degrees > 75
        assert layer.checkpoints[1].v_previous_deg > 75
        assert (layer.appears, layer.settles) == (None, None)
    for document in (stays, apart):
        assert (document.defect_layer, document.label_comes) == (None, None)
        text = render(document, "table")
        assert "no defect" in text
        assert "no checkpoint has an explosion or decay layer" in text


def of(u: np.ndarray, gap: float = 2.0, explosion: tuple[int, ...] = ()) -> Signature:
    made = signature(unit(u), gap=gap)
    return replace(made, document=made.document.model_copy(update={"explosion": explosion}))


def test_an_angle_has_no_sign_and_a_small_one_all_its_digits():
    u = np.eye(8)[:2]
    turned = -u.copy()
    turned[0, 5] = np.radians(1e-3)
    found = evolve(["a", "b"], [of(u), of(turned)]).layers[0].checkpoints[1].u_previous
    assert found is not None
    assert found.degrees == pytest.approx(1e-3, rel=1e-3)


def test_a_direction_that_leaves_again_did_not_settle():
    far, near = np.eye(8)[:1], np.eye(8)[1:2]
    run = [of(u, explosion=(1,)) for u in (near, far, near, near)]
    found = evolve(["a", "b", "c", "d"], run)
    assert found.steps_from == "order"
    assert (found.layers[0].appears, found.layers[0].settles) == (3, 3)
    assert found.layers[0].labelled == 1
    assert evolve(["a", "b"], [of(far), of(near)]).layers[0].appears is None


def test_a_layer_that_adds_nothing_has_no_direction():
    u = np.eye(8)[:1]
    idle = of(u, gap=1.0)
    states = evolve(["a", "b"], [of(u), idle]).layers[0].checkpoints
    assert (states[1].u_previous, states[1].v_previous_deg) == (None, None)
    assert render(evolve(["a", "b"], [idle, idle]), "table", verbose=True)


@pytest.mark.parametrize(
    ("names", "steps", "source"),
    [
        (("run/checkpoint-1000", "run/checkpoint-500"), [500, 1000], "names"),
        (("org/m@step3000", "org/m@step512"), [512, 3000], "names"),
        (("x/global_step10/", "x/iter_0000020"), [10, 20], "names"),
        (("step-1.safetensors", "step-20.safetensors"), [1, 20], "names"),
        (("epoch1-step5", "epoch2-step10"), [5, 10], "names"),
        (("a/checkpoint-500", "b/checkpoint-500"), [1, 2], "order"),
        (("base-7b", "checkpoint-3"), [1, 2], "order"),
        (("step5k", "step10k"), [1, 2], "order"),
        (("seed0", "seed1"), [1, 2], "order"),
    ],
)
def test_steps_come_from_names_that_have_them(names, steps, source):
    u = np.eye(8)[:1]
    found = evolve(names, [of(u), of(u)])
    assert [one.step for one in found.checkpoints] == steps
    assert found.steps_from == source
    assert {one.name for one in found.checkpoints} == set(names)


def test_checkpoints_are_put_in_the_order_of_their_names_steps():
    u = np.eye(8)[:1]
    found = evolve(["run/checkpoint-1000", "run/checkpoint-500"], [of(u), of(u)])
    assert [one.name for one in found.checkpoints] == ["run/checkpoint-500", "run/checkpoint-1000"]


def test_steps_that_are_given():
    u = np.eye(8)[:1]
    found = evolve(["step9", "step1"], [of(u), of(u)], steps=[0, 7])
    assert [(one.step, one.name) for one in found.checkpoints] == [(0, "step9"), (7, "step1")]
    for steps, words in (([1], "1 steps"), ([2, 1], "do not increase"), ([1, 1], "increase")):
        with pytest.raises(UsageError, match=words):
            evolve(["a", "b"], [of(u), of(u)], steps=steps)


def test_saved_signatures_give_the_same_beside_models_and_without(checkpoints, grown, saved):
    assert evolved(*saved).layers == grown.layers
    assert evolved(checkpoints[0], *saved[1:]).layers == grown.layers


def test_a_signature_without_norms_says_so(tmp_path):
    u = np.eye(8)[:1]
    found = evolve(["old", "older"], [of(u), of(u)])
    assert found.norm_peak.typical is None
    assert [row.what for row in found.skipped] == ["old: norms of tokens", "older: norms of tokens"]
    assert "sign the checkpoint again" in render(found, "table")


def test_models_of_another_size_are_named(capsys, planted):
    ran = run(capsys, "evolve", ZOO / "seed0", planted, ZOO / "seed1", "-q")
    assert_one_error(ran, 4, str(planted), "8 layers of width 64", "seed0 has 4 of width 96")
    assert_one_error(run(capsys, "evolve", planted, "-q"), 4, "needs two checkpoints")


def test_signatures_of_other_fits_are_refused(capsys, planted, tmp_path):
    ckptforensics.sign(planted, fit=Fit("paper")).save(tmp_path / "paper.safetensors")
    ran = run(capsys, "evolve", tmp_path / "paper.safetensors", planted, "-q")
    assert_one_error(ran, 4, "--fit paper", "--fit canonical")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--steps", "one,two"), "cannot read the steps"),
        (("--steps", "1"), "2 checkpoints and 1 steps"),
        (("--layers", "99"), "layer 99"),
        (("--plot", "x.bmp"), "a plot is"),
        (("-o", "x.txt"), ".json, .csv, .html"),
    ],
)
def test_wrong_options_are_one_line(words, told, capsys, planted, tmp_path):
    assert_one_error(run(capsys, "evolve", planted, planted, "-q", *words), 4, told)


def test_some_layers_only(capsys, planted, tmp_path):
    ckptforensics.sign(planted).save(tmp_path / "whole.safetensors")
    ran = run(
        capsys, "evolve", planted, tmp_path / "whole.safetensors",
        "--layers", "3,7", "-q", "--format", "json",
    )  # fmt: skip
    assert ran.code == 0
    found = json.loads(ran.out)
    assert [layer["layer"] for layer in found["layers"]] == [3, 7]
    states = [state for layer in found["layers"] for state in layer["checkpoints"][1:]]
    assert all(state["u_previous"]["degrees"] < 0.1 for state in states)


def test_the_command_saves_draws_and_shows(saved, tmp_path):
    given = sorted(saved)  # as a shell sorts them
    files = {form: tmp_path / f"run.{form}" for form in ("json", "csv", "html", "svg")}
    done = ckpt("evolve", *given, "-o", files["json"], "--plot", files["svg"], "-q")
    assert done.returncode == 0, done.stderr
    table = done.stdout
    assert "steps 0 to 2,000 (from the names)" in table
    assert "from step 100 on, before the norm peak" in table
    assert files["svg"].read_text().startswith("<?xml")
    document = load_result(files["json"])
    assert isinstance(document, EvolutionDocument)
    assert render(document, "table") == table
    rows = list(csv.DictReader(io.StringIO(render(document, "csv"))))
    assert len(rows) == 5 * 8
    first = {row["layer"]: row["u_last_clear"] for row in rows if row["step"] == "0"}
    assert (first["1"], first["3"]) == ("true", "false")
    assert "<svg" in render(document, "html")
    (model, *narrow) = render(document, "table", width=60, verbose=True).splitlines()
    assert model.startswith("model ")  # whose path is one word
    assert max(map(len, narrow)) <= 60
    assert json.loads(document_text(document))["defect_layer"] == 3


def test_strict_fails_where_something_is_skipped(capsys, planted, tmp_path):
    shutil.copytree(planted, tmp_path / "x")
    ran = run(capsys, "evolve", planted, tmp_path / "x", "--layers", "2", "--strict", "-q")
    assert ran.code == 2
    assert "--strict" in ran.err
