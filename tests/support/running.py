"""Documents of running models written by hand: what renderers must show, without running one."""

from __future__ import annotations

from typing import Any

from ckptforensics.results import (
    Direction,
    Document,
    Eigenvalue,
    EmpiricalAngles,
    LayerEvidence,
    LayersDocument,
    LayerSignature,
    NormsDocument,
    SignatureDocument,
    Skipped,
    TriggerToken,
)
from ckptforensics.results.ablation import AblationDocument, AblationRow
from ckptforensics.results.empirical import (
    EmpiricalDocument,
    HighNormToken,
    MassiveCoordinate,
    Plateau,
    PopulationRecord,
)
from ckptforensics.results.evolution import (
    AngleRecord,
    EvolutionDocument,
    EvolvedCheckpoint,
    EvolvedLayer,
    LayerEvolution,
    NormPeak,
    NormPeaks,
)
from ckptforensics.results.paths import (
    AnswerRecord,
    CoefficientRecord,
    PathRecord,
    PathsDocument,
    TokenNorm,
)
from ckptforensics.results.quantization import (
    ModuleErrorRecord,
    PredictionRecord,
    QuantizationDocument,
    QuantizationRow,
)
from ckptforensics.results.replication import ReplicatedFigure, ReplicationDocument
from ckptforensics.results.report import ReportDocument
from ckptforensics.results.running import RunningRecord, TextRecord, TokenText
from ckptforensics.results.sinks import SinkLayer, SinksDocument, SwitchingHead
from ckptforensics.results.trace import TraceDocument
from tests.support.comparisons import model

# What no page and no drawing may take for markup, a formula or a line's end.
ODD = (
    "<script>alert(1)</script>",
    "$\\frac{$",
    "a\nb\x1b[31m",
    "漢字",
    "x" * 300,
    "-->",
    '" id="x',
)
RUNNING = RunningRecord(
    model_class="LlamaForCausalLM",
    transformers="5.0",
    torch="2.13",
    device="cpu",
    dtype="float32",
)
TEXT = TextRecord(
    source="<b>a text</b>",
    sha256=None,
    window=8,
    windows=2,
    tokens=16,
    available=16,
    partial=False,
    bos=False,
)
VERSION = "0.0"


def norm(token: int, layer: int) -> float:
    """The first token explodes in layer 2."""
    return (900.0 if token == 0 and layer >= 2 else 3.0) + layer + 0.01 * token


def trace(tokens: int = 7, layers: int = 4, texts: tuple[str, ...] = ODD) -> TraceDocument:
    rows = tuple(tuple(norm(t, layer) for layer in range(layers + 1)) for t in range(tokens))
    return TraceDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=layers),
        running=RUNNING,
        text=TEXT,
        tokens=tuple(texts[i % len(texts)] for i in range(tokens)),
        token_ids=tuple(range(tokens)),
        norms=rows,
        attention=None,
        ffn=None,
        predicted=rows[0],
        prediction_error=1e-6,
    )


def layers(count: int = 4, *, labels: bool = True, plateaus: int = 0) -> LayersDocument:
    kinds = {2: "explosion", count: "decay"} if labels else {}
    rows = tuple(
        LayerEvidence(
            layer=i,
            prefix=f"model.layers.{i - 1}",
            sigma=(3.0 * i, 1.5),
            gap=2.0 * i,
            trigger_norm=10.0 * i,
            rollout_ratio=(80.0 if i == 2 else 0.5) if labels else None,
            response=None,
            eigenvalue=None,
            label=kinds.get(i),
            strength=1.0 if i in kinds else None,
            evidence=(f"evidence of layer {i}",) if i in kinds else (),
            trigger_tokens=(TriggerToken(token=7, text=ODD[0], cosine=0.5),) if i in kinds else (),
        )
        for i in range(1, count + 1)
    )
    return LayersDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=count),
        fit="canonical",
        direction=Direction(source="rollout", layer=2, concentration=0.9, top=((5, 0.9),)),
        explosion=(2,) if labels else (),
        decay=(count,) if labels else (),
        layers=rows,
        super_weights=(),
        empirical=tuple(
            EmpiricalAngles(
                plateau=(i + 1, count),
                angles_deg=tuple(90.0 / layer for layer in range(1, count + 1)),
                eigenvalues=(
                    Eigenvalue(real=-300.0, imag=2.0, angle_deg=8.0, residual=1e-5),
                    *[None] * (count - 2),
                    Eigenvalue(real=0.5, imag=0.0, angle_deg=80.0, residual=1e-5),
                ),
            )
            for i in range(plateaus)
        ),
    )


def norms(tokens: int = 3, count: int = 4) -> NormsDocument:
    table = tuple(tuple(norm(t, i) for i in range(1, count + 1)) for t in range(tokens))
    return NormsDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=count),
        attention=True,
        tokens=tuple(range(tokens)),
        embedding_norms=(0.0,) * tokens,
        norms=table,
        median=table[0],
    )


def plateau(first: int, last: int, token: str = ODD[0]) -> Plateau:
    return Plateau(
        layers=(first, last),
        threshold=50.0,
        count=2,
        states=4,
        median_norm=900.0,
        direction_top=((5, 0.9), (7, -0.3)),
        pairwise_angle_deg=1.5,
        initial_share=1.0,
        initial_found=1.0,
        tokens=(HighNormToken(token=7, text=token, position=0, count=2, pattern="initial"),),
        massive=(MassiveCoordinate(coordinate=5, mean=880.0, count=2),),
    )


def empirical(
    count: int = 4, plateaus: tuple[tuple[int, int], ...] = ((2, 3),)
) -> EmpiricalDocument:
    def population(layer: int) -> PopulationRecord:
        high = any(a <= layer <= b for a, b in plateaus)
        values = (4.0, 800.0, 56.0) if high else (None, None, None)
        return PopulationRecord(
            layer=layer,
            median=3.0,
            ordinary=values[0],
            high=values[1],
            threshold=values[2],
            count=2 if high else 0,
            ratio=300.0 if high else None,
        )

    return EmpiricalDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=count),
        running=RUNNING,
        text=TEXT,
        threshold=None,
        plateaus=tuple(plateau(a, b) for a, b in plateaus),
        layers=tuple(population(i) for i in range(1, count + 1)),
    )


def sinks(count: int = 4, *, other: bool = True, values: bool = True) -> SinksDocument:
    rows = tuple(
        SinkLayer(
            layer=i,
            share=0.5,
            heads=(0.0, 1.0, 0.5),
            value_norm=(0.5, 4.0) if values else None,
            residual_norm=(900.0, 3.0),
        )
        for i in range(1, count + 1)
    )
    return SinksDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=count),
        running=RUNNING,
        text=TEXT,
        k=1,
        threshold=0.3,
        share=0.5,
        layers=rows,
        other=TEXT.model_copy(update={"source": ODD[2]}) if other else None,
        other_share=0.25 if other else None,
        other_layers=rows if other else (),
        switching=(SwitchingHead(layer=1, head=2, shares=(1.0, 0.0)),) if other else (),
    )


def ablation(
    count: int = 4, names: tuple[Any, ...] = ("trigger", "skip-block")
) -> AblationDocument:
    def row(what: Any, perplexity: float, **more: Any) -> AblationRow:
        return AblationRow(
            what=what,
            layers=() if what == "none" else (2,),
            detail="<u>detail</u>",
            perplexity=perplexity,
            tokens=15,
            norms=tuple(norm(0, i) for i in range(count + 1)),
            continuation=ODD[0],
            **more,
        )

    rows = [row("none", 20.0)]
    for i, name in enumerate(names):
        rows += [row(name, 10.0 ** (i + 2)), row("control", 21.0, of=name)]
    return AblationDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=count),
        running=RUNNING,
        text=TEXT,
        prompt=ODD[0],
        rows=tuple(rows),
    )


def paths(count: int = 4, *, triggered: bool = True) -> PathsDocument:
    def record(scale: float) -> PathRecord:
        middle = tuple(scale * norm(0, i) for i in range(count + 1))
        return PathRecord(
            count=10,
            minimum=tuple(v / 2 for v in middle),
            median=middle,
            maximum=tuple(v * 2 for v in middle),
            highest=(TokenNorm(token=7, text=ODD[0], layer=2, norm=1800.0),),
        )

    token = TokenText(token=7, text=ODD[0])
    coefficients = tuple(
        CoefficientRecord(
            position=i,
            count=10,
            quantiles=(-1.0, 0.0, 1.0, 2.0, 5.0),
            highest=((token, 5.0),),
            lowest=((token, -1.0),),
        )
        for i in (1, 2)
    )
    return PathsDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=count),
        noninitial=record(0.5),
        initial=record(1.0),
        random=record(0.7),
        answers=tuple(
            AnswerRecord(layer=i, sigma=(3.0, 2.0), norms=(9.0 * i, 4.0))
            for i in range(1, count + 1)
        ),
        trigger_layer=2 if triggered else None,
        coefficients=coefficients if triggered else (),
    )


def quantization(count: int = 4, *, planned: bool = True) -> QuantizationDocument:
    names = tuple(f"model.layers.{i}.mlp.down_proj" for i in range(count))

    def row(name: Any, perplexity: float, kept: int = 0, **more: Any) -> QuantizationRow:
        return QuantizationRow(
            row=name,
            kept=names[:kept],
            kept_share=kept / 10,
            perplexity=perplexity,
            tokens=14,
            bytes=1000,
            module_error=tuple(
                ModuleErrorRecord(module=n, initial=0.0, ordinary=None) for n in names
            ),
            **more,
        )

    rows = [row("none", 20.0), row("rtn", 45.0), row("smoothquant", 40.0, alpha=0.5)]
    if planned:
        rows += [row("rtn+planned", 25.0, kept=2)]
        rows += [row("rtn+random", 30.0 + 3 * seed, kept=2, seed=seed) for seed in range(5)]
    return QuantizationDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=count),
        running=RUNNING,
        text=TEXT,
        tokens=14,
        window=8,
        calibration=TEXT,
        apart=True,
        planned="the weights" if planned else None,
        integer=False,
        rows=tuple(rows),
        predictions=tuple(
            PredictionRecord(
                module=name,
                layer=layer,
                predicted=(0.05, 0.4 / layer),
                measured=(0.0, None if layer == 1 else 0.3 / layer),
            )
            for layer, name in enumerate(names, 1)
        )
        if planned
        else (),
    )


def signature(count: int = 4) -> SignatureDocument:
    return SignatureDocument(
        tool_version=VERSION,
        model=model("a/<i>model", layers=count),
        fingerprint="cf1-" + "0" * 32,
        fit="canonical",
        layers=tuple(
            LayerSignature(
                layer=i,
                prefix=f"model.layers.{i - 1}",
                sigma=(3.0, 1.5),
                gap=2.0,
                residual=1e-6,
                direction_top=((5, 0.9),),
            )
            for i in range(1, count + 1)
        ),
        direction=layers(count).direction,
        explosion=(2,),
        decay=(count,),
    )


def report(*, ran: bool = True) -> ReportDocument:
    return ReportDocument(
        tool_version=VERSION,
        model=model("a/<i>model"),
        signature=signature(),
        layers=layers(),
        norms=norms(),
        trace=trace() if ran else None,
        empirical=empirical() if ran else None,
        skipped=() if ran else (Skipped(what="running model", reason="no <torch>"),),
    )


def replication() -> ReplicationDocument:
    return ReplicationDocument(
        tool_version=VERSION,
        model=model("a/<i>model"),
        name="LLaMA2-7B",
        own=False,
        running=None,
        text=None,
        figures=(
            ReplicatedFigure(
                what="explosion layers",
                published=(2.0,),
                measured=(3.0,),
                tolerance=None,
                passed=False,
            ),
        ),
        trace=trace(),
        layers=layers(),
        empirical=empirical(),
        paths=paths(),
        ablation=ablation(),
        sinks=sinks(),
    )


def evolution(count: int = 4, layers: int = 3, *, labels: bool = True) -> EvolutionDocument:
    """Checkpoints in which layer 2 explodes from the second one on."""
    steps = [100 * i for i in range(count)]

    def angle(i: int, other: int) -> AngleRecord | None:
        if not 0 <= other < count or i == other:
            return None
        return AngleRecord(degrees=80.0 / (1 + min(i, other)), clear=min(i, other) > 0)

    def label(layer: int, i: int) -> str | None:
        return "explosion" if labels and layer == 2 and i else None

    peaks = [NormPeak(step=s, layer=2, norm=10.0 * (i + 1)) for i, s in enumerate(steps)]
    return EvolutionDocument(
        tool_version=VERSION,
        fit="canonical",
        fit_options=None,
        steps_from="names",
        clear_gap=1.05,
        appears_deg=45.0,
        settles_deg=10.0,
        defect_layer=2 if labels else None,
        norm_peak=NormPeaks(initial=None, typical=peaks[-1]),
        label_comes="before" if labels else None,
        checkpoints=tuple(
            EvolvedCheckpoint(
                step=step,
                name=f"{ODD[i % len(ODD)]}-{i}",
                model=model("a/<i>model", layers=layers),
                fingerprint=None,
                explosion=(2,) if label(2, i) else (),
                decay=(),
                direction=Direction(source="none", layer=None, concentration=0.0, top=()),
                norm_peak=NormPeaks(initial=None, typical=peaks[i]),
                u_previous=angle(i, i - 1) if label(2, i) else None,
                u_last=angle(i, count - 1) if label(2, i) else None,
            )
            for i, step in enumerate(steps)
        ),
        layers=tuple(
            LayerEvolution(
                layer=layer,
                prefix=f"model.layers.{layer - 1}",
                label=label(layer, count - 1),
                appears=100,
                settles=None,
                labelled=100 if label(layer, count - 1) else None,
                checkpoints=tuple(
                    EvolvedLayer(
                        step=step,
                        label=label(layer, i),
                        sigma=(2.0, 1.0),
                        gap=2.0,
                        initial_norm=None,
                        typical_norm=5.0,
                        u_previous=angle(i, i - 1),
                        u_last=angle(i, count - 1),
                        v_previous_deg=None,
                        v_last_deg=90.0,
                    )
                    for i, step in enumerate(steps)
                ),
            )
            for layer in range(1, layers + 1)
        ),
    )


DOCUMENTS: dict[str, Document] = {
    "layers": layers(),
    "norms": norms(),
    "evolution": evolution(),
    "trace": trace(),
    "empirical": empirical(),
    "sinks": sinks(),
    "ablation": ablation(),
    "paths": paths(),
    "quantization": quantization(),
}
