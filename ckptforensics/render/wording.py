"""The words in which every form of a comparison says what its document holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from ckptforensics.errors import one_line
from ckptforensics.quantities import angle, duration, number, percent, size
from ckptforensics.results import (
    ChangeRecord,
    ComparisonDocument,
    CriterionRecord,
    MergeRecord,
    ModelRecord,
    PairRecord,
    TreeEdge,
)

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "exact": "exact in the stored basis",
        "agreement": "agreement of neurons",
        "correspondence": "after the recovered map",
        "change": "what changed",
    }
)
# Verdicts that decide nothing: no number may stand beside them as if it did.
ABSTENTIONS = ("inconclusive", "not comparable")
CODES: Mapping[str, str] = MappingProxyType(
    {
        "identical": "ident",
        "re-parameterised": "repar",
        "derived": "deriv",
        "related": "relat",
        "independent": "indep",
        "inconclusive": "?",
        "not comparable": "n/c",
    }
)
RELATIONS: Mapping[str, str] = MappingProxyType(
    {
        "finetune": "fine-tuned",
        "adapter": "a low-rank adapter merged in",
        "quantized": "quantized",
        "pruned": "pruned",
        "merge": "merged of several models",
        "depth-changed": "layers added, removed or repeated",
        "width-changed": "units or coordinates added or removed",
        "upcycled": "a dense FFN made into experts",
    }
)
# Of the last two there is one value for each model.
CHANGE_COLUMNS = ("tensor", "equal", "relative", "rank", "zeros", "rounding")
# Below this p is a power of ten.
_DECIMALS_FROM = -3.0


def short_labels(count: int) -> list[str]:
    """Labels of so many models: A and B, or 1, 2, 3 where there are more or fewer."""
    return ["A", "B"] if count == 2 else [str(i + 1) for i in range(count)]


def labels(document: ComparisonDocument) -> dict[str, str]:
    """The label of each model by its name."""
    return dict(zip(document.names, short_labels(len(document.models)), strict=True))


def short_names(document: ComparisonDocument, longest: int) -> list[str]:
    """Names of the models for a drawing: their labels, and as much of their ends as fits."""
    found = []
    for name, short in zip(document.names, short_labels(len(document.models)), strict=True):
        end = one_line(name)
        end = end if len(end) <= longest else "\N{HORIZONTAL ELLIPSIS}" + end[1 - longest :]
        found.append(f"{short}  {end}")
    return found


def model_line(model: ModelRecord, name: str) -> str:
    """A model in one line: its name, family and sizes."""
    path = "" if model.path == name else f"{model.path}, "
    sizes = f"{model.family}, {model.num_layers} layers, width {model.hidden_size:,}"
    return one_line(f"{name} ({path}{sizes})")


FILE_COLUMNS = ("model", "file", "bytes", "SHA-256 of the file", "header digest")


def file_rows(document: ComparisonDocument) -> list[tuple[str, ...]]:
    """The files of all models: label, name, bytes, SHA-256 if it is known, and header digest."""
    heads = short_labels(len(document.models))
    return [
        (head, one_line(f.name), f"{f.bytes:,}", f.sha256 or "not computed", f.header_sha256)
        for head, model in zip(heads, document.models, strict=True)
        for f in model.files
    ]


def file_lines(model: ModelRecord, most: int = 5) -> list[str]:
    """Files of which the SHA-256 is known; at most `most`, and then how many more."""
    lines = [
        one_line(f"{f.name}, {f.bytes:,} bytes, SHA-256 {f.sha256}")
        for f in model.files
        if f.sha256 is not None
    ]
    more = len(lines) - most
    return lines if more <= 0 else [*lines[:most], f"and {more:,} more; JSON has all of them"]


def run_lines(document: ComparisonDocument) -> list[str]:
    """When, how and with what a comparison was made; empty where that is not known."""
    run = document.run
    if run is None:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in run.versions)
    machine = f"{run.cores:,} cores, {run.platform}"
    return [one_line(text) for text in (run.date, run.command, versions, machine)]


def relation_text(relation: str) -> str:
    """A relation in words; which parts are shared it says itself."""
    return RELATIONS.get(relation, relation)


def direction_line(pair: PairRecord) -> str:
    """Who came first as far as the weights are consistent with it, and what would forge that."""
    if pair.direction.arrow == "unknown":
        return f"unknown: {pair.direction.why}"
    first = "B" if pair.direction.arrow == "b->a" else "A"
    return f"consistent with {first} first ({pair.direction.strength}): {pair.direction.why}"


def verdict_line(pair: PairRecord) -> str:
    """The verdict as a neutral sentence about A and B."""
    kind = "" if pair.relation is None else f": {relation_text(pair.relation)}"
    first, second = ("B", "A") if pair.direction.arrow == "b->a" else ("A", "B")
    known = pair.direction.arrow != "unknown"
    match pair.verdict:
        case "identical":
            return "A and B are identical"
        case "re-parameterised" if kind:
            return f"A and B are re-parameterised versions of one another, besides{kind}"
        case "re-parameterised":
            return "A and B are re-parameterised: one function in other weights"
        case "derived" if known:
            return f"{second} is derived from {first}{kind}"
        case "derived":
            return f"one of A and B is derived from the other{kind}; which came first is unknown"
        case "related":
            order = f"{first} came first" if known else "which came first is unknown"
            return f"A and B share a training run{kind}; {order}"
        case "independent":
            return "no evidence of a shared training run: A and B are independent"
        case "inconclusive":
            return "inconclusive: not decided whether A and B share a training run"
        case "not comparable":
            return "not comparable: no test could decide about A and B"


def distance_line(pair: PairRecord) -> str:
    """The paper's distance, with what it is not; 'none' where there is none."""
    if pair.distance_deg is None:
        return "none: no layers whose u1 could be compared"
    where = "" if pair.layer is None else f" at layer {pair.layer}"
    text = f"{angle(pair.distance_deg)} degrees{where}, smallest angle between u1 of both"
    return f"{text}; it decides nothing here" if pair.verdict in ABSTENTIONS else text


def alignment_line(pair: PairRecord) -> str:
    """The map between the residual coordinates, how well it fits, and what else was undone."""
    kinds = {
        "identity": "none needed: one residual basis",
        "signed-permutation": "coordinates permuted, signs flipped",
        "rotation": "a rotation",
        "none": "none",
    }
    found = pair.alignment
    text = kinds[found.kind]
    if found.held_out_fit is not None:
        text += f" (cosine of held-out tokens {found.held_out_fit:.4f})"
    return one_line("; ".join([text, *found.found]))


def layers_line(pair: PairRecord) -> str | None:
    """Layers that moved or have no partner; None if each corresponds to the one of its number."""
    alone_a = [i for i, j in pair.layer_map if i is not None and j is None]
    alone_b = [j for i, j in pair.layer_map if j is not None and i is None]
    if not alone_a and not alone_b:
        moved = [f"{i} to {j}" for i, j in pair.layer_map if i != j]
        return f"from A to B: {', '.join(moved)}" if moved else None
    sides = (("A", alone_a), ("B", alone_b))
    return "without a partner: " + "; ".join(
        f"{', '.join(map(str, layers))} of {name}" for name, layers in sides if layers
    )


def p_text(test: CriterionRecord) -> str:
    """p of a test: a number, a power of ten, a floor marked as one, or 'none'."""
    if test.log10_p is None:
        return "none"
    if test.log10_p >= _DECIMALS_FROM and not test.floor:
        return f"{10 ** min(test.log10_p, 0.0):.2g}"
    # Rounded up: p is never said to be smaller than it is.
    exponent = math.ceil(test.log10_p * 10 - 1e-6) / 10
    text = f"10^{exponent:.0f}" if exponent == round(exponent) else f"10^{exponent:.1f}"
    return f"<= {text} (floor)" if test.floor else text


def cost(document: ComparisonDocument) -> str:
    """How far the models were compared, how long the tests took and what they read."""
    took, read = duration(document.seconds), size(document.bytes_read)
    return f"level {document.level}; the tests took {took} and read {read}"


def test_row(test: CriterionRecord) -> tuple[str, ...]:
    """A test that was run: its name, statistic, p, time and bytes read."""
    return (
        one_line(test.name),
        "-" if test.statistic is None else number(test.statistic),
        p_text(test),
        duration(test.seconds),
        size(test.bytes_read),
    )


def nulls(tests: Iterable[CriterionRecord]) -> list[str]:
    """Under which hypotheses the p-values of tests hold."""
    return _by_text(tests, lambda test: None if test.log10_p is None else test.null)


def scales(tests: Iterable[CriterionRecord]) -> list[str]:
    """Which range the statistics of tests have, and where relatives are in it."""
    return _by_text(tests, lambda test: test.scale)


def invariances(tests: Iterable[CriterionRecord]) -> list[str]:
    """What does not change the statistics of tests."""
    return _by_text(tests, lambda test: ", ".join(test.invariant_to))


def skipped(tests: Iterable[CriterionRecord]) -> list[str]:
    """Why tests were not run."""
    return _by_text(tests, lambda test: test.skipped)


def test_notes(tests: Iterable[CriterionRecord]) -> list[str]:
    """Limits of what tests found."""
    return _by_text(tests, lambda test: test.note)


def _by_text(
    tests: Iterable[CriterionRecord], text: Callable[[CriterionRecord], str | None]
) -> list[str]:
    """What `text` says of tests, each once, with the names of the tests it holds for."""
    found: dict[str, list[str]] = {}
    for test in tests:
        said = text(test)
        if said:
            found.setdefault(one_line(said), []).append(one_line(test.name))
    return [f"{said} ({', '.join(names)})" for said, names in found.items()]


def change_row(change: ChangeRecord) -> tuple[str, ...]:
    """A changed tensor: name, equal elements, relative change, rank, zeros and rounding of both."""
    zeros, lattice = change.zeros, change.lattice
    return (
        one_line(change.tensor),
        percent(change.equal, 1),
        f"{change.relative:.2g}",
        "-" if change.rank is None else f"{change.rank:,}",
        f"{percent(zeros[0])}, {percent(zeros[1])}" if any(zeros) else "-",
        one_line(f"{lattice[0] or '-'}, {lattice[1] or '-'}") if any(lattice) else "-",
    )


def merge_line(merge: MergeRecord, called: Mapping[str, str]) -> str:
    """A mixture in words; `called` maps names to labels."""
    parts = [
        f"{weight:.2f} of {label(parent, called)}" + (f" ({low:.2f} to {high:.2f})")
        for parent, weight, (low, high) in zip(
            merge.parents, merge.weights, merge.interval, strict=False
        )
    ]
    return (
        f"{label(merge.model, called)} is a mixture: {', '.join(parts)}; nearer than the best "
        f"single parent by {percent(merge.gain)}; method {merge.method}"
    )


def edge_line(edge: TreeEdge, called: Mapping[str, str]) -> str:
    """An edge of the tree: '->' from the older model, '--' where that is unknown."""
    arrow = "->" if edge.directed else "--"
    text = f"{label(edge.a, called)} {arrow} {label(edge.b, called)}"
    more = [] if edge.relation is None else [relation_text(edge.relation)]
    if edge.length is not None:
        more.append(f"{angle(edge.length)} degrees")
    return f"{text}  {', '.join(more)}".rstrip()


def cluster_lines(document: ComparisonDocument, called: Mapping[str, str]) -> list[str]:
    """The groups of related models."""
    return [", ".join(label(name, called) for name in group) for group in document.clusters]


def edge_lines(document: ComparisonDocument, called: Mapping[str, str]) -> list[str]:
    """The proposed tree, edge by edge."""
    return [edge_line(edge, called) for edge in document.tree]


def merge_lines(document: ComparisonDocument, called: Mapping[str, str]) -> list[str]:
    """The models that are mixtures of others."""
    return [merge_line(merge, called) for merge in document.merges]


def label(name: str, called: Mapping[str, str]) -> str:
    """The label of a model, or its name if it has none."""
    return called.get(name) or one_line(name)


def distance_text(value: float | None, pair: PairRecord | None) -> str:
    """A cell of the distance matrix, in brackets where the pair has no verdict to go with it."""
    undecided = pair is not None and pair.verdict in ABSTENTIONS and value is not None
    return f"({angle(value)})" if undecided else angle(value)
