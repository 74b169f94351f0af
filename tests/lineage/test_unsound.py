"""Models that cannot be compared as they are: numbers overflow, or files change meanwhile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.errors import FormatError, NotFinite
from ckptforensics.progress import Silent
from tests.support.containers import run
from tests.support.models import save, tiny_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tiny_llama(num_hidden_layers=2), tmp_path / "model")


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj"])
def test_a_weight_that_overflows_is_named(name, model, tmp_path, capfd):
    tensors = load_file(model / "model.safetensors")
    tensor = f"model.layers.1.{name}.weight"
    tensors[tensor][0, 0] = 1e30
    other = tmp_path / "other"
    shutil.copytree(model, other)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match="weight of 1e\\+30 overflow") as caught:
        ckptforensics.compare([str(model), str(other)])
    assert (caught.value.tensor, caught.value.path) == (tensor, other / "model.safetensors")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


class Writer(Silent):
    """Writes to a file when the first step is done."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def step(self, note: str = "") -> None:
        now = self.file.stat()
        os.utime(self.file, ns=(now.st_atime_ns, now.st_mtime_ns + 1))


@pytest.mark.parametrize("action", ["sign", "compare"])
def test_digests_are_of_the_files_that_were_read(action, model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    progress = Writer(other / "model.safetensors")
    acts = {
        "sign": lambda: ckptforensics.sign(other, digest=True, progress=progress),
        "compare": lambda: ckptforensics.compare([model, other], digest=True, progress=progress),
    }
    with pytest.raises(FormatError, match="the file changed while it was read") as caught:
        acts[action]()
    assert caught.value.path == progress.file


def test_digests_of_files_at_rest(model, planted, capsys):
    assert run(capsys, "compare", model, planted, "--digest", "--fast", "-q").code == 0
    assert run(capsys, "sign", model, "--digest", "-q").code == 0
