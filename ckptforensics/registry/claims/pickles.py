"""Which globals a pickle names: what loading it would import, and perhaps call.

The opcodes are listed and nothing is executed. This is for files beside a model's weights; the
weights themselves are read by `tensors.containers.torchpickle`, which knows a state dict's few
globals and refuses all others.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from ckptforensics.errors import CkptError
from ckptforensics.registry.stores.files import read_small

_MOST_BYTES = 64_000_000
_MOST_OPCODES = 5_000_000
_MOST_PICKLES = 64
# What torch and NumPy write of tensors, arrays and plain containers.
_DATA = re.compile(
    r"collections\.(?:OrderedDict|defaultdict|Counter|deque)|_codecs\.encode"
    r"|torch\.(?:\w*Storage|Size|device|dtype|\w+\d*|Tensor)|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_\w+|torch\.storage\.\w+|torch\.serialization\._get_layout"
    r"|numpy\.(?:_?core\.multiarray\.(?:scalar|_reconstruct)|dtype|ndarray)|numpy\.dtypes\.\w+"
    r"|numpy\.random\.\w+\.\w+"
    r"|(?:builtins|__builtin__)\.(?:set|frozenset|dict|list|tuple|int|float|complex|slice|range"
    r"|bool|str|bytes|bytearray|object)"
    r"|copyreg\._reconstructor|copy_reg\._reconstructor|datetime\.\w+|pathlib\.\w+|argparse\.Namespace"
)
_HARMFUL_OF_TORCH = re.compile(r"torch\.(?:hub|jit|_inductor|utils|load|save|serialization\.load)")


def globals_in(path: Path) -> list[str]:
    """The globals, as `module.name`, that a pickle or an archive of torch names, sorted.

    Those of plain data are left out. A pickle that breaks off names what it named until then.

    Raises
    ------
    CkptError
        if the file cannot be read.
    """
    found: set[str] = set()
    for data in _pickles(path):
        found.update(_named(data))
    return sorted(name for name in found if _DATA.fullmatch(name) is None)


def is_harmful(name: str) -> bool:
    """Whether a global is of a module through which a pickle can do harm."""
    return name.partition(".")[0] in _harmful_modules() or _HARMFUL_OF_TORCH.match(name) is not None


@cache
def _harmful_modules() -> frozenset[str]:
    """Modules through which a pickle can run programs, reach files or the network."""
    folder = files("ckptforensics.registry.claims")
    return frozenset((folder / "harmful_modules.txt").read_text("utf-8").split())


def _pickles(path: Path) -> Iterator[bytes]:
    """The pickles of a file: those in an archive, or the file itself."""
    if not zipfile.is_zipfile(path):
        yield read_small(path, _MOST_BYTES)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".pkl"):
                    with archive.open(member) as stream:
                        yield stream.read(_MOST_BYTES)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as problem:
        raise CkptError(f"the archive cannot be read: {problem}", path=path) from None


def _named(data: bytes) -> Iterator[str]:
    """All globals that the pickles in these bytes name."""
    stream = io.BytesIO(data)
    opcodes = 0
    for _ in range(_MOST_PICKLES):
        # What was pushed, in order: strings, and None for all else; and what the memo has.
        pushed: list[str | None] = []
        memo: dict[int, str | None] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                opcodes += 1
                if opcodes > _MOST_OPCODES:
                    return
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".", 1)
                elif opcode.name == "STACK_GLOBAL":
                    module, name = pushed[-2:]
                    yield f"{module or 'unknown'}.{name or 'unknown'}"
                if opcode.name == "MEMOIZE":
                    memo[len(memo)] = pushed[-1]
                elif opcode.name.endswith("PUT"):
                    memo[int(argument or 0)] = pushed[-1]
                elif opcode.name.endswith("GET"):
                    pushed.append(memo.get(int(argument or 0)))
                elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                    pushed.append(argument if isinstance(argument, str) else None)
        except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError):
            return
