"""The result of `evolve`: norms and directions along the checkpoints of a run."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import model_validator

from ckptforensics.results.records import (
    Direction,
    Document,
    Finite,
    FitOptions,
    Frozen,
    ModelRecord,
    Name,
    Skipped,
)


class AngleRecord(Frozen):
    """An acute angle between two lines, and whether both are lines that the weights determine.

    Where `clear` is false, u1 of one of the two checkpoints belongs to a singular value that hardly
    stands out (`clear_gap` of the document), and the angle says little.
    """

    degrees: Finite
    clear: bool


class NormPeak(Frozen):
    """The largest norm of a token, and after which layer of which step's checkpoint it has it."""

    step: int
    layer: int
    norm: Finite


class NormPeaks(Frozen):
    """Peaks of the begin-of-sequence token's norm, and of other tokens' median; null if unknown."""

    initial: NormPeak | None
    typical: NormPeak | None


class EvolvedLayer(Frozen):
    """One layer of one checkpoint.

    `sigma` and `gap` are of L, `initial_norm` and `typical_norm` as in a signature. `u_previous`
    and `u_last` are the angles of u1 of L to that of the checkpoint before and to that of the last
    one, `v_previous_deg` and `v_last_deg` those of v1 of F; null where there is no such checkpoint,
    or no direction because the layer adds nothing.
    """

    step: int
    label: Literal["explosion", "decay"] | None
    sigma: tuple[Finite, Finite]
    gap: Finite
    initial_norm: Finite | None
    typical_norm: Finite | None
    u_previous: AngleRecord | None
    u_last: AngleRecord | None
    v_previous_deg: Finite | None
    v_last_deg: Finite | None


class LayerEvolution(Frozen):
    """One layer along all checkpoints, and the steps at which something of it begins.

    `appears` and `settles` are the first step from which on the direction u1 is clear and its angle
    to the last one stays below the document's `appears_deg` and `settles_deg`; `labelled` is the
    first step from which on the layer has the label it has at the end. Null where that is so at the
    last checkpoint alone, which is no evidence, or not at all (`labelled` may be the last step).
    """

    layer: int
    prefix: str
    label: Literal["explosion", "decay"] | None
    appears: int | None
    settles: int | None
    labelled: int | None
    checkpoints: tuple[EvolvedLayer, ...]


class EvolvedCheckpoint(Frozen):
    """One checkpoint: what it is, which layers it explodes and decays at, and its direction.

    `u_previous` and `u_last` are those of the document's `defect_layer`; null where there is no
    other checkpoint to compare with, or where this checkpoint has no defect layer.
    """

    step: int
    name: Name
    model: ModelRecord
    fingerprint: str | None
    explosion: tuple[int, ...]
    decay: tuple[int, ...]
    direction: Direction
    norm_peak: NormPeaks
    u_previous: AngleRecord | None
    u_last: AngleRecord | None


class EvolutionDocument(Document):
    """The result of `evolve`.

    `steps_from` says where the steps come from: names, the user, or counting from 1.
    `defect_layer` is the explosion layer of the last checkpoint with the largest gap (its decay
    layer if it has no explosion layer), null if it has neither. `label_comes` says whether that
    layer's label comes before the norm peak of typical tokens, with it or after it.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["evolution"] = "evolution"
    fit: Literal["canonical", "paper", "sampled"]
    fit_options: FitOptions | None
    steps_from: Literal["names", "given", "order"]
    clear_gap: Finite
    appears_deg: Finite
    settles_deg: Finite
    defect_layer: int | None
    norm_peak: NormPeaks
    label_comes: Literal["before", "with", "after"] | None
    checkpoints: tuple[EvolvedCheckpoint, ...]
    layers: tuple[LayerEvolution, ...]
    skipped: tuple[Skipped, ...] = ()

    @model_validator(mode="after")
    def _one_table(self) -> EvolutionDocument:
        steps = [one.step for one in self.checkpoints]
        if len(steps) < 2 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError("there must be two checkpoints or more, in the order of their steps")
        if any([one.step for one in layer.checkpoints] != steps for layer in self.layers):
            raise ValueError("every layer must have an element for each checkpoint")
        if self.defect_layer is not None and self.defect is None:
            raise ValueError("defect_layer must be one of the layers")
        return self

    @property
    def model(self) -> ModelRecord:
        """The last checkpoint."""
        return self.checkpoints[-1].model

    @property
    def defect(self) -> LayerEvolution | None:
        """The defect layer along the checkpoints."""
        return next((one for one in self.layers if one.layer == self.defect_layer), None)

    @property
    def labelled_layers(self) -> list[LayerEvolution]:
        """The layers that have a label at one checkpoint or more."""
        return [one for one in self.layers if any(state.label for state in one.checkpoints)]
