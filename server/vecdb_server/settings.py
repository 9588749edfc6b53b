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
from vecdb.filters import MAX_DEPTH, MAX_PATTERNS, MAX_TEXT_BYTES
from vecdb.settings import ENGINE, Setting, SettingValue, resolve
from vecdb.types import MAX_BATCH_ROWS, MAX_K, MAX_METADATA_BYTES

__all__ = ["ENV_PREFIX", "SERVER", "SETTINGS", "is_loopback", "load", "split", "unknown_variables"]

ENV_PREFIX = "VECDB_"
MIB = 1024 * 1024
MAX_NAME_CHARS = 128

SERVER: tuple[Setting, ...] = (
    Setting("data", str, "./data", "Folder of the database; made when it does not exist."),
    Setting("host", str, "127.0.0.1", "Address to listen on. Other than loopback needs `tls_cert` and `keys_file` (or `tls_client_ca`), or `insecure_listen_on_the_network`."),
    Setting("port", int, 7700, "Port to listen on; 0: any free one, which the first line of output names.", 0, 65_535),
    Setting("max_message_bytes", int, 64 * MIB, "Largest message taken and given.", MIB, 2**31 - 1),
    Setting("read_processes", int, 0, "Processes that answer reads on the same port beside the one that writes, each with memory of its own for what it searches, on the CPU: one process answers what about one core can encode and decode. 0: none.", 0, 256),
    Setting("worker_threads", int, 0, "Threads that answer reads; 0: one a core, at least 2. More than that was slower when measured. Where calls keep all of them for 0.1 s, one more answers clients of whom nothing runs.", 0, 1_024),
    Setting("write_threads", int, 8, "Threads that take writes. They mostly wait for the disk; writes that wait together share a commit.", 1, 1_024),
    Setting("stream_threads", int, 16, "Scan, Ingest, Check, BuildIndex, Compact and backup calls served at once; each takes a thread of its own.", 1, 1_024),
    Setting("query_streams", int, 64, "Clients that may send their queries on a stream at once, each with up to two, three for a moment; each stream takes a thread. Streams that are silent make room, other clients send calls.", 1, 4_096),
    Setting("max_concurrent", int, 1_000, "Calls taken at once, waiting ones included; further ones are refused with RESOURCE_EXHAUSTED.", 1, 1_000_000, reload=True),
    Setting("max_wait_s", float, 1.0, "Calls that would wait longer than this for a thread are refused with RESOURCE_EXHAUSTED and a delay, after which clients try again.", 0.001, 3_600.0, reload=True),
    Setting("request_wait_s", float, 1.0, "A call whose request has not come for so long may be ended for the sake of others: only when these lack a thread, for which it takes more than 32 such calls among reads, or among writes, or as many as there are `stream_threads`.", 0.05, 3_600.0, reload=True),
    Setting("max_request_s", float, 600.0, "A call whose request has not come for so long is ended in any case, and so is an Ingest that sends nothing for so long. The largest message comes in time at 0.9 Mbit/s.", 0.1, 86_400.0, reload=True),
    Setting("drain_timeout_s", float, 20.0, "Time that running calls get to end, and their answers to be taken, when the server is told to stop.", 0.0, 3_600.0, reload=True),
    Setting("tls_cert", str, "", "PEM file of the server's certificate chain; set, only TLS is spoken. Read again when it changes."),
    Setting("tls_key", str, "", "PEM file of its private key, not encrypted."),
    Setting("tls_client_ca", str, "", "PEM file of authorities; set, clients must have a certificate of one of them (mutual TLS)."),
    Setting("keys_file", str, "", "File of API keys that `vecdb keys` writes; set, every call needs a key. Read again when it changes."),
    Setting("insecure_listen_on_the_network", bool, False, "Listen beyond loopback although encryption or authentication is missing."),
    Setting("audit_log", str, "", "File that every change and every refused call is written to, one JSON object a line; empty: none."),
    Setting("audit_log_max_bytes", int, 64 * MIB, "Size at which a new audit log is begun.", 65_536, 1 << 40),
    Setting("audit_log_files", int, 10, "Audit logs kept, the newest included.", 1, 1_000),
    Setting("max_batch_records", int, MAX_BATCH_ROWS, "Records that one message may write, and ids that a Get or a Delete may name. What a Query brings is bounded by `max_message_bytes`.", 1, MAX_BATCH_ROWS, reload=True),
    Setting("max_k", int, MAX_K, "Largest k, and mmr_candidates, that a query may ask for.", 1, MAX_K, reload=True),
    Setting("max_filter_bytes", int, MAX_TEXT_BYTES, "Longest filter.", 2, MAX_TEXT_BYTES, reload=True),
    Setting("max_filter_depth", int, MAX_DEPTH, "Filters inside each other.", 1, MAX_DEPTH, reload=True),
    Setting("max_regex_patterns", int, MAX_PATTERNS, "`$regex` operators of one filter; 0: none are taken. RE2 takes time linear in the text.", 0, MAX_PATTERNS, reload=True),
    Setting("max_regex_bytes", int, 4_096, "Longest pattern of `$regex`.", 1, MAX_TEXT_BYTES, reload=True),
    Setting("max_filter_s", float, 10.0, "Time of a core that evaluating a filter may take, within the deadline of its call (query, count, get, scan, delete); 0: any.", 0.0, 3_600.0, reload=True),
    Setting("max_metadata_bytes", int, MAX_METADATA_BYTES, "Largest metadata of a record, as JSON.", 2, MAX_METADATA_BYTES, reload=True),
    Setting("max_name_chars", int, MAX_NAME_CHARS, "Longest new name of a collection or alias.", 1, MAX_NAME_CHARS, reload=True),
    Setting("max_connections", int, 10_000, "Connections at once; further ones are closed as they come.", 1, 1_000_000),
    Setting("max_connections_per_peer", int, 1_000, "Connections of one host that may have calls under way at once, in each process. Idle ones do not count.", 1, 1_000_000),
    Setting("max_streams_per_connection", int, 1_000, "Calls under way on one connection; its client holds further ones back.", 1, 1_000_000),
    Setting("backup_root", str, "", "Folder, or URL such as s3://bucket/path, below which admins may have backups written and read; empty: not at all."),
    Setting("metrics_address", str, "", "host:port of the HTTP port for Prometheus, such as 127.0.0.1:7701; empty: none."),
    Setting("metrics_on_the_network", bool, False, "Serve metrics beyond loopback, unencrypted and to everybody."),
    Setting("slow_query_s", float, 1.0, "Queries that take longer are logged with how they were answered, other calls (but for those that are there to last) with what they did; 0: none.", 0.0, 3_600.0, reload=True),
    Setting("trace_endpoint", str, "", "URL of an OpenTelemetry collector (OTLP over gRPC), such as http://127.0.0.1:4317; set, calls are traced. Needs the extra `trace`."),
    Setting("trace_share", float, 0.01, "Share of calls that are traced where their caller has not decided.", 0.0, 1.0, reload=True),
    Setting("log_level", str, "info", "debug, info, warning or error. debug logs every call.", reload=True),
    Setting("log_format", str, "text", "text for people or json for machines, one object a line; on standard error.", reload=True),
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
