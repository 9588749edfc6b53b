"""How a client shows who it is and finds out who the server is: API key and TLS."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from .errors import InvalidSetting

KEY_VARIABLE = "VECDB_API_KEY"
_KEY = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class Tls:
    """An encrypted connection. Each file is PEM, as a path or as its bytes.

    `ca` holds the authorities that may have signed the server's certificate, None for those that gRPC
    ships. `cert` and `key` are the client's own, where the server asks for one (mutual TLS).
    `server_name` is the name that the certificate must have, where it is not that of the target.
    """

    ca: str | Path | bytes | None = None
    cert: str | Path | bytes | None = None
    key: str | Path | bytes | None = field(default=None, repr=False)
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a channel is made with: `channel` None for an unencrypted one."""

    channel: Any
    options: tuple[tuple[str, Any], ...]
    metadata: tuple[tuple[str, str], ...] = field(repr=False)


def credentials(
    target: str, api_key: str | None, tls: Tls | bool | None, send_key_unencrypted: bool
) -> Credentials:
    """Checks what `connect` was given. InvalidSetting; files are read now."""
    key = os.environ.get(KEY_VARIABLE) or None if api_key is None else api_key
    if key is not None and (not isinstance(key, str) or not _KEY.fullmatch(key)):
        raise InvalidSetting(
            "api_key must be the text that `vecdb keys add` printed, without spaces and line ends"
        )
    if tls is True:
        tls = Tls()
    if tls is not None and tls is not False and not isinstance(tls, Tls):
        raise InvalidSetting(f"tls must be True or a Tls, given {type(tls).__name__}")
    if key is not None and not tls and not send_key_unencrypted and not _stays_here(target):
        raise InvalidSetting(
            f"the API key would go to {target} unencrypted, where others may read it; give tls=True or "
            "Tls(ca=...), or send_key_unencrypted=True if something else encrypts the way"
        )
    metadata = () if key is None else (("authorization", f"Bearer {key}"),)
    if not tls:
        return Credentials(None, (), metadata)
    if (tls.cert is None) != (tls.key is None):
        raise InvalidSetting("Tls takes cert and key together, or neither")
    options: tuple[tuple[str, Any], ...] = ()
    if tls.server_name is not None:
        options = (("grpc.ssl_target_name_override", tls.server_name),)
    channel = grpc.ssl_channel_credentials(_pem(tls.ca), _pem(tls.key), _pem(tls.cert))
    return Credentials(channel, options, metadata)


def _pem(given: str | Path | bytes | None) -> bytes | None:
    if given is None or isinstance(given, bytes):
        return given
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise InvalidSetting(f"cannot read {given}: {error.strerror}") from None


def _stays_here(target: str) -> bool:
    """Whether a target, as host:port, is this machine."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
