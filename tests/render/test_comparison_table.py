"""A comparison as tables for people: every verdict, every width, whatever the names."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from rich.cells import cell_len
from scipy.stats import beta

from ckptforensics import quantities
from ckptforensics.errors import UsageError
from ckptforensics.render import render, wording
from ckptforensics.results import (
    AlignmentRecord,
    CacheDocument,
    ComparisonDocument,
    MergeRecord,
    TreeEdge,
    save_document,
)
from ckptforensics.results.comparison import DirectionRecord, random_angle_deg
from tests.support.comparisons import ODD_NAMES, a_pair, a_test, empty, model, several, two
from tests.support.containers import run

VERDICTS = {
    "identical": "A and B are identical",
    "re-parameterised": "A and B are re-parameterised: one function in other weights",
    "derived": "B is derived from A: quantized",
    "related": "A and B share a training run; which came first is unknown",
    "independent": "no evidence of a shared training run: A and B are independent",
    "inconclusive": "inconclusive: not decided whether A and B share a training run",
    "not comparable": "not comparable: no test could decide about A and B",
}
DOCUMENTS: dict[str, ComparisonDocument] = {
    **{verdict: two(verdict) for verdict in VERDICTS},
    "several": several(),
    "odd names": several(ODD_NAMES),
    "long names": two(a="x" * 300, b="漢" * 90),
    "no map": two(alignment=AlignmentRecord(kind="none", held_out_fit=None)),
    "no tests": two("not comparable", tests=(), changes=(), reasons=(), otherwise=()),
    "empty": empty(),
}


def line_of(text: str, name: str) -> str:
    """What stands beside a name, joined again where it was wrapped."""
    found = re.search(rf"^{re.escape(name)} +(.*\n(?: {{14}}.*\n)*)", text, re.M)
    assert found, f"no '{name}' in\n{text}"
    return " ".join(found[1].split())


@pytest.mark.parametrize("verdict", list(VERDICTS))
def test_every_verdict_is_a_sentence_with_its_reasons(verdict):
    text = render(two(verdict), width=80)
    assert line_of(text, "verdict") == VERDICTS[verdict]
    assert line_of(text, "because") == (
        "- gate rows agree: 18,432 of 18,432 - B lies on an int8 lattice, A does not"
    )
    assert line_of(text, "would change").startswith("- independent, if the gate rows")
    assert set(VERDICTS) == set(wording.CODES)


@pytest.mark.parametrize(
    ("verdict", "relation", "direction", "sentence"),
    [
        ("derived", "pruned", "b->a", "A is derived from B: pruned"),
        ("derived", None, "a->b", "B is derived from A"),
        (
            "derived",
            "adapter",
            "unknown",
            "one of A and B is derived from the other: a low-rank adapter merged in; "
            "which came first is unknown",
        ),
        ("related", "finetune", "b->a", "A and B share a training run: fine-tuned; B came first"),
        (
            "re-parameterised",
            "quantized",
            "unknown",
            "A and B are re-parameterised versions of one another, besides: quantized",
        ),
    ],
)
def test_kind_and_direction_are_said_as_far_as_they_are_known(
    verdict, relation, direction, sentence
):
    told = DirectionRecord.of_weights(direction, "zeros")
    pair = a_pair("a", "b", verdict, relation=relation, direction=told)
    assert wording.verdict_line(pair) == sentence


@pytest.mark.parametrize("verdict", wording.ABSTENTIONS)
def test_no_number_stands_beside_an_abstention_as_if_it_decided(verdict):
    text = render(two(verdict), width=200)
    assert not re.search(r"\d", line_of(text, "verdict"))
    assert line_of(text, "distance").endswith("it decides nothing here")
    assert "decides nothing" not in render(two("related"))


def test_what_moves_one_test_of_a_group_is_not_said_of_the_group():
    tests = (a_test("x", invariant_to=("order", "sign")), a_test("y", invariant_to=("sign",)))
    assert (
        line_of(render(two(tests=tests)), "unmoved by") == "- all exact in the stored basis: sign"
    )
    tests = (tests[1], a_test("z", invariant_to=("basis",)))
    assert "unmoved by" not in render(two(tests=tests))


def test_tests_stand_in_their_groups_with_p_floors_and_costs():
    text = render(two(), width=80)
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    for row in (
        ["exact in the stored basis"],
        ["- direction max", "0.9981", "<= 10^-4 (floor)", "0.81 s", "0 B"],
        ["- direction sum", "0.9981", "<= 10^-3.6 (floor)", "0.81 s", "0 B"],
        ["- gate rows", "18,432", "10^-4229.6", "0.81 s", "12.3 MB"],
        ["- gain rank", "0.0123", "0.5", "0.81 s", "12.3 MB"],
        ["agreement of neurons"],
        ["- neuron agreement", "0.9981", "none", "0.81 s", "12.3 MB"],
        ["after the recovered map"],
        ["- spectra", "-", "none", "0.81 s", "12.3 MB"],
    ):
        assert row in rows, row
    assert "embedding columns" not in " ".join(row[0] for row in rows if row[0].startswith("- e"))
    assert line_of(text, "not run") == "- no token is shared by its string (embedding columns)"
    null = line_of(text, "null")
    assert null.count("initialised independently") == 1
    assert "(direction max, direction sum, gate rows)" in null
    common = "order of neurons, factors between up and down"
    assert line_of(text, "unmoved by") == (
        f"- all exact in the stored basis: {common} - all agreement of neurons: "
        f"{common}, rotation of the residual basis "
        f"- all after the recovered map: {common}"
    )
    each = line_of(render(two(), verbose=True), "unmoved by")
    assert f"- {common}, rotation of the residual basis (neuron agreement)" in each
    assert "neurons were sampled (neuron agreement)" not in text
    assert "neurons were sampled (neuron agreement)" in render(two(), verbose=True)


@pytest.mark.parametrize("log10_p", [-1e-9, -0.301, -2.99, -3.0, -3.001, -3.99, -4.0, -57.31])
@pytest.mark.parametrize("floor", [True, False])
def test_p_is_never_said_to_be_smaller_than_it_is(log10_p, floor):
    text = wording.p_text(a_test("x", log10_p=log10_p, floor=floor))
    value = text.removeprefix("<= ").removesuffix(" (floor)")
    said = float(value.removeprefix("10^")) if "^" in value else np.log10(float(value))
    # Two digits where p is ordinary, else a tenth of a power that is rounded up.
    assert -0.025 < said - log10_p < 0.1001 if "^" not in value else 0 <= said - log10_p < 0.1001
    assert ("floor" in text) == text.startswith("<= ") == floor


def test_p_of_a_document_that_makes_no_sense():
    assert wording.p_text(a_test("x", log10_p=1e300)) == "1"
    assert wording.p_text(a_test("x", log10_p=None)) == "none"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (12_300, "12.3 kB"), (999_400, "999 kB"), (999_600, "1.0 MB"),
     (3_210_000_000, "3.2 GB"), (10**13, "10,000.0 GB")],
)  # fmt: skip
def test_sizes(count, text):
    assert quantities.size(count) == text


def test_changes_are_the_largest_unless_all_are_asked_for():
    short, whole = render(two()), render(two(), verbose=True)
    assert line_of(short, "changed").startswith("7 of 8 tensors differ, the 5 largest")
    for i in range(8):
        name = f"model.layers.{i}.mlp.down_proj.weight"
        assert (name in short) == (i > 2)
        assert (name in whole) == (i > 0)  # nothing of the first is changed
    assert re.search(r"layers\.2\..* 50\.0% +0\.02 +- +0%, 50% +-\n", whole)
    assert re.search(r"layers\.1\..* 50\.0% +0\.01 +8 +- +-\n", whole)
    assert "BF16, int4 in groups of 128" in whole


def test_layers_and_map_are_told():
    text = render(two())
    assert line_of(text, "layers") == "without a partner: 2 of A"
    assert line_of(text, "map").endswith("(cosine of held-out tokens 0.9987); head order")
    moved = render(two(layer_map=((1, 1), (2, 3))))
    assert line_of(moved, "layers") == "from A to B: 2 to 3"
    assert "\nlayers" not in render(two(layer_map=((1, 1), (2, 2))))


def test_three_or_more_models_have_matrices_clusters_and_a_tree():
    text = render(several(), width=80)
    rows = [line.split() for line in text.splitlines()]
    for row in (
        ["2", "deriv"],
        ["3", "indep", "indep"],
        ["4", "n/c", "?", "relat"],
        ["2", "0.31"],
        ["3", "84.5", "84.2"],
        ["4", "-", "(71.5)", "40.0"],
    ):
        assert row in rows
    assert line_of(text, "clusters") == "- 1, 2 - 3, 4"
    assert line_of(text, "tree") == "- 1 -> 2 quantized, 0.31 degrees - 3 -- 4"
    assert line_of(text, "mixtures").startswith("- 2 is a mixture: 0.70 of 1 (0.65 to 0.75)")
    # What the matrix says is not said again, unless everything is asked for.
    assert text.count("verdict  ") == 4
    assert render(several(), verbose=True).count("verdict  ") == 6
    assert "A is 2, tuned; B is 4, other width" in " ".join(text.split())


def test_a_wide_matrix_is_cut_into_blocks_that_hold_every_pair():
    names = [f"model {i}" for i in range(1, 31)]
    pairs = [
        a_pair(a, b, "independent", distance_deg=float(i + j) / 10)
        for (i, a), (j, b) in itertools.combinations(enumerate(names), 2)
    ]
    degrees = [[0.0 if i == j else (i + j) / 10 for j in range(30)] for i in range(30)]
    document = ComparisonDocument(
        tool_version="1",
        level="fast",
        models=tuple(model(name) for name in names),
        pairs=tuple(pairs),
        matrix_deg=tuple(map(tuple, degrees)),
        clusters=(),
        tree=(),
    )
    text = render(document, width=60)
    assert text.count("indep") == 30 * 29 // 2 + 2  # and the explanation
    cells = [
        w for line in text.splitlines() for w in line.split()[1:] if re.fullmatch(r"\d+\.\d+", w)
    ]
    assert sorted(map(float, cells)) == sorted((i + j) / 10 for i in range(30) for j in range(i))


@pytest.mark.parametrize("width", [60, 80, 132])
@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_nothing_is_wider_than_the_terminal_or_unprintable(name, verbose, width):
    text = render(DOCUMENTS[name], width=width, verbose=verbose)
    assert text.endswith("\n")
    for line in text.splitlines():
        assert cell_len(line) <= width, line
        assert line.isprintable(), line


@pytest.mark.parametrize("width", [60, 80])
def test_narrow_tables_cut_no_number(width):
    text = " ".join(render(two(), width=width).split())
    assert "…" not in text
    for words in (
        "<= 10^-3.6 (floor)",
        "<= 10^-4 (floor)",
        "10^-4229.6",
        "18,432",
        "12.3 MB",
        "0.0123",
    ):
        assert words in text


def test_colour_only_where_it_is_asked_for():
    plain, coloured = render(several()), render(several(), color=True, width=100)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured).split() == plain.split()


def test_names_that_are_not_the_models_paths_are_those_of_the_pairs():
    document = several()
    moved = document.model_copy(
        update={"models": tuple(model("signed.safetensors") for _ in document.models)}
    )
    assert moved.names == document.names == [m.path for m in document.models]
    text = " ".join(render(moved).split())
    assert "2 tuned (signed.safetensors, llama" in text
    assert "- 1 -> 2 quantized" in text


def test_names_that_nothing_knows():
    lost = two().model_copy(
        update={
            "pairs": (a_pair("lost", "found"), a_pair("found", "lost")),
            "tree": (TreeEdge(a="x", b="\n", directed=False, relation=None, length=None),),
        }
    )
    for form in ("table", "html", "csv"):
        assert render(lost, form)
    three = several().model_copy(update={"pairs": several().pairs[:2], "clusters": (("who",),)})
    for form in ("table", "html", "csv"):
        assert "who" in render(three, form) or form == "csv"


def test_a_mixture_whose_lists_differ_in_length_is_still_shown():
    merge = MergeRecord(
        model="a", parents=("b", "c"), weights=(1.0,), interval=(), by_layer=(), gain=0.5,
        method="unknown",
    )  # fmt: skip
    assert wording.merge_line(merge, {}).startswith("a is a mixture")


def test_random_directions_against_samples_and_the_beta_distribution():
    generator = np.random.default_rng(0)
    for width in (2, 3, 64, 4096):
        found = random_angle_deg(width)
        assert found is not None
        cosine = np.sqrt(beta(0.5, (width - 1) / 2).ppf(0.99))
        assert found == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-9)
    x = generator.standard_normal((20_000, 64))
    angles = np.degrees(np.arccos(np.abs(x[:, 0]) / np.linalg.norm(x, axis=1)))
    share = np.mean(angles >= (random_angle_deg(64) or 0))
    assert share == pytest.approx(0.99, abs=5 * np.sqrt(0.01 * 0.99 / 20_000))
    assert random_angle_deg(1) is None


@pytest.mark.parametrize("form", ["table", "json", "csv", "html"])
def test_show_renders_a_saved_comparison_alike(form, tmp_path, capsys):
    for name in ("several", "odd names"):
        save_document(DOCUMENTS[name], tmp_path / "c.json")
        ran = run(capsys, "show", tmp_path / "c.json", "--format", form, "-q")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == render(DOCUMENTS[name], form)


@pytest.mark.parametrize("form", ["csv", "html"])
def test_other_results_have_no_such_form(form):
    document = CacheDocument(
        tool_version="1",
        path=None,
        entries=0,
        unfinished=0,
        bytes=0,
        most_entries=1,
        most_bytes=1,
    )
    with pytest.raises(UsageError, match=f"cache .* no format '{form}'; it has: table, json"):
        render(document, form)
