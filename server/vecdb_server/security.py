"""The safety of a server put together from its settings: encryption, keys, audit, limits.

Nothing but loopback is listened on without TLS and a way to know who calls (keys, or certificates of
clients), unless a setting says so in words.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vecdb.errors import InvalidSetting

from .audit import AuditLines, AuditLog
from .guard import Guard, KeyRing
from .limits import Limits, Peers
from .settings import is_loopback
from .tls import Certificates

log = logging.getLogger("vecdb.server")


class Security:
    """Made before the port is opened; `reload` while it serves, `close` at its end."""

    def __init__(self, settings: Mapping[str, Any], audit: AuditLines | None = None) -> None:
        """InvalidSetting for files that cannot be used, and for an address that would be left open.

        `audit`: who writes the audit log, and has looked at the address, where that is another process.
        """
        if audit is None:
            _refuse_open_doors(settings)
        self.certificates = _certificates(settings)
        self.audit: AuditLines | None = audit or _audit(settings)
        limits, peers = Limits(settings), Peers(settings["max_connections_per_peer"])
        self._ring = None
        if settings["keys_file"]:
            self._ring = KeyRing(Path(settings["keys_file"]), self.audit)
        self.guard = Guard(self._ring, self.audit, limits, peers)

    def bind(self, server: Any, address: str) -> int:
        """Opens the port of a grpc.Server, encrypted if there are certificates; the number, 0 if it failed."""
        try:
            if self.certificates is None:
                return int(server.add_insecure_port(address))
            return int(server.add_secure_port(address, self.certificates.credentials()))
        except RuntimeError:
            return 0

    def reload(self) -> list[str]:
        """Reads keys and certificates again now instead of within a second; which of them had changed.

        InvalidSetting names each file that cannot be used; what was in use before stays in use, and the others are taken up.
        Any thread.
        """
        changed: list[str] = []
        faults: list[InvalidSetting] = []
        for name, held in (("keys", self._ring), ("certificates", self.certificates)):
            try:
                if held is not None and held.reload():
                    changed.append(name)
            except InvalidSetting as fault:
                faults.append(fault)
        if faults:
            if changed:
                log.info("read again: %s", ", ".join(changed))
            raise faults[0] if len(faults) == 1 else InvalidSetting("; ".join(map(str, faults)))
        return changed

    def close(self) -> None:
        """Looks after keys no more, and closes the audit log; no call may follow."""
        if self._ring is not None:
            self._ring.close()
        if self.audit is not None:
            self.audit.close()


def _refuse_open_doors(settings: Mapping[str, Any]) -> None:
    host = settings["host"]
    if is_loopback(host):
        return
    encrypted = bool(settings["tls_cert"])
    known = bool(settings["keys_file"] or settings["tls_client_ca"])
    if encrypted and known:
        return
    lacking = " and without ".join(
        what for what, there in (("encryption", encrypted), ("authentication", known)) if not there
    )
    if not settings["insecure_listen_on_the_network"]:
        raise InvalidSetting(
            f"host {host!r} can be reached from the network, and the server would listen there without "
            f"{lacking}. Set tls_cert, tls_key and keys_file (or tls_client_ca); or say in words that "
            "you want it so: insecure_listen_on_the_network",
            setting="host",
        )
    log.warning(
        "listening on %s without %s: whoever reaches this port, or the way to it, can read%s", host,
        lacking, "" if known else " and change everything",
    )  # fmt: skip


def _certificates(settings: Mapping[str, Any]) -> Certificates | None:
    cert, key, authority = (settings[n] for n in ("tls_cert", "tls_key", "tls_client_ca"))
    if not cert and not key and not authority:
        return None
    if not cert or not key:
        raise InvalidSetting(
            "tls_cert and tls_key go together, and tls_client_ca needs both", setting="tls_cert"
        )
    return Certificates(Path(cert), Path(key), Path(authority) if authority else None)


def _audit(settings: Mapping[str, Any]) -> AuditLog | None:
    if not settings["audit_log"]:
        return None
    path = Path(settings["audit_log"])
    try:
        return AuditLog(path, settings["audit_log_max_bytes"], settings["audit_log_files"])
    except OSError as error:
        raise InvalidSetting(
            f"cannot write audit_log {path}: {error.strerror}", setting="audit_log"
        ) from None
