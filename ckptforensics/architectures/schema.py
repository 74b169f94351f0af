"""The schema of a family's TOML file; unknown keys and impossible values are errors.

A family says where a checkpoint keeps the norms, the value and output maps of attention and the
FFN of each block, and how the block adds them to the residual stream. docs/families.md explains
every key with an example.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal[
    "attention_norm",
    "attention_post_norm",
    "attention_after_norm",
    "attention_scale",
    "query",
    "key",
    "value",
    "output",
    "attention_gate",
    "sinks",
    "latent",
    "latent_norm",
    "ffn_norm",
    "ffn_post_norm",
    "ffn_after_norm",
    "ffn_scale",
    "gate",
    "up",
    "down",
    "ffn_output_gate",
    "router",
    "router_correction",
    "router_scale",
    "expert_gate",
    "expert_up",
    "expert_down",
    "shared_gate",
    "shared_up",
    "shared_down",
    "shared_router",
]
Take = Literal[
    "all",
    "qkv:q",
    "qkv:k",
    "qkv:v",
    "heads:v",
    "groups:v",
    "quarters:v",
    "half:1",
    "half:2",
    "even",
    "odd",
    "latent:c",
    "latent:v",
    "query:q",
    "query:gate",
]
Residual = Literal["sequential", "parallel"]
NormPosition = Literal["before", "after"]
Routing = Literal[
    "softmax", "top-softmax", "softmax-groups", "sigmoid", "sigmoid-input", "sparsemixer"
]

# Why a tensor the family knows is not read. A tensor it does not know stops the analysis.
UNUSED_REASONS = MappingProxyType(
    {
        "scores": "attention scores only: a single token attends to itself with weight 1",
        "before": "before the first block",
        "after": "after the last block",
        "buffer": "a constant, not a weight",
        "mixer": "not an attention layer: its mixer is not analysed",
        "beside": "attention and another mixer act beside each other: not analysed",
        "attention": "an attention layer",
        "streams": "it mixes several residual streams, of which attention sees one: not analysed",
        "prediction": "multi-token prediction, beside the main stack of blocks",
        "asked": "added only where the input asks for it",
        "other": "another component of the model",
    }
)
# Those that say why there is no attention to analyse in a layer.
MIXERS = frozenset({"mixer", "beside", "attention", "streams"})
Unused = Literal[
    "scores",
    "before",
    "after",
    "buffer",
    "mixer",
    "beside",
    "attention",
    "streams",
    "prediction",
    "asked",
    "other",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Frozen):
    """A setting read from the configuration.

    Attributes
    ----------
    key : of `config.json` (GGUF metadata after the architecture's name: see `gguf_key`)
    values : configured value, written as in JSON, to the setting
    default : where the configuration has no such key
    gguf_default : the same for GGUF metadata, if it differs
    """

    key: str
    values: dict[str, str]
    default: str
    gguf_key: str | None = None
    gguf_default: str | None = None


class Scalar(_Frozen):
    """A factor: the configured number (or `default`), times or divided by a size.

    Attributes
    ----------
    key, gguf_key : where the number stands; none means `default` always
    gguf_default : `default` in GGUF, where that differs
    times, over : `sqrt(hidden_size)`, `sqrt(num_layers)`; a number from GGUF has been multiplied
    """

    key: str | None = None
    gguf_key: str | None = None
    default: float = 1.0
    gguf_default: float | None = None
    times: Literal["sqrt(hidden_size)", "sqrt(num_layers)"] | None = None
    over: Literal["sqrt(hidden_size)", "sqrt(num_layers)"] | None = None


class TensorSpec(_Frozen):
    """Where a role's weight lies inside a block; a bare string in TOML is its `name`.

    Attributes
    ----------
    name : tensor name after the block's prefix, without `.weight` or `.bias`; of several, the
        first that exists. `{expert}` counts experts from 0, `{layer}` layers where the block's
        tensors have no prefix in common
    suffix, bias_suffix : what follows the name
    transposed : stored (in, out) instead of (out, in)
    stacked : one tensor holds all experts, its first axis counts them; `rows`: a matrix that
        holds them one below the other
    take : the share of a fused tensor's output rows that belongs to the role:
        `qkv:v` the values of q, k, v stacked by head counts; `heads:v` of [q, k, v] a head;
        `groups:v` of [q ..., k, v] a key-value group; `quarters:v` of [q, v, k] in each of four
        equal parts; `half:1`, `half:2` of two equal halves;
        `even`, `odd` of interleaved rows; `latent:c` the compressed part of MLA's down map,
        `latent:v` the values of its [key, value] a head (all of it, if there are no keys);
        `query:q`, `query:gate` of a query
        projection that carries an output gate beside each head
    split_heads : the axis of the heads' values is stored as two, heads and width
    input_scale : full name, after the block's prefix, of a vector that multiplies the input
    optional : layers without it exist
    otherwise : another form, for checkpoints without tensors of this name; TOML lists the forms
    """

    name: tuple[str, ...]
    suffix: str = ".weight"
    bias_suffix: str = ".bias"
    transposed: bool = False
    stacked: bool | Literal["rows"] = False
    take: Take = "all"
    split_heads: bool = False
    input_scale: str | None = None
    optional: bool = False
    otherwise: TensorSpec | None = None

    @field_validator("name", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def forms(self) -> Iterator[TensorSpec]:
        """This form and the others, in the order in which they are tried."""
        yield self
        if self.otherwise is not None:
            yield from self.otherwise.forms()


def _nested(forms: object) -> object:
    """One form of a weight, or a list of them, as the fields of a `TensorSpec`."""
    if not isinstance(forms, list):
        return forms if isinstance(forms, dict) else {"name": forms}
    first, *others = (_nested(form) for form in forms)
    return {**first, "otherwise": _nested(others)} if others and isinstance(first, dict) else first


class EmbeddingSpec(_Frozen):
    """Names of what makes the residual stream before the first block; a bare string is `tokens`.

    Attributes
    ----------
    tokens : token embeddings
    positions, position_row : learned position embeddings, and the row of the first position
    position_after : a number added to that row, where the configuration sets it
    positions_optional : models without them exist
    token_types, token_types_optional : embeddings of segments, row 0 of which is added
    norm, norm_suffix, norm_bias_suffix : LayerNorm after the sum
    projection : linear map from the embeddings' width to the residual width
    """

    tokens: str
    positions: str | None = None
    position_row: int = 0
    position_after: Scalar = Scalar(default=0)
    positions_optional: bool = False
    token_types: str | None = None
    token_types_optional: bool = False
    norm: str | None = None
    norm_suffix: str = ".weight"
    norm_bias_suffix: str = ".bias"
    projection: str | None = None


class Layout(_Frozen):
    """Tensor names of one container convention.

    Attributes
    ----------
    prefixes : what may stand before every name, tried in this order
    embedding : what makes the residual stream before the first block; none where that is not
        tokens
    block : prefix of a block, `{layer}` counts from 0; without `{layer}`, every name has it
    tensors : weights of a block by role; none where no layer has anything to analyse
    old_norm_suffixes : endings of the norms' gains and biases in older files
    unused : glob of a full tensor name to the key of its reason in UNUSED_REASONS
    gain_offset : added to every stored norm gain
    assumed : what files in this convention do not say, and what is assumed in its place
    """

    prefixes: tuple[str, ...] = ("",)
    embedding: EmbeddingSpec | None = None
    block: str
    tensors: dict[Role, TensorSpec]
    old_norm_suffixes: tuple[str, str] | None = None
    unused: dict[str, Unused] = {}
    gain_offset: float = 0.0
    assumed: tuple[str, ...] = ()

    @field_validator("embedding", mode="before")
    @classmethod
    def _tokens_only(cls, value: object) -> object:
        return {"tokens": value} if isinstance(value, str) else value

    @field_validator("tensors", mode="before")
    @classmethod
    def _names_are_specs(cls, value: object) -> object:
        if isinstance(value, dict):
            return {role: _nested(forms) for role, forms in value.items()}
        return value

    @model_validator(mode="after")
    def _layers_are_counted(self) -> Layout:
        in_block = self.block.count("{layer}")
        forms = [form for spec in self.tensors.values() for form in spec.forms()]
        names = [name for form in forms for name in form.name]
        if in_block > 1 or any(name.count("{layer}") != 1 - in_block for name in names):
            raise ValueError("{layer} must stand once in the block, or else once in every name")
        return self

    @model_validator(mode="after")
    def _has_an_ffn(self) -> Layout:
        if (
            self.tensors
            and not {"up", "down"} <= set(self.tensors)
            and "expert_down" not in self.tensors
        ):
            raise ValueError("no FFN: roles up and down, or expert_up and expert_down")
        if {"gate", "ffn_output_gate"} <= set(self.tensors):
            raise ValueError("an output gate behind a gated FFN is not implemented")
        return self


class NormSpec(_Frozen):
    """Kind of the norms.

    Attributes
    ----------
    kind : RMSNorm or LayerNorm
    eps : where the configuration has none
    affine : False for norms without parameters, before both branches
    position : `before` each branch, or `after` its result was added (the norms are then those of
        the roles attention_norm and ffn_norm all the same)
    latent_eps : of the norm inside MLA, where it is not that of the others
    """

    kind: Literal["rms", "layer"]
    eps: float = Field(gt=0)
    affine: bool = True
    position: NormPosition | Choice = "before"
    latent_eps: float | None = Field(default=None, gt=0)


class MoeSpec(_Frozen):
    """How a router weighs experts.

    Attributes
    ----------
    routing : `softmax` over all experts, the top ones keep their share; `top-softmax` softmax over
        the top logits; `softmax-groups` softmax over all experts, the best of each of top_k groups
        keeps its share; `sigmoid` of each logit; `sigmoid-input` the same, multiplies the
        expert's input instead of its output; `sparsemixer` of Phi-3.5-MoE
    renormalise : `always` or `never`: whether the chosen weights are rescaled to sum 1
    top_k, num_experts : configuration keys
    groups, groups_kept : configuration keys of group-limited routing
    grouped : `yes` or `no`: whether the groups are used
    scale : factor on the weights
    jitter : sparsemixer's threshold
    """

    routing: Routing | Choice
    renormalise: Literal["always", "never"] | Choice = "never"
    top_k: tuple[str, ...] = ("num_experts_per_tok",)
    num_experts: tuple[str, ...] = ("num_experts", "num_local_experts", "n_routed_experts")
    groups: str | None = None
    groups_kept: str | None = None
    grouped: Literal["yes", "no"] | Choice = "yes"
    scale: Scalar = Scalar()
    jitter: Scalar = Scalar(default=0.01)


class Family(_Frozen):
    """One family of architectures.

    Attributes
    ----------
    name : short name, also the file's
    description : what belongs to it
    model_types : values of `model_type` in `config.json`
    gguf_architectures : values of `general.architecture` in GGUF
    residual : `sequential` x + attention, then + FFN; `parallel` both from the same x; `by-norms`
        parallel where both branches read one norm, sequential where each has its own
    supported : configuration key to the values, written as in JSON, for which the block is as
        described here; any other value is refused
    norm : the norms
    when : configuration key to the values, written as in JSON, for which this is the family of its
        model types; families that share a model type differ here
    section : object of the configuration that describes this part of a larger model
    activation : where the configuration names none
    ffn : `standard`, or `clamped` for gpt-oss's swiglu: gate and up clamped, up + 1
    ffn_clamp : bound of the clamped FFN
    config : quantity of `known._KEYS` to the configuration keys that hold it, where the usual
        ones do not
    default_heads : model_type to the number of heads where the configuration leaves it out, as
        those of multimodal models do with defaults
    embedding_scale, attention_scale, ffn_scale : factors on the embeddings and on what the
        branches add
    gate_scale : factor on what the FFN's gate puts into the activation
    sparsity : configuration key of the share of its gates that an FFN cuts off, a number a layer;
        an FFN that cuts any off is not analysed
    value_clip : configuration key of a bound on the values' size
    bidirectional : an encoder: its single-token path is still exact, but no token is initial
    inferable : the names alone may be taken for this family
    only_named : they never are, though they fit: another family has the same
    moe : routing, for families with experts
    hf, gguf : tensor names in the two conventions
    """

    name: str
    description: str
    model_types: tuple[str, ...] = ()
    gguf_architectures: tuple[str, ...] = ()
    residual: Residual | Literal["by-norms"] | Choice = "sequential"
    supported: dict[str, tuple[str, ...]] = {}
    when: dict[str, tuple[str, ...]] = {}
    section: str | None = None
    norm: NormSpec
    activation: str | Choice
    ffn: Literal["standard", "clamped"] = "standard"
    ffn_clamp: Scalar = Scalar(default=7.0)
    config: dict[str, tuple[str, ...]] = {}
    default_heads: dict[str, int] = {}
    embedding_scale: Scalar = Scalar()
    attention_scale: Scalar = Scalar()
    ffn_scale: Scalar = Scalar()
    gate_scale: Scalar = Scalar()
    sparsity: str | None = None
    value_clip: str | None = None
    bidirectional: bool = False
    inferable: bool = False
    only_named: bool = False
    moe: MoeSpec | None = None
    hf: Layout
    gguf: Layout | None = None

    @model_validator(mode="after")
    def _experts_need_routing(self) -> Family:
        layouts = [layout for layout in (self.hf, self.gguf) if layout is not None]
        if any("router" in layout.tensors for layout in layouts) != (self.moe is not None):
            raise ValueError("a router and [moe] go together")
        if any({"latent", "attention_gate"} <= set(layout.tensors) for layout in layouts):
            raise ValueError("an output gate behind a latent is not implemented")
        return self


@cache
def families() -> Mapping[str, Family]:
    """All families by name, read from the package's TOML files and validated."""
    folder = resources.files("ckptforensics.architectures") / "families"
    found: dict[str, Family] = {}
    claimed: dict[tuple[str, str], Family] = {}
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        family = read_family(tomllib.loads(file.read_text(encoding="utf-8")))
        if file.name != f"{family.name}.toml":
            raise ValueError(f"{file.name} names the family {family.name!r}")
        names = [("model_type", n) for n in family.model_types]
        names += [("general.architecture", n) for n in family.gguf_architectures]
        for key in names:
            other = claimed.setdefault(key, family)
            if other is not family and not _exclude(family, other):
                raise ValueError(f"{family.name} and {other.name} both claim {key}")
        found[family.name] = family
    return MappingProxyType(found)


@cache
def unanalysable() -> Mapping[str, tuple[str, ...]]:
    """Why models have nothing to analyse, to the names of their architectures."""
    file = resources.files("ckptforensics.architectures") / "unanalysable.toml"
    reasons = tomllib.loads(file.read_text(encoding="utf-8"))
    return MappingProxyType({reason: tuple(names) for reason, names in reasons.items()})


def _exclude(family: Family, other: Family) -> bool:
    """No configuration belongs to both."""
    shared = family.when.keys() & other.when.keys()
    return any(not set(family.when[key]) & set(other.when[key]) for key in shared)


def read_family(fields: dict[str, Any]) -> Family:
    """Validate one family; pydantic's ValidationError names the key that is wrong."""
    return Family.model_validate(fields)
