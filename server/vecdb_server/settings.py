"""Settings of the server: one table for flags, environment, TOML file and documentation.

A value is looked for in this order: flag, environment variable `VECDB_<NAME>`, TOML file, default.
The table holds the engine's rows too, so that `vecdb serve` can set everything from one place.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vecdb.errors import InvalidSetting
from vecdb.settings import ENGINE, Setting, SettingValue, resolve

__all__ = ["ENV_PREFIX", "SERVER", "SETTINGS", "is_loopback", "load", "split", "unknown_variables"]

ENV_PREFIX = "VECDB_"
MIB = 1024 * 1024

SERVER: tuple[Setting, ...] = (
    Setting("data", str, "./data", "Folder of the database; made when it does not exist."),
    Setting("host", str, "127.0.0.1", "Address to listen on. There is no encryption and no authentication: other than loopback only in a network you trust."),
    Setting("port", int, 7700, "Port to listen on; 0: any free one, which the first line of output names.", 0, 65_535),
    Setting("max_message_bytes", int, 64 * MIB, "Largest message taken and given.", MIB, 2**31 - 1),
    Setting("worker_threads", int, 0, "Threads that answer reads; 0: one a core, at least 2. More than that was slower when measured.", 0, 1_024),
    Setting("write_threads", int, 8, "Threads that take writes. They mostly wait for the disk; writes that wait together share a commit.", 1, 1_024),
    Setting("stream_threads", int, 16, "Scan, Ingest, Check, BuildIndex and Compact calls served at once; each takes a thread of its own.", 1, 1_024),
    Setting("query_streams", int, 64, "Clients that may send their queries on a stream at once, each with up to two; each stream takes a thread. Streams that are silent make room, other clients send calls.", 1, 4_096),
    Setting("max_concurrent", int, 1_000, "Calls taken at once, waiting ones included; further ones are refused with RESOURCE_EXHAUSTED.", 1, 1_000_000),
    Setting("drain_timeout_s", float, 30.0, "Time that running calls get to end when the server is told to stop.", 0.0, 3_600.0),
    Setting("log_level", str, "info", "debug, info, warning or error. debug logs every call."),
    Setting("log_format", str, "text", "text for people or json for machines, one object a line; on standard error."),
)  # fmt: skip
"""Settings of `vecdb serve` beside the engine's."""

SETTINGS: tuple[Setting, ...] = SERVER + ENGINE

_CHOICES = {"log_level": ("debug", "info", "warning", "error"), "log_format": ("text", "json")}


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None
) -> dict[str, SettingValue]:
    """All settings, each from the first of flags, environment, file and default that names it.

    `flags` holds typed values or texts, None for a flag that was not given. InvalidSetting names
    the source that is wrong.
    """
    given: dict[str, Any] = {}
    if file is not None:
        given.update(_from_file(file))
    for row in SETTINGS:
        text = environ.get(ENV_PREFIX + row.name.upper())
        if text is not None:
            given[row.name] = _parsed(
                row, text, f"environment variable {ENV_PREFIX}{row.name.upper()}"
            )
    known = {row.name: row for row in SETTINGS}
    for name, value in flags.items():
        if value is None:
            continue
        is_text = isinstance(value, str) and name in known
        given[name] = (
            _parsed(known[name], value, f"flag --{name.replace('_', '-')}") if is_text else value
        )
    return check(given)


def check(given: Mapping[str, Any]) -> dict[str, SettingValue]:
    """All settings from typed values, defaults filled in. InvalidSetting for unknown and bad ones."""
    settings = resolve(SETTINGS, given)
    for name, choices in _CHOICES.items():
        if settings[name] not in choices:
            raise InvalidSetting(
                f"setting {name!r} must be one of {', '.join(choices)}, given {settings[name]!r}",
                setting=name,
            )
    for name in ("data", "host"):
        if not str(settings[name]).strip() or "\0" in str(settings[name]):
            raise InvalidSetting(f"setting {name!r} must not be empty", setting=name)
    return settings


def _parsed(row: Setting, text: str, source: str) -> SettingValue:
    try:
        return row.parse(text)
    except InvalidSetting as error:
        raise InvalidSetting(f"{source}: {error.message}", **error.details) from None


def _from_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            found = tomllib.load(stream)
    except OSError as error:
        raise InvalidSetting(f"cannot read settings file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"settings file {file} is not TOML: {error}") from None
    try:
        resolve(SETTINGS, found)
    except InvalidSetting as error:
        raise InvalidSetting(f"settings file {file}: {error.message}", **error.details) from None
    return found


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none, for a warning.

    Not an error: container platforms set VECDB_SERVICE_HOST and the like by themselves.
    """
    known = {ENV_PREFIX + row.name.upper() for row in SETTINGS} | {ENV_PREFIX + "CONFIG"}
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The server's own settings, and the engine's for `vecdb.open`."""
    engine_names = {row.name for row in ENGINE}
    own = {name: value for name, value in settings.items() if name not in engine_names}
    return own, {name: value for name, value in settings.items() if name in engine_names}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
