"""Whose call it is that came by way of a reading process.

Such calls come over a unix socket in a folder that only this user may enter. What they say of their caller
is believed there, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

PEER_KEY = "vecdb-forwarded-peer-bin"
CERTIFICATE_KEY = "vecdb-forwarded-certificate-bin"
KEYS = (PEER_KEY, CERTIFICATE_KEY)

_UNIX = "unix:"


class Origin(NamedTuple):
    """A caller as the process saw it that took the connection."""

    peer: str
    certificate: str | None
    """Common names of its certificate; None where that is to be asked of the connection."""


def origin(peer: str, metadata: Iterable[tuple[str, Any]] | None) -> Origin:
    """Of a call that gRPC says comes from `peer`."""
    if not peer.startswith(_UNIX):
        return Origin(peer, None)
    said = {name: value for name, value in metadata or () if name in KEYS}
    return Origin(_text(said.get(PEER_KEY)) or peer, _text(said.get(CERTIFICATE_KEY)))


def told(peer: str, certificate: str) -> list[tuple[str, bytes]]:
    """The metadata by which a reading process says whose call it passes on."""
    return [(PEER_KEY, peer.encode()), (CERTIFICATE_KEY, certificate.encode())]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""
