"""PEFT adapters merged onto their base while it is read: LoRA and DoRA.

What a merged weight is, with W stored (out, in), A (r, in) and B (out, r):

    W + s B A                      s = alpha / r, or alpha / sqrt(r) with `use_rslora`
    m * (W + s B A) / |W + s B A|  DoRA: the norm of each output, m its trained magnitude

Weights stored (in, out) and embeddings, whose rows are inputs, take the transpose of all that.
The sums are made in float32: a merged checkpoint saved as BF16 is rounded once more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as short
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import FormatError, NothingAnalysable, TensorError
from ckptforensics.tensors.info import TensorInfo, matrix_shape
from ckptforensics.tensors.reader import (
    BLOCK_ELEMENTS,
    TensorReader,
    require_finite,
)

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes, Floats
    from ckptforensics.compute.bf16 import Bf16Matrix

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.(?P<kind>weight|bias))?"
)
# Modules that PEFT puts around one that it trains as a whole, or beside an adapter.
_WRAPPED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
# Modules around the blocks that a checkpoint may leave out of its names, and may have more of.
_OUTER = frozenset(
    {
        *("model", "language_model", "text_model", "transformer", "backbone", "module"),
        *("gpt_neox", "bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta"),
    }
)
# Modules that get more rows when tokens are added, and are then saved whole.
_GROWING = ("embed_tokens.weight", "lm_head.weight", "lm_head.bias", "wte.weight")

# Variants of LoRA that another formula merges, or none.
_REFUSED_OPTIONS = MappingProxyType(
    {
        "layer_replication": "layers repeated by the adapter",
        "target_parameters": "adapted parameters that are no module's weight",
        "trainable_token_indices": "single tokens trained apart",
        "alora_invocation_tokens": "activated LoRA, which changes only a part of the text",
        "arrow_config": "Arrow, which chooses an adapter for each token",
        "use_qalora": "QALoRA",
        "use_bdlora": "BD-LoRA",
        "kasa_config": "KaSA",
        "monteclora_config": "MonteCLoRA",
    }
)
# Initialisations that leave the base as it is; others (PiSSA, OLoRA, ...) subtract from it.
_PLAIN_STARTS = frozenset({"true", "false", "none", "gaussian", "eva", "orthogonal"})
_LARGEST = 1e9
_LONGEST_PATTERN = 200
_MOST_REPEATS = 4


@dataclass(frozen=True)
class _Delta:
    """A low-rank change of one base tensor: names of A, B and DoRA's magnitude in the adapter.

    `transposed` says that the base tensor is stored (in, out).
    """

    a: str
    b: str
    magnitude: str | None
    scaling: float
    transposed: bool


class AdaptedReader(TensorReader):
    """A base whose tensors have an adapter's changes in them.

    Attributes
    ----------
    base, adapter : the two stores
    deltas : low-rank changes by base tensor
    added : bias of the base to the adapter's tensor that is added to it, and the factor
    replaced : tensor to the adapter's tensor in its place, before any sum is added
    """

    def __init__(
        self,
        base: TensorReader,
        adapter: TensorReader,
        deltas: Mapping[str, _Delta],
        added: Mapping[str, tuple[str, float]],
        replaced: Mapping[str, str],
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.deltas = MappingProxyType(dict(deltas))
        self.added = MappingProxyType(dict(added))
        self.replaced = MappingProxyType(dict(replaced))
        self.containers = (*base.containers, *adapter.containers)
        self.metadata = base.metadata
        # Zeros are no damage in an adapter: a low-rank change begins with them.
        self.watch = base.watch
        tensors = dict(base.tensors)
        for name, theirs in replaced.items():
            tensors[name] = replace(adapter.info(theirs), name=name)
        self.tensors = MappingProxyType(tensors)
        self._norms: dict[str, Floats] = {}

    def parts(self, name: str) -> tuple[TensorInfo, ...]:
        """See `TensorReader.parts`."""
        if name in self.replaced:
            parts = self.adapter.parts(self.replaced[name])
        else:
            parts = self.base.parts(name)
        if (delta := self.deltas.get(name)) is not None:
            names = (delta.a, delta.b, delta.magnitude)
            parts += tuple(self.adapter.info(n) for n in names if n is not None)
        if name in self.added:
            parts += (self.adapter.info(self.added[name][0]),)
        return parts

    def recipe(self) -> str:
        """See `TensorReader.recipe`."""
        own = [sorted(part.items()) for part in (self.deltas, self.added, self.replaced)]
        return self.base.recipe() + repr(own)

    def prefetch(self, names: Iterable[str], *, keep: bool = False) -> None:
        """See `TensorReader.prefetch`."""
        wanted = list(names)
        self.base.prefetch(n for n in wanted if n not in self.replaced)
        self.adapter.prefetch(
            part.name
            for n in wanted
            if n in self.replaced or n in self.deltas or n in self.added
            for part in self.parts(n)
            if part.name in self.adapter
        )

    def prefetch_rows(self, name: str, rows: Iterable[tuple[int, int]]) -> None:
        """See `TensorReader.prefetch_rows`."""
        self._holder(name).prefetch_rows(self.replaced.get(name, name), rows)

    def stored_bytes(self, name: str) -> Bytes:
        """See `TensorReader.stored_bytes`."""
        return self._holder(name).stored_bytes(self.replaced.get(name, name))

    def release(self, name: str) -> None:
        """See `TensorReader.release`."""
        self._holder(name).release(self.replaced.get(name, name))

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """See `TensorReader.read_rows`."""
        import numpy as np

        rows = self._unchanged(name, start, stop)
        delta = self.deltas.get(name)
        if rows.size == 0 or (delta is None and name not in self.added):
            return rows
        # Sums that overflow are found by what they leave; so is DoRA's division by a norm of 0,
        # which has no direction to give a magnitude to.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if name in self.added:
                addend, factor = self.added[name]
                rows += self.adapter.read(addend).reshape(rows.shape) * np.float32(factor)
            if delta is not None:
                self._merge(rows, name, delta, start)
        require_finite(rows, self.info(name), start)
        return rows

    def kept_rows(self, name: str, start: int, stop: int) -> Bf16Matrix | None:
        """See `TensorReader.kept_rows`."""
        if name in self.deltas or name in self.added:
            return None
        return self._holder(name).kept_rows(self.replaced.get(name, name), start, stop)

    def _holder(self, name: str) -> TensorReader:
        return self.adapter if name in self.replaced or name in self.adapter else self.base

    def _unchanged(self, name: str, start: int, stop: int) -> Floats:
        """Rows of the tensor that the adapter's sums are added to."""
        if name in self.replaced:
            return self.adapter.read_rows(self.replaced[name], start, stop)
        return self.base.read_rows(name, start, stop)

    def _merge(self, rows: Floats, name: str, delta: _Delta, start: int) -> None:
        """Change rows of the base, the first of which is `start`, into the merged weight's."""
        import numpy as np

        self._add(rows, delta, start)
        if delta.magnitude is None:
            return
        magnitude = self.adapter.read(delta.magnitude).reshape(-1)
        if delta.transposed:
            if name not in self._norms:
                self._norms[name] = self._column_norms(name, delta)
            rows *= magnitude / self._norms[name]
        else:
            norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            rows *= (magnitude[start : start + len(rows)] / norms)[:, None]

    def _add(self, rows: Floats, delta: _Delta, start: int) -> None:
        """Add the rows of s B A from `start` on, a block at a time."""
        stop = start + len(rows)
        if delta.transposed:
            left = self.adapter.read(delta.a)[:, start:stop].T
            right = self.adapter.read(delta.b).T
        else:
            left = self.adapter.read_rows(delta.b, start, stop)
            right = self.adapter.read(delta.a)
        left = left * left.dtype.type(delta.scaling)
        step = max(1, BLOCK_ELEMENTS // rows.shape[1])
        for first in range(0, len(rows), step):
            rows[first : first + step] += left[first : first + step] @ right

    def _column_norms(self, name: str, delta: _Delta) -> Floats:
        """Norm of each output of a weight stored (in, out), which every row of it takes part in."""
        import numpy as np

        columns, rows = matrix_shape(self.info(name))
        squares = np.zeros(columns)
        step = max(1, BLOCK_ELEMENTS // columns)
        for first in range(0, rows, step):
            block = self._unchanged(name, first, min(first + step, rows))
            self._add(block, delta, first)
            squares += np.einsum("ij,ij->j", block, block)
        return np.sqrt(squares).astype(np.float32)


def merge_adapter(
    base: TensorReader,
    adapter: TensorReader,
    config: Mapping[str, Any],
    layouts: Mapping[str, bool] = MappingProxyType({}),
) -> TensorReader:
    """Present `base` with the adapter merged onto it.

    Parameters
    ----------
    base : tensors under the names of the Hugging Face layout
    adapter : tensors of `adapter_model.safetensors` or `.bin`
    config : parsed `adapter_config.json`
    layouts : weight of the base to whether it is stored as (in, out), where that is known; like
        PEFT, which replaces a `fan_in_fan_out` that contradicts the module

    Raises
    ------
    NothingAnalysable
        if the adapter is of a type or variant that cannot be merged this way.
    FormatError
        if the configuration holds impossible values.
    TensorError
        if a tensor of the adapter has no counterpart in the base, or not its shape.
    """
    return _Merge(base, adapter, config, layouts).store()


class _Merge:
    """Matches an adapter's tensors with those of its base."""

    def __init__(
        self,
        base: TensorReader,
        adapter: TensorReader,
        config: Mapping[str, Any],
        layouts: Mapping[str, bool],
    ) -> None:
        self.layouts = layouts
        self.base = base
        self.adapter = adapter
        self.config = config
        self.path = adapter.containers[0].path
        self.config_path = self.path.parent / "adapter_config.json"
        self._suffixes: dict[str, list[str]] = {}

    def store(self) -> AdaptedReader:
        self._refuse()
        parts: dict[str, dict[str, str]] = {}
        replaced: dict[str, str] = {}
        for name in self.adapter:
            own = name.removeprefix(_PREFIX)
            match = _LORA.fullmatch(own)
            if match is None:
                target = self._whole(name, _WRAPPED.sub("", own))
                _once(replaced, target, name, self.path)
                continue
            key = match["part"] + (".bias" if match["kind"] == "bias" else "")
            _once(parts.setdefault(match["module"], {}), key, name, self.path)
        deltas: dict[str, _Delta] = {}
        added: dict[str, tuple[str, float]] = {}
        for module, found in parts.items():
            name = self._base_name(next(iter(found.values())), f"{module}.weight")
            delta = self._delta(module, self._info(name, replaced), found)
            if name in deltas:
                raise self._wrong(delta.a, f"another tensor of the adapter also changes '{name}'")
            deltas[name] = delta
            if (bias := found.get("lora_B.bias")) is not None:
                target = self._base_name(bias, f"{module}.bias")
                self._require_shape(bias, self._info(target, replaced).shape)
                added[target] = (bias, delta.scaling)
        return AdaptedReader(self.base, self.adapter, deltas, added, replaced)

    def _refuse(self) -> None:
        kind = self.config.get("peft_type")
        advice = "merge it into its base with the library that made it"
        if kind != "LORA":
            raise NothingAnalysable(
                f"adapters of type {kind!r} are not merged: LORA ones are (LoRA and DoRA)",
                path=self.config_path,
                hint=advice,
            )
        what = next((w for o, w in _REFUSED_OPTIONS.items() if self.config.get(o)), None)
        start = self.config.get("init_lora_weights")
        if what is None and str(start).lower() not in _PLAIN_STARTS:
            what = f"init_lora_weights {start!r}, which changes the base"
        if what is not None:
            raise NothingAnalysable(
                f"this kind of LoRA is not merged: {what}", path=self.config_path, hint=advice
            )
        if not self.adapter.tensors:
            raise NothingAnalysable("the adapter holds no tensors", path=self.path)
        if self.base.containers[0].kind == "gguf":
            raise NothingAnalysable(
                "adapters are not merged onto GGUF, which names and orders weights its own way",
                path=self.base.containers[0].path,
                hint="give the base in Hugging Face layout",
            )

    def _whole(self, name: str, own: str) -> str:
        """The tensor that a tensor saved whole stands for."""
        target = self._find(own)
        if target is None:
            modules = self.config.get("modules_to_save")
            path = own.split(".")
            listed = modules if isinstance(modules, list) else []
            outside = not any(part.isdecimal() for part in path)
            if outside and ("lm_head" in path or any(m in path for m in listed)):
                return own  # a head that the base does not have, or shares with its embedding
            raise self._no_counterpart(name, own)
        shape, theirs = self.base.info(target).shape, self.adapter.info(name).shape
        if own.endswith(_GROWING) and shape[1:] == theirs[1:] and len(shape) == len(theirs):
            return target
        self._require_shape(name, shape)
        return target

    def _delta(self, module: str, base: TensorInfo, found: Mapping[str, str]) -> _Delta:
        embedding = "_embedding_" if any("_embedding_" in part for part in found) else "_"
        names = {}
        for part in ("A", "B"):
            if f"lora{embedding}{part}" not in found:
                raise self._wrong(
                    next(iter(found.values())), f"its counterpart lora{embedding}{part} is missing"
                )
            names[part] = found[f"lora{embedding}{part}"]
        magnitude = found.get("lora_magnitude_vector")
        if (magnitude is not None) != bool(self.config.get("use_dora")):
            raise self._wrong(
                magnitude or names["A"],
                "the adapter has no magnitudes although use_dora is on"
                if magnitude is None
                else "the adapter has a magnitude although use_dora is off",
            )
        left = set(found) - {
            *(f"lora{embedding}{part}" for part in ("A", "B")),
            *("lora_B.bias", "lora_magnitude_vector"),
        }
        if left:
            raise self._wrong(found[left.pop()], "tensors of this kind are not read")

        a, b = self.adapter.info(names["A"]).shape, self.adapter.info(names["B"]).shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
            raise self._wrong(names["A"], f"shapes {_times(a)} and {_times(b)} of A and B differ")
        rank = self._pattern("rank_pattern", "r", module)
        if rank != a[0]:
            raise self._wrong(names["A"], f"rank {a[0]}, and the configuration says {rank:g}")
        forward, backward = (b[0], a[1]) == base.shape, (a[1], b[0]) == base.shape
        stored_in_out = embedding != "_" or self.layouts.get(
            base.name, bool(self.config.get("fan_in_fan_out"))
        )
        transposed = backward and not base.oriented and (stored_in_out or not forward)
        known_otherwise = self.layouts.get(base.name, False) and not base.oriented
        if not (transposed or (forward and embedding == "_" and not known_otherwise)):
            raise self._wrong(
                names["A"],
                f"the change has shape {b[0]} x {a[1]}, and the base has {_times(base.shape)}",
            )
        if magnitude is not None:
            size = math.prod(self.adapter.info(magnitude).shape)
            if size != b[0]:
                raise self._wrong(magnitude, f"{size} magnitudes for {b[0]} outputs")
        alpha = self._pattern("alpha_pattern", "lora_alpha", module)
        scaling = alpha / (math.sqrt(a[0]) if self.config.get("use_rslora") else a[0])
        return _Delta(names["A"], names["B"], magnitude, scaling, transposed)

    def _pattern(self, patterns: str, default: str, module: str) -> float:
        """The value of the first pattern that fits the module's name, as PEFT looks it up."""
        given = self.config.get(patterns) or {}
        if not isinstance(given, dict):
            raise FormatError(f"'{patterns}' is not an object", path=self.config_path)
        values = (v for p, v in given.items() if self._fits(p, module))
        value = next(values, self.config.get(default, 8))
        # Also compares integers that no float holds; NaN is not between.
        if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:
            raise FormatError(
                f"'{default}' or '{patterns}' says {short(value)}, which cannot be",
                path=self.config_path,
            )
        return float(value)

    def _fits(self, pattern: str, module: str) -> bool:
        """PEFT's rule; a pattern that could take very long is refused."""
        repeats = len(re.findall(r"[*+?{]", pattern))
        if (
            len(pattern) > _LONGEST_PATTERN
            or repeats > _MOST_REPEATS
            or re.search(r"\)\s*[*+?{]", pattern)
        ):
            raise FormatError(f"the pattern {pattern!r} is too involved", path=self.config_path)
        try:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
        except (re.error, OverflowError):
            raise FormatError(
                f"{pattern!r} is no regular expression", path=self.config_path
            ) from None

    def _base_name(self, name: str, own: str) -> str:
        target = self._find(own)
        if target is None:
            raise self._no_counterpart(name, own)
        return target

    def _find(self, own: str) -> str | None:
        """The base tensor of this name, whichever outer modules either name leaves out."""
        if own in self.base:
            return own
        if not self._suffixes:
            for known in self.base:
                self._suffixes.setdefault(_inner(known), []).append(known)
        found = self._suffixes.get(_inner(own), [])
        return found[0] if len(found) == 1 else None

    def _info(self, name: str, replaced: Mapping[str, str]) -> TensorInfo:
        return self.adapter.info(replaced[name]) if name in replaced else self.base.info(name)

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        theirs = self.adapter.info(name).shape
        if theirs != shape:
            raise self._wrong(name, f"the shape is {_times(theirs)}, the base's {_times(shape)}")

    def _no_counterpart(self, name: str, own: str) -> TensorError:
        return TensorError(
            f"the base has no tensor '{own}' for it",
            path=self.path,
            tensor=name,
            hint="give the base that the adapter was trained on",
        )

    def _wrong(self, name: str, what: str) -> TensorError:
        return TensorError(
            what,
            path=self.path,
            tensor=name,
            hint="give the base that the adapter was trained on, and its own adapter_config.json",
        )


def _inner(name: str) -> str:
    """The name without the outer modules that it begins with."""
    parts = name.split(".")
    while len(parts) > 2 and parts[0] in _OUTER:
        del parts[0]
    return ".".join(parts)


def _once(names: dict[str, str], key: str, name: str, path: Path) -> None:
    if key in names:
        raise TensorError(
            f"the adapter holds this twice, also as '{names[key]}'", path=path, tensor=name
        )
    names[key] = name


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) or "a scalar"
