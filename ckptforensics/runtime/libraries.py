"""torch and transformers: imported late, silent, and named where they are missing."""

from __future__ import annotations

import importlib
import logging as stdlib_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ckptforensics.errors import MissingDependency, UsageError


def torch() -> Any:
    """The module torch; MissingDependency if it is not installed."""
    return _module("torch")


def usable_device(name: str) -> Any:
    """The torch device of that name; UsageError if it cannot be used here."""
    try:
        device = torch().device(name)
        torch().empty(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise UsageError(
            f"the device '{name}' cannot be used: {str(problem).splitlines()[0]}",
            hint="leave --device out",
        ) from None
    return device


def transformers(part: str = "") -> Any:
    """The module transformers, or a part of it; MissingDependency if it is not installed."""
    torch()
    return _module(f"transformers.{part}" if part else "transformers")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingDependency(
            "running the model needs torch and transformers", hint="pip install torch transformers"
        ) from None


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' bars, reports and warnings; its settings are put back afterwards."""
    logging = transformers("utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    others = [stdlib_logging.getLogger(name) for name in ("accelerate", "accelerate.big_modeling")]
    levels = [logger.level for logger in others]
    logging.set_verbosity_error()
    for logger in others:
        logger.setLevel(stdlib_logging.ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        for logger, level in zip(others, levels, strict=True):
            logger.setLevel(level)
        if bars:
            logging.enable_progress_bar()


def accelerate() -> Any:
    """The module accelerate; MissingDependency if it is not installed."""
    try:
        return importlib.import_module("accelerate")
    except ImportError:
        raise MissingDependency(
            "the model does not fit into memory, and offloading it needs accelerate",
            hint="pip install accelerate",
        ) from None
