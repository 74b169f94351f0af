"""The result of `quant eval`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Skipped
from ckptforensics.results.running import RunningRecord, TextRecord

RowName = Literal[
    "none",
    "rtn",
    "rtn+planned",
    "rtn+calibrated",
    "rtn+random",
    "rtn+all",
    "smoothquant",
    "smoothquant+planned",
    "smoothquant+calibrated",
    "smoothquant+random",
    "smoothquant+all",
    "per-token",
    "rtn+first-token",
    "rtn+first-token+planned",
    "w4",
    "w4+super-weight",
]


class ModuleErrorRecord(Frozen):
    """Relative error of a module's output, |rounded - exact| / |exact|, a median over tokens.

    The module reads what it reads in the model that is not rounded. `initial` is on the windows'
    first tokens, `ordinary` on the others; null where there is none.
    """

    module: str
    initial: Finite | None
    ordinary: Finite | None


class QuantizationRow(Frozen):
    """The model rounded in one way.

    `kept` are the modules whose weights and activations stay in 16 bits, `kept_share` their share
    of the weights of all linear modules; `none` rounds nothing, and lists no module. `seed` is that
    of a random choice, `alpha` SmoothQuant's. `perplexity` is over `tokens` predicted tokens;
    `bytes` are those of the whole model, with what is not rounded in 16 bits. `module_error` is
    empty in a row that rounds nothing, and in random ones.
    """

    row: RowName
    kept: tuple[str, ...]
    kept_share: Finite
    seed: int | None = None
    alpha: Finite | None = None
    perplexity: Finite
    tokens: int
    bytes: int
    module_error: tuple[ModuleErrorRecord, ...] = ()


class AlphaRecord(Frozen):
    """Perplexity of SmoothQuant with one alpha on the calibration text."""

    alpha: Finite
    perplexity: Finite


class PredictionRecord(Frozen):
    """What the weights predict of a module under `rtn`, and what was measured.

    Pairs of relative errors: on initial tokens, and on ordinary ones.
    """

    module: str
    layer: int
    predicted: tuple[Finite | None, Finite | None]
    measured: tuple[Finite | None, Finite | None]


class QuantizationDocument(Document):
    """The result of `quant eval`: perplexity of the model rounded in several ways.

    `perplexity` is the exponential of the mean over windows of their mean loss, windows of `window`
    tokens weighing equally; `tokens` are predicted. `calibration` is the text that alpha and the
    calibrated choice are of, which is `apart` if no window of it is evaluated. `planned` says where
    the planned modules come from. `integer` says that 8-bit codes were multiplied.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["quantization"] = "quantization"
    model: ModelRecord
    running: RunningRecord
    text: TextRecord
    tokens: int
    window: int
    calibration: TextRecord | None
    apart: bool
    alphas: tuple[AlphaRecord, ...] = ()
    planned: str | None
    integer: bool
    rows: tuple[QuantizationRow, ...]
    predictions: tuple[PredictionRecord, ...] = ()
    skipped: tuple[Skipped, ...] = ()
