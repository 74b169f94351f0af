"""Every container on the Hub, by a loopback server: the signature is the local one, and only what
is needed is transferred."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import FormatError, NothingAnalysable, UsageError
from ckptforensics.findings.measure import ROLLOUT_TOKENS
from tests.findings import test_quantized_models as quantized
from tests.support.adapters import low_rank, write_adapter
from tests.support.containers import (
    LLAMA_CONFIG,
    Model,
    assert_one_error,
    llama_arrays,
    run,
    write_llama_gguf,
)
from tests.support.hub import COMMIT, REPO

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 160, "vocab_size": 3000}
CONFIG = {**LLAMA_CONFIG, **SIZES}
EMBEDDINGS = "model.embed_tokens.weight"


def wide_tensors() -> dict[str, torch.Tensor]:
    """Most bytes are embeddings, as in small models."""
    arrays = llama_arrays(d=64, ffn=160, layers=3, vocabulary=3000)
    arrays["lm_head.weight"] = arrays[EMBEDDINGS][::-1].copy()
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def write_config(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **more}))
    return folder


def equal_signatures(a: Any, b: Any) -> bool:
    names = ("u", "v", "sigma", "residual")
    same = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)
    return same and a.document.fingerprint == b.document.fingerprint


def needed_tensors(path: Path) -> int:
    """Stored bytes of the tensors of all blocks, and the rows of the tokens rolled out."""
    checkpoint = open_checkpoint(path)
    plans = checkpoint.architecture.layers
    refs = [r for p in plans for roles in (p.refs, *p.experts) for r in roles.values()]
    names = {n for ref in refs for n in (ref.weight, ref.bias) if n is not None}
    parts = {part.name: part.nbytes for n in names for part in checkpoint.store.parts(n)}
    row = checkpoint.store.info(EMBEDDINGS)
    return sum(parts.values()) + (ROLLOUT_TOKENS + 1) * row.nbytes // row.shape[0]


def zip_headers(file: Path) -> int:
    """What describes the storages of a file of torch.save, as zipfile sees it."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        local = sum(30 + len(e.filename) for e in entries)
        described = sum(e.file_size for e in entries if e.filename.endswith(("pkl", "byteorder")))
        return 512 + local + described + file.stat().st_size - archive.start_dir


def safetensors_header(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


# PyTorch


@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_files(hub, tmp_path, shards):
    folder = write_config(tmp_path / "model")
    tensors = wide_tensors()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        weight_map = {}
        for i in range(shards):
            name = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
            part = {n: tensors[n] for n in sorted(tensors)[i::shards]}
            torch.save(part, folder / name)
            weight_map |= dict.fromkeys(part, name)
        index = json.dumps({"weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(index)
    torch.save({"step": 1}, folder / "training_args.bin")
    hub.add(folder)

    remote = ckptforensics.sign(REPO)
    files = sorted(folder.glob("pytorch_model*.bin"))
    needed = needed_tensors(folder) + sum(map(zip_headers, files))
    assert needed < sum(f.stat().st_size for f in files) / 2
    assert needed * 0.98 <= hub.sent() <= 1.02 * needed
    assert equal_signatures(remote, ckptforensics.sign(folder))
    assert [f.name for f in remote.document.model.files] == [f.name for f in files]

    hub.forget()
    assert equal_signatures(ckptforensics.sign(REPO), remote)
    assert hub.sent() == 0


def test_safetensors_win_over_pytorch_files(hub, tmp_path):
    model = Model.llama(tmp_path / "model")
    torch.save({"x": torch.zeros(1)}, model.path / "pytorch_model.bin")
    hub.add(model.path)
    assert [f.name for f in open_checkpoint(REPO).source.files] == ["model.safetensors"]


def test_pickle_that_calls_something(hub, tmp_path, capsys):
    class Call:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    with zipfile.ZipFile(tmp_path / "evil.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Call(), protocol=2))
    hub.add({"pytorch_model.bin": (tmp_path / "evil.bin").read_bytes(), "config.json": b"{}"})
    assert_one_error(run(capsys, "sign", REPO), 2, "posix.mkdir", "torch.load")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-10], "does not end with the directory"),
        (lambda data: b"x" * 600, "not a zip file"),
        (lambda data: b"", "empty"),
        (lambda data: data[:1000] + data[1100:], "contradict each other"),
    ],
)
def test_damaged_pytorch_file(hub, tmp_path, damage, words):
    torch.save(wide_tensors(), tmp_path / "x.bin")
    hub.add({"pytorch_model.bin": damage((tmp_path / "x.bin").read_bytes())})
    with pytest.raises(FormatError, match=words):
        open_checkpoint(REPO)


# Adapters


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an adapter of it, both local."""
    base = write_config(tmp_path / "base")
    save_file(wide_tensors(), base / "model.safetensors")
    modules = [f"model.layers.{i}.mlp.down_proj" for i in range(3)]
    changes = low_rank(wide_tensors(), modules)
    folder = write_adapter(tmp_path / "adapter", changes, base_model_name_or_path="org/tiny")
    return base, folder


@pytest.mark.parametrize("binary", [False, True])
def test_adapter_on_the_hub(hub, tmp_path, adapter, binary):
    base, folder = adapter
    if binary:
        changes = load_file(folder / "adapter_model.safetensors")
        torch.save(changes, folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    hub.add(folder)
    found = ckptforensics.sign(open_checkpoint(REPO, base=base))
    assert equal_signatures(found, ckptforensics.sign(open_checkpoint(folder, base=base)))
    assert (found.document.model.path, found.document.model.commit) == (REPO, COMMIT)
    assert found.document.model.base == str(base)


def test_adapter_and_base_on_the_hub(hub, capsys, adapter):
    base, folder = adapter
    other = "2" * 40
    hub.add(base)
    hub.add(folder, other, "lora")
    checkpoint = open_checkpoint(f"{REPO}@lora", base=REPO)
    found = ckptforensics.sign(checkpoint)
    assert equal_signatures(found, ckptforensics.sign(open_checkpoint(folder, base=base)))
    assert found.document.model.commit == other
    assert found.document.model.base == f"{REPO}@{COMMIT}"
    parts = (folder / "adapter_model.safetensors", base / "model.safetensors")
    needed = needed_tensors(base) + parts[0].stat().st_size + safetensors_header(parts[1])
    assert needed * 0.99 <= hub.sent() <= 1.02 * needed
    assert checkpoint.source.remote.transfer.fetched == hub.sent()
    assert checkpoint.source.remote.transfer.total == sum(p.stat().st_size for p in parts)
    ran = run(capsys, "sign", f"{REPO}@lora", "--base", REPO)
    assert ran.code == 0
    assert ran.err == f"transferred 0 of {sum(p.stat().st_size for p in parts):,} bytes\n"


def test_local_adapter_of_a_base_on_the_hub(hub, adapter):
    base, folder = adapter
    hub.add(base)
    found = ckptforensics.inspect(open_checkpoint(folder, base=REPO))
    assert (found.model.path, found.model.commit) == (str(folder), None)
    assert found.model.base == f"{REPO}@{COMMIT}"


def test_adapter_without_its_base(hub, capsys, adapter):
    hub.add(adapter[1])
    ran = run(capsys, "sign", REPO)
    assert_one_error(ran, 3, f"{REPO}: this is an adapter of 'org/tiny'", "--base org/tiny")


def test_base_with_what_is_no_adapter(hub, capsys, adapter):
    base, _ = adapter
    hub.add(base)
    assert_one_error(run(capsys, "sign", REPO, "--base", base), 4, REPO, "this is no adapter")


# GGUF


def test_gguf_in_a_folder(hub, tmp_path):
    file = write_llama_gguf(tmp_path / "tiny.gguf")
    hub.add({"Q8_0/tiny.gguf": file.read_bytes(), "Q4_0/tiny.gguf": b"", "README.md": b""})
    with pytest.raises(NothingAnalysable, match=f"such as {REPO}/Q4_0/tiny.gguf"):
        open_checkpoint(REPO)
    remote = ckptforensics.sign(f"{REPO}@main/Q8_0/tiny.gguf")
    assert equal_signatures(remote, ckptforensics.sign(file))
    with pytest.raises(UsageError, match=r"no file 'Q2_K/tiny\.gguf'"):
        open_checkpoint(f"{REPO}/Q2_K/tiny.gguf")


def test_one_of_several_is_named(hub, tmp_path):
    data = write_llama_gguf(tmp_path / "a.gguf").read_bytes()
    hub.add({"m-Q4_K_M.gguf": data, "m-Q8_0.gguf": data})
    with pytest.raises(UsageError) as caught:
        open_checkpoint(REPO)
    name = f"{REPO}/m-Q4_K_M.gguf"
    assert str(caught.value).endswith(f"name one of these files, as {name}")
    assert open_checkpoint(name).source.files[0].name == "m-Q4_K_M.gguf"


def test_split_gguf(hub, tmp_path):
    write_llama_gguf(tmp_path / "tiny.gguf", split_max_tensors=8)
    files = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(files) > 2
    hub.add({f.name: f.read_bytes() for f in files})
    assert equal_signatures(ckptforensics.sign(REPO), ckptforensics.sign(files[0]))


# Quantized weights


def quantized_tensors(make: Any) -> dict[str, torch.Tensor]:
    """Every linear map of the blocks in the encoding of `make`."""
    made = {}
    for name, tensor in wide_tensors().items():
        if "_proj." not in name:
            made[name] = tensor
            continue
        stem = name.removesuffix("weight")
        made |= {stem + part: t.contiguous() for part, t in make(tensor).items()}
    return made


ENCODINGS = {
    "fp8": (quantized.fp8, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "gptq": (
        quantized.gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True},
    ),
    "awq": (quantized.awq, {"quant_method": "awq", "bits": 4, "group_size": 16}),
    "bitsandbytes": (quantized.nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_quantized_repository(hub, tmp_path, encoding):
    make, configuration = ENCODINGS[encoding]
    folder = write_config(tmp_path / "model", quantization_config=configuration)
    save_file(quantized_tensors(make), folder / "model.safetensors")
    hub.add(folder)
    hub.delay = 0.01
    remote = ckptforensics.sign(REPO)
    assert equal_signatures(remote, ckptforensics.sign(folder))
    # The states of bitsandbytes are read to know the shapes, those of unused maps too.
    tensors = load_file(folder / "model.safetensors")
    states = sum(t.nbytes for n, t in tensors.items() if "quant_state" in n)
    needed = needed_tensors(folder) + safetensors_header(folder / "model.safetensors")
    assert needed * 0.99 <= hub.sent() <= 1.02 * needed + states


def test_quantization_configured_beside(hub, tmp_path):
    """As GPTQ's first tools wrote it."""
    make, configuration = ENCODINGS["gptq"]
    folder = write_config(tmp_path / "model")
    (folder / "quantize_config.json").write_text(json.dumps(configuration))
    save_file(quantized_tensors(make), folder / "model.safetensors")
    hub.add(folder)
    assert equal_signatures(ckptforensics.sign(REPO), ckptforensics.sign(folder))
