"""The result of `quant plan`: which linear modules to keep in 16 bits, in which order, and why."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.layers import SuperWeightRecord
from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Name, Skipped


class PredictedError(Frozen):
    """Relative error of a module's output, |quantized - exact| / |exact|, a median over tokens.

    Weights and activations are rounded to int8 with one symmetric scale each (absmax / 127); the
    activations' is that of an initial token and ordinary ones together. `initial` is on initial
    tokens, `ordinary` on ordinary ones, and `ordinary_alone` on these with the scale that holds
    without an initial token. Null where no token reaches the module.
    """

    initial: Finite | None
    ordinary: Finite | None
    ordinary_alone: Finite | None


class PlannedModule(Frozen):
    """A linear module: its place in the order, what it costs, and what is predicted of it.

    `module` is its name in transformers' tree, `tensor` that of its weight in the file, `gguf`
    its name in a GGUF file (null where the family has none); `bytes_16` and `bytes_8` are its
    weights in 16 and in 8 bits. `saves` is the error
    that keeping it takes away from the residual stream, as a share of it on an ordinary token; null
    where nothing is predicted. `keep` says that the plan keeps it.
    """

    rank: int
    module: str
    tensor: Name
    gguf: str | None
    layer: int
    role: str
    label: Literal["explosion", "decay"] | None
    keep: bool
    why: tuple[str, ...]
    bytes_16: int
    bytes_8: int
    error: PredictedError
    saves: Finite | None
    super_weights: tuple[SuperWeightRecord, ...] = ()


class QuantizationPlanDocument(Document):
    """The result of `quant plan`. `modules` are ranked; those with `keep` come first.

    `chosen` says whether the number kept is that of the evidence or was asked for; `initial` are
    the tokens that were rolled out alone at position 0, `ordinary` those rolled out without
    attention. `bytes_16` and `bytes_8` are those of all modules.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["quantization-plan"] = "quantization-plan"
    model: ModelRecord
    scheme: Literal["int8-per-tensor"] = "int8-per-tensor"
    explosion: tuple[int, ...]
    decay: tuple[int, ...]
    chosen: Literal["evidence", "asked"]
    conclusion: str
    initial: tuple[int, ...]
    ordinary: tuple[int, ...]
    bytes_16: int
    bytes_8: int
    modules: tuple[PlannedModule, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def kept(self) -> tuple[PlannedModule, ...]:
        """The modules that stay in 16 bits, in their order."""
        return tuple(module for module in self.modules if module.keep)
