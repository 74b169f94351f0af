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
from ckptforensics.errors import UnknownFamily
from ckptforensics.tensors import TensorReader

_BLOCK = re.compile(r"(?P<before>(?:.*?\.)?)(?P<layer>\d+)\.(?P<rest>.+)")
# GGUF keys of factors, bounds and routing, which each family uses in its own way.
_TELLING = ("embedding_scale", "residual_scale", "attention.clamp_kqv", "expert_count")
_PLAIN_ROLES: tuple[Role, ...] = ("attention_norm", "value", "output", "ffn_norm", "up", "down")


def infer_family(known: Known) -> tuple[Family, Layout]:
    """A family and layout that explain every tensor of the first block.

    Raises
    ------
    UnknownFamily
        if the names fit no known vocabulary, or fit it in several ways.
    """
    block, names = _first_block(known.store)
    if block is None:
        raise _unknown(known, "no tensor name counts layers")
    _require_no_factors(known)
    norm = known.gguf_norm()
    covering = [
        (family, layout.model_copy(update={"prefixes": (prefix,)}))
        for family in families().values()
        if (layout := known.layout(family)) is not None
        and norm in (None, family.norm.kind)
        and (prefix := _covering_prefix(layout, block, names, known.store)) is not None
    ]
    for plain in (True, False):
        fits = [pair for pair in covering if pair[0].inferable is plain]
        if len(fits) == 1:
            family, layout = fits[0]
            known.notes.append(f"names of the family '{family.name}', taken for its kind of block")
            return family, layout
        if fits:
            raise _unknown(known, f"the names fit several ({', '.join(f.name for f, _ in fits)})")
    return _assemble(known, block, names)


def _require_no_factors(known: Known) -> None:
    """UnknownFamily if GGUF metadata tells of arithmetic that names and shapes do not show."""
    for key in _TELLING if known.gguf else ():
        if known.value(None, key):
            key = f"{known.model_type}.{key}"
            raise _unknown(known, f"'{key}' says that its blocks do more than names can tell")


def _first_block(store: TensorReader) -> tuple[str | None, list[str]]:
    """Prefix of block 0, and the names after it; the numbering with the most tensors wins."""
    counts: Counter[str] = Counter()
    for name in store:
        if (match := _BLOCK.fullmatch(name)) is not None and match["layer"] == "0":
            counts[match["before"]] += 1
    if not counts:
        return None, []
    before = counts.most_common(1)[0][0]
    block = f"{before}0."
    return block, [name[len(block) :] for name in store if name.startswith(block)]


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


def _assemble(known: Known, block: str, names: list[str]) -> tuple[Family, Layout]:
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
            raise _unknown(known, f"the role '{role}' can be read in several ways: {shown}")
        for spec in ways.values():
            chosen[role] = spec
            taken.add(spec.name[0] + spec.suffix)
            taken.add(spec.name[0] + spec.bias_suffix)
    missing = [role for role in _PLAIN_ROLES if role not in chosen and not role.endswith("norm")]
    if missing:
        raise _unknown(known, f"no tensor is known for {', '.join(missing)}")
    unused = _known_unused(known)
    for name in names:
        if name not in taken and not any(fnmatchcase(block + name, p) for p in unused):
            raise _unknown(known, f"nothing is known of '{block}{name}'")
    biased = any(
        block + chosen[role].name[0] + ".bias" in store
        for role in ("attention_norm", "ffn_norm")
        if role in chosen
    )
    kind = known.gguf_norm() or ("layer" if biased else "rms")
    mapping = ", ".join(f"{role}: {spec.name[0]}" for role, spec in chosen.items())
    known.notes.append(f"mapping chosen by name and shape: {mapping}")
    if known.gguf_norm() is None:
        known.notes.append(f"norms assumed to be {kind}")
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
        norm=NormSpec(kind=kind, eps=1e-5),
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
        raise _unknown(known, "no norm tells the width of the residual stream")
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


def _unknown(known: Known, why: str) -> UnknownFamily:
    said = f"no family is named '{known.model_type}'" if known.model_type else "no configuration"
    return UnknownFamily(
        f"{said}, and {why}",
        path=known.path,
        hint="see docs/families.md for the supported families and how to add one",
    )
