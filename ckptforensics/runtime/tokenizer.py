"""The checkpoint's own tokenizer: text to token ids, and a token as readers know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NothingAnalysable
from ckptforensics.runtime import libraries
from ckptforensics.sources import file_beside

# What a transformers tokenizer is read from; the first of them that is there will do.
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_BESIDE = ("tokenizer_config.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of transformers, without the special tokens that it would add."""

    inner: Any

    def ids(self, text: str) -> list[int]:
        """The tokens of a text; none are added."""
        with libraries.quietly():
            # `verbose`: that a text is longer than a window is no news here.
            found: list[int] = self.inner(text, add_special_tokens=False, verbose=False).input_ids
        return found

    def text(self, token: int) -> str:
        """A token's text as it stands in a sentence."""
        return str(self.inner.decode([token], clean_up_tokenization_spaces=False))

    def decode(self, tokens: list[int]) -> str:
        """The text of several tokens."""
        return str(self.inner.decode(tokens, clean_up_tokenization_spaces=False))


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer beside the weights, or in them where they are GGUF.

    Raises
    ------
    NothingAnalysable
        if there is none, or transformers cannot read it.
    """
    transformers = libraries.transformers()
    source = checkpoint.source
    folder = source.files[0].parent
    try:
        with libraries.quietly():
            if source.container == "gguf":
                return Tokenizer(
                    transformers.PreTrainedTokenizerFast.from_pretrained(
                        str(folder), gguf_file=source.files[0].name
                    )
                )
            if any(file_beside(source, name) for name in _FILES):
                for name in _BESIDE:
                    file_beside(source, name)  # fetched, where the checkpoint is remote
                return Tokenizer(
                    transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
                )
    except Exception as problem:  # what a tokenizer's file can hold wrong is transformers' to say
        raise NothingAnalysable(
            f"transformers cannot read the tokenizer: {str(problem).strip().splitlines()[0]}",
            path=source.path,
            hint="give tokens with --token-ids",
        ) from None
    raise NothingAnalysable(
        "there is no tokenizer beside the weights",
        path=source.path,
        hint="give tokens with --token-ids",
    )
