"""How much of two models each level of a comparison looks at: every sample size in one place.

None stands for all. The sizes were chosen where more changed no verdict on the models of
docs/lineage-measurements.md and cost time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ckptforensics.results.comparison import Level


@dataclass(frozen=True)
class Effort:
    """What a level samples.

    Attributes
    ----------
    level : its name
    reads_weights : whether more than signatures is read
    orders : random orders of coordinates, at most and at least; fewer where one costs much
    gate_row_layers, gate_row_units : layers, and units of each, whose rows are assigned
    coordinates : residual coordinates that are assigned
    weighed_features : whether coordinates are also told by the sizes of weights
    tokens, neurons : shared tokens, and neurons of the narrower FFN, of neuron agreement
    neuron_layers, direction_layers, expert_layers : layers of neuron agreement on tokens, on
        directions, and where layers of experts are read whole
    experts : experts of the model that is sampled from
    widest_rotation : residual width up to which a rotation is looked for
    widest_layer_search : residual width up to which every layer is compared with every other
    matched_layers, matched_elements : layers that are matched unit by unit, and their elements
    unit_products, unit_sketch : multiplications beyond which units are matched in a random
        subspace, and its dimensions
    function_elements : elements of FFNs compared to tell whether two models are one function
    structure_layers : layers in which units, coordinates and experts are counted
    entry_bytes, entry_layers : stored bytes of a model from which on only so many layers are
        compared entry by entry
    ranked_matrices, rank_rows : changed matrices in which a low rank is looked for, and the rows
        of each
    """

    level: Level
    reads_weights: bool = True
    orders: tuple[int, int] = (4_999, 999)
    gate_row_layers: int | None = 12
    gate_row_units: int = 256
    coordinates: int | None = 512
    weighed_features: bool = False
    tokens: int = 512
    neurons: int = 256
    function_tokens: int = 128
    function_neurons: int = 32
    neuron_layers: int | None = 12
    direction_layers: int | None = 4
    expert_layers: int | None = 3
    experts: int | None = 8
    widest_rotation: int | None = 1_536
    widest_layer_search: int | None = 1_536
    matched_layers: int | None = 6
    matched_elements: int | None = 600_000_000
    unit_products: int = 50_000_000_000
    unit_sketch: int = 512
    function_elements: int | None = 1_000_000_000
    structure_layers: int | None = 4
    entry_bytes: int | None = 2 << 30
    entry_layers: int = 4
    ranked_matrices: int | None = 16
    rank_rows: int = 512


EFFORTS: Mapping[Level, Effort] = MappingProxyType(
    {
        "fast": Effort("fast", reads_weights=False),
        "default": Effort("default"),
        "thorough": Effort(
            "thorough",
            gate_row_layers=None,
            gate_row_units=4_096,
            coordinates=None,
            weighed_features=True,
            tokens=2_048,
            neurons=4_096,
            neuron_layers=None,
            direction_layers=None,
            expert_layers=None,
            experts=None,
            widest_rotation=None,
            widest_layer_search=None,
            matched_layers=None,
            matched_elements=None,
            function_elements=None,
            structure_layers=None,
            entry_bytes=None,
            ranked_matrices=None,
            rank_rows=2_048,
        ),
    }
)


def within(value: int, limit: int | None) -> bool:
    """Whether a value is within a limit, of which None is none."""
    return limit is None or value <= limit
