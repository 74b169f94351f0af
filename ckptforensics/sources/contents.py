"""What a file holds, by how it begins."""

from __future__ import annotations

import re

from ckptforensics.sources.names import ContainerName

# Of a file, enough to tell.
LONGEST_BEGINNING = 512
PICKLE_SUFFIXES = (".ckpt", ".pkl", ".pickle")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_LONGEST_HEADER = 100_000_000
# What follows the length in a safetensors file of `results.save_signature`.
_SIGNATURE_BEGINS = b'{"__metadata__":{"ckptforensics":'
# The magic number that torch wrote before its files were zip archives.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# The first member of the archives that torch writes.
_TORCH_MEMBER = re.compile(rb"[^/]+/(data\.pkl|\.format_version|byteorder|version|\.data/.*)")


def container_of(beginning: bytes) -> ContainerName | None:
    """The container of a file that begins so, whatever its name; None if it is none of weights."""
    if beginning.startswith(b"GGUF"):
        return "gguf"
    if beginning.startswith(_OLD_TORCH):
        return "torch"
    if beginning.startswith(b"PK\x03\x04"):
        length = int.from_bytes(beginning[26:28], "little")
        member = _TORCH_MEMBER.fullmatch(beginning[30 : 30 + length])
        return "torch" if member else None
    length = int.from_bytes(beginning[:8], "little")
    header = beginning[8:].lstrip(b" \t\r\n")
    if 2 <= length <= _LONGEST_HEADER and header.startswith((b'{"', b"{}", b"{ ", b"{\n")):
        return None if is_saved_signature(beginning) else "safetensors"
    return None


def is_saved_signature(beginning: bytes) -> bool:
    """Whether it is a signature that this program saved, which may lie beside a model's files."""
    return beginning[8:].startswith(_SIGNATURE_BEGINS)


def is_pickle_of_weights(name: str, beginning: bytes) -> bool:
    """Whether a file is a pickle whose name says that it holds weights, as old programs wrote."""
    return name.endswith(PICKLE_SUFFIXES) and _PICKLE.match(beginning) is not None


def may_be_torch(beginning: bytes) -> bool:
    """Whether a file of one of torch's suffixes may hold weights: a zip archive or a pickle.

    Other programs use these suffixes too.
    """
    return beginning.startswith(b"PK\x03\x04") or _PICKLE.match(beginning) is not None
