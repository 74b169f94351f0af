"""Digests of files that may be anything, and may change while they are read."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from ckptforensics.errors import FormatError
from ckptforensics.registry.found import FoundFile
from ckptforensics.registry.stores import digests
from ckptforensics.registry.stores.digests import verify_digest
from ckptforensics.registry.stores.files import local_entry
from tests.support.stores import git_blob, sha256

CONTENT = b"some content" * 1000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    return local_entry(path, (tmp_path,)).found("a.bin")


@pytest.mark.parametrize(
    ("stated", "matches"),
    [
        (None, None),
        (f"sha256:{sha256(CONTENT)}", True),
        (f"sha256:{sha256(CONTENT).upper()}", True),
        (f"git:{git_blob(CONTENT)}", True),
        (f"sha256:{sha256(CONTENT)[:-1]}x", False),
        (f"git:{sha256(CONTENT)}", False),
        (f"sha256:{sha256(b'')}", False),
    ],
)
def test_stated_and_computed(file, stated, matches):
    assert verify_digest(replace(file, stated=stated)) == (sha256(CONTENT), matches)


def test_a_file_elsewhere():
    with pytest.raises(FormatError, match="not on this machine"):
        verify_digest(FoundFile("a", "weights", 3, None))


def test_a_pipe_or_a_link_that_took_the_file_s_place(file, tmp_path):
    other = tmp_path / "b"
    other.write_bytes(CONTENT)
    file.path.unlink()
    file.path.symlink_to(other)
    with pytest.raises(FormatError, match="a link is where the file was"):
        verify_digest(file)
    file.path.unlink()
    os.mkfifo(file.path)
    with pytest.raises(FormatError, match="not a regular file"):
        verify_digest(file)


def test_another_file_in_its_place(file, tmp_path):
    other = tmp_path / "b"
    other.write_bytes(CONTENT)
    other.replace(file.path)
    with pytest.raises(FormatError, match="another file is there than was listed"):
        verify_digest(file)


def test_a_change_while_it_is_read(file, monkeypatch):
    real = digests.hashlib.sha256

    def sha256_and_write():
        with file.path.open("ab") as content:
            content.write(b"x")
        return real()

    monkeypatch.setattr(digests.hashlib, "sha256", sha256_and_write)
    with pytest.raises(FormatError, match="changed while it was read"):
        verify_digest(file)
