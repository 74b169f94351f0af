"""What goes wrong between us and the Hub: when it is asked again, and what the user is told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from ckptforensics.errors import UsageError

# Attempts without progress before a transfer is given up.
ATTEMPTS = 6
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
# Of one answer; a server that sends nothing for so long is asked again.
TIMEOUT_SECONDS = 30.0
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
# A server that names a time to wait is believed up to this one.
_LONGEST_RETRY_AFTER_SECONDS = 300.0
_REFUSED = frozenset({401, 403})


class NotOnTheHub(UsageError):
    """There is no repository of that name, or none that this user may know of."""


class Patience:
    """Growing waits between attempts, and an end to them.

    Parameters
    ----------
    stop : set when waiting is of no use any more
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._failures = 0

    def restore(self) -> None:
        """Count from the beginning: there was progress."""
        self._failures = 0

    def wait(self, retry_after: str | None = None) -> bool:
        """Wait before the next attempt; False if there is to be none.

        `retry_after` is what the server says in the header of that name.
        """
        self._failures += 1
        if self._failures >= ATTEMPTS:
            return False
        seconds = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (self._failures - 1))
        if retry_after is not None and retry_after.isdecimal():
            seconds = max(seconds, min(int(retry_after), _LONGEST_RETRY_AFTER_SECONDS))
        _pause(self._stop, seconds)
        return True


def _pause(stop: threading.Event, seconds: float) -> None:
    stop.wait(seconds)


@contextlib.contextmanager
def explained(model: str, repo: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours, each with the next step.

    Raises
    ------
    UsageError
        if the repository or revision does not exist, is not accessible, or nobody answers.
    """
    import huggingface_hub.errors as hub

    page = f"the page of '{repo}' on the Hub"
    try:
        yield
    except hub.GatedRepoError:
        raise UsageError(
            "access to the repository is restricted",
            path=model,
            hint=f"accept its terms on {page}, then log in with 'hf auth login'",
        ) from None
    except hub.RepositoryNotFoundError:
        raise NotOnTheHub(
            "there is no such file, directory or repository",
            path=model,
            hint="check the name; for a private repository log in with 'hf auth login'",
        ) from None
    except hub.RevisionNotFoundError:
        raise NotOnTheHub(
            "the repository has no such revision", path=model, hint=f"see {page}"
        ) from None
    except hub.HFValidationError as problem:
        raise UsageError(f"not a repository name: {problem}", path=model) from None
    except (hub.HfHubHTTPError, hub.OfflineModeIsEnabled, OSError) as problem:
        response = getattr(problem, "response", None)
        if response is not None and response.status_code in _REFUSED:
            raise UsageError(
                f"the Hub refuses access to the repository (HTTP status {response.status_code})",
                path=model,
                hint="log in with 'hf auth login', with a token that may read it",
            ) from None
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else "no connection"
        raise _unreachable(model, first) from None
    except Exception as problem:
        if not is_transport_error(problem):
            raise
        raise _unreachable(model, str(problem) or type(problem).__name__) from None


def is_transport_error(problem: Exception) -> bool:
    """Whether it is of the HTTP library, which differs between versions of huggingface_hub."""
    return type(problem).__module__.partition(".")[0] in ("httpx", "httpx2")


def was_cut(problem: Exception) -> bool:
    """Whether a connection that stood broke: a server that nobody can reach is not asked again."""
    return is_transport_error(problem) and type(problem).__name__ in (
        "ReadError",
        "ReadTimeout",
        "RemoteProtocolError",
        "WriteError",
    )


def busy(problem: Any) -> tuple[bool, str | None]:
    """Whether an HTTP error says that the server is only busy, and its Retry-After."""
    response = getattr(problem, "response", None)
    if response is None or response.status_code not in RETRIED:
        return False, None
    return True, response.headers.get("Retry-After")


def _unreachable(model: str, why: str) -> UsageError:
    return UsageError(
        f"no such file or directory, and the Hub cannot be asked: {why}",
        path=model,
        hint="check the path, or the connection for a repository",
    )
