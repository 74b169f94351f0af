"""The text that a model runs on: where it comes from, and its windows, which do not overlap."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from ckptforensics.errors import MissingDependency, UsageError
from ckptforensics.results.running import TextRecord
from ckptforensics.runtime.model import Runtime

# The sentence that the paper's figures of norms show.
SENTENCE = "Summer is warm. Winter is cold."
WINDOW = 256
LIMIT = 4096
_DATASETS = {"wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")}


@dataclass(frozen=True)
class Text:
    """Which text, and how it is cut; of `text`, `file`, `dataset` and `token_ids` at most one.

    Attributes
    ----------
    text : itself
    file : UTF-8 text file
    dataset : `wikitext`: WikiText-2's test split, from the Hub
    token_ids : tokens in place of text
    window : tokens of a window
    limit : tokens at most, None for all
    bos : every window begins with the checkpoint's begin-of-sequence token
    seed : draws the windows from the whole text; None takes them from its beginning
    """

    text: str | None = None
    file: Path | None = None
    dataset: str | None = None
    token_ids: Sequence[int] | None = None
    window: int = WINDOW
    limit: int | None = LIMIT
    bos: bool = False
    seed: int | None = None

    @property
    def given(self) -> bool:
        """Whether anything but the default is named."""
        return any(v is not None for v in (self.text, self.file, self.dataset, self.token_ids))


def as_text(text: Text | str | None, window: int = WINDOW) -> Text:
    """What an experiment is given as its text: itself, a string, or the default's, in windows."""
    if isinstance(text, Text):
        return text
    return Text(text=text, window=window)


def windows_of(runtime: Runtime, text: Text) -> tuple[list[list[int]], TextRecord]:
    """Cut the text into windows of equal length.

    What does not fill a window is left out, unless the text is shorter than one.

    Raises
    ------
    UsageError
        if more than one text is named, it is empty or cannot be read, or `bos` is asked of a
        checkpoint that names no such token.
    NothingAnalysable
        if the checkpoint has no tokenizer and no token ids are given.
    """
    named = [v for v in (text.text, text.file, text.dataset, text.token_ids) if v is not None]
    if len(named) > 1:
        raise UsageError("name one text: --text, --text-file, --dataset or --token-ids")
    if text.window < 1 + text.bos:
        raise UsageError("a window has at least one token", hint="change --window")
    if text.token_ids is not None:
        if not all(isinstance(token, int | np.integer) for token in text.token_ids):
            raise UsageError("token_ids are whole numbers, such as [1, 504, 30]")
        ids, source, digest = [int(token) for token in text.token_ids], "token ids", None
    else:
        source, words = words_of(text)
        ids = runtime.tokenizer.ids(words)
        digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()
    if not ids:
        raise UsageError("the text has no token", hint="give another one")
    begin: list[int] = []
    if text.bos:
        token = runtime.checkpoint.architecture.bos_token_id
        if token is None:
            raise UsageError(
                "the checkpoint names no begin-of-sequence token",
                path=runtime.checkpoint.source.path,
                hint="leave --bos out",
            )
        begin = [token]
    most = len(ids) if text.limit is None else min(text.limit, len(ids))
    size = min(text.window - len(begin), most)
    starts: Sequence[int] = range(0, len(ids) - size + 1, size)
    if text.seed is None:
        starts = starts[: most // size]
    else:
        generator = np.random.default_rng(text.seed)
        drawn = generator.choice(len(starts), min(len(starts), most // size), replace=False)
        starts = [starts[i] for i in sorted(drawn.tolist())]
    windows = [begin + ids[i : i + size] for i in starts]
    record = TextRecord(
        source=source,
        sha256=digest,
        window=size + len(begin),
        windows=len(windows),
        tokens=len(windows) * (size + len(begin)),
        available=len(ids),
        partial=len(windows) * size < len(ids),
        bos=text.bos,
    )
    return windows, record


def words_of(text: Text) -> tuple[str, str]:
    """What the text is called, and itself; UsageError if it cannot be read."""
    if text.text is not None:
        return "given text", text.text
    if text.file is not None:
        try:
            return text.file.name, text.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            why = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
            raise UsageError(
                f"cannot read the text: {why}", path=text.file, hint="give a UTF-8 text file"
            ) from None
    if text.dataset is not None:
        return text.dataset, _dataset(text.dataset)
    return _topics()


def _topics() -> tuple[str, str]:
    """Help topics of this Python, those of a list that all its versions have."""
    from pydoc_data.topics import topics

    names = (resources.files("ckptforensics.runtime") / "topics.txt").read_text("utf-8").split()
    python = ".".join(map(str, sys.version_info[:2]))
    return f"help topics of Python {python}", "\n\n".join(topics[n] for n in names if n in topics)


def _dataset(name: str) -> str:
    if name not in _DATASETS:
        raise UsageError(f"no dataset '{name}' is known", hint=f"there is: {', '.join(_DATASETS)}")
    try:
        import datasets
    except ImportError:
        raise MissingDependency(
            "--dataset needs the package datasets", hint="pip install datasets"
        ) from None
    repository, part, split = _DATASETS[name]
    try:
        rows = datasets.load_dataset(repository, part, split=split)
    except Exception as problem:
        raise UsageError(
            f"cannot fetch the dataset: {str(problem).splitlines()[0]}",
            hint="give a text with --text-file",
        ) from None
    return "\n\n".join(rows["text"])
