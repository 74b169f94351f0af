"""A plan of quantization as what a tool takes: the modules that it leaves in 16 bits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ckptforensics.errors import UsageError
from ckptforensics.results.quantization_plan import QuantizationPlanDocument

# The output head's module in transformers' causal models: a list that is given replaces the tools'
# own, which has it.
HEAD = "lm_head"
# What stands before a module's name inside its block.
_BEFORE_BLOCK = re.compile(r"^.*?\.?\d+\.")


def plan_list(document: QuantizationPlanDocument, tool: str) -> str:
    """The kept modules as the tool takes them, text ending in a newline.

    Parameters
    ----------
    tool : one of `TOOLS`

    Raises
    ------
    UsageError
        if the tool works on GGUF files and the family has no names for them.
    """
    return TOOLS[tool](document)


def _names(document: QuantizationPlanDocument) -> list[str]:
    return [module.module for module in document.kept]


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _llm_compressor(document: QuantizationPlanDocument) -> str:
    """A recipe: W8A8 of linear modules, but for the head and those that are kept."""
    ignored = [HEAD, *_names(document)]
    lines = [
        "quantization_stage:",
        "  quantization_modifiers:",
        "    QuantizationModifier:",
        "      targets: [Linear]",
        "      scheme: W8A8",
        "      ignore:",
        *(f"        - {json.dumps(name)}" for name in ignored),
    ]
    return "\n".join(lines) + "\n"


def _bitsandbytes(document: QuantizationPlanDocument) -> str:
    return _json({"llm_int8_skip_modules": [HEAD, *_names(document)]})


def _torchao(document: QuantizationPlanDocument) -> str:
    """A filter for `quantize_`, which sees every module with its full name."""
    names = [HEAD, *_names(document)]
    lines = [
        "import torch",
        "",
        "KEPT = {",
        *(f"    {json.dumps(name)}," for name in names),
        "}",
        "",
        "",
        "def filter_fn(module, fqn):",
        "    return isinstance(module, torch.nn.Linear) and fqn not in KEPT",
    ]
    return "\n".join(lines) + "\n"


def _gptqmodel(document: QuantizationPlanDocument) -> str:
    """Rules that leave modules out begin with `-:` and are regular expressions of whole names."""
    return _json({"dynamic": {f"-:^{re.escape(name)}$": {} for name in _names(document)}})


def _autoawq(document: QuantizationPlanDocument) -> str:
    """Names inside a block: AutoAWQ's quantizer looks for them there, the same in every layer."""
    inside = dict.fromkeys(_BEFORE_BLOCK.sub("", name, count=1) for name in _names(document))
    return _json({"modules_to_not_convert": [*inside]})


def _autoround(document: QuantizationPlanDocument) -> str:
    kept = {"bits": 16, "act_bits": 16}
    return _json({"layer_config": dict.fromkeys(_names(document), kept)})


def _llama_cpp(document: QuantizationPlanDocument) -> str:
    """Flags of `llama-quantize`, a line each, whose names are regular expressions."""
    lines = []
    for module in document.kept:
        if module.gguf is None:
            raise UsageError(
                f"no name in GGUF files is known for '{module.module}'",
                hint="choose another tool",
            )
        pattern = re.escape(f"{module.gguf}.weight")
        lines.append(f"--tensor-type '^{pattern}$=f16'")
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


TOOLS: Mapping[str, Callable[[QuantizationPlanDocument], str]] = MappingProxyType(
    {
        "llm-compressor": _llm_compressor,
        "bitsandbytes": _bitsandbytes,
        "torchao": _torchao,
        "gptqmodel": _gptqmodel,
        "autoawq": _autoawq,
        "autoround": _autoround,
        "llama.cpp": _llama_cpp,
    }
)
