"""A family for a checkpoint that no family claims, from its tensor names and shapes.

First the families themselves: one whose names explain every tensor of a block is taken as it is.
Otherwise a layout is put together from the names that any family knows for each role, as far as
the shapes agree on which matrix maps the residual stream to what. What cannot be told from names
and shapes (activation, kind of norm, factors) is assumed and noted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, get_args

from ckptforensics.architectures.evidence import (
    NormKind,
    norm_kind,
    stored_offset,
    unknown,
    with_factors,
    with_norm,
)
from ckptforensics.architectures.known import Known
from ckptforensics.architectures.schema import (
    EmbeddingSpec,
    Family,
    Layout,
    NormSpec,
    Role,
    TensorSpec,
    families,
)
from ckptforensics.architectures.stacks import Stack, equals, find_stacks, shown
from ckptforensics.tensors import TensorReader

_BLOCK = re.compile(r"(?P<before>(?:.*?\.)?)(?P<layer>\d+)\.(?P<rest>.+)")
# What of a family says nothing of what its blocks compute.
_NAMING = frozenset(
    {"name", "description", "model_types", "gguf_architectures", "default_heads", "inferable"}
    | {"only_named", "hf", "gguf"}
)
_NORM = re.compile(r"norm|ln", re.IGNORECASE)
_PLAIN_ROLES: tuple[Role, ...] = ("attention_norm", "value", "output", "ffn_norm", "up", "down")


def infer_family(known: Known) -> tuple[Family, Layout]:
    """A family and layout that explain every tensor of the first block.

    Raises
    ------
    UnknownFamily
        if the names fit no known vocabulary, or fit it in several ways.
    """
    stack = _main_stack(known)
    kind, why = norm_kind(known, stack.names)
    pairs = _covering(known, stack)
    if pairs:
        family, layout = _choose(known, pairs, kind, why)
    else:
        family, layout = _assemble(known, stack.block, stack.names, (kind, why))
    offset = stored_offset(known, family, layout, len(stack.layers))
    if offset == 1 and layout.gain_offset == 0:
        family, layout = _with_offset(known, pairs, family, layout)
    else:
        layout = layout.model_copy(update={"gain_offset": offset})
    return with_factors(known, family), layout


def _main_stack(known: Known) -> Stack:
    """The language model's blocks; the others are noted."""
    stacks = find_stacks(known.store)
    if not stacks:
        raise unknown(known, "no tensor name counts layers")
    if len(equals(stacks)) > 1:
        raise unknown(known, f"there are several stacks of blocks: {shown(equals(stacks))}")
    said = known.value("num_hidden_layers")
    if len(stacks[0].layers) != said and any(len(stack.layers) == said for stack in stacks):
        raise unknown(
            known,
            f"of several stacks of blocks, {shown(stacks)}, that of the token embeddings has not "
            f"the {said} layers that the configuration says",
        )
    if stacks[1:]:
        known.notes.append(
            f"of several stacks of blocks, {shown(stacks[:1])} is the language "
            f"model; not read: {shown(stacks[1:])}"
        )
    return stacks[0]


def _covering(known: Known, stack: Stack) -> list[tuple[Family, Layout]]:
    """Families whose names explain every tensor of the first block, each with its prefix."""
    return [
        (family, layout.model_copy(update={"prefixes": (prefix,)}))
        for family in families().values()
        if not family.only_named
        and (layout := known.layout(family)) is not None
        and (prefix := _covering_prefix(layout, stack.block, stack.names, known.store)) is not None
    ]


def _choose(
    known: Known, pairs: list[tuple[Family, Layout]], kind: NormKind | None, why: str
) -> tuple[Family, Layout]:
    """The one of several families that a block's names fit, with the norms of the checkpoint."""
    # A norm without weights leaves no trace of its kind.
    told = [
        pair
        for pair in pairs
        if kind in (None, pair[0].norm.kind) and (pair[0].norm.affine or kind is not None)
    ]
    for fits in (
        [pair for pair in told if pair[0].inferable],
        [pair for pair in told if not pair[0].inferable],
        [(with_norm(f, kind), layout) for f, layout in pairs if f.inferable and kind is not None],
    ):
        if fits and not _are_alike(fits):
            names = ", ".join(family.name for family, _ in fits)
            raise unknown(known, f"the names fit several ({names})")
        if fits:
            family, layout = fits[0]
            known.notes.append(f"names of the family '{family.name}', taken for its kind of block")
            if kind is None:
                known.notes.append(f"norms assumed to be {family.norm.kind}")
            elif fits[0] not in told:
                known.notes.append(f"norms taken to be {kind}, by {why}")
            return family, layout
    if any(not family.norm.affine for family, _ in pairs):
        raise unknown(known, "its blocks store no norms, so what normalises them cannot be told")
    raise unknown(known, f"its norms are {kind}, by {why}, which no family of these names has")


def _are_alike(pairs: list[tuple[Family, Layout]]) -> bool:
    """Whether several families compute the same of the same tensors."""
    computed = {
        (
            family.model_dump_json(exclude=set(_NAMING)),
            layout.model_dump_json(include={"tensors", "gain_offset"}),
        )
        for family, layout in pairs
    }
    return len(computed) == 1


def _with_offset(
    known: Known, pairs: list[tuple[Family, Layout]], family: Family, layout: Layout
) -> tuple[Family, Layout]:
    """A family whose gains are stored minus 1, or the one that was found with such gains."""
    fits = [(f, names) for f, names in pairs if names.gain_offset == 1 and f.moe is None]
    if fits and _are_alike(fits):
        known.notes.append(f"taken for the family '{fits[0][0].name}', with its other factors")
        return fits[0]
    known.notes.append("whether the embeddings are multiplied too, as Gemma's, is not known")
    return family, layout.model_copy(update={"gain_offset": 1.0})


def _covering_prefix(
    layout: Layout, block: str, names: list[str], store: TensorReader
) -> str | None:
    """The prefix under which the layout's block is `block` and explains all of its tensors."""
    end = layout.block.format(layer=0)
    if not block.endswith(end):
        return None
    explained = set()
    for spec in layout.tensors.values():
        found = [n for n in spec.name if block + _numbered(n) + spec.suffix in store]
        if not found and not spec.optional:
            return None
        for name in found:
            pattern = re.escape(name).replace(r"\{expert\}", r"\d+")
            ends = {re.escape(spec.suffix), re.escape(spec.bias_suffix)}
            whole = re.compile(f"{pattern}(?:{'|'.join(ends)})")
            explained |= {n for n in names if whole.fullmatch(n)}
    rest = set(names) - explained
    if any(not any(fnmatchcase(block + n, pattern) for pattern in layout.unused) for n in rest):
        return None
    return block[: len(block) - len(end)]


def _assemble(
    known: Known, block: str, names: list[str], told: tuple[NormKind | None, str]
) -> tuple[Family, Layout]:
    """A layout from the names that any family knows, where shapes leave one way to read them."""
    store = known.store
    vocabulary = list(_vocabulary(known))
    hidden_size = _hidden_size(known, block, names)
    chosen: dict[Role, TensorSpec] = {}
    taken: set[str] = set()
    for role in (*_PLAIN_ROLES, "gate"):
        assert role in get_args(Role)
        ways = {
            (spec.transposed, spec.take, name): spec.model_copy(update={"name": (name,)})
            for known_role, spec in vocabulary
            if known_role == role
            for name in spec.name
            if block + name + spec.suffix in store
            and _shape_fits(role, spec, store.info(block + name + spec.suffix).shape, hidden_size)
        }
        if len({key[:2] for key in ways}) > 1 or len(ways) > 1:
            shown = ", ".join(sorted(f"{n} ({t})" for _, t, n in ways))
            raise unknown(known, f"the role '{role}' can be read in several ways: {shown}")
        for spec in ways.values():
            chosen[role] = spec
            taken.add(spec.name[0] + spec.suffix)
            taken.add(spec.name[0] + spec.bias_suffix)
    missing = [role for role in _PLAIN_ROLES if role not in chosen and role != "ffn_norm"]
    if missing == ["attention_norm"] and not any(_NORM.search(name) for name in names):
        raise unknown(known, "its blocks store no norms, so what normalises them cannot be told")
    if missing:
        raise unknown(known, f"no tensor is known for {', '.join(missing)}")
    unused = _known_unused(known)
    for name in names:
        if name not in taken and not any(fnmatchcase(block + name, p) for p in unused):
            raise unknown(known, f"nothing is known of '{block}{name}'")
    mapping = ", ".join(f"{role}: {spec.name[0]}" for role, spec in chosen.items())
    known.notes.append(f"mapping chosen by name and shape: {mapping}")
    kind, why = told
    if kind is None:
        known.notes.append("norms assumed to be rms")
    else:
        known.notes.append(f"norms taken to be {kind}, by {why}")
    parallel = "ffn_norm" not in chosen
    if parallel:
        known.notes.append("one norm a block: attention and FFN assumed parallel")
        chosen["ffn_norm"] = chosen["attention_norm"]
    prefix = block.removesuffix("0.")
    layout = Layout(
        prefixes=("",),
        embedding=_embedding(known, hidden_size),
        block=prefix + "{layer}.",
        tensors=dict(chosen),
        unused=unused,
    )
    family = Family(
        name="inferred",
        description="put together from names that other families use",
        residual="parallel" if parallel else "sequential",
        norm=NormSpec(kind=kind or "rms", eps=1e-5),
        activation="silu" if "gate" in chosen else "gelu",
        hf=layout,
    )
    return family, layout


def _vocabulary(known: Known) -> Iterator[tuple[Role, TensorSpec]]:
    for family in families().values():
        layout = known.layout(family)
        if layout is not None and family.norm.position == "before":
            yield from layout.tensors.items()


def _known_unused(known: Known) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for family in families().values():
        layout = known.layout(family)
        if layout is not None:
            # Only what never acts on a single token; a mixer or buffer of one family may be
            # the heart of another.
            found |= {p: r for p, r in layout.unused.items() if r in ("scores", "after")}
    return found


def _hidden_size(known: Known, block: str, names: list[str]) -> int:
    configured = known.value("hidden_size")
    if type(configured) is int and configured > 0:
        return configured
    sizes = Counter(
        shape[0]
        for name in names
        if len(shape := known.store.info(block + name).shape) == 1 and "norm" in name.lower()
    )
    if not sizes:
        raise unknown(known, "no norm tells the width of the residual stream")
    return sizes.most_common(1)[0][0]


def _shape_fits(role: Role, spec: TensorSpec, shape: tuple[int, ...], hidden_size: int) -> bool:
    if role.endswith("norm"):
        return shape == (hidden_size,)
    if len(shape) != 2 or spec.stacked:
        return False
    rows, columns = shape[::-1] if spec.transposed else shape
    return rows == hidden_size if role in ("output", "down") else columns == hidden_size


def _embedding(known: Known, hidden_size: int) -> EmbeddingSpec:
    """The largest matrix outside the blocks whose rows are as wide as the residual stream."""
    candidates = [
        info
        for info in known.store.tensors.values()
        if len(info.shape) == 2
        and info.shape[1] == hidden_size
        and "emb" in info.name
        and _BLOCK.fullmatch(info.name) is None
    ]
    if not candidates:
        return EmbeddingSpec(tokens="token embeddings")  # a name no tensor has
    best = max(candidates, key=lambda info: info.shape[0])
    known.notes.append(f"token embeddings assumed to be {best.name}")
    return EmbeddingSpec(tokens=best.name.removesuffix(".weight"))


def _numbered(name: str) -> str:
    return name.replace("{expert}", "0")
