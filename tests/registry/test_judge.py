"""Claims beside measurements that are made up: every verdict, and what must not be one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.claims.matching import Names
from ckptforensics.registry.judge import judge
from ckptforensics.registry.judged import Judged
from ckptforensics.registry.nearest import neighbours
from ckptforensics.registry.pairs import Declared, plan_pairs
from ckptforensics.registry.policy import Policy
from ckptforensics.registry.reading import Claim, ModelFacts, Reading, SignatureFacts, Stumble
from ckptforensics.registry.relations import Measured, Relations
from ckptforensics.results import PairRecord
from ckptforensics.results.audit import AuditedLayer
from ckptforensics.results.comparison import AlignmentRecord, DirectionRecord

FACTS = ModelFacts(
    family="llama",
    family_source="config",
    hidden_size=8,
    num_layers=2,
    parameters=100,
    container="safetensors",
    types={"F32": 100},
)


class World:
    """A little catalog."""

    def __init__(self) -> None:
        self.models: list[CataloguedModel] = []
        self.relations = Relations()

    def model(
        self,
        name: str,
        *claims: tuple[str, str | None],
        weights: str | None = None,
        signed: bool = True,
        sigma: float | None = None,
        **more: Any,
    ) -> CataloguedModel:
        number = len(self.models) + 1
        weights = (weights or f"{number:x}").rjust(64, "0")
        layers = tuple(
            AuditedLayer(layer=i, sigma=((sigma or number * 10.0) + i, 1.0), gap=2.0)
            for i in (1, 2)
        )
        reading = Reading(
            claims=tuple(Claim(parent=p, relation=r, source="README.md") for p, r in claims),
            facts=FACTS,
            signature=SignatureFacts(sha256=weights, fingerprint=None, layers=layers)
            if signed
            else None,
            weights=weights,
        )
        values = {"adapter": False, "state": "signed" if signed else "headers"} | more
        made = CataloguedModel(
            number=number,
            place=f"directory:/{name}",
            name=name,
            store="directory",
            path=f"/srv/{name}",
            opens=f"/srv/{name}",
            commit=None,
            identity=weights,
            reading=values.pop("reading", reading),
            **values,
        )
        self.models.append(made)
        return made

    def measured(
        self,
        one: CataloguedModel,
        other: CataloguedModel,
        verdict: str,
        relation: str | None = None,
        *,
        first: CataloguedModel | None = None,
        alignment: str = "identity",
    ) -> None:
        a, b = sorted((one, other), key=lambda model: model.identity)
        arrow = "unknown" if first is None else "a->b" if first is a else "b->a"
        pair = PairRecord(
            a=a.identity,
            b=b.identity,
            verdict=verdict,  # type: ignore[arg-type]
            relation=relation,
            direction=DirectionRecord.of_weights(arrow, "made up"),  # type: ignore[arg-type]
            distance_deg=None,
            layer=None,
            angles_deg=(),
            layer_map=(),
            alignment=AlignmentRecord(kind=alignment, held_out_fit=None),  # type: ignore[arg-type]
            tests=(),
            reasons=("made up",),
        )
        self.relations.add(a.identity, b.identity, Measured(pair, by_signature=False))

    def judged(self, of: CataloguedModel, policy: Policy | None = None) -> Judged:
        declared = Declared(self.models)
        found = judge(self.models, self.models, declared, self.relations, policy or Policy())
        return found[of.number]

    def verdicts(self, of: CataloguedModel) -> list[str]:
        return [claim.verdict for claim in self.judged(of).claims]


@pytest.mark.parametrize(
    ("verdict", "relation", "claimed", "expected"),
    [
        ("identical", None, "finetune", "confirmed"),
        ("re-parameterised", None, None, "confirmed"),
        ("derived", "finetune", "finetune", "confirmed"),
        ("derived", "quantized", "finetune", "confirmed"),
        ("related", None, None, "confirmed"),
        ("related", "shares: embeddings", "finetune", "unverifiable"),
        ("independent", None, "finetune", "contradicted"),
        ("independent", None, None, "contradicted"),
        ("independent", None, "quantized", "contradicted"),
        ("independent", None, "merge", "unverifiable"),
        ("independent", None, "distilled", "unverifiable"),
        ("inconclusive", None, "finetune", "unverifiable"),
        ("not comparable", None, "finetune", "unverifiable"),
    ],
)
def test_verdict_of_a_claim(verdict, relation, claimed, expected):
    world = World()
    root = world.model("org/root")
    child = world.model("org/child", ("org/root", claimed))
    world.measured(root, child, verdict, relation)
    assert world.verdicts(child) == [expected]


def test_what_was_not_measured_contradicts_nothing():
    world = World()
    root = world.model("org/root", signed=False)
    other = world.model("org/other")
    gone = world.model("org/a", ("org/elsewhere", "finetune"))
    headers = world.model("org/b", ("org/root", "finetune"))
    untested = world.model("org/c", ("org/other", "finetune"))
    for model in (gone, headers, untested):
        assert world.verdicts(model) == ["unverifiable"]
    assert root.number != other.number


def test_of_several_parents_none_is_contradicted():
    world = World()
    a, b = world.model("org/a"), world.model("org/b")
    merge = world.model("org/m", ("org/a", "finetune"), ("org/b", "finetune"))
    world.measured(a, merge, "derived", "finetune")
    world.measured(b, merge, "independent")
    assert world.verdicts(merge) == ["confirmed", "unverifiable"]


def test_another_root_contradicts():
    world = World()
    claimed, true = world.model("org/claimed"), world.model("org/true")
    model = world.model("org/m", ("org/claimed", "finetune"))
    world.measured(claimed, model, "inconclusive")
    world.measured(true, model, "derived", "finetune")
    assert world.verdicts(model)[0] == "unverifiable"
    world.measured(claimed, true, "independent")
    assert world.verdicts(model)[0] == "contradicted"


def test_undeclared_relatives_and_who_has_to_declare():
    world = World()
    root, model = world.model("org/root"), world.model("org/m")
    world.measured(root, model, "derived", "finetune")
    assert world.verdicts(model) == world.verdicts(root) == ["undeclared relative"]
    # Named by a confirmed claim, the root has standing.
    child = world.model("org/child", ("org/root", "finetune"))
    world.measured(root, child, "derived", "finetune")
    assert world.verdicts(root) == []
    assert world.verdicts(model) == ["undeclared relative"]
    assert world.verdicts(child) == ["confirmed"]
    trusted = world.judged(model, Policy(trusted_roots=("org/m",)))
    assert not trusted.undeclared


def test_the_one_that_came_first_has_nothing_to_declare():
    world = World()
    root, model = world.model("org/root"), world.model("org/m")
    world.measured(root, model, "derived", "pruned", first=root)
    assert world.verdicts(root) == []
    assert world.verdicts(model) == ["undeclared relative"]


def test_a_second_parent_of_one_with_a_confirmed_parent_is_not_excused():
    world = World()
    a, b = world.model("org/a"), world.model("org/b")
    model = world.model("org/m", ("org/a", "finetune"))
    world.measured(a, model, "derived", "finetune")
    world.measured(b, model, "derived", "merge")
    world.measured(a, b, "independent")
    assert "undeclared relative" in world.verdicts(model)


def test_siblings_of_a_parent_that_is_not_here_declare_each_other():
    world = World()
    a = world.model("org/a", ("meta/base", "finetune"))
    b = world.model("org/b", ("Meta/Base", "finetune"))
    world.measured(a, b, "derived", "finetune")
    assert world.verdicts(a) == world.verdicts(b) == ["unverifiable"]


def test_names():
    world = World()
    root = world.model("org/root")
    other = world.model("team/root", weights="ff")
    model = world.model("me/m", ("org/root", None))
    names = Names(world.models)
    assert names.find("ORG/Root", model).models == (root,)
    assert names.find("org/root@abc", model).models == (root,)
    assert names.find("/srv/team/root", model).models == (other,)
    assert names.find("somewhere/else/m", model).models == ()
    assert "itself" in names.find("me/m", model).why
    # Another organisation's model of that name is another model.
    assert names.find("hub/root", model).models == ()
    assert names.find("https://huggingface.co/org/root", model).models == (root,)
    plain, twin = world.model("plain"), world.model("x/y/plain", weights="fe")
    names = Names(world.models)
    assert names.find("hub/plain", model).models == (plain,)
    assert not names.find("hub/plain", model).whole
    assert names.find("y/plain", model).models == (twin,)
    world.model("Plain", weights="fd")
    ambiguous = Names(world.models).find("plain", model)
    assert ambiguous.models == ()
    assert "2 models" in ambiguous.why
    assert names.find("", model).models == ()


def test_a_cycle_ends():
    world = World()
    a = world.model("org/a", ("org/b", None))
    b = world.model("org/b", ("org/a", None))
    declared = Declared(world.models)
    assert a.number in declared.ancestors(a.number)
    assert declared.related(a.number, b.number)


def test_an_adapter_that_does_not_fit_is_contradicted():
    world = World()
    world.model("org/root")
    stumble = Stumble(kind="values", file="adapter", message="shapes differ")
    reading = Reading(
        claims=(Claim(parent="org/root", relation="adapter", source="adapter_config.json"),),
        stumbles=(stumble,),
        weights="e" * 64,
    )
    misfit = world.model("org/x", adapter=True, reading=reading, state="unread")
    assert world.verdicts(misfit) == ["contradicted"]


def no_sketches(numbers):
    return ()


def test_near_sketches_are_candidates():
    world = World()
    models = [world.model(f"org/m{i}", sigma=10.0 ** (2 * i)) for i in range(3)]
    models = [replace(model, sketch=10 * (i + 1)) for i, model in enumerate(models)]

    def near(numbers):
        assert sorted(numbers) == [10, 20, 30]
        yield numbers.index(10), numbers.index(30), 0.2

    numbers = [m.number for m in models]
    (pair,) = plan_pairs(models, numbers, Declared(models), near, most=3).pairs
    assert {pair.a.name, pair.b.name} == {"org/m0", "org/m2"}


def test_pairs_are_claimed_parents_and_neighbours_and_no_others():
    world = World()
    root = world.model("org/root", sigma=10)
    near = world.model("org/near", sigma=10.1)
    far = world.model("org/far", ("org/root", None), sigma=900)
    world.model("org/unrelated", sigma=90_000)
    copy = world.model("org/copy", weights="1", sigma=10)
    assert copy.identity == root.identity
    found = neighbours(world.models, no_sketches)
    assert {n.index for n in found[0]} >= {1}
    numbers = [m.number for m in world.models]
    planned = plan_pairs(world.models, numbers, Declared(world.models), no_sketches, most=3)
    pairs = {frozenset((p.a.identity, p.b.identity)) for p in planned.pairs}
    assert pairs == {
        frozenset((root.identity, near.identity)),
        frozenset((root.identity, far.identity)),
    }


def test_a_parent_that_only_its_last_part_names_is_contradicted_by_nothing():
    world = World()
    other = world.model("base")
    model = world.model("org/m", ("google/base", "finetune"))
    world.measured(other, model, "independent")
    assert world.verdicts(model) == ["unverifiable"]


def test_many_siblings_do_not_hide_another_family():
    world = World()
    root = world.model("org/root", sigma=10)
    for i in range(5):
        world.model(f"org/tune{i}", ("org/root", "finetune"), sigma=10.001 + i / 1000)
    first = world.model("thief/v0", sigma=10.1)
    for i in range(1, 5):
        world.model(f"thief/v{i}", ("thief/v0", "finetune"), sigma=10.1 + i / 1000)
    declared = Declared(world.models)
    numbers = [m.number for m in world.models]
    plan = plan_pairs(world.models, numbers, declared, no_sketches, most=1)
    crossing = [
        p
        for p in plan.pairs
        if {p.a.name.split("/")[0], p.b.name.split("/")[0]} == {"org", "thief"}
    ]
    assert len(crossing) >= 5
    assert root.number != first.number


def test_the_one_catalogued_first_has_nothing_to_declare():
    world = World()
    root = world.model("org/root", first_run=1)
    copy = world.model("thief/copy", first_run=2)
    world.measured(root, copy, "re-parameterised", alignment="rotation")
    assert world.verdicts(root) == []
    assert world.verdicts(copy) == ["undeclared relative"]
