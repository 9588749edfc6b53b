"""What systemd is told of the server's life (sd_notify), where it asks: the protocol is one datagram."""

from __future__ import annotations

import os
import socket
import time

VARIABLE = "NOTIFY_SOCKET"


def notify(*states: str) -> bool:
    """Sends states such as READY=1; whether there was someone to send them to. Never fails: a server
    must not end because nobody listens."""
    address = os.environ.get(VARIABLE)
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
            link.sendto("\n".join(states).encode(), address)
    except OSError:
        return False
    return True


def reloading() -> None:
    """Says that the settings are being read again, as Type=notify-reload wants it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")
