"""What a command works on: a server, or a data folder opened in this process.

Both have the same verbs, so commands are written once. This is also the border where errors
become messages and exit codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cli_words import in_cli_words

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_FOLDER = 3
EXIT_PROBLEMS = 4
EXIT_UNREACHABLE = 5
EXIT_INCOMPLETE = 6
EXIT_BROKEN_PIPE = 141

EXIT_CODES = """\
exit codes:
  0  done
  1  the database refused or failed; the message says why
  2  wrong usage of the command line
  3  the data folder cannot be used: in use, of another version, missing, or not accessible
  4  check or verify found problems, a repair lost something, or list a collection that cannot be opened
  5  the server cannot be reached, or the target of backups cannot be used
  6  verify found no fault in what is complete, but a backup without a manifest, or no backup at all
  130  interrupted (Ctrl-C)
  141  whoever read the output stopped reading"""

_OF_ONE_COLLECTION = {"CORRUPTED", "FORMAT_MISMATCH", "INTERNAL"}
_AWAY = {"UNAVAILABLE", "TLS_FAILED"}
_FOLDER_REASONS = {"DATABASE_LOCKED", "DATABASE_NOT_FOUND", "FORMAT_MISMATCH"}


def fault_of_one(error: Exception) -> str:
    """What an error says of the one collection that it is about, so that the others go on; any other is raised again."""
    reason = getattr(error, "reason", None)
    if reason not in _OF_ONE_COLLECTION and (reason is not None or not isinstance(error, OSError)):
        raise error
    return in_cli_words(str(getattr(error, "message", error)))


class CommandFailed(Exception):
    """Ends a command: one message for people, one exit code for scripts."""

    def __init__(self, message: str, exit_code: int = EXIT_ERROR) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Target:
    """Where the database is: a folder if `data` is set, otherwise the server at `address`."""

    address: str
    data: Path | None = None
    timeout_s: float = 30.0
    connecting: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `connect`: API key and TLS."""

    @property
    def no_limit_s(self) -> float | None:
        """`timeout_s` of a call that may take as long as it takes: the client has a default."""
        return math.inf if self.data is None else None


def failed(error: Any) -> CommandFailed:
    """A VecdbError, of the engine or of the client, as the end of a command."""
    if error.reason in _FOLDER_REASONS:
        code = EXIT_FOLDER
    elif error.reason in _AWAY:
        code = EXIT_UNREACHABLE
    else:
        code = EXIT_ERROR
    return CommandFailed(f"{error.reason}: {in_cli_words(error.message)}", code)


def connection(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `connect` from those of the command line. CommandFailed for a file that cannot be read."""
    from vecdb_client import Tls

    found: dict[str, Any] = {}
    if given.get("api_key_file"):
        try:
            found["api_key"] = Path(given["api_key_file"]).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandFailed(f"cannot read the API key: {error}", EXIT_USAGE) from error
    files = {name: given.get(f"tls_{name}") or None for name in ("ca", "cert", "key")}
    if given.get("tls") or any(files.values()):
        found["tls"] = Tls(**files)
    return found


@contextmanager
def opened(target: Target, *, write: bool = False) -> Iterator[Any]:
    """The database, closed at the end. `write` matters for a folder: reading needs no lock.

    The engine and the client are imported here, when it is known which one is needed: each takes a
    noticeable part of the time of a short command.
    """
    if target.data is None:
        from vecdb_client import connect
        from vecdb_client.errors import InvalidArgument
        from vecdb_client.errors import VecdbError as ClientError

        try:
            connected = connect(
                target.address, timeout_s=target.timeout_s, **connection(target.connecting)
            )
        except InvalidArgument as error:
            raise CommandFailed(in_cli_words(error.message), EXIT_USAGE) from error
        try:
            with connected as client:
                yield client
        except ClientError as error:
            raise failed(error) from error
        return

    import vecdb
    from vecdb.errors import VecdbError as EngineError

    try:
        try:
            database = vecdb.open(target.data, read_only=not write)
        except OSError as error:
            raise CommandFailed(f"cannot use {target.data}: {error}", EXIT_FOLDER) from error
        with database:
            yield database
    except EngineError as error:
        raise failed(error) from error
