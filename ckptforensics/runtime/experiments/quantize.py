"""Round a model in several ways and measure each on a text (Table 1), beside what weights foretell.

Windows run one at a time: a step of activations is of one window, as in published code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import CkptError, NothingAnalysable, UsageError
from ckptforensics.findings import SignatureCache, find_layers
from ckptforensics.findings.cache.key import signature_keys
from ckptforensics.findings.model import model_record
from ckptforensics.linear import Fit
from ckptforensics.progress import Progress, running
from ckptforensics.results import Skipped
from ckptforensics.results.quantization import (
    AlphaRecord,
    ModuleErrorRecord,
    PredictionRecord,
    QuantizationDocument,
    QuantizationRow,
    RowName,
)
from ckptforensics.results.running import TextRecord
from ckptforensics.runtime.model import Runtime, start
from ckptforensics.runtime.perplexity import perplexity
from ckptforensics.runtime.quantization.calibration import (
    Calibration,
    calibrate,
    require_smoothable,
    smooth,
)
from ckptforensics.runtime.quantization.choices import Choices, share
from ckptforensics.runtime.quantization.errors import Errors, module_errors
from ckptforensics.runtime.quantization.journal import Journal
from ckptforensics.runtime.quantization.linears import Linear, find_linears
from ckptforensics.runtime.quantization.schemes import Quantized, Scheme
from ckptforensics.runtime.records import running_record
from ckptforensics.runtime.texts import Text, as_text, windows_of
from ckptforensics.runtime.weights import Placement
from ckptforensics.version import __version__

ROWS: tuple[RowName, ...] = get_args(RowName)
SEEDS = 5
# SmoothQuant's own default.
ALPHA = 0.5
# Windows on which a sweep of alpha is decided, and on which errors of modules are measured.
_SWEPT, _PROBED = 4, 2
# Rows that are a way of rounding and nothing kept; the others add which modules are.
_SCHEMES: Mapping[str, Scheme] = {
    "rtn": Scheme(),
    "smoothquant": Scheme(),  # with smoothing, once alpha is chosen
    "per-token": Scheme("channel", "token"),
    "rtn+first-token": Scheme(first_apart=True),
    "w4": Scheme("group", None),
    "w4+super-weight": Scheme("group", None),  # with the weights that are held
}


def evaluate_quantization(
    model: Runtime | Checkpoint | str | Path,
    *,
    rows: Sequence[RowName] = ROWS,
    alphas: Sequence[float] = (ALPHA,),
    layers: Sequence[int] | None = None,
    text: Text | str | None = None,
    calibration: Text | None = None,
    integer: bool = False,
    placement: Placement | None = None,
    progress: Progress | None = None,
    cache: SignatureCache | None = None,
) -> QuantizationDocument:
    """Measure the model rounded in several ways, on one text.

    Parameters
    ----------
    model : a running model, an opened checkpoint or what `open_checkpoint` takes
    rows : of `ROWS`
    alphas : SmoothQuant's; of several the one with the lowest perplexity on the calibration text
    layers : layers whose down projections are kept, in place of the plan's modules
    text : by default Python's help topics
    calibration : by default windows of the same text that are not evaluated
    integer : multiply 8-bit codes (`torch._int_mm`), in place of rounded numbers
    placement : device and element type, unless the model runs already
    progress : told of each window
    cache : where finished rows are kept until all are; by default nowhere

    Raises
    ------
    UsageError
        if a row or a layer is not one, or an alpha is not between 0 and 1.
    NothingAnalysable
        if the model predicts no tokens, or has more than linear modules that every token passes.
    CkptError
        as `open_checkpoint`, `runtime.model.start` and `runtime.texts.windows_of`.
    """
    for name in rows:
        if name not in ROWS:
            raise UsageError(f"no row is called '{name}'", hint=f"there is: {', '.join(ROWS)}")
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise UsageError("SmoothQuant's alpha is between 0 and 1", hint="change --alpha")
    runtime = start(model, placement)
    count = len(runtime.blocks)
    if layers is not None and not all(1 <= layer <= count for layer in layers):
        raise UsageError(f"the model has layers 1 to {count}", hint="change --layers")
    linears = find_linears(runtime)
    windows, record = windows_of(runtime, as_text(text))
    other = None
    if any("smoothquant" in row or "calibrated" in row for row in rows):
        other = _calibration_text(runtime, as_text(text), windows, calibration)
    others = [] if other is None else other.windows
    choices = Choices(
        runtime.checkpoint, linears, None if layers is None else tuple(layers), progress
    )
    facts = [windows, others, alphas, layers, integer]
    journal = Journal(None if cache is None else cache.partial(_key(runtime, facts)))
    if cache is not None and journal.parts:
        cache.tell(f"going on behind {len(journal.parts)} finished parts; --no-cache begins again")
    work = _Work(runtime, linears, windows, others, tuple(alphas), choices, integer, journal)
    measured, skipped = work.measure(tuple(dict.fromkeys(rows)), progress)
    document = QuantizationDocument(
        tool_version=__version__,
        model=model_record(runtime.checkpoint),
        running=running_record(runtime),
        text=record,
        tokens=(len(windows[0]) - 1) * len(windows),
        window=len(windows[0]),
        calibration=None if other is None else other.record,
        apart=other is not None and other.apart,
        alphas=work.swept,
        planned=choices.source if any("planned" in row.row for row in measured) else None,
        integer=integer,
        rows=measured,
        predictions=_predictions(choices, measured),
        skipped=skipped,
    )
    journal.discard()
    return document


@dataclass(frozen=True)
class _Other:
    """The calibration text; `apart` if no window of it is evaluated."""

    windows: list[list[int]]
    record: TextRecord
    apart: bool


@dataclass
class _Unit:
    """One evaluation: a row, or one of the random choices of a row."""

    row: RowName
    seed: int | None

    @property
    def name(self) -> str:
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"

    @property
    def base(self) -> str:
        """The way of rounding."""
        return max((b for b in _SCHEMES if self.row.startswith(b)), key=len, default="none")

    @property
    def rule(self) -> str:
        """Which modules are kept."""
        return self.row.removeprefix(self.base).removeprefix("+")


@dataclass
class _Work:
    """What rows share: calibration, smoothing, errors of modules; each found once, when needed."""

    runtime: Runtime
    linears: tuple[Linear, ...]
    windows: list[list[int]]
    other: list[list[int]]
    alphas: tuple[float, ...]
    choices: Choices
    integer: bool
    journal: Journal
    _errors: dict[str, Mapping[str, Errors]] = field(default_factory=dict)
    _step: Callable[[str], None] = lambda note: None

    def measure(
        self, rows: Sequence[RowName], progress: Progress | None
    ) -> tuple[tuple[QuantizationRow, ...], tuple[Skipped, ...]]:
        """Each row as it was kept, or measured and kept; and those that there are not."""
        units = [
            _Unit(row, seed)
            for row in rows
            for seed in (range(SEEDS) if row.endswith("random") else (None,))
        ]
        done, skipped = [], {}
        with running(progress, "windows", self._steps(units)) as self._step:
            for unit in units:
                if unit.name in self.journal.parts:
                    done.append(QuantizationRow.model_validate(self.journal.parts[unit.name]))
                    continue
                try:
                    row = self._row(unit)
                except NothingAnalysable as problem:
                    if unit.row == "none":
                        raise
                    skipped[unit.row] = problem.message
                    continue
                done.append(row)
                self.journal.keep(unit.name, row.model_dump(mode="json"))
        return tuple(done), tuple(Skipped(what=k, reason=v) for k, v in skipped.items())

    def _steps(self, units: Sequence[_Unit]) -> int:
        """Windows that will run, so that the time left can be told."""
        left = [unit for unit in units if unit.name not in self.journal.parts]
        count = len(self.windows) * len(left)
        bases = {unit.base for unit in left}
        count += len(self.windows[:_PROBED]) * len(bases - {"none"})
        if "smoothquant" in bases or any(unit.rule == "calibrated" for unit in left):
            count += len(self.other)
        if "smoothquant" in bases and len(self.alphas) > 1:
            count += len(self.other[:_SWEPT]) * len(self.alphas)
        return count

    def _row(self, unit: _Unit) -> QuantizationRow:
        kept = self._kept(unit)
        scheme = None if unit.base == "none" else self._scheme(unit.base)
        errors: tuple[ModuleErrorRecord, ...] = ()
        quantized = None if scheme is None else Quantized(scheme, self.linears, kept)
        value, tokens = self._perplexity(quantized, self.windows, unit.name)
        if scheme is not None and unit.seed is None:
            errors = self._module_errors(unit.base, scheme, kept)
        return QuantizationRow(
            row=unit.row,
            kept=kept,
            kept_share=1.0 if scheme is None else share(self.linears, kept),
            seed=unit.seed,
            alpha=None if scheme is None or scheme.smoothing is None else scheme.smoothing.alpha,
            perplexity=value,
            tokens=tokens,
            bytes=self._bytes(scheme, kept),
            module_error=errors,
        )

    def _perplexity(
        self, quantized: Quantized | None, windows: Sequence[Sequence[int]], note: str
    ) -> tuple[float, int]:
        with nullcontext() if quantized is None else quantized.running():
            return perplexity(self.runtime, windows, lambda _: self._step(note), at_once=1)

    def _kept(self, unit: _Unit) -> tuple[str, ...]:
        if unit.base == "none":
            return ()
        if unit.rule == "planned":
            return self.choices.planned
        if unit.rule == "calibrated":
            return self.choices.calibrated(self.calibration.peaks)
        if unit.rule == "random":
            return self.choices.random(unit.seed or 0)
        return self.choices.every() if unit.rule == "all" else ()

    def _scheme(self, base: str) -> Scheme:
        scheme = _SCHEMES[base]
        if base == "smoothquant":
            scheme = replace(scheme, smoothing=smooth(self.calibration, self.alpha))
        if base == "w4+super-weight":
            scheme = replace(scheme, held=self._super_weights())
        return replace(scheme, integer=self.integer and scheme.activations is not None)

    @cached_property
    def calibration(self) -> Calibration:
        """What calibration sees, in one pass."""
        note = "calibration"
        return calibrate(self.runtime, self.linears, self.other, lambda: self._step(note))

    @cached_property
    def alpha(self) -> float:
        """SmoothQuant's: the one given, or the best of those given; NothingAnalysable if none."""
        require_smoothable(self.runtime, self.calibration, self.other[0])
        if len(self.alphas) == 1:
            return self.alphas[0]
        for alpha in self.alphas:
            name = f"alpha {alpha:g}"
            if name not in self.journal.parts:
                scheme = Scheme(smoothing=smooth(self.calibration, alpha))
                quantized = Quantized(scheme, self.linears)
                value, _ = self._perplexity(quantized, self.other[:_SWEPT], name)
                self.journal.keep(name, value)
        return min(self.swept, key=lambda row: row.perplexity).alpha

    @property
    def swept(self) -> tuple[AlphaRecord, ...]:
        """The alphas that were tried, where one had to be chosen."""
        found = ((alpha, self.journal.parts.get(f"alpha {alpha:g}")) for alpha in self.alphas)
        return tuple(AlphaRecord(alpha=a, perplexity=p) for a, p in found if p is not None)

    def _super_weights(self) -> dict[str, list[tuple[int, int]]]:
        names = {linear.layer: linear.name for linear in self.linears if linear.down}
        held: dict[str, list[tuple[int, int]]] = {}
        for weight in find_layers(self.runtime.checkpoint).super_weights:
            if weight.layer in names:
                held.setdefault(names[weight.layer], []).append((weight.row, weight.column))
        if not held:
            raise NothingAnalysable("no super weight is found in the weights")
        return held

    def _module_errors(
        self, base: str, scheme: Scheme, kept: tuple[str, ...]
    ) -> tuple[ModuleErrorRecord, ...]:
        """Those of the way of rounding, and none where a module is kept."""
        if base not in self._errors:
            quantized = Quantized(scheme, self.linears)
            windows = self.windows[:_PROBED]
            note = f"errors of modules, {base}"
            self._errors[base] = module_errors(
                self.runtime, quantized, windows, lambda: self._step(note)
            )
        exact = (0.0, 0.0)
        rows = {n: exact if n in kept else e for n, e in self._errors[base].items()}
        return tuple(
            ModuleErrorRecord(module=name, initial=initial, ordinary=ordinary)
            for name, (initial, ordinary) in rows.items()
        )

    def _bytes(self, scheme: Scheme | None, kept: Sequence[str]) -> int:
        every = 2 * sum(p.numel() for p in self.runtime.model.parameters())
        if scheme is None:
            return every
        names = set(kept)
        changed = (scheme.bytes_of(m, kept=m.name in names) - 2 * m.size for m in self.linears)
        return every + sum(changed)


def _predictions(choices: Choices, rows: Sequence[QuantizationRow]) -> tuple[PredictionRecord, ...]:
    """The plan's errors beside those of the row `rtn`, if both are there."""
    measured = {e.module: e for row in rows if row.row == "rtn" for e in row.module_error}
    if not measured or choices.layers is not None or isinstance(choices.plan, CkptError):
        return ()
    found = []
    for module in choices.plan.modules:
        name = choices.named(module.module)
        if name is None or name not in measured:
            continue
        row = measured[name]
        found.append(
            PredictionRecord(
                module=name,
                layer=module.layer,
                predicted=(module.error.initial, module.error.ordinary),
                measured=(row.initial, row.ordinary),
            )
        )
    return tuple(found)


def _calibration_text(
    runtime: Runtime, text: Text, windows: list[list[int]], given: Text | None
) -> _Other:
    """The text given, else as many windows of the same text that are not evaluated, else it."""
    used = {tuple(window) for window in windows}
    if given is not None:
        found, record = windows_of(runtime, given)
        return _Other(found, record, not any(tuple(window) in used for window in found))
    every, record = windows_of(runtime, replace(text, limit=None, seed=None))
    others = [w for w in every if tuple(w) not in used and len(w) == len(windows[0])]
    chosen = others[: len(windows)] or windows
    record = record.model_copy(
        update={
            "windows": len(chosen),
            "tokens": sum(map(len, chosen)),
            "partial": len(chosen) < len(every) or record.partial,
        }
    )
    return _Other(chosen, record, bool(others))


def _key(runtime: Runtime, facts: Any) -> str:
    """Digest of all that decides a row."""
    model = signature_keys(runtime.checkpoint, Fit(), {})[0]
    content = [model, running_record(runtime).model_dump(), __version__, facts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
