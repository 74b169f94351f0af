"""Where the bytes of a checkpoint come from; nothing here knows what a tensor is."""

from typing import TYPE_CHECKING

from ckptforensics.deferred import on_first_use
from ckptforensics.sources.digests import sha256_of_file
from ckptforensics.sources.local import (
    Fetcher,
    IsAdapter,
    Source,
    container_by_content,
    file_beside,
    locate,
    locate_adapter,
    size_of_file,
)
from ckptforensics.sources.names import ContainerName, as_path, is_url
from ckptforensics.sources.strictjson import parse_json_object, read_json_object

if TYPE_CHECKING:
    from ckptforensics.sources.hub import is_hub_id, locate_on_hub
    from ckptforensics.sources.mirror import RemoteFiles, Transfer
    from ckptforensics.sources.urls import locate_at_url

__all__ = [
    "ContainerName",
    "Fetcher",
    "IsAdapter",
    "RemoteFiles",
    "Source",
    "Transfer",
    "as_path",
    "container_by_content",
    "file_beside",
    "is_hub_id",
    "is_url",
    "locate",
    "locate_adapter",
    "locate_at_url",
    "locate_on_hub",
    "parse_json_object",
    "read_json_object",
    "sha256_of_file",
    "size_of_file",
]

__getattr__ = on_first_use(
    __name__,
    {
        "RemoteFiles": "mirror",
        "Transfer": "mirror",
        "is_hub_id": "hub",
        "locate_on_hub": "hub",
        "locate_at_url": "urls",
    },
)
