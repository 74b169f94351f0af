"""The token strings of a checkpoint, in one spelling whatever tokenizer wrote them.

Tokenizers spell a token in different ways: byte-level BPE as 'Ġthe', SentencePiece as '▁the',
WordPiece as 'the' with '##' before what continues a word. Here all are ' the' and 'the'.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import FormatError
from ckptforensics.sources import file_beside, read_json_object
from ckptforensics.tensors.containers.gguf import GgufArray, read_strings

if TYPE_CHECKING:
    from pathlib import Path

# Marks of a token that follows a space, of byte-level BPE and SentencePiece, and of one that
# continues a word of WordPiece.
_BYTE_LEVEL, _PIECE, _CONTINUED = "Ġ", "▁", "##"


def read_vocabulary(checkpoint: Checkpoint) -> Mapping[str, int] | None:
    """Token strings in one spelling to ids.

    From the metadata of a GGUF file, else from `tokenizer.json` or `vocab.json` beside the weights.
    Bytes that are no text are kept as lone surrogates (`surrogateescape`). Where several ids have
    one spelling, the first is taken, and a byte's own token last.

    Returns
    -------
    None where there is no vocabulary, or only one in a format that is not read
    (`tokenizer.model`)

    Raises
    ------
    FormatError
        if the file is damaged.
    """
    pieces = _from_gguf(checkpoint)
    if pieces is None:
        pieces = _from_files(checkpoint)
    return None if pieces is None else _spelled(pieces)


def _from_gguf(checkpoint: Checkpoint) -> list[tuple[str, int]] | None:
    for container in checkpoint.store.containers:
        tokens = container.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, GgufArray):
            stored = read_strings(container.path, tokens)
            return [(t.decode("utf-8", "surrogateescape"), i) for i, t in enumerate(stored)]
    return None


def _from_files(checkpoint: Checkpoint) -> list[tuple[str, int]] | None:
    path = file_beside(checkpoint.source, "tokenizer.json")
    if path is not None:
        return _pieces(read_json_object(path, what="tokenizer"), path)
    path = file_beside(checkpoint.source, "vocab.json")
    if path is not None:
        return _entries(read_json_object(path, what="vocabulary"), path)
    return None


def _pieces(tokenizer: Mapping[str, Any], path: Path) -> list[tuple[str, int]]:
    """Tokens of a `tokenizer.json`: the model's, then those that were added."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of Unigram: [piece, score], the id is the place
        vocabulary = {
            entry[0]: place
            for place, entry in reversed(list(enumerate(vocabulary)))
            if isinstance(entry, list) and entry and isinstance(entry[0], str)
        }
    if not isinstance(vocabulary, dict):
        raise FormatError("the tokenizer has no vocabulary", path=path)
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise FormatError("the tokenizer's added tokens are no list of objects", path=path)
    extra = {str(token.get("content")): token.get("id") for token in added}
    return _entries({**extra, **vocabulary}, path)


def _entries(vocabulary: Mapping[str, Any], path: Path) -> list[tuple[str, int]]:
    for text, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise FormatError(f"the token {text!r} has the id {number!r}", path=path)
    return sorted(vocabulary.items(), key=lambda entry: entry[1])


def _spelled(pieces: list[tuple[str, int]]) -> dict[str, int]:
    """Pieces in one spelling; which one they have is what most of their marks say."""
    marks = (_BYTE_LEVEL, _PIECE, _CONTINUED)
    counts = {mark: sum(text.startswith(mark) for text, _ in pieces) for mark in marks}
    kind = max(marks, key=lambda mark: counts[mark])
    spell = {_BYTE_LEVEL: _of_bytes, _PIECE: _of_pieces, _CONTINUED: _of_words}[kind]
    found: dict[str, int] = {}
    bytes_last = sorted(pieces, key=lambda entry: _byte(entry[0]) is not None)
    for text, number in bytes_last:
        byte = _byte(text)
        found.setdefault(spell(text) if byte is None else byte, number)
    return found


def _byte(text: str) -> str | None:
    """What SentencePiece's token of one byte, '<0x0A>', stands for; None for others."""
    if len(text) != 6 or not text.startswith("<0x") or not text.endswith(">"):
        return None
    try:
        return bytes([int(text[3:5], 16)]).decode("utf-8", "surrogateescape")
    except ValueError:
        return None


def _of_bytes(text: str) -> str:
    alphabet = _alphabet()
    if any(character not in alphabet for character in text):  # an added token
        return text
    return bytes(alphabet[c] for c in text).decode("utf-8", "surrogateescape")


def _of_pieces(text: str) -> str:
    return text.replace(_PIECE, " ")


def _of_words(text: str) -> str:
    return text.removeprefix(_CONTINUED) if text.startswith(_CONTINUED) else " " + text


@cache
def _alphabet() -> Mapping[str, int]:
    """The characters by which byte-level BPE writes the 256 bytes.

    Printable ones of Latin-1 stand for themselves, the others for those from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(others)}
