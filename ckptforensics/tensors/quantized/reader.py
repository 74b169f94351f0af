"""A reader that shows each quantized weight as one tensor and dequantizes the rows asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptforensics.compute import buffers
from ckptforensics.errors import FormatError, NothingAnalysable, TensorError
from ckptforensics.sources import read_json_object
from ckptforensics.tensors.info import TensorInfo, matrix_shape
from ckptforensics.tensors.quantized.base import Parts, Quantized
from ckptforensics.tensors.quantized.bitsandbytes import KINDS, Int8Rows, Table4
from ckptforensics.tensors.quantized.fp4 import Fp4Linear, Mxfp4Experts
from ckptforensics.tensors.quantized.hqq import Hqq
from ckptforensics.tensors.quantized.mlx import Mlx
from ckptforensics.tensors.quantized.packed import Awq, Gptq, PackQuantized
from ckptforensics.tensors.quantized.scaled import ACTIVATIONS, FP8, Scaled
from ckptforensics.tensors.reader import BLOCK_ELEMENTS, TensorReader, require_finite

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes, Floats
    from ckptforensics.compute.bf16 import Bf16Matrix

# The quantized weight that a stored tensor is the main part of, None if it is of none.
Claim = Callable[[TensorReader, str, Mapping[str, Any]], Quantized | None]


@dataclass(frozen=True)
class _Method:
    """A quant_method: how its weights are found, and whether plain ones may be meant.

    Attributes
    ----------
    claims : tried in order for every stored tensor
    on_loading : the configuration may also ask for plain weights to be quantized when loaded
    """

    claims: tuple[Claim, ...]
    on_loading: bool = False


def wrap_quantized(store: TensorReader, config: Mapping[str, Any] | None) -> TensorReader:
    """Show each group of tensors that make one quantized weight as that weight.

    Parameters
    ----------
    store : the files' own tensors
    config : parsed `config.json`, if there is one; its `quantization_config` tells the encoding

    Returns
    -------
    `store` itself if nothing in it is quantized

    Raises
    ------
    NothingAnalysable
        if the encoding is not one that is read, or nothing says what it is.
    TensorError
        if a part of a quantized weight is missing or does not fit the others.
    """
    path = store.containers[0].path
    if store.containers[0].kind == "gguf":
        return store
    found = _quantization(store, config)
    if found is None:
        _require_unquantized(store)
        return store
    name = _method_name(found)
    method = _METHODS.get(name or "")
    if method is None or not isinstance(found, dict):
        raise NothingAnalysable(
            f"the weights are quantized ({name or 'method not named'}), "
            "which this version does not read",
            path=path,
            hint="dequantize it, or use a GGUF file of the model",
        )
    _refuse_transformed(found, store)
    store.prefetch(name for name in store if name.endswith(_DESCRIPTIONS))
    weights = []
    for tensor in store:
        claimed = (claim(store, tensor, found) for claim in method.claims)
        if (weight := next((w for w in claimed if w is not None), None)) is not None:
            weights.append(weight)
    wrapped = QuantizedReader(store, weights)
    _require_scaled(wrapped)
    if not weights:
        if method.on_loading:
            return store
        raise NothingAnalysable(
            f"the configuration says the weights are quantized ({name}) and none is stored so",
            path=path,
            hint="remove 'quantization_config' from config.json if they are not",
        )
    return wrapped


class QuantizedReader(TensorReader):
    """Another reader's tensors in which quantized weights appear as one tensor each.

    Attributes
    ----------
    stored : the files' own tensors
    weights : each quantized weight by name
    """

    def __init__(self, stored: TensorReader, weights: Iterable[Quantized]) -> None:
        self.stored = stored
        self.containers = stored.containers
        self.metadata = stored.metadata
        self.watch = stored.watch
        self.weights: Mapping[str, Quantized] = MappingProxyType({w.name: w for w in weights})
        owner = {part: w.name for w in self.weights.values() for part in w.parts.names}
        self.aside = MappingProxyType(
            {
                name: "scale of activations, not of weights"
                for name in stored
                if name not in owner and name.endswith(_ASIDE)
            }
        )
        tensors: dict[str, TensorInfo] = {}
        for name, info in stored.tensors.items():
            if name in owner:
                weight = self.weights[owner[name]]
                shown = replace(weight.info(), oriented=weight.module)
                tensors.setdefault(weight.name, shown)
            elif name in self.weights:
                raise FormatError(
                    "the weight is stored quantized and unquantized", path=info.path, tensor=name
                )
            elif name not in self.aside:
                tensors[name] = info
        self.tensors = MappingProxyType(tensors)

    def parts(self, name: str) -> tuple[TensorInfo, ...]:
        """See `TensorReader.parts`."""
        weight = self.weights.get(name)
        if weight is None:
            return self.stored.parts(name)
        return tuple(self.stored.info(part) for part in weight.parts.names)

    def recipe(self) -> str:
        """See `TensorReader.recipe`."""
        # All weights are read by one configuration.
        return repr([weight.parts.config for weight in self.weights.values()][:1])

    def prefetch(self, names: Iterable[str], *, keep: bool = False) -> None:
        """See `TensorReader.prefetch`."""
        self.stored.prefetch(part.name for name in names for part in self.parts(name))

    def prefetch_rows(self, name: str, rows: Iterable[tuple[int, int]]) -> None:
        """See `TensorReader.prefetch_rows`."""
        if name in self.weights:
            self.prefetch([name])  # the parts are not stored by rows
        else:
            self.stored.prefetch_rows(name, rows)

    def stored_bytes(self, name: str) -> Bytes:
        """See `TensorReader.stored_bytes`."""
        return self.stored.stored_bytes(name)

    def release(self, name: str) -> None:
        """See `TensorReader.release`."""
        self.stored.release(name)

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """See `TensorReader.read_rows`."""
        weight = self.weights.get(name)
        if weight is None:
            return self.stored.read_rows(name, start, stop)
        info = self.info(name)
        columns, rows = matrix_shape(info)
        if not 0 <= start <= stop <= rows:
            raise TensorError(
                f"rows {start} to {stop} of {rows} asked for", path=info.path, tensor=name
            )
        out = buffers.empty((stop - start, columns))
        if out.size == 0:
            return out
        read = weight.reader()
        step = max(1, BLOCK_ELEMENTS // columns // weight.granule) * weight.granule
        first = start
        while first < stop:
            # Up to a multiple of the rows that are read together, wherever the range begins.
            last = min(first - first % weight.granule + step, stop)
            block = out[first - start : last - start]
            block[:] = read(first, last)
            require_finite(block, info, first)
            first = last
        for part in weight.parts.names:
            self.stored.release(part)
        return out

    def kept_rows(self, name: str, start: int, stop: int) -> Bf16Matrix | None:
        """See `TensorReader.kept_rows`."""
        return None if name in self.weights else self.stored.kept_rows(name, start, stop)


def _parts(store: TensorReader, name: str, ending: str, config: Mapping[str, Any]) -> Parts:
    return Parts(store, name.removesuffix(ending), config)


def _scaled(store: TensorReader, name: str, config: Mapping[str, Any]) -> Quantized | None:
    stem, dot, weight = name.rpartition(".")
    if store.info(name).dtype not in (*FP8, "I8"):
        return None
    for scale in (f"{weight}_scale_inv", f"{weight}_scale", f"scale_{weight}"):
        if stem + dot + scale in store:
            return Scaled(Parts(store, stem + dot, config), weight, scale)
    return None


def _ending(ending: str, build: Callable[[Parts], Quantized | None], *dtypes: str) -> Claim:
    """Claims tensors by the end of their name and, if given, their type."""

    def claim(store: TensorReader, name: str, config: Mapping[str, Any]) -> Quantized | None:
        if not name.endswith(ending) or (dtypes and store.info(name).dtype not in dtypes):
            return None
        stem = name.rpartition(".")[0] + "." if ending.startswith(".") else name[: -len(ending)]
        return build(Parts(store, stem, config))

    return claim


def _modelopt_fp4(store: TensorReader, name: str, config: Mapping[str, Any]) -> Quantized | None:
    scales = (f"{name}_scale", f"{name}_scale_2")
    if store.info(name).dtype != "U8" or not any(scale in store for scale in scales):
        return None
    stem, dot, weight = name.rpartition(".")
    return Fp4Linear(Parts(store, stem + dot, config), weight)


def _bitsandbytes(store: TensorReader, name: str, config: Mapping[str, Any]) -> Quantized | None:
    if not name.endswith(".weight"):
        return None
    parts = _parts(store, name, "weight", config)
    for kind in KINDS:
        if f"weight.quant_state.bitsandbytes__{kind}" in parts:
            return Table4(parts, kind)
    if "SCB" in parts or "weight.absmax" in parts or store.info(name).dtype == "I8":
        return Int8Rows(parts)
    return None


_FP8_METHOD = _Method((_scaled,), on_loading=True)


def _mlx(parts: Parts) -> Quantized | None:
    return Mlx(parts) if "scales" in parts else None


_METHODS: Mapping[str, _Method] = MappingProxyType(
    {
        "fp8": _FP8_METHOD,
        "fbgemm_fp8": _FP8_METHOD,
        "gptq": _Method((_ending(".qweight", Gptq),)),
        "awq": _Method((_ending(".qweight", Awq),)),
        "mxfp4": _Method((_ending("_blocks", Mxfp4Experts),), on_loading=True),
        "compressed-tensors": _Method(
            (
                _ending(".weight_packed", PackQuantized, "I32"),
                _ending(".weight_packed", lambda parts: Fp4Linear(parts, "weight_packed")),
                _scaled,
            )
        ),
        "bitsandbytes": _Method((_bitsandbytes,), on_loading=True),
        "mlx": _Method((_ending(".weight", _mlx, "U32"),)),
        "modelopt": _Method((_scaled, _modelopt_fp4)),
        "hqq": _Method((_ending(".W_q", Hqq),), on_loading=True),
    }
)

# Ends of names that only parts of quantized weights have.
_TELLTALES = (
    ".qweight", ".qzeros", ".g_idx", "_scale_inv", ".weight_scale", ".weight_scale_2",
    ".weight_global_scale", ".weight_packed", ".weight_zero_point", ".SCB", ".weight.absmax",
    ".weight.quant_map", ".W_q", "_proj_blocks", "_proj_scale",
)  # fmt: skip
# Ends of names that tools which are not read leave, and the tools.
_UNREAD: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "optimum-quanto": (".weight._data", ".weight._scale", ".weight._shift"),
        "torchao": ("_weight_qdata", ".weight:qdata", ".weight:tensor_data", ".weight:int_data"),
        "ExLlamaV2": (".q_weight", ".q_invperm", ".q_scale_max"),
        "ExLlamaV3": (".trellis",),
        "AQLM": (".codebooks",),
        "QuIP#": (".Qidxs",),
        "VPTQ": (".centroids.weight",),
    }
)
# Ends of names of small parts whose values tell how the others are to be read.
_DESCRIPTIONS = (
    ".weight_shape", ".bitsandbytes__nf4", ".bitsandbytes__fp4", ".weight_format", ".packing",
    ".view_as_float", ".quant_scale", ".quant_zero", ".shape", ".axis", ".group_size",
)  # fmt: skip
_ASIDE = tuple(
    f".{part}"
    for part in (*ACTIVATIONS, "k_scale", "v_scale", "q_scale", "kv_scale", "scale_input")
)
# Where ModelOpt's tools write what others put into config.json.
_MODELOPT = "hf_quant_config.json"
# Elements of FP8 codes with a scale reach 448 or 57,344; those of weights that were only rounded
# are as small as weights are.
_LARGEST_ROUNDED = 32
_SAMPLED_ROWS = 8
_INTEGERS = ("I8", "U8", "I16", "I32", "U32", "I64")


def _quantization(store: TensorReader, config: Mapping[str, Any] | None) -> object:
    """The configuration of the quantization, None if there is none."""
    config = config or {}
    inner = [config.get(key) for key in ("text_config", "language_config", "llm_config")]
    for place in (config, *(part for part in inner if isinstance(part, dict))):
        for key in ("quantization_config", "compression_config", "quantization"):
            if place.get(key):
                return place[key]
    if any(name.endswith(".scale_weight") for name in store):  # said by the names alone
        return {"quant_method": "fp8"}
    stated = store.containers[0].path.parent / _MODELOPT
    if stated.exists():
        return {"quant_method": "modelopt", **_modelopt(stated)}
    # Where GPTQ's first tools wrote it.
    beside = store.containers[0].path.parent / "quantize_config.json"
    if any(name.endswith(".qweight") for name in store) and beside.exists():
        return {"quant_method": "gptq", **read_json_object(beside, what="configuration")}
    return None


def _modelopt(path: Path) -> dict[str, Any]:
    """The object 'quantization' of ModelOpt's file; FormatError if it is not there."""
    found = read_json_object(path, what="configuration").get("quantization")
    if not isinstance(found, dict):
        raise FormatError("the object 'quantization' is missing", path=path)
    return found


def _method_name(found: object) -> str | None:
    if not isinstance(found, dict):
        return None
    method = found.get("quant_method")
    if method is None and any(found.get(f"load_in_{bits}bit") for bits in (4, 8)):
        return "bitsandbytes"
    if method is None and {"group_size", "bits"} <= found.keys():
        return "mlx"  # which names no method
    return method if isinstance(method, str) else None


def _refuse_transformed(found: Any, store: TensorReader) -> None:
    """NothingAnalysable if more than the elements' encoding lies between file and weight."""
    sparsity = found.get("sparsity_config")
    form = sparsity.get("format") if isinstance(sparsity, dict) else None
    for what, present in (
        (f"sparse, {form}", form not in (None, "dense")),
        ("with a transform of the weights", bool(found.get("transform_config"))),
    ):
        if present:
            raise NothingAnalysable(
                f"the weights are quantized ({found.get('quant_method')}, {what}), "
                "which this version does not read",
                path=store.containers[0].path,
            )


def _require_unquantized(store: TensorReader) -> None:
    """NothingAnalysable if tensors look quantized though no configuration says how."""
    for name in store:
        tool = next((tool for tool, ends in _UNREAD.items() if name.endswith(ends)), None)
        if tool is not None:
            raise NothingAnalysable(
                f"the weights are quantized by {tool}, which this version does not read, and the "
                "configuration that says how is missing",
                path=store.info(name).path,
                tensor=name,
                hint="dequantize it, or use a GGUF file of the model",
            )
        is_mlx = name.endswith(".scales") and f"{name[:-6]}biases" in store
        if is_mlx or name.endswith(_TELLTALES):
            raise NothingAnalysable(
                f"'{name}' is part of a quantized weight and no configuration says how it is made",
                path=store.info(name).path,
                hint=f"put the config.json with its 'quantization{'' if is_mlx else '_config'}' "
                "beside the weights or name it with --config",
            )
    for name, info in store.tensors.items():
        rows = matrix_shape(info)[1]
        if info.dtype in FP8 and rows > 1 and not info.unreadable:
            largest = float(abs(store.read_rows(name, 0, min(rows, _SAMPLED_ROWS))).max())
            if largest > _LARGEST_ROUNDED:
                raise TensorError(
                    f"the weight is stored as {info.dtype} with elements up to {largest:g}, and "
                    "no scale says what they stand for",
                    path=info.path,
                    tensor=name,
                    hint="fetch the checkpoint again with its scales and config.json",
                )
        if rows > 1 and name.endswith(".weight") and info.dtype in _INTEGERS:
            raise TensorError(
                f"the weight is stored as integers ({info.dtype}), and nothing says what they "
                "stand for",
                path=info.path,
                tensor=name,
                hint="fetch the checkpoint again with its scales and config.json",
            )


def _require_scaled(store: QuantizedReader) -> None:
    """TensorError if a part belongs to no weight, or a weight lacks the parts it needs."""
    for name, info in store.tensors.items():
        if name in store.weights:
            continue
        if name.endswith(_TELLTALES):
            raise TensorError(
                "the tensor is part of a quantized weight whose other parts are missing",
                path=info.path,
                tensor=name,
            )
        if name.endswith(".weight") and info.dtype in (*FP8, "I8", "U8", "I32"):
            raise TensorError(
                f"the weight is quantized ({info.dtype}) and has no scale",
                path=info.path,
                tensor=name,
            )
