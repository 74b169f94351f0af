"""Find: whose copy a model is, among the models of a catalog."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import CkptError, FormatError, UsageError
from ckptforensics.jobs.processes import run_jobs
from ckptforensics.registry.audit import add_models, audit
from ckptforensics.registry.catalog import database
from ckptforensics.registry.catalog.contents import catalog_document, vacuum
from ckptforensics.registry.catalog.portable import export_catalog, import_catalog
from ckptforensics.registry.catalog.sketches import Vectors, open_vectors
from ckptforensics.registry.catalog.writer import open_writer
from ckptforensics.registry.find import FindOptions, find
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.sketch.features import CHANNELS, WIDTHS
from ckptforensics.registry.sketch.make import sketch
from ckptforensics.registry.sketch.score import LIMITS
from ckptforensics.registry.sketch.spectra import KINDS
from ckptforensics.results import save_document
from ckptforensics.results.comparison import RELATIVES
from tests.support.adapters import base_tensors, low_rank, write_adapter
from tests.support.commands import ckpt
from tools import attacks, launder, transforms
from tools.zoo import ZOO

NAMES = ("seed0", "seed1", "finetune")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for name in NAMES:
        shutil.copytree(ZOO / name, folder / name, copy_function=shutil.copyfile)
    return folder


@pytest.fixture(scope="module")
def catalog(store, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "catalog.db"
    added = add_models([str(store)], AuditOptions(path, weights=False))
    assert (added.models, added.sketched, added.failed) == (3, 3, [])
    return path


@pytest.fixture(scope="module")
def hidden(tmp_path_factory) -> Path:
    """A copy of seed0 in another basis, order and scale, under other names."""
    base = transforms.read(ZOO / "seed0")
    changed = launder.everything(base, np.random.default_rng(5))
    return transforms.write(changed, tmp_path_factory.mktemp("hidden") / "model", "F32")


def test_a_hidden_copy_is_found_and_its_source_named_first(catalog, hidden):
    found = find(str(hidden), FindOptions(catalog))
    assert found.answer == "found"
    assert [m.name.rpartition("/")[2] for m in found.matches] == ["seed0", "finetune"]
    assert [m.verdict for m in found.matches] == ["re-parameterised", "derived"]
    assert (found.searched, found.candidates, found.without) == (3, 2, 0)
    assert found.matches[0].score > 0.999


def test_a_stranger_has_no_candidates(catalog):
    found = find(str(ZOO / "seed2"), FindOptions(catalog))
    assert (found.answer, found.matches, found.reasons) == ("none", (), ())


def test_a_copy_of_which_neither_heads_nor_tokens_are_left_is_found(catalog, tmp_path):
    """All heads split, tokens renumbered and renamed: by what attention does to single tokens."""
    base = transforms.read(ZOO / "seed0")
    changed = attacks.split_and_renamed(base, np.random.default_rng(3))
    found = find(str(transforms.write(changed, tmp_path / "split", "F32")), FindOptions(catalog))
    assert found.answer == "found"
    assert [m.name.rpartition("/")[2] for m in found.matches] == ["seed0"]
    channels = found.matches[0].channels
    assert channels.attention > 0.999
    others = (channels.strings, channels.ids, channels.heads)
    assert max(others) < min(LIMITS.values()), others


def test_layers_that_write_nothing_to_speak_of_hide_no_attention(catalog, tmp_path):
    """As many as a sketch keeps, before and behind those of the copy; it has nothing else left."""
    random = np.random.default_rng(3)
    changed = attacks.split_and_renamed(transforms.read(ZOO / "seed0"), random)
    deep = attacks.idle_layers(changed, 2 * KINDS["attention"].most, random)
    found = find(str(transforms.write(deep, tmp_path / "deep", "F32")), FindOptions(catalog))
    assert [m.name.rpartition("/")[2] for m in found.matches] == ["seed0"]
    assert found.matches[0].channels.heads < LIMITS["heads"]
    assert found.matches[0].channels.attention > LIMITS["attention"]
    assert found.answer != "none"


def _without_attention(path: Path) -> None:
    """As the catalog was when sketches had no attention: neither values nor an array of them."""
    with sqlite3.connect(path) as db:
        for number, text in db.execute("SELECT id, sketch_json FROM sketches").fetchall():
            kept = json.loads(text)
            del kept["attention"]
            text = json.dumps(kept)
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            change = "UPDATE sketches SET sketch_json = ?, sha256 = ? WHERE id = ?"
            db.execute(change, (text, sha256, number))
    with database.reading(path) as db:
        array = open_vectors(db, path).channels["attention"]
    Path(array.filename).unlink()


def test_sketches_that_are_not_searched_by_attention_are_told(store, tmp_path, monkeypatch):
    path = tmp_path / "catalog.db"
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "ckptforensics.registry.reads.reading_code", lambda: "of an earlier version"
        )
        add_models([str(store)], AuditOptions(path, weights=False))
    _without_attention(path)
    with pytest.raises(FormatError, match="ckpt catalog vacuum"):
        find(str(ZOO / "seed2"), FindOptions(path))
    vacuum(path)
    found = find(str(ZOO / "seed2"), FindOptions(path))
    assert (found.answer, found.matches) == ("inconclusive", ())
    assert "the attention of 3 catalogued models was passed over" in found.reasons[0]
    assert "ckpt catalog add" in found.skipped[-1].reason
    # They are still searched by the other channels.
    assert find(str(ZOO / "seed0"), FindOptions(path)).answer == "found"
    add_models([str(store)], AuditOptions(path, weights=False))
    found = find(str(ZOO / "seed2"), FindOptions(path))
    assert (found.answer, found.skipped) == ("none", ())


def test_a_sketch_of_heads_alone_is_no_none(catalog, tmp_path):
    """One that was saved before attention was kept."""
    document = json.loads(sketch(open_checkpoint(ZOO / "seed2")).model_dump_json())
    del document["found"]["attention"]
    document["schema_version"] = "1.0"
    (tmp_path / "sketch.json").write_text(json.dumps(document))
    found = find(str(tmp_path / "sketch.json"), FindOptions(catalog))
    assert found.answer == "inconclusive"
    assert "which can be split" in found.reasons[0]


def test_what_is_added_to_lost_arrays_hides_nothing(store, tmp_path):
    path = tmp_path / "catalog.db"
    add_models([str(store / "seed0")], AuditOptions(path, weights=False))
    shutil.rmtree(database.arrays_folder(path))
    add_models([str(store / "seed1")], AuditOptions(path, weights=False))
    found = find(str(ZOO / "seed0"), FindOptions(path, compare=False))
    assert [m.name.rpartition("/")[2] for m in found.matches] == ["seed0"]


def test_a_sketch_names_candidates_and_no_verdict(catalog, hidden, tmp_path):
    save_document(sketch(open_checkpoint(hidden)), tmp_path / "sketch.json")
    found = find(str(tmp_path / "sketch.json"), FindOptions(catalog))
    assert found.answer == "inconclusive"
    assert [m.verdict for m in found.matches] == [None, None]
    assert "a sketch cannot be compared" in found.matches[0].evidence
    # Without heads a stranger is no 'none': somebody may have replaced the embeddings.
    stranger = sketch(open_checkpoint(ZOO / "seed2"), heads=False)
    save_document(stranger, tmp_path / "tokens.json")
    found = find(str(tmp_path / "tokens.json"), FindOptions(catalog))
    assert found.answer == "inconclusive"
    assert "heads were not looked at" in found.reasons[0]
    # Nor with all channels: a padded stream is seen in weights only.
    save_document(sketch(open_checkpoint(ZOO / "seed2")), tmp_path / "whole.json")
    found = find(str(tmp_path / "whole.json"), FindOptions(catalog))
    assert (found.answer, found.matches) == ("inconclusive", ())
    assert "give the model" in found.reasons[0]


def test_candidates_that_are_gone_are_named_and_not_compared(store, hidden, tmp_path):
    moved = tmp_path / "store"
    shutil.copytree(store, moved)
    path = tmp_path / "catalog.db"
    add_models([str(moved)], AuditOptions(path, weights=False))
    shutil.rmtree(moved)
    found = find(str(hidden), FindOptions(path, most=1))
    assert found.answer == "inconclusive"
    assert "not compared" in found.matches[0].evidence
    assert any("raise -k" in reason for reason in found.reasons)


def test_adding_again_reads_nothing(catalog, store, monkeypatch):
    monkeypatch.setattr("ckptforensics.jobs.processes.run_jobs", _none_expected)
    added = add_models([str(store)], AuditOptions(catalog, weights=False))
    assert (added.models, added.sketched) == (3, 3)


def _none_expected(jobs, **_how):
    assert not list(jobs)
    return ()


def test_arrays_that_are_lost_are_made_again(catalog, hidden, tmp_path):
    copy = tmp_path / "catalog.db"
    with sqlite3.connect(catalog) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    with pytest.raises(FormatError, match=r"has 0 rows.*ckpt catalog vacuum"):
        find(str(hidden), FindOptions(copy))
    vacuum(copy)
    assert find(str(hidden), FindOptions(copy, compare=False)).candidates == 2


def test_sketches_travel_with_an_exported_catalog(catalog, hidden, tmp_path):
    assert export_catalog(catalog, tmp_path / "out.zip") == 3
    other = tmp_path / "other.db"
    with open_writer(other) as writer:
        assert import_catalog(writer, tmp_path / "out.zip") == 3
    found = find(str(hidden), FindOptions(other))
    assert found.matches[0].name.endswith("seed0")
    assert "neither its weights nor its signature" in found.matches[0].evidence
    assert catalog_document(other).sketches == 3


def test_an_empty_catalog_tells_nothing(hidden, tmp_path):
    path = tmp_path / "catalog.db"
    with open_writer(path):
        pass
    found = find(str(hidden), FindOptions(path))
    assert found.answer == "inconclusive"
    assert "ckpt catalog add" in found.reasons[0]


def test_catalogs_of_the_first_schema_are_searched_after_they_are_opened(tmp_path, hidden):
    path = tmp_path / "catalog.db"
    with sqlite3.connect(path) as db:
        db.executescript(
            database.migrations()[0] + f"PRAGMA application_id = {database._APPLICATION};"
        )
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(CkptError, match=r"version 1.*ckpt catalog vacuum"):
        find(str(hidden), FindOptions(path))
    vacuum(path)
    assert find(str(hidden), FindOptions(path)).searched == 0


@pytest.mark.parametrize(("rows", "most"), [(7, 3), (40_000, 50), (40_000, 40_000)])
def test_nearest_are_those_of_one_whole_product(rows, most):
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.standard_normal((rows, width), dtype=np.float32)
        for name, width in zip(CHANNELS, WIDTHS, strict=True)
    }
    query = np.concatenate([arrays[name][3] for name in CHANNELS])
    parts = np.split(query, np.cumsum(WIDTHS)[:-1])
    scores = [arrays[n] @ part / LIMITS[n] for n, part in zip(CHANNELS, parts, strict=True)]
    expected = np.sort(np.max(scores, axis=0))[::-1][:most]
    found = Vectors(arrays).nearest(query, LIMITS, most) - 1
    assert found[0] == 3
    np.testing.assert_allclose(np.max(scores, axis=0)[found], expected, rtol=1e-5)


def test_pairs_of_near_sketches(catalog):
    with open_writer(catalog) as writer:
        names = {m.sketch: m.name for m in writer.models()}
        numbers = sorted(names)
        found = {
            frozenset((names[numbers[i]], names[numbers[j]]))
            for i, j, _ in writer.near_sketches(numbers)
        }
    assert len(found) == 1
    assert {name.rpartition("/")[2] for name in next(iter(found))} == {"seed0", "finetune"}


def test_vectors_are_mapped_and_not_read(catalog):
    with database.reading(catalog) as db:
        vectors = open_vectors(db, catalog)
        assert len(vectors) == 3
        assert all(isinstance(array, np.memmap) for array in vectors.channels.values())


def test_commands(store, hidden, tmp_path):
    path = tmp_path / "catalog.db"
    flags = ["--catalog", str(path), "--quiet", "--format", "json"]
    added = ckpt("catalog", "add", str(store / "seed0"), *flags)
    assert json.loads(added.stdout)["sketches"] == 1
    found = json.loads(ckpt("find", str(hidden), "--no-compare", *flags).stdout)
    assert (found["answer"], found["matches"][0]["verdict"]) == ("inconclusive", None)
    assert "no comparison was asked for" in found["matches"][0]["evidence"]
    (tmp_path / "model").symlink_to(hidden)
    narrow = ckpt("find", "model", "--catalog", path.name, cwd=tmp_path, COLUMNS="60")
    assert narrow.returncode == 0
    assert max(map(len, narrow.stdout.splitlines())) <= 60
    assert "re-parameterised" in narrow.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["find", "nowhere"], "no such"),
        (["find", str(ZOO / "seed0"), "--catalog", "nowhere.db"], "ckpt catalog add"),
        (["find", str(ZOO / "training.json"), "--catalog", "{catalog}"], "not a saved result"),
        (["catalog", "add", "nowhere", "--catalog", "new.db"], "nowhere"),
        (["sketch", str(ZOO)], "holds no .safetensors"),
    ],
)
def test_what_cannot_be_meant_is_one_line(words, says, catalog, tmp_path):
    answer = ckpt(*(word.format(catalog=catalog) for word in words), cwd=tmp_path)
    assert answer.returncode in (2, 3, 4)
    assert says in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_saved_results_of_other_kinds_are_refused(tmp_path, catalog):
    save_document(catalog_document(catalog), tmp_path / "catalog.json")
    with pytest.raises(UsageError, match="a saved catalog and no sketch"):
        find(str(tmp_path / "catalog.json"), FindOptions(catalog))


def test_an_index_of_shards_is_a_model(catalog, hidden, tmp_path):
    weights = hidden / "model.safetensors"
    names = list(load_file(weights))
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    folder = tmp_path / "model"
    shutil.copytree(hidden, folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = find(str(folder / "model.safetensors.index.json"), FindOptions(catalog, compare=False))
    assert found.candidates == 2


def test_a_padded_stream_is_no_none(catalog, tmp_path):
    stranger = attacks.padded(
        transforms.read(ZOO / "seed2"), np.random.default_rng(0), 7, noise=True
    )
    path = transforms.write(stranger, tmp_path / "padded", "F32")
    found = find(str(path), FindOptions(catalog))
    assert found.answer == "inconclusive"
    assert "writes to 7 of the 103 directions" in found.reasons[0]


def test_an_adapter_is_looked_for_on_its_base(catalog, tmp_path):
    """Its base is named, with what was done to it."""
    modules = [f"model.layers.{i}.self_attn.{part}_proj" for i in range(4) for part in "qv"]
    write_adapter(tmp_path / "adapter", low_rank(base_tensors(ZOO / "seed0"), modules))
    words = ("find", tmp_path / "adapter", "--catalog", catalog, "--format", "json", "-q")
    refused = ckpt(*words)
    assert refused.returncode == 3
    assert "--base" in refused.stderr
    done = ckpt(*words, "--base", ZOO / "seed0")
    assert done.returncode == 0, done.stderr
    (first, *_) = json.loads(done.stdout)["matches"]
    assert first["name"].endswith("seed0")
    assert (first["verdict"], first["relation"]) == ("derived", "adapter")


def test_a_config_is_of_the_model_that_is_looked_for(catalog, hidden, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in hidden.iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, bare / file.name)
    found = find(str(bare), FindOptions(catalog, config=hidden / "config.json"))
    assert found.answer == "found"
    assert find(str(hidden), FindOptions(catalog, config=hidden / "config.json")).answer == "found"


def test_comparisons_may_reserve_what_memory_allows_and_their_files(catalog, hidden, monkeypatch):
    """Each process has a hard limit, in which the files that it maps have room."""
    started = []

    def note(jobs, **how):
        started.extend(jobs)
        return run_jobs(jobs, **how)

    monkeypatch.setattr("ckptforensics.registry.find.run_jobs", note)
    options = FindOptions(catalog, memory=2_000_000_000, workers=2)
    assert find(str(hidden), options).answer == "found"
    files = sum(file.stat().st_size for file in hidden.glob("*.safetensors"))
    other = (ZOO / "seed0" / "model.safetensors").stat().st_size
    assert [job.memory for job in started] == [1_000_000_000] * len(started)
    for job in started:
        assert job.reserved == pytest.approx(1_000_000_000 + files + other, abs=2_000_000)


def test_a_place_that_holds_another_model_now_says_nothing_of_the_one_before(tmp_path):
    """Neither that it is no relative nor, of what lies there now, that it is one."""
    latest, path = tmp_path / "latest", tmp_path / "catalog.db"
    shutil.copytree(ZOO / "seed0", latest, copy_function=shutil.copyfile)
    add_models([str(latest)], AuditOptions(path, weights=False))
    for now in ("seed1", "finetune"):
        shutil.rmtree(latest)
        shutil.copytree(ZOO / now, latest, copy_function=shutil.copyfile)
        found = find(str(ZOO / "seed0"), FindOptions(path))
        assert (found.answer, found.matches[0].verdict) == ("inconclusive", None)
        said = f"latest has changed since it was catalogued: 'ckpt catalog add {latest}'"
        assert said in found.matches[0].evidence
    add_models([str(latest)], AuditOptions(path, weights=False))
    assert find(str(ZOO / "seed0"), FindOptions(path)).matches[0].verdict == "derived"


def test_a_place_that_changes_while_it_is_compared(tmp_path, monkeypatch):
    latest, path = tmp_path / "latest", tmp_path / "catalog.db"
    shutil.copytree(ZOO / "seed0", latest, copy_function=shutil.copyfile)
    add_models([str(latest)], AuditOptions(path, weights=False))

    def change_first(jobs, **how):
        shutil.copyfile(ZOO / "seed1/model.safetensors", latest / "model.safetensors")
        return run_jobs(jobs, **how)

    monkeypatch.setattr("ckptforensics.registry.find.run_jobs", change_first)
    found = find(str(ZOO / "seed0"), FindOptions(path))
    assert (found.answer, found.matches[0].verdict) == ("inconclusive", None)
    assert "latest has changed since" in found.matches[0].evidence


def test_another_copy_that_is_still_there_is_compared_instead(tmp_path):
    path = tmp_path / "catalog.db"
    for name in ("a", "b"):
        shutil.copytree(ZOO / "seed0", tmp_path / name, copy_function=shutil.copyfile)
    add_models([str(tmp_path)], AuditOptions(path, weights=False))
    shutil.copyfile(ZOO / "seed1/model.safetensors", tmp_path / "a/model.safetensors")
    (match,) = find(str(ZOO / "seed0"), FindOptions(path)).matches
    assert (match.name.rpartition("/")[2], match.verdict) == ("b", "identical")
    assert [name.rpartition("/")[2] for name in match.same] == ["a"]


def test_of_a_place_that_changed_the_signature_is_compared(tmp_path):
    latest, path = tmp_path / "latest", tmp_path / "catalog.db"
    shutil.copytree(ZOO / "seed0", latest, copy_function=shutil.copyfile)
    audit([str(latest)], AuditOptions(path))
    shutil.copyfile(ZOO / "seed1/model.safetensors", latest / "model.safetensors")
    (match,) = find(str(ZOO / "seed0"), FindOptions(path)).matches
    assert match.verdict in RELATIVES


def test_ties_are_ordered_by_the_next_channels(tmp_path):
    """A model with all channels of the one that is looked for before one with a single."""
    base = transforms.read(ZOO / "seed0")
    transforms.write(transforms.redraw_embeddings(base), tmp_path / "store" / "a")
    shutil.copytree(ZOO / "seed0", tmp_path / "store" / "b", copy_function=shutil.copyfile)
    path = tmp_path / "catalog.db"
    add_models([str(tmp_path / "store")], AuditOptions(path, weights=False))
    found = find(sketch(open_checkpoint(ZOO / "seed0")), FindOptions(path))
    assert [m.name.rpartition("/")[2] for m in found.matches] == ["b", "a"]


@pytest.mark.parametrize("option", ["--base", "--config"])
def test_a_sketch_is_opened_with_nothing(option, catalog, tmp_path):
    save_document(sketch(open_checkpoint(ZOO / "seed0")), tmp_path / "sketch.json")
    words = ("--catalog", catalog, option, ZOO / "seed1/config.json")
    answer = ckpt("find", tmp_path / "sketch.json", *words)
    assert (answer.returncode, option in answer.stderr) == (4, True)


# What no sketch holds, by the way to it in a saved document, with what the one line names.
FORGED = {
    "huge": (("found", "heads", "unit"), 1e300, "found.heads.unit"),
    "zero": (("found", "heads", "unit"), 0.0, "found.heads.unit"),
    "negative": (("found", "tokens", 0, "unit"), -1.0, "found.tokens.0.unit"),
    "few tokens": (("found", "tokens", 0, "count"), 4, "found.tokens.0.count"),
    "more than all": (("found", "heads", "total"), 1, "found.heads"),
    "huge attention": (("found", "attention", "unit"), 1e300, "found.attention.unit"),
    "layers than may be kept": (("found", "attention", "count"), 17, "found.attention.count"),
    "other ranks": (("found", "attention", "ranks"), 8, "found.attention.ranks"),
    "more than all layers": (("found", "attention", "total"), 1, "found.attention"),
    "by the same twice": (("found", "tokens", 1, "by"), "strings", "found"),
    "width": (("model", "hidden_size"), -1, "model.hidden_size"),
    "layers": (("model", "num_layers"), -1, "model.num_layers"),
    "seconds": (("seconds",), -1.0, "seconds"),
    "bytes": (("bytes_read",), -1, "bytes_read"),
}


@pytest.fixture(scope="module")
def seed0() -> dict[str, Any]:
    """The sketch of seed0 as it is saved."""
    return sketch(open_checkpoint(ZOO / "seed0")).model_dump(mode="json")


def _forged(document: dict[str, Any], name: str) -> dict[str, Any]:
    way, value, _ = FORGED[name]
    found = json.loads(json.dumps(document))
    place = found
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = value
    return found


@pytest.mark.parametrize("name", FORGED)
def test_a_saved_sketch_with_what_no_sketch_holds_is_refused(name, seed0, catalog, tmp_path):
    (tmp_path / "forged.json").write_text(json.dumps(_forged(seed0, name)))
    answer = ckpt("find", tmp_path / "forged.json", "--catalog", catalog)
    assert answer.returncode == 2
    assert f"'{FORGED[name][2]}'" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


OF_A_CATALOG = [name for name, (way, _, _) in FORGED.items() if way[0] == "found"]


@pytest.mark.parametrize("name", OF_A_CATALOG)
def test_no_import_has_what_no_sketch_holds(name, seed0, catalog, tmp_path):
    exported, forged = tmp_path / "out.zip", tmp_path / "forged.zip"
    export_catalog(catalog, exported)
    with zipfile.ZipFile(exported) as archive:
        row = json.loads(archive.read("models.jsonl").splitlines()[0])
    row["sketch"] = _forged(seed0, name)["found"]
    listing = json.dumps(row).encode()
    manifest = {
        "format": "ckptforensics catalog 2",
        "models": 1,
        "sha256": {"models.jsonl": hashlib.sha256(listing).hexdigest()},
    }
    with zipfile.ZipFile(forged, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("models.jsonl", listing)
    with open_writer(tmp_path / "other.db") as writer:
        named = FORGED[name][2].replace("found", "sketch", 1)
        with pytest.raises(FormatError, match=re.escape(named)):
            import_catalog(writer, forged)


@pytest.mark.parametrize("name", OF_A_CATALOG)
@pytest.mark.parametrize("vectors", ["kept", "nan"])
def test_a_catalogued_sketch_that_is_none_is_passed_over(name, vectors, seed0, store, tmp_path):
    """And said: as catalogs of a version that took it may have it."""
    path = tmp_path / "catalog.db"
    add_models([str(store)], AuditOptions(path, weights=False))
    with sqlite3.connect(path) as db:
        ((number, model),) = db.execute(
            "SELECT sketch, name FROM models WHERE name LIKE '%seed1'"
        ).fetchall()
        text = json.dumps(_forged(seed0, name)["found"])
        db.execute("UPDATE sketches SET sketch_json = ? WHERE id = ?", (text, number))
    if vectors == "nan":
        _put_nan(path, number)
    found = find(str(ZOO / "seed2"), FindOptions(path))
    assert found.answer == "inconclusive"
    assert [row.what for row in found.skipped] == [f"the catalogued {model}"]
    assert "the sketch: " in found.skipped[0].reason
    assert find(str(ZOO / "seed0"), FindOptions(path, compare=False)).candidates == 2
    assert export_catalog(path, tmp_path / "out.zip") == 2
    shutil.rmtree(database.arrays_folder(path))
    assert vacuum(path) is not None
    with open_writer(path) as writer:
        assert len(list(writer.near_sketches([m.sketch for m in writer.models()]))) == 1


def _put_nan(path: Path, number: int) -> None:
    with database.reading(path) as db:
        for array in open_vectors(db, path).channels.values():
            np.memmap(array.filename, np.float32, "r+", shape=array.shape)[number - 1] = np.nan


@pytest.mark.parametrize("imported", [False, True])
def test_an_audit_says_what_it_did_not_compare_since_only_sketched(imported, store, tmp_path):
    path = tmp_path / "catalog.db"
    add_models([str(store / "seed0")], AuditOptions(path, weights=False))
    if imported:
        export_catalog(path, tmp_path / "out.zip")
        path = tmp_path / "other.db"
        with open_writer(path) as writer:
            import_catalog(writer, tmp_path / "out.zip")
    document = audit([str(store / "finetune"), str(store / "seed1")], AuditOptions(path))
    left = {m.name: [row for row in m.not_read if "seed0" in row.what] for m in document.models}
    assert {name: len(rows) for name, rows in left.items()} == {"finetune": 1, "seed1": 0}
    assert "known by its sketch only: audit it" in left["finetune"][0].reason
    assert document.coverage.pairs_left == 1
    if not imported:
        # As is said: then it is compared.
        audit([str(store / "seed0")], AuditOptions(path))
        document = audit([str(store / "finetune"), str(store / "seed1")], AuditOptions(path))
        found = {m.name: [r.name for r in m.relatives] for m in document.models}
        assert found == {"finetune": ["seed0"], "seed1": []}
        assert document.coverage.pairs_left == 0
