"""Match a checkpoint against the families: which tensor plays which role, at which size.

Works on names, shapes and configuration only; no weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ckptforensics.architectures.schema import (
    UNUSED_REASONS,
    Family,
    Layout,
    Role,
    Take,
    families,
)
from ckptforensics.errors import (
    FormatError,
    NothingAnalysable,
    TensorError,
    UnknownFamily,
)
from ckptforensics.tensors import TensorInfo, TensorStore

FamilySource = Literal["config", "gguf", "inferred"]

# Keys of config.json, and of GGUF metadata after the architecture's name, that hold one quantity.
_KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "hidden_size": (("hidden_size", "n_embd", "d_model"), ("embedding_length",)),
        "num_layers": (("num_hidden_layers", "n_layer", "n_layers"), ("block_count",)),
        "num_heads": (("num_attention_heads", "n_head", "n_heads"), ("attention.head_count",)),
        "num_kv_heads": (("num_key_value_heads",), ("attention.head_count_kv",)),
        "head_dim": (("head_dim",), ("attention.value_length",)),
        "eps": (
            ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"),
            ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
        ),
        "activation": (("hidden_act", "activation_function"), ()),
    }
)


@dataclass(frozen=True)
class Sizes:
    """Widths and counts; `head_dim` is that of the value heads."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class WeightRef:
    """The stored tensors of one role.

    Attributes
    ----------
    weight, bias : tensor names; no bias is None
    transposed : stored (in, out)
    ranges : output rows that belong to the role, None for all
    """

    weight: str
    bias: str | None
    transposed: bool = False
    ranges: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Architecture:
    """How to read a checkpoint as a stack of residual blocks.

    Attributes
    ----------
    family, source : the family and how it was found
    sizes : widths and counts
    eps, activation, gain_offset : of norms and FFN
    embedding, positions : tensor names, None where the files lack them
    prefixes : prefix of each block
    layers : role to tensors, of each block
    unused : tensor to the reason why it is not read
    bos_token_id : None if the checkpoint names none
    notes : what was assumed because the checkpoint does not say it
    """

    family: Family
    source: FamilySource
    sizes: Sizes
    eps: float
    activation: str
    gain_offset: float
    embedding: str | None
    positions: str | None
    prefixes: tuple[str, ...]
    layers: tuple[Mapping[Role, WeightRef], ...]
    unused: Mapping[str, str]
    bos_token_id: int | None
    notes: tuple[str, ...]

    @property
    def used(self) -> Mapping[str, str]:
        """Tensor to the role it plays."""
        roles: dict[str, str] = {}
        for refs in self.layers:
            for role, ref in refs.items():
                for name in filter(None, (ref.weight, ref.bias)):
                    roles[name] = role if name not in roles else f"{roles[name]}, {role}"
        if self.embedding is not None:
            roles[self.embedding] = "embedding"
        if self.positions is not None:
            roles[self.positions] = "positions"
        return roles


def resolve(store: TensorStore, config: Mapping[str, Any] | None) -> Architecture:
    """Find the family of a checkpoint and the tensors of every block.

    Parameters
    ----------
    store : the checkpoint's tensors
    config : parsed `config.json`, if there is one

    Raises
    ------
    UnknownFamily
        if no family's names fit.
    TensorError
        if the family is known and a tensor is missing, misshapen or not part of its blocks.
    FormatError
        if the configuration holds impossible values.
    """
    known = _Known(store, config)
    known.refuse_quantized()
    family, source = known.family()
    if family is not None and (layout := known.layout(family)) is not None:
        prefix = _prefix(layout, store)
        if prefix is None:
            raise TensorError(
                f"the configuration says '{family.name}' and no tensor is named like one",
                path=known.path,
                hint=f"expected for example '{layout.prefixes[0]}{layout.block.format(layer=0)}"
                f"{layout.tensors['output'].name}.weight'",
            )
        return _build(known, family, source, layout, prefix)
    return _infer(known)


def _infer(known: _Known) -> Architecture:
    matches = []
    for family in families().values():
        layout = known.layout(family)
        if layout is not None and (prefix := _prefix(layout, known.store)) is not None:
            matches.append((family, layout, prefix))
    if len(matches) != 1:
        said = f"'{known.model_type}'" if known.model_type else "a model without configuration"
        fits = ", ".join(family.name for family, _, _ in matches)
        raise UnknownFamily(
            f"no family is named {said}, and the tensor names fit "
            + (f"several ({fits})" if matches else "none"),
            path=known.path,
            hint="see docs/families.md for the supported families and how to add one",
        )
    return _build(known, matches[0][0], "inferred", *matches[0][1:])


class _Known:
    """What configuration and metadata say, read with suspicion."""

    def __init__(self, store: TensorStore, config: Mapping[str, Any] | None) -> None:
        self.store = store
        self.config = dict(config or {})
        # A vision-language configuration keeps the language model's sizes one level down.
        if isinstance(text := self.config.get("text_config"), dict):
            self.config = {**self.config, **text}
        self.gguf = store.containers[0].path.suffix == ".gguf"
        self.path = store.containers[0].path
        self.notes: list[str] = []
        name = store.metadata.get("general.architecture") if self.gguf else None
        self.model_type = name if self.gguf else self.config.get("model_type")

    def family(self) -> tuple[Family | None, FamilySource]:
        for family in families().values():
            if self.gguf and self.model_type in family.gguf_architectures:
                return family, "gguf"
            if not self.gguf and self.model_type in family.model_types:
                return family, "config"
        return None, "inferred"

    def layout(self, family: Family) -> Layout | None:
        return family.gguf if self.gguf else family.hf

    def get(self, quantity: str) -> Any:
        hf, gguf = _KEYS[quantity]
        if self.gguf:
            found = (self.store.metadata.get(f"{self.model_type}.{key}") for key in gguf)
        else:
            found = (self.config.get(key) for key in hf)
        return next((value for value in found if value is not None), None)

    def count(self, quantity: str) -> int | None:
        value = self.get(quantity)
        if value is None:
            return None
        if type(value) is not int or not 0 < value < 1 << 24:
            raise FormatError(f"the configuration gives {quantity} as {value!r}", path=self.path)
        return value

    def token(self, name: str) -> int | None:
        if self.gguf:
            value = self.store.metadata.get(f"tokenizer.ggml.{name}")
        else:
            value = self.config.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        return value if type(value) is int and value >= 0 else None

    def refuse_quantized(self) -> None:
        quantization = self.config.get("quantization_config")
        if quantization and not self.gguf:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise NothingAnalysable(
                f"the weights are quantized ({method or 'method not named'}), "
                "which this version does not read",
                path=self.path,
                hint="dequantize it, or use a GGUF file of the model",
            )


def _prefix(layout: Layout, store: TensorStore) -> str | None:
    """The first prefix under which the first block has every weight the layout names."""
    for prefix in layout.prefixes:
        block = prefix + layout.block.format(layer=0)
        if all(f"{block}{spec.name}.weight" in store for spec in layout.tensors.values()):
            return prefix
    # A damaged or partial checkpoint still shows its prefix; what it lacks is reported by name.
    for prefix in layout.prefixes:
        blocks = (prefix + layout.block.format(layer="*")).replace("[", "[[]")
        patterns = [f"{blocks}{spec.name}.weight" for spec in layout.tensors.values()]
        if all(any(fnmatchcase(name, p) for name in store) for p in patterns):
            return prefix
    return None


def _build(
    known: _Known, family: Family, source: FamilySource, layout: Layout, prefix: str
) -> Architecture:
    store = known.store
    num_layers = known.count("num_layers") or _count_layers(layout, prefix, store)
    sizes = _sizes(known, layout, prefix, num_layers)
    activation = known.get("activation")
    if activation is None:
        activation = family.activation
        if source == "inferred":
            known.notes.append(f"activation assumed to be {activation}")
    eps = known.get("eps")
    if eps is None:
        eps = family.norm.eps
        known.notes.append(f"norm epsilon assumed to be {eps:g}")
    if not isinstance(activation, str):
        raise FormatError(f"the configuration gives activation as {activation!r}", path=known.path)
    if not isinstance(eps, int | float) or not 0 < eps < 1:
        raise FormatError(f"the configuration gives epsilon as {eps!r}", path=known.path)

    prefixes, layers = [], []
    for number in range(num_layers):  # stops at the first missing tensor, whatever num_layers says
        prefixes.append(prefix + layout.block.format(layer=number))
        layers.append(_layer_refs(layout, sizes, prefixes[-1], store))
    embedding = _present(prefix + layout.embedding + ".weight", store)
    positions = None if layout.positions is None else prefix + layout.positions + ".weight"
    if embedding is not None:
        _require_width(store.info(embedding), sizes.hidden_size)
    if positions is not None:
        _require_width(store.info(positions), sizes.hidden_size)
    architecture = Architecture(
        family=family,
        source=source,
        sizes=sizes,
        eps=float(eps),
        activation=activation,
        gain_offset=layout.gain_offset,
        embedding=embedding,
        positions=positions,
        prefixes=tuple(prefixes),
        layers=tuple(layers),
        unused={},
        bos_token_id=known.token("bos_token_id"),
        notes=tuple(known.notes),
    )
    unused = _unused(store, layout, architecture, prefix)
    return Architecture(**{**architecture.__dict__, "unused": unused})


def _sizes(known: _Known, layout: Layout, prefix: str, num_layers: int) -> Sizes:
    """Sizes from the configuration where it gives them, else from the shapes of the first block."""
    store, block = known.store, prefix + layout.block.format(layer=0)

    def shape(role: Role) -> tuple[int, ...]:
        spec = layout.tensors[role]
        found = store.info(f"{block}{spec.name}.weight").shape
        return found[::-1] if spec.transposed else found

    hidden_size = known.count("hidden_size")
    if hidden_size is None:
        hidden_size = math.prod(shape("attention_norm"))
    heads = known.count("num_heads")
    if heads is not None:
        kv_heads = known.count("num_kv_heads") or heads
        head_dim = known.count("head_dim") or hidden_size // heads
        if heads % kv_heads:
            raise FormatError(
                f"{heads} heads do not divide among {kv_heads} key-value heads", path=known.path
            )
        return Sizes(hidden_size, num_layers, heads, kv_heads, head_dim)

    # Without a head count: where values are not shared between heads it does not matter.
    inner = shape("output")[-1]
    value_rows = shape("value")[0]
    if layout.tensors["value"].take == "qkv:v" and value_rows == 3 * inner:
        value_rows = inner
    if value_rows != inner:
        raise UnknownFamily(
            "the heads share values and nothing says how many heads there are",
            path=known.path,
            hint="put config.json beside the weights or name it with --config",
        )
    known.notes.append("head count not given; it does not enter the result")
    return Sizes(hidden_size, num_layers, 1, 1, inner)


def _count_layers(layout: Layout, prefix: str, store: TensorStore) -> int:
    number = 0
    name = layout.tensors["output"].name
    while f"{prefix}{layout.block.format(layer=number)}{name}.weight" in store:
        number += 1
    return number


def _layer_refs(
    layout: Layout, sizes: Sizes, block: str, store: TensorStore
) -> Mapping[Role, WeightRef]:
    refs: dict[Role, WeightRef] = {}
    d, inner = sizes.hidden_size, sizes.num_heads * sizes.head_dim
    ffn_width: int | None = None
    for role, spec in layout.tensors.items():
        info = store.info(f"{block}{spec.name}.weight")
        bias = _present(f"{block}{spec.name}.bias", store)
        if role in ("attention_norm", "ffn_norm"):
            _require_shape(info, (d,))
            refs[role] = WeightRef(info.name, bias)
            if bias is not None:
                _require_shape(store.info(bias), (d,))
            continue
        if len(info.shape) != 2:
            raise _misshapen(info, "a matrix")
        rows, columns = info.shape[::-1] if spec.transposed else info.shape
        ranges = _ranges(spec.take, sizes, rows, info)
        taken = rows if ranges is None else sum(b - a for a, b in ranges)
        if bias is not None:
            _require_shape(store.info(bias), (rows,))
        if role in ("gate", "up"):
            ffn_width = taken if ffn_width is None else ffn_width
            expected = (ffn_width, d)
        elif role == "down":
            expected = (d, ffn_width if ffn_width is not None else columns)
        elif role == "value":
            expected = (sizes.num_kv_heads * sizes.head_dim, d)
        else:
            expected = (d, inner)
        if (taken, columns) != expected:
            raise _misshapen(info, f"{expected[0]} x {expected[1]} for the role '{role}'")
        refs[role] = WeightRef(info.name, bias, spec.transposed, ranges)
    return MappingProxyType(refs)


def _ranges(
    take: Take, sizes: Sizes, rows: int, info: TensorInfo
) -> tuple[tuple[int, int], ...] | None:
    """Output rows of a fused tensor that belong to the role."""
    heads, kv_heads, width = sizes.num_heads, sizes.num_kv_heads, sizes.head_dim
    if take == "all":
        return None
    if take in ("half:1", "half:2"):
        if rows % 2:
            raise _misshapen(info, "an even number of rows")
        return ((0, rows // 2),) if take == "half:1" else ((rows // 2, rows),)
    if take == "qkv:v":
        begin, expected = (heads + kv_heads) * width, (heads + 2 * kv_heads) * width
        ranges: tuple[tuple[int, int], ...] = ((begin, expected),)
    else:
        queries = 1 if take == "heads:v" else heads // kv_heads
        groups = heads if take == "heads:v" else kv_heads
        expected = groups * (queries + 2) * width
        ends = (width * (queries + 2) * (g + 1) for g in range(groups))
        ranges = tuple((end - width, end) for end in ends)
    if rows != expected:
        raise _misshapen(info, f"{expected} rows of fused q, k and v")
    return ranges


def _unused(
    store: TensorStore, layout: Layout, architecture: Architecture, prefix: str
) -> Mapping[str, str]:
    """Why each unread tensor is not read; an unexplained one inside a block is an error."""
    used = architecture.used
    unused = {}
    for name in store:
        if name in used:
            continue
        reason = next((r for p, r in layout.unused.items() if fnmatchcase(name, p)), None)
        if reason is not None:
            unused[name] = UNUSED_REASONS[reason]
        elif any(name.startswith(p) for p in architecture.prefixes):
            # What the block does with it is not known, so anything said of it could be wrong.
            raise TensorError(
                f"blocks of the family '{architecture.family.name}' have no such tensor",
                path=store.info(name).path,
                tensor=name,
                hint="the checkpoint belongs to another architecture; see docs/families.md",
            )
        else:
            unused[name] = "outside the blocks" if name.startswith(prefix) else "another component"
    return MappingProxyType(unused)


def _present(name: str, store: TensorStore) -> str | None:
    return name if name in store else None


def _require_shape(info: TensorInfo, shape: Iterable[int]) -> None:
    if info.shape != tuple(shape):
        raise _misshapen(info, " x ".join(str(n) for n in shape))


def _require_width(info: TensorInfo, width: int) -> None:
    if len(info.shape) != 2 or info.shape[1] != width:
        raise _misshapen(info, f"rows of {width}")


def _misshapen(info: TensorInfo, expected: str) -> TensorError:
    shape = " x ".join(str(n) for n in info.shape) or "a scalar"
    path: Path = info.path
    return TensorError(f"the shape is {shape}, expected {expected}", path=path, tensor=info.name)
