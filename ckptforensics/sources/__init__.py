"""Where the bytes of a checkpoint come from; nothing here knows what a tensor is."""

from ckptforensics.sources.digests import known_sha256, sha256_of_file
from ckptforensics.sources.local import Source, locate, size_of_file
from ckptforensics.sources.strictjson import parse_json_object, read_json_object

__all__ = [
    "Source",
    "known_sha256",
    "locate",
    "parse_json_object",
    "read_json_object",
    "sha256_of_file",
    "size_of_file",
]
