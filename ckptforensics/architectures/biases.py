"""Biases that are stored though the model that transformers builds has none, and drops them.

Which maps have biases is data, `biases.toml`, by the model type; for code that is not transformers'
the usual settings count where they say no.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict

from ckptforensics.architectures.known import Known
from ckptforensics.architectures.plan import LayerPlan
from ckptforensics.architectures.schema import Role
from ckptforensics.architectures.scores import query_and_key
from ckptforensics.errors import CkptError

# Settings that say whether maps have biases, and the names of these maps.
_USUAL: Mapping[str, tuple[str, ...]] = {
    "attention_bias": ("q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias"),
    "mlp_bias": ("gate_proj.bias", "up_proj.bias", "down_proj.bias"),
}


class BiasRule(BaseModel):
    """Which roles have a bias in the classes of some model types; all others have none.

    Attributes
    ----------
    model_types : values of `model_type` in `config.json`
    always : whatever the configuration says
    on, off : setting of the configuration to the roles that it gives a bias if it is true; where
        it is absent, `on` counts as true and `off` as false
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_types: tuple[str, ...]
    always: tuple[Role, ...] = ()
    on: dict[str, tuple[Role, ...]] = {}
    off: dict[str, tuple[Role, ...]] = {}


@cache
def bias_rules() -> Mapping[str, BiasRule]:
    """The rules by model type, read from the package's data."""
    file = resources.files("ckptforensics.architectures") / "biases.toml"
    rules = (BiasRule.model_validate(r) for r in tomllib.loads(file.read_text("utf-8"))["rules"])
    return MappingProxyType({name: rule for rule in rules for name in rule.model_types})


def dropped_biases(known: Known, layers: tuple[LayerPlan, ...]) -> Iterator[str]:
    """What is wrong with each kind of stored bias that transformers would not read.

    Biases of zeros do no harm, and writers of quantized weights store them: they pass. To tell, the
    doubtful biases are read, which honest checkpoints do not have.
    """
    rule = None if known.gguf else bias_rules().get(str(known.model_type))
    denied = _denied_by_name(known, layers) if rule is None else _denied(known, rule, layers)
    by_reason: dict[str, list[str]] = {}
    for name, reason in denied:
        by_reason.setdefault(reason, []).append(name)
    known.store.prefetch([name for names in by_reason.values() for name in names])
    for reason, names in by_reason.items():
        first = next((name for name in names if _acts(known, name)), None)
        if first is not None:
            yield f"{reason}, and {first} is stored: transformers would not read it"


def _acts(known: Known, name: str) -> bool:
    try:
        return bool(known.store.read(name).any())
    except CkptError:  # reported by what needs it
        return False


def _denied(
    known: Known, rule: BiasRule, layers: tuple[LayerPlan, ...]
) -> Iterator[tuple[str, str]]:
    """Stored biases of roles that have none, each with the reason."""
    allowed = set(rule.always)
    why: dict[Role, str] = {}
    for default, settings in ((True, rule.on), (False, rule.off)):
        for setting, roles in settings.items():
            value = known.value(setting)
            said = value if type(value) is bool else default
            if said:
                allowed |= set(roles)
            told = "is false" if value is False else "is not set, which means false"
            why |= dict.fromkeys(roles, f"{setting} {told}")
    for plan in layers:
        for refs in (plan.refs, *plan.experts):
            for role, ref in refs.items():
                if role in allowed:
                    continue
                reason = why.get(role, f"'{known.model_type}' has no such bias")
                beside = (query_and_key(ref.weight) or ()) if role == "value" else ()
                names = (ref.bias, *(n.removesuffix(".weight") + ".bias" for n in beside))
                yield from ((n, reason) for n in names if n is not None and n in known.store)


def _denied_by_name(known: Known, layers: tuple[LayerPlan, ...]) -> Iterator[tuple[str, str]]:
    """The same by usual names, where the configuration says that there are none."""
    blocks = tuple(plan.prefix for plan in layers)
    for setting, ends in _USUAL.items():
        if known.value(setting) is False:
            for name in known.store:
                if name.startswith(blocks) and name.endswith(ends):
                    yield name, f"{setting} is false"
