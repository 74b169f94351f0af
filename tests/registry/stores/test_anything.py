"""Trees of files, links, pipes and folders of stores, put together at random."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from ckptforensics.registry.stores.digests import verify_digest
from tests.support.stores import PLANTED, POINTER, listing

_SPLIT = "model-{}-of-00002.safetensors"
_MANIFEST = (
    b'{"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:%s","size":5},'
    b'{"mediaType":7,"digest":[],"size":{}}],"config":{"digest":1}}' % (b"0" * 64)
)
NAMES = (
    *("config.json", "model.safetensors", "model.safetensors.index.json", "README.md", "a.gguf"),
    *(_SPLIT.format("00001"), _SPLIT.format("00002"), "pytorch_model.bin", "b-00001-of-00002.gguf"),
    *("adapter_config.json", "adapter_model.safetensors", "x.incomplete", "model.safetensors.part"),
    *("consolidated.00.pth", "consolidated.01.pth", "params.json", "optimizer.pt", "x-1-of-0.bin"),
    *("x-99999999999-of-99999999999.gguf", "manifests", "blobs", "snapshots", "refs", "main"),
    *("models--a--b", "models--", f"sha256-{'0' * 64}", f"sha256-{'1' * 64}-partial", "a" * 40),
    *("registry.ollama.ai", "library", "m", "latest", "blob"),
)
CONTENTS = (
    *((PLANTED / "model.safetensors").read_bytes()[:5000], (PLANTED / "config.json").read_bytes()),
    *(b"", b"GGUF" + b"\0" * 40, b"PK\x03\x04" + b"\0" * 40, b"\x80\x02}", POINTER, b"{}"),
    *(b'{"weight_map":{"a":"model.safetensors"}}', _MANIFEST, b"a" * 40, b"\xff" * 100),
)
LINKS = ("..", ".", "nowhere", "m", "/etc/passwd", "/dev/zero", "config.json", "../config.json")


def fill(folder: Path, depth: int, generator: random.Random) -> None:
    for name in generator.sample(NAMES, generator.randrange(1, 12)):
        path, kind = folder / name, generator.random()
        with suppress(FileExistsError):
            if kind < 0.4 and depth < 2:
                path.mkdir()
                fill(path, depth + 1, generator)
            elif kind < 0.47:
                os.mkfifo(path)
            elif kind < 0.57:
                path.symlink_to(generator.choice(LINKS))
            else:
                path.write_bytes(generator.choice(CONTENTS))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_raises_and_nothing_leads_out(tmp_path, seed):
    fill(tmp_path, 0, random.Random(seed))
    found = listing(tmp_path)
    assert found == listing(tmp_path)
    assert len({model.name for model in found.models}) == len(found.models)
    for model in found.models:
        assert model.opens is not None or model.problems
        for file in model.files:
            assert ".." not in file.name.split("/")
            assert not file.name.startswith("/")
            if file.path is not None:
                assert Path(os.path.realpath(file.path)).is_relative_to(tmp_path)
                verify_digest(file)
