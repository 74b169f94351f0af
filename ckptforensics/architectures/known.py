"""What `config.json` or GGUF metadata says, read with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ckptforensics.architectures.names import as_stored
from ckptforensics.architectures.schema import (
    Choice,
    Family,
    Layout,
    Scalar,
    families,
    unanalysable,
)
from ckptforensics.errors import FormatError, NothingAnalysable, UnknownFamily
from ckptforensics.tensors import TensorReader
from ckptforensics.tensors.containers.gguf import GgufArray

# Keys of config.json, and of GGUF metadata after the architecture's name, that hold one quantity.
_KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "hidden_size": (("hidden_size", "n_embd", "d_model"), ("embedding_length",)),
        "num_layers": (
            ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
            ("block_count",),
        ),
        "num_heads": (("num_attention_heads", "n_head", "n_heads"), ("attention.head_count",)),
        "eps": (
            (
                *("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps"),
                *("norm_epsilon", "layernorm_epsilon", "layernorm_eps", "rms_norm_epsilon"),
            ),
            ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
        ),
        "activation": (
            ("hidden_act", "hidden_activation", "activation_function", "hidden_act_fn"),
            (),
        ),
        "ffn_width": (("intermediate_size",), ("feed_forward_length",)),
        "latent_width": (("kv_lora_rank",), ("attention.kv_lora_rank",)),
        "key_width": (("qk_nope_head_dim",), ()),
    }
)
_LARGEST_COUNT = 1 << 24
# What a GGUF file is, by `general.type`, if it is no model.
_NOT_MODELS = MappingProxyType(
    {
        "adapter": "a LoRA adapter",
        "imatrix": "an importance matrix",
        "mmproj": "the vision or audio part of a multimodal model",
    }
)


class Known:
    """Configuration and metadata of one checkpoint.

    Attributes
    ----------
    store : the tensors
    gguf : the metadata is GGUF's
    model_type : as the checkpoint names itself, None if it does not
    notes : what was assumed so far because nothing says it
    """

    def __init__(self, store: TensorReader, config: Mapping[str, Any] | None) -> None:
        self.store = store
        self.whole_config = self.config = dict(config or {})
        # A multimodal configuration keeps the language model's one level down.
        for inner in ("text_config", "language_config", "llm_config"):
            if isinstance(text := self.config.get(inner), dict):
                self.config = {**self.config, **text}
        self.path = store.containers[0].path
        self.gguf = store.containers[0].kind == "gguf"
        self.notes: list[str] = []
        name = store.metadata.get("general.architecture") if self.gguf else None
        name = name if self.gguf else self.config.get("model_type")
        self.model_type = name if isinstance(name, str) else None

    def family(self) -> Family | None:
        """The family that claims the checkpoint's own name for itself.

        From then on the configuration is that of the family's part of a larger model.
        """
        # The part that the configuration was merged with, then the model as a whole.
        whole = self.whole_config.get("model_type")
        for own_name in (self.model_type, whole if isinstance(whole, str) else None):
            for family in families().values():
                names = family.gguf_architectures if self.gguf else family.model_types
                if own_name in names and self._meant(family):
                    part = self.whole_config.get(family.section or "")
                    if isinstance(part, dict):
                        self.config = {**self.whole_config, **part}
                    return family
        return None

    def _meant(self, family: Family) -> bool:
        """The configuration has one of the values by which families share a model type."""
        return all(
            (value if isinstance(value := self.value(key), str) else json.dumps(value)) in values
            for key, values in family.when.items()
        )

    def layout(self, family: Family) -> Layout | None:
        """The family's names in this container, of several forms those that the files have."""
        layout = family.gguf if self.gguf else family.hf
        return None if layout is None else as_stored(layout, self.store)

    def value(self, key: str | None, gguf_key: str | None = None) -> Any:
        """The configured value, None if there is none; dots lead into objects and lists."""
        if self.gguf:
            return self.store.metadata.get(f"{self.model_type}.{gguf_key}") if gguf_key else None
        found: Any = self.config
        for part in key.split(".") if key else ():
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                found = found.get(part) if isinstance(found, dict) else None
        return found if key else None

    def get(self, family: Family, quantity: str) -> Any:
        """A quantity by the usual keys, or by the family's own."""
        hf, gguf = _KEYS.get(quantity, ((), ()))
        keys = family.config.get(quantity, hf)
        if self.gguf:
            found = (self.value(None, key) for key in gguf)
        else:
            found = (self.value(key) for key in keys)
        return next((value for value in found if value is not None), None)

    def count(self, family: Family, quantity: str) -> int | None:
        """A quantity that is a positive number of things; FormatError if it is not."""
        value = self.get(family, quantity)
        if value is None and quantity == "num_heads" and not self.gguf:
            value = family.default_heads.get(str(self.model_type))
        if value is None:
            return None
        if isinstance(value, GgufArray):
            value = self._same_everywhere(f"the metadata's {quantity}", value)
        if type(value) is not int or not 0 < value < _LARGEST_COUNT:
            raise FormatError(f"the configuration gives {quantity} as {value!r}", path=self.path)
        return value

    def _same_everywhere(self, quantity: str, listed: GgufArray) -> int | None:
        """The one number of a list with one for each layer; 0 stands for layers without."""
        numbers = sorted(set(listed.numbers) - {0})
        if len(numbers) > 1:
            raise UnknownFamily(
                f"{quantity} differs from layer to layer, from {numbers[0]} to {numbers[-1]}, "
                "which no family describes",
                path=self.path,
                hint="see docs/families.md for the supported families",
            )
        return numbers[0] if numbers else None

    def at_layer(self, key: str | None, gguf_key: str, layer: int) -> Any:
        """A configured value that GGUF metadata may list layer by layer, counted from 0."""
        value = self.value(key, gguf_key)
        if not isinstance(value, GgufArray):
            return value
        return value.numbers[layer] if layer < len(value.numbers) else None

    def first_count(self, keys: tuple[str, ...], gguf_key: str) -> int | None:
        """The first of several keys that is configured, as a number of things; None for 0."""
        names = (gguf_key,) if self.gguf else keys
        for name in names:
            value = self.value(name, gguf_key)
            if value is None:
                continue
            if type(value) is not int or not 0 <= value < _LARGEST_COUNT:
                raise FormatError(f"the configuration gives {name} as {value!r}", path=self.path)
            return value or None
        return None

    def choice(self, setting: str | Choice) -> str:
        """A setting that may depend on the configuration; FormatError for an unknown value."""
        if isinstance(setting, str):
            return setting
        value = self.value(setting.key, setting.gguf_key)
        if value is None:
            default = (self.gguf and setting.gguf_default) or setting.default
            self.note_missing(setting.gguf_key, default)
            return default
        written = value if isinstance(value, str) else json.dumps(value)
        if written not in setting.values:
            raise FormatError(
                f"the configuration gives {setting.key} as {value!r}, "
                f"known are {', '.join(setting.values)}",
                path=self.path,
            )
        return setting.values[written]

    def require_supported(self, family: Family) -> None:
        """FormatError if the configuration asks for a block that the family does not describe.

        UnknownFamily if the number of key-value heads is another one from layer to layer.
        """
        if isinstance(heads := self.value(None, "attention.head_count_kv"), GgufArray):
            self._same_everywhere("the number of key-value heads", heads)
        for key, supported in family.supported.items():
            value = self.value(key)
            written = value if isinstance(value, str) else json.dumps(value)
            if value is not None and written not in supported:
                raise FormatError(
                    f"the configuration gives {key} as {value!r}, "
                    f"which the family '{family.name}' does not describe",
                    path=self.path,
                )

    def scalar(self, scalar: Scalar, hidden_size: int, num_layers: int) -> float:
        """A configured factor; FormatError if it is not a finite number."""
        value = self.value(scalar.key, scalar.gguf_key)
        default = scalar.default
        if self.gguf and scalar.gguf_default is not None:
            default = scalar.gguf_default
        factor = default if value is None else value
        if value is None and default != 1:
            self.note_missing(scalar.gguf_key, f"{default:g}")
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise FormatError(f"the configuration gives {scalar.key} as {value!r}", path=self.path)
        sizes = {
            "sqrt(hidden_size)": math.sqrt(hidden_size),
            "sqrt(num_layers)": math.sqrt(num_layers),
            None: 1.0,
        }
        result = float(factor)
        if not (self.gguf and value is not None):
            result *= sizes[scalar.times] / sizes[scalar.over]
        if not math.isfinite(result):
            raise FormatError(f"the configuration gives {scalar.key} as {value!r}", path=self.path)
        return result

    def per_layer(self, key: str, num_layers: int) -> tuple[float, ...]:
        """A configured number for each layer; FormatError if they are not that."""
        value = self.value(key)
        numbers = value if isinstance(value, list) else [value] * num_layers
        if len(numbers) < num_layers or any(type(n) not in (int, float) for n in numbers):
            raise FormatError(f"the configuration gives {key} as {value!r}", path=self.path)
        return tuple(float(n) for n in numbers[:num_layers])

    @property
    def where_to_say(self) -> str:
        """Advice for a size that nothing tells; of a GGUF file no configuration is read."""
        if self.gguf:
            return "convert the model again with a newer llama.cpp"
        return "put config.json beside the weights or name it with --config"

    def note_missing(self, gguf_key: str | None, default: str) -> None:
        """Say that GGUF metadata lacks a key that files of the family may have."""
        note = f"the metadata lacks {gguf_key}; assumed: {default}"
        if self.gguf and gguf_key is not None and note not in self.notes:
            self.notes.append(note)

    def positive(self, key: str, gguf_key: str | None = None) -> float | None:
        """A configured positive number, None if there is none; FormatError for anything else."""
        value = self.value(key, gguf_key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise FormatError(f"the configuration gives {key} as {value!r}", path=self.path)
        return float(value)

    def rotary_factor(self) -> float:
        """What the rotary encoding multiplies queries and keys by, whatever the position."""
        if self.gguf:
            kind = self.value(None, "rope.scaling.type") or "none"
            stretch = self.value(None, "rope.scaling.factor")
            explicit, mscales = self.value(None, "rope.scaling.yarn_attn_factor"), (None, None)
            times = self.value(None, "rope.scaling.attn_factor") or 1.0
        else:
            rope = self.value("rope_parameters") or self.value("rope_scaling") or {}
            kind = rope.get("rope_type", rope.get("type", "default"))
            stretch, explicit = rope.get("factor"), rope.get("attention_factor")
            mscales, times = (rope.get("mscale"), rope.get("mscale_all_dim")), 1.0
        if kind in ("default", "none", "linear", "llama3", "dynamic"):
            return float(times)
        numbers = (stretch, explicit, *mscales, times)
        if kind != "yarn" or not all(n is None or type(n) in (int, float) for n in numbers):
            raise FormatError(f"the configuration gives rope scaling as {kind!r}", path=self.path)
        if explicit is not None:
            return float(explicit)

        def factor(mscale: float) -> float:
            return 0.1 * mscale * math.log(stretch) + 1 if stretch and stretch > 1 else 1.0

        first, second = mscales
        return float(times * (factor(first) / factor(second) if first and second else factor(1)))

    def activation(self, family: Family, *, inferred: bool) -> str:
        """Name of the activation; the family's where nothing says it."""
        value = self.get(family, "activation")
        if value is None:
            own = self.choice(family.activation)
            if inferred:
                self.notes.append(f"activation assumed to be {own}")
            return own
        if not isinstance(value, str):
            raise FormatError(f"the configuration gives activation as {value!r}", path=self.path)
        return value

    def eps(self, family: Family) -> float:
        """Epsilon of the norms; the family's where nothing says it."""
        value = self.get(family, "eps")
        if value is None:
            # A family without a key for it has a constant.
            if family.config.get("eps") != ():
                self.notes.append(f"norm epsilon assumed to be {family.norm.eps:g}")
            return family.norm.eps
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise FormatError(f"the configuration gives epsilon as {value!r}", path=self.path)
        return float(value)

    def bos_token_id(self) -> int | None:
        """The begin-of-sequence token, None if the checkpoint names none."""
        if self.gguf:
            value = self.store.metadata.get("tokenizer.ggml.bos_token_id")
        else:
            value = self.config.get("bos_token_id")
        if isinstance(value, list) and value:
            value = value[0]
        return value if type(value) is int and value >= 0 else None

    def gguf_norm(self) -> str | None:
        """Kind of the norms as the name of epsilon's key in GGUF tells it, None if it does not."""
        keys = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
        kinds = [kind for kind, key in keys.items() if self.value(None, key) is not None]
        return kinds[0] if self.gguf and len(kinds) == 1 else None

    def refuse_unanalysable(self) -> None:
        """NothingAnalysable if the model is known to have nothing this analysis speaks of."""
        kind = self.store.metadata.get("general.type") if self.gguf else None
        if self.gguf and self.model_type == "clip":
            kind = "mmproj"
        if isinstance(kind, str) and (other := _NOT_MODELS.get(kind)) is not None:
            raise NothingAnalysable(f"the file is {other}, not a language model", path=self.path)
        if self.gguf and not any(True for _ in self.store):
            raise NothingAnalysable(
                "the file holds no tensors",
                path=self.path,
                hint="files with a tokenizer alone, and the first of some split models, have none",
            )
        for reason, names in unanalysable().items():
            if self.model_type in names or (self.gguf and f"gguf:{self.model_type}" in names):
                raise NothingAnalysable(f"'{self.model_type}' {reason}", path=self.path)
