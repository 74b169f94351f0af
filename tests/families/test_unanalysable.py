"""Models of which nothing is analysed: described at most, and refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import transformers

import ckptforensics
from ckptforensics.cli.main import main
from ckptforensics.errors import FormatError, NothingAnalysable
from tests.support.families.cases_experts import sizes

MIXER = "its mixer is not analysed"
MAMBAS = {
    "mamba": lambda: transformers.MambaConfig(
        hidden_size=24, num_hidden_layers=2, vocab_size=31, state_size=4
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        hidden_size=24,
        num_hidden_layers=2,
        vocab_size=31,
        state_size=4,
        num_heads=4,
        head_dim=12,
        n_groups=1,
    ),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(
        hidden_size=24, num_hidden_layers=2, vocab_size=31, state_size=4
    ),
}


@pytest.mark.parametrize("name", MAMBAS)
def test_models_of_mixers_only(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Such a model can be looked into, and every layer says why it is not analysed."""
    transformers.AutoModelForCausalLM.from_config(MAMBAS[name]()).save_pretrained(tmp_path)
    document = ckptforensics.inspect(tmp_path)
    assert document.ffn_width is None
    assert document.num_heads == 0
    assert [row.what for row in document.skipped] == ["layers 1 to 2"]
    assert MIXER in document.skipped[0].reason
    assert {t.role for t in document.tensors} == {None, "embedding"}
    capsys.readouterr()
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "no FFN" in shown
    assert "layers 1 to 2" in shown
    for command in (["sign"], ["layers"], ["layers", "--accumulated"], ["norms"]):
        assert main([*command, str(tmp_path)]) == 3
        said = capsys.readouterr().err
        assert MIXER in said
        assert "no FFN" in said
        assert said.count("\n") == 1


def test_mamba_in_gguf(tmp_path: Path):
    file = tmp_path / "mamba.gguf"
    writer = gguf.GGUFWriter(file, "mamba")
    writer.add_block_count(2)
    writer.add_embedding_length(24)
    names = ["token_embd", "output_norm"]
    names += [f"blk.{n}.{part}" for n in range(2) for part in ("attn_norm", "ssm_in", "ssm_out")]
    for name in names:
        shape = (24,) if "norm" in name else (31, 24)
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    write(writer)
    document = ckptforensics.inspect(file)
    assert [row.what for row in document.skipped] == ["layers 1 to 2"]
    with pytest.raises(NothingAnalysable, match="none of the 2 layers"):
        ckptforensics.sign(file)


def test_more_layers_configured_than_stored(tmp_path: Path):
    made = transformers.AutoModelForCausalLM.from_config(MAMBAS["mamba"]())
    made.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**7}))
    with pytest.raises(FormatError, match="says 10000000 layers, and the files hold 2"):
        ckptforensics.open_checkpoint(tmp_path)


def test_zamba2_is_refused_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = transformers.Zamba2Config(
        **sizes(
            num_hidden_layers=4,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            n_mamba_heads=4,
            mamba_d_state=8,
            num_mem_blocks=1,
        )
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["layers", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert "'zamba2' adds" in said
    assert "not to the residual stream" in said


def test_gemma3n_in_gguf_is_refused(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "gemma3n.gguf", "gemma3n")
    writer.add_tensor("blk.0.ffn_up.weight", np.ones((40, 24), np.float32))
    write(writer)
    with pytest.raises(NothingAnalysable, match="'gemma3n' keeps four residual streams"):
        ckptforensics.open_checkpoint(tmp_path / "gemma3n.gguf")


def write(writer: gguf.GGUFWriter) -> None:
    """Finish a file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
