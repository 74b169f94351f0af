"""Where the bytes of a checkpoint come from; nothing here knows what a tensor is."""

from ckptforensics.sources.digests import known_sha256, sha256_of_file
from ckptforensics.sources.hub import is_hub_id, locate_on_hub
from ckptforensics.sources.local import Fetcher, Source, locate, locate_adapter, size_of_file
from ckptforensics.sources.mirror import RemoteFiles, Transfer
from ckptforensics.sources.strictjson import parse_json_object, read_json_object

__all__ = [
    "Fetcher",
    "RemoteFiles",
    "Source",
    "Transfer",
    "is_hub_id",
    "known_sha256",
    "locate",
    "locate_adapter",
    "locate_on_hub",
    "parse_json_object",
    "read_json_object",
    "sha256_of_file",
    "size_of_file",
]
