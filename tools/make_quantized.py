"""Make `fixtures/quantized`: one small weight as other libraries quantize it and read it back.

    python -m tools.make_quantized [DIR]

Needs torch, `auto-round`, `autoawq` (or their Python sources alone), `bitsandbytes`,
`compressed-tensors` and `hqq`, which the tests do not need. Each file holds the tensors as the
library writes them, under `m.`, and `expected`: the weight as the same library dequantizes it.
Its header says what the configuration is and which library in which version made it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROWS, COLUMNS, GROUP = 32, 96, 32


def _weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn((ROWS, COLUMNS), generator=generator) * 0.2 + 0.02


def _asymmetric(weight: torch.Tensor, bits: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each group, (out, groups)."""
    groups = weight.reshape(ROWS, -1, size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def _without_its_init(name: str) -> types.ModuleType:
    """A package whose modules can be imported although what its own import needs is missing."""
    parent, _, last = name.rpartition(".")
    found = importlib.util.find_spec(name) if not parent else None
    folder = Path(sys.modules[parent].__path__[0]) / last if parent else None
    if found is not None and found.origin is not None:
        folder = Path(found.origin).parent
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    return package


class Writer:
    """Collects the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self, name: str, package: str, config: dict[str, Any], parts: dict[str, Any], expected: Any
    ) -> None:
        """Write one case."""
        tensors = {f"m.{k}": v.detach().contiguous().clone() for k, v in parts.items()}
        tensors["expected"] = expected.detach().float().contiguous().clone()
        made_by = f"{package} {importlib.metadata.version(package)}, torch {torch.__version__}"
        metadata = {"config": json.dumps(config), "made_by": made_by}
        save_file(tensors, self.folder / f"{name}.safetensors", metadata)


def gptq(writer: Writer) -> None:
    """Zeros stored minus 1 and as they are, in 2, 3, 4 and 8 bits, in order and not."""
    _without_its_init("auto_round")
    utilities = _without_its_init("auto_round.utils")
    utilities.get_packing_device = lambda device: "cpu"  # type: ignore[attr-defined]
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    weight = _weight()
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    for form, module in (("gptq", qlinear_torch_zp), ("gptq_v2", qlinear_torch)):
        for bits in (2, 3, 4, 8):
            scale, zero = _asymmetric(weight, bits, GROUP)
            zero = zero.clamp(min=1)
            linear.weight.data = weight
            packed = module.QuantLinear(bits, GROUP, COLUMNS, ROWS, False)
            packed.device = "cpu"
            packed.pack(linear, scale, zero)
            packed.scales = packed.scales.float()
            expected = packed(torch.eye(COLUMNS)).T
            config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP}
            config |= {"desc_act": False, "checkpoint_format": form}
            parts = {n: getattr(packed, n) for n in ("qweight", "qzeros")}
            parts["scales"] = packed.scales.half()
            writer.add(f"{form}-{bits}", "auto-round", config, parts, expected)


def awq(writer: Writer) -> None:
    """Packed as the library's from_linear does and read by its dequantize_gemm."""
    _without_its_init("awq")
    _without_its_init("awq.utils")
    from awq.utils import packing_utils as packing

    weight = _weight()
    scale, zero = _asymmetric(weight, 4, GROUP)
    scale, zero = scale.T, zero.T
    repeated = scale.repeat_interleave(GROUP, 0), zero.repeat_interleave(GROUP, 0)
    codes = (weight.T / repeated[0] + repeated[1]).round().clamp(0, 15).int()

    def pack(values: torch.Tensor) -> torch.Tensor:  # as WQLinear_GEMM.from_linear does
        words = torch.zeros((values.shape[0], values.shape[1] // 8), dtype=torch.int32)
        for i, column in enumerate(packing.AWQ_ORDER):
            words |= values[:, column::8].int() << (4 * i)
        return words

    parts = {"qweight": pack(codes), "qzeros": pack(zero), "scales": scale.half()}
    expected = packing.dequantize_gemm(parts["qweight"], parts["qzeros"], scale, 4, GROUP).T
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    writer.add("awq", "autoawq", {**config, "zero_point": True}, parts, expected)


def compressed_tensors(writer: Writer) -> None:
    """Every format of dense weights."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def case(name: str, form: str, args: dict[str, Any], state: dict[str, Any]) -> None:
        weights = QuantizationArgs(**args)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        compressor = BaseCompressor.get_value_from_registry(form)
        parts = compressor.compress({"weight": _weight(), **state}, scheme)
        expected = compressor.decompress(dict(parts), scheme)["weight"]
        group = json.loads(scheme.model_dump_json())
        config = {"quant_method": "compressed-tensors", "format": form}
        config |= {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
        writer.add(f"ct-{name}", "compressed-tensors", config, parts, expected)

    weight = _weight()

    def largest(*axes: int, size: int = COLUMNS, top: float) -> torch.Tensor:
        blocks = weight.reshape(ROWS, -1, size).abs()
        return blocks.amax(axes[0], keepdim=False) / top if axes else blocks.amax() / top

    for bits in (2, 3, 4, 8):
        scale, zero = _asymmetric(weight, bits, GROUP)
        zero = (zero - 2 ** (bits - 1)).to(torch.int8)
        args = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": GROUP}
        state = {"weight_scale": scale, "weight_zero_point": zero}
        case(f"pack-{bits}-group", "pack-quantized", {**args, "symmetric": False}, state)
    channel = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True}
    case("pack-4-channel", "pack-quantized", channel, {"weight_scale": largest(2, top=7.5)})
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    case(
        "int8-channel", "int-quantized", {**eight, "strategy": "channel"},
        {"weight_scale": largest(2, top=127)},
    )  # fmt: skip
    scale, zero = _asymmetric(weight, 8, COLUMNS)
    case(
        "int8-asymmetric", "int-quantized", {**eight, "strategy": "channel", "symmetric": False},
        {"weight_scale": scale, "weight_zero_point": (zero - 128).to(torch.int8)},
    )  # fmt: skip
    f8 = {"num_bits": 8, "type": "float", "symmetric": True}
    case(
        "fp8-tensor", "float-quantized", {**f8, "strategy": "tensor"},
        {"weight_scale": largest(top=448).reshape(1)},
    )  # fmt: skip
    case(
        "fp8-channel", "float-quantized", {**f8, "strategy": "channel"},
        {"weight_scale": largest(2, top=448)},
    )  # fmt: skip
    blocks = weight.abs().reshape(2, 16, 3, 32).amax((1, 3)) / 448
    case(
        "fp8-block", "float-quantized", {**f8, "strategy": "block", "block_structure": [16, 32]},
        {"weight_scale": blocks},
    )  # fmt: skip
    f4 = {"num_bits": 4, "type": "float", "symmetric": True}
    outer = torch.tensor([448 * 6 / weight.abs().max()])
    nv = (largest(2, size=16, top=6) * outer).to(torch.float8_e4m3fn).float()
    case(
        "nvfp4", "nvfp4-pack-quantized", {**f4, "strategy": "tensor_group", "group_size": 16},
        {"weight_scale": nv, "weight_global_scale": outer},
    )  # fmt: skip
    mx = largest(2, size=32, top=6).log2().ceil().exp2()
    case(
        "mxfp4", "mxfp4-pack-quantized", {**f4, "strategy": "group", "group_size": 32},
        {"weight_scale": mx},
    )  # fmt: skip


def bitsandbytes(writer: Writer) -> None:
    """int8 rows, and NF4 and FP4 with and without double quantization."""
    import bitsandbytes.functional as bnb

    weight = _weight()
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    expected = bnb.int8_vectorwise_dequant(codes, scales)
    parts = {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    writer.add("bnb-int8", "bitsandbytes", config, parts, expected)
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            packed, state = bnb.quantize_4bit(
                weight, blocksize=64, compress_statistics=double, quant_type=kind
            )
            parts = {"weight": packed}
            parts |= {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
            # As one row: the CPU kernel takes wrong scales where a block crosses the end of a row.
            state.shape = torch.Size((1, ROWS * COLUMNS))
            expected = bnb.dequantize_4bit(packed, state).reshape(ROWS, COLUMNS)
            config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
            name = f"bnb-{kind}{'-double' if double else ''}"
            writer.add(name, "bitsandbytes", config, parts, expected)


def hqq(writer: Writer) -> None:
    """Every packing on both axes."""
    from hqq.core.quantize import HQQLinear, hqq_base_quant_config

    for bits in (8, 4, 3, 2, 1):
        for axis in (0, 1):
            linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
            linear.weight.data = _weight()
            config = hqq_base_quant_config(nbits=bits, group_size=GROUP, axis=axis)
            made = HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
            parts = {k: v for k, v in made.state_dict().items() if v is not None}
            settings = {"quant_method": "hqq", "quant_config": config}
            writer.add(f"hqq-{bits}-axis{axis}", "hqq", settings, parts, made.dequantize())


def main(folder: Path) -> None:
    """Write every file into `folder`."""
    writer = Writer(folder)
    for make in (gptq, awq, compressed_tensors, bitsandbytes, hqq):
        make(writer)


if __name__ == "__main__":
    main(
        Path(sys.argv[1])
        if len(sys.argv) > 1
        else Path(__file__).parents[1] / "fixtures" / "quantized"
    )
