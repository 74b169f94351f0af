"""Files that stand for others, or that a server sent in their place."""

from __future__ import annotations

import pytest

from tests.support.containers import run
from tests.support.models import save, tiny_llama

_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (_POINTER, "not fetched: this is a Git LFS pointer; run 'git lfs pull'"),
        ("# xet version 0\nfilesize = 9\nhash = 'ab'\n", "this is a Git Xet pointer"),
        ("<!DOCTYPE html>\n<html><body>Sign in</body></html>", "not fetched: this is a web page"),
        ("Entry not found", "not fetched: this is a server's answer"),
    ],
)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "config.json"]
)
def test_a_file_that_was_not_fetched(tmp_path, capsys, name, text, told):
    if name == "config.json":
        save(tiny_llama(), tmp_path)
    (tmp_path / name).write_text(text)
    ran = run(capsys, "inspect", str(tmp_path))
    assert ran.code == 2
    assert told in ran.err
    assert ran.err.count("\n") == 1
