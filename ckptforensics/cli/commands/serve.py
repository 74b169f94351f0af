"""`ckpt serve`: a local web page over a catalog."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path

import click

from ckptforensics.cli.commands.audit import default_catalog
from ckptforensics.cli.commands.catalog import catalog_option
from ckptforensics.errors import ExitCode, FormatError, MissingDependency, UsageError

_LEAST_TOKEN, _MOST_TOKEN = 16, 1000
_MOST_TOKEN_FILE = 10_000


@click.command("serve")
@catalog_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen at; 0 takes any free one.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the token that requests must show.  [default: one is made where one is needed]",
)
@click.option("--allow-hub", is_flag=True, help="Let models of the Hub be named to be found.")
def command(
    catalog: Path | None, host: str, port: int, token_file: Path | None, allow_hub: bool
) -> int:
    """Serve a local web page over a catalog, which is only read.

    It shows the pages of an audit's report as the catalog is now, finds the relatives of a sketch
    that is uploaded, and has JSON beside every page. Other addresses than this machine's own need a
    token. Ctrl-C ends it.
    """
    from ckptforensics.server.options import ServeOptions

    if not host.strip():
        raise UsageError("no address to listen at", hint="give --host 127.0.0.1")
    try:
        from ckptforensics.server.running import serve
    except ImportError as problem:
        if (problem.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        raise MissingDependency(
            f"'ckpt serve' needs {problem.name}", hint="pip install 'ckptforensics[serve]'"
        ) from None
    made = secrets.token_urlsafe(32) if token_file is None and not _is_own(host) else None
    token = made if token_file is None else _token(token_file)
    options = ServeOptions(catalog or default_catalog(), host, port, token, allow_hub)

    def tell(address: str) -> None:
        shown = f"{address}?token={made}" if made else address
        click.echo(f"serving {options.catalog} at {shown}  (Ctrl-C ends it)", err=True)

    serve(options, tell)
    return ExitCode.DONE


def _is_own(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(file: Path) -> str:
    """The token in a file; UsageError if it is none that protects anything."""
    from ckptforensics.registry.stores.files import read_small

    try:
        token = read_small(file, _MOST_TOKEN_FILE).decode("ascii").strip()
    except FormatError as problem:
        raise UsageError(f"cannot read the token: {problem.message}", path=file) from None
    except UnicodeDecodeError:
        token = ""
    if not _LEAST_TOKEN <= len(token) <= _MOST_TOKEN or not token.isprintable() or " " in token:
        raise UsageError(
            f"a token is one word of {_LEAST_TOKEN} to {_MOST_TOKEN} ASCII characters",
            path=file,
            hint="'openssl rand -hex 32' makes one",
        )
    return token
