"""GGUF files that are no model this package describes: one clear line, or a result that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import ckptforensics
from ckptforensics.errors import CkptError, FormatError, NothingAnalysable, UnknownFamily
from tests.families.test_families import TOKENS
from tests.families.test_gguf import Row, saved
from tests.support.families.gguf_files import renamed, write_gguf
from tests.support.families.harness import relative_errors, rollout_states

Fill = Callable[[gguf.GGUFWriter], None]


def written(path: Path, architecture: str, fill: Fill, **more: object) -> Path:
    """A GGUF file of the gguf package."""
    writer = gguf.GGUFWriter(path, architecture, **more)  # type: ignore[arg-type]
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensor(writer: gguf.GGUFWriter, name: str) -> None:
    writer.add_tensor(name, np.ones((4, 8), np.float32))


def _adapter(writer: gguf.GGUFWriter) -> None:
    writer.add_type(gguf.GGUFType.ADAPTER)
    _tensor(writer, "blk.0.attn_q.weight.lora_a")


def _importance(writer: gguf.GGUFWriter) -> None:
    writer.add_type(gguf.GGUFType.IMATRIX)
    _tensor(writer, "blk.0.attn_q.weight.in_sum2")


def _tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["a", "b"])


@pytest.mark.parametrize(
    ("architecture", "fill", "why"),
    [
        ("llama", _adapter, "LoRA adapter"),
        ("llama", _importance, "importance matrix"),
        ("clip", lambda w: _tensor(w, "v.blk.0.attn_q.weight"), "vision or audio part"),
        ("llama", _tokenizer, "holds no tensors"),
    ],
    ids=["adapter", "imatrix", "mmproj", "tokenizer"],
)
def test_files_that_are_no_model(architecture: str, fill: Fill, why: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", architecture, fill)
    with pytest.raises(NothingAnalysable, match=why):
        ckptforensics.open_checkpoint(path)


def test_a_big_endian_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", "llama", _adapter, endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(FormatError, match="big-endian") as caught:
        ckptforensics.open_checkpoint(path)
    assert "gguf-convert-endian" in (caught.value.hint or "")


LLAMA = Row("llama-gqa-biases", "llama")


def nameless(row: Row, tmp_path: Path) -> tuple[Path, Path]:
    """The model of a row under an architecture that no family is named like, and as it is."""
    folder, path = saved(row, tmp_path), tmp_path / "x.gguf"
    write_gguf(folder, path, row.architecture)
    path.write_bytes(path.read_bytes().replace(row.architecture.encode(), b"xllam"))
    return path, folder


def test_an_unknown_architecture_is_inferred_from_names(tmp_path: Path) -> None:
    path, folder = nameless(LLAMA, tmp_path)
    architecture = ckptforensics.open_checkpoint(path).architecture
    assert architecture.source == "inferred"
    assert any("'llama'" in note for note in architecture.notes)
    assert (
        relative_errors(rollout_states(path, TOKENS), rollout_states(folder, TOKENS)).max() < 1e-6
    )


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (Row("llama-gqa-biases", "llama", settings={"scale_emb": 3.0}), "embedding_scale"),
        (Row("llama-gqa-biases", "llama", settings={"residual_multiplier": 0.5}), "residual_scale"),
        (Row("llama-gqa-biases", "llama", settings={"clip_qkv": 0.5}), "clamp_kqv"),
        (Row("mixtral", "llama"), "expert_count"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_inferred_over_metadata_that_says_more(
    row: Row, key: str, tmp_path: Path
) -> None:
    path, _ = nameless(row, tmp_path)
    with pytest.raises(UnknownFamily, match=key):
        ckptforensics.open_checkpoint(path)


def test_the_kind_of_norm_is_that_of_the_metadata(tmp_path: Path) -> None:
    """LLaMA's names with LayerNorm's epsilon are not LLaMA."""
    settings = {"rms_norm_eps": None, "layer_norm_eps": 1e-5}
    path, _ = nameless(Row("llama-gqa-biases", "llama", settings=settings), tmp_path)
    architecture = ckptforensics.open_checkpoint(path).architecture
    assert architecture.source == "inferred"
    assert architecture.family.norm.kind == "layer"


@pytest.mark.parametrize(
    ("row", "assumed"),
    [
        (Row("pythia-parallel", "gptneox"), "exact GELU"),
        (Row("gpt2", "gpt2"), "GELU by tanh"),
        (Row("bert", "bert"), "exact GELU"),
        (Row("minicpm3-multipliers", "minicpm3"), "embedding_scale; assumed: 12"),
        (Row("deepseek-v2-groups", "deepseek2"), "expert_gating_func; assumed: softmax"),
        (Row("gpt-oss-yarn", "gpt-oss"), "assumed to be 7"),
        (Row("phimoe", "phimoe"), "0.01"),
    ],
    ids=lambda value: str(value) if isinstance(value, Row) else "",
)
def test_what_the_file_does_not_say_is_said(row: Row, assumed: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(saved(row, tmp_path), path, row.architecture)
    notes = ckptforensics.find_layers(path).model.notes
    assert any(assumed in note for note in notes)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(saved(LLAMA, tmp_path), path, "llama", (renamed("attn_v", "attn_w"),))
    with pytest.raises(CkptError, match=r"blk\.0\.attn_v\.weight"):
        ckptforensics.open_checkpoint(path)


def _listed(tmp_path: Path, metadata: dict[str, object]) -> Path:
    """LLaMA of 3 layers (6 heads of 10, 2 of them for values, FFN 72 wide) with other metadata."""
    folder, path = saved(LLAMA, tmp_path), tmp_path / "x.gguf"
    write_gguf(folder, path, "llama", metadata={f"llama.{k}": v for k, v in metadata.items()})
    return path


@pytest.mark.parametrize(
    "metadata",
    [
        {"attention.head_count": [6] * 3, "attention.head_count_kv": [2] * 3},
        {"feed_forward_length": [72] * 3},
        {"attention.key_length": 10, "attention.value_length": 10},
        {"expert_count": 1},
    ],
    ids=str,
)
def test_honest_lists_of_the_metadata(metadata: dict[str, object], tmp_path: Path) -> None:
    sizes = ckptforensics.open_checkpoint(_listed(tmp_path, metadata)).architecture.sizes
    assert (sizes.num_heads, sizes.num_kv_heads, sizes.head_dim) == (6, 2, 10)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"attention.head_count": [6, 6]}, "head_count lists 2 numbers for 3 layers"),
        ({"attention.head_count_kv": [2] * 4}, "head_count_kv lists 4 numbers for 3 layers"),
        ({"attention.head_count_kv": [3] * 3}, "there are 3 key-value heads"),
        ({"attention.head_count_kv": [2, 2, 0]}, "there are 0 key-value heads"),
        ({"feed_forward_length": [72, 72]}, "feed_forward_length lists 2 numbers"),
        ({"feed_forward_length": [72, 72, 36]}, "takes 72 units, and feed_forward_length is 36"),
        ({"feed_forward_length": [72, 0, 72]}, "takes 72 units, and feed_forward_length is 0"),
        ({"attention.key_length": 5}, "keys are 5 wide by key_length, and 10 in blk.0.attn_k"),
        ({"attention.value_length": 5}, "heads are 5 wide"),
        ({"attention.value_length": [10, 10, 5]}, "heads are 5 wide"),
        ({"expert_count": 8}, "expert_count is 8, and no layer has experts"),
    ],
    ids=str,
)
def test_metadata_that_the_tensors_contradict(
    metadata: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=told):
        ckptforensics.open_checkpoint(_listed(tmp_path, metadata))


@pytest.mark.parametrize("key", ["attention.head_count", "attention.head_count_kv"])
def test_heads_that_differ_between_layers_are_not_supported(key: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownFamily, match="differs from layer to layer, from 2 to 6"):
        ckptforensics.open_checkpoint(_listed(tmp_path, {key: [6, 2, 2]}))


@pytest.mark.parametrize("added", [0, -1], ids=["as the converter writes them", "minus 1"])
def test_gains_that_no_converter_has_changed_are_a_doubt(added: int, tmp_path: Path) -> None:
    folder, path = saved(Row("gemma3", "gemma3"), tmp_path), tmp_path / "x.gguf"

    def form(arrays: dict[str, np.ndarray], _config: object) -> dict[str, np.ndarray]:
        return {n: a + np.float32(added if "norm" in n else 0) for n, a in arrays.items()}

    write_gguf(folder, path, "gemma3", (form,))
    notes = ckptforensics.open_checkpoint(path).architecture.notes
    assert sum("wrong if they are stored minus 1" in note for note in notes) == -added
