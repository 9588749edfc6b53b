"""Encryption of the port: certificates from files, read again when these change.

A handshake asks for the certificate anew, so a renewed one is used by the next connection, and those
that stand go on. TLS is gRPC's own (BoringSSL): 1.2 and 1.3.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from vecdb.errors import InvalidSetting

log = logging.getLogger("vecdb.server")

_LOOK_EVERY_S = 1.0


class Certificates:
    """Certificate chain and key of the server, and the authorities of clients' certificates if they must have one.

    All PEM files. InvalidSetting when one cannot be read or is no PEM. Any thread.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._files = (cert, key) if client_ca is None else (cert, key, client_ca)
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._read = self._contents()
        self._looked_s = time.monotonic()
        self._given: object = None

    @property
    def mutual(self) -> bool:
        """Whether clients must have a certificate."""
        return len(self._files) == 3

    def credentials(self) -> Any:
        """For `add_secure_port`."""
        first = self._configuration(self._read)
        self._given = self._read
        return grpc.dynamic_ssl_server_credentials(
            first, self._for_handshake, require_client_authentication=self.mutual
        )

    def reload(self) -> bool:
        """Reads the files again; whether they had changed. InvalidSetting leaves the old ones in use."""
        with self._lock:
            stamps = self._stamps()
            if stamps == self._seen:
                return False
            read = self._contents()
            changed = read != self._read
            self._read, self._seen = read, stamps
            return changed

    def _for_handshake(self) -> Any:
        """The configuration if it is another one than the last; None otherwise. Called by gRPC."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now_s
            try:
                if self.reload():
                    log.info("certificates were read again", extra={"file": str(self._files[0])})
            except InvalidSetting as error:
                log.error("%s; the certificate before stays in use", error.message)
        with self._lock:
            if self._given is self._read:
                return None
            self._given = self._read
            return self._configuration(self._read)

    def _configuration(self, read: tuple[bytes, ...]) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(read[1], read[0])], root_certificates=read[2] if self.mutual else None
        )

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in self._files:
            try:
                status = os.stat(path)
            except OSError as error:
                raise InvalidSetting(f"cannot read {path}: {error.strerror}") from None
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)

    def _contents(self) -> tuple[bytes, ...]:
        found = []
        for path in self._files:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise InvalidSetting(f"cannot read {path}: {error.strerror}") from None
            if b"-----BEGIN " not in data:
                raise InvalidSetting(f"{path} is no PEM file: it has no line -----BEGIN ...")
            found.append(data)
        _check_pair(self._files[0], self._files[1])
        return tuple(found)


def _check_pair(cert: Path, key: Path) -> None:
    """InvalidSetting unless the key belongs to the certificate: gRPC would refuse handshakes in silence."""
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise InvalidSetting(
            f"{cert} and {key} are no certificate with its unencrypted key: {error}"
        ) from None
