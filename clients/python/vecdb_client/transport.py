"""The gRPC side that sync and asyncio clients share: target, options, retry rule, errors.

Retry rule: a call that may be repeated is, with growing random pauses of `retry_s` in all, while the server is
UNAVAILABLE and the deadline allows it: until 0.2 s before that. Unless a client says otherwise, these are 3 seconds; and 60 where a server is away
that has answered this client before, since it will be back when its restart is through. One that says itself that
something is unavailable, as the target of a backup, is not away; one that is not trusted, or speaks no TLS where that is
wanted (TlsFailed), is not asked again. Those are the reads, writes of records, and changes of collections and aliases: each change, and each message of an ingest, carries a request id of its own, by which the server knows a
repetition and answers it as the first time. An ingest goes on with those of its messages that are not acknowledged, and
its pauses begin anew with each acknowledgement. A server that names a delay (`vecdb-retry-after-ms`) has changed
nothing for the call, so that any call is repeated, after that delay at the earliest: a backup as long as none of its
answers has come. Otherwise backups are sent once.
"""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from . import errors

ERROR_KEY = "vecdb-error-bin"
RETRY_AFTER_KEY = "vecdb-retry-after-ms"
"""Trailing metadata: when a call that was refused, and has changed nothing, may come again."""
COLLECTION_KEY = "vecdb-collection-bin"
"""Metadata of a call: the name of its collection, by which a busy server is fair before it reads requests."""
REQUEST_ID_KEY = "vecdb-request-id"
"""Metadata of a change of collections or aliases: its id. Writes of records have theirs in the request."""
SERVICE = "vecdb.v1.VecdbService"
DEFAULT_PORT = 7700
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_RETRY_S = 3.0
RESTART_S = 60.0
"""What a restart may take: running calls end within 20 s by default, then files are closed and opened."""
_LAST_PAUSE_S = 0.1
"""A pause that is cut short for a deadline is no shorter, and leaves the call as long."""
_LONGEST_DELAY_MS = 60_000
_FOR_EVER_S = 1e9
"""gRPC counts nanoseconds from 1970 in 64 bits: a moment beyond the year 2262 would have passed already."""
DEFAULT_MESSAGE_BYTES = 64 * 1024 * 1024

_BY_CODE: dict[grpc.StatusCode, type[errors.VecdbError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitExceeded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.DATA_LOSS: errors.Corrupted,
}
"""What a status means that carries no error of ours: gRPC itself, or something between, sent it."""

_SIZES = re.compile(r"(\d+) vs\.? (\d+)")


def normalised_target(target: str) -> str:
    """`target` as host:port, the port 7700 where none is named; `unix:` targets pass."""
    if not isinstance(target, str) or not target.strip() or "://" in target:
        raise errors.InvalidSetting(
            f"a target is host:port such as 127.0.0.1:{DEFAULT_PORT}, given {target!r}"
        )
    target = target.strip()
    if target.startswith("unix:"):
        return target
    if found := re.search(r"(?:^[^:]+|\]):(\d+)$", target):
        # grpc takes a larger number for the one that its last 16 bits are.
        if not 1 <= int(found[1]) <= 65_535:
            raise errors.InvalidSetting(f"the port in target {target!r} must be from 1 to 65535")
        return target
    if target.count(":") > 1 and not target.startswith("["):
        target = f"[{target}]"
    if ":" in target.rsplit("]", 1)[-1]:
        raise errors.InvalidSetting(f"the port in target {target!r} must be a number")
    return f"{target}:{DEFAULT_PORT}"


def channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Options of a channel: message limits, quick reconnects, and pings that find a dead peer."""
    if isinstance(max_message_bytes, bool) or not isinstance(max_message_bytes, int):
        raise errors.InvalidSetting(f"max_message_bytes is a number, given {max_message_bytes!r}")
    if not 1024 <= max_message_bytes <= 2**31 - 1:
        raise errors.InvalidSetting(
            f"max_message_bytes must be from 1,024 to 2 GiB - 1, given {max_message_bytes}"
        )
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


CallMetadata = Callable[[], Iterable[tuple[str, str]]]
"""Gives further metadata of a call, such as the `traceparent` of the trace that it belongs to."""


def headers(
    shown: tuple[tuple[str, str], ...],
    collection: Any,
    further: CallMetadata | None,
    request_id: str = "",
) -> tuple[tuple[str, Any], ...]:
    """Metadata of a call: who calls, which collection it is for, if it is for one by name, the id of a change, and
    what the caller adds."""
    added = () if further is None else tuple(further())
    if request_id:
        added = (*added, (REQUEST_ID_KEY, request_id))
    if not collection or not isinstance(collection, str):
        return (*shown, *added)
    return (*shown, *added, (COLLECTION_KEY, collection.encode(errors="replace")[:512]))


def checked_timeout(timeout_s: float | None, default_s: float | None) -> float | None:
    """The time a call gets; None, and 30 years or more, for no limit."""
    chosen = default_s if timeout_s is None else timeout_s
    if chosen is None:
        return None
    if isinstance(chosen, bool) or not isinstance(chosen, int | float) or not chosen > 0:
        raise errors.InvalidArgument(
            f"timeout_s must be a number of seconds above 0, given {chosen!r}"
        )
    return None if chosen >= _FOR_EVER_S else float(chosen)


def left_s(end_s: float | None) -> float | None:
    """Seconds until a moment of `time.monotonic`, at least a millisecond, as the time a call gets."""
    return None if end_s is None else max(end_s - time.monotonic(), 0.001)


def checked_retry(retry_s: float) -> float:
    """Seconds that failing calls are repeated for; 0: they are not."""
    if isinstance(retry_s, bool) or not isinstance(retry_s, int | float) or not retry_s >= 0:
        raise errors.InvalidSetting(
            f"retry_s must be a number of seconds, 0 or more, given {retry_s!r}"
        )
    return float(retry_s)


class Repeating:
    """How long the calls of one client are repeated. Any thread."""

    def __init__(self, retry_s: float | None) -> None:
        """None: see the head of this file. InvalidSetting."""
        self._is_said = retry_s is not None
        self._retry_s = checked_retry(DEFAULT_RETRY_S if retry_s is None else retry_s)
        self.has_worked = False
        """Whether the server has answered a call."""

    def pauses(self) -> Pauses:
        """The pauses of one call that begins now, or has got on."""
        usual = retry_pauses_s(self._retry_s)
        waits = self.has_worked and not self._is_said
        return Pauses(usual, retry_pauses_s(RESTART_S) if waits else usual)


class Pauses:
    """The pauses before each repetition of one call."""

    def __init__(self, usual: Iterator[float], while_away: Iterator[float]) -> None:
        self._usual, self._while_away = usual, while_away

    def next(self, is_away: bool) -> float | None:
        """Seconds, None where the call must not be repeated. `is_away`: no server has answered it."""
        return next(self._while_away if is_away else self._usual, None)


def retry_pauses_s(retry_s: float) -> Iterator[float]:
    """Pauses before each repetition, `retry_s` in all; random, so that many clients do not come at once."""
    longest_s, left_s = 0.1, retry_s
    while left_s > 0:
        pause_s = min(random.uniform(longest_s / 2, longest_s), left_s)  # nosec B311 # no secret
        left_s -= pause_s
        longest_s = min(2 * longest_s, 2.0)
        yield pause_s


def pause_before_retry_s(
    raised: errors.VecdbError, may_repeat: bool, pauses: Pauses, end_s: float | None
) -> float:
    """The pause before a call is repeated; raises `raised` when it must not be, or no time is left."""
    # A list is no delay: details of errors are whatever a server sends.
    asked_ms = raised.details.get("retry_after_ms")
    delay_s = asked_ms / 1000 if isinstance(asked_ms, int) else None
    refused = isinstance(raised, errors.ResourceExhausted | errors.Unavailable)
    if isinstance(raised, errors.TlsFailed):
        raise raised from None
    if not (
        (refused and delay_s is not None) or (may_repeat and isinstance(raised, errors.Unavailable))
    ):
        raise raised from None
    pause_s = pauses.next(raised.details.get("answered") is False and delay_s is None)
    if pause_s is not None and delay_s is not None:
        pause_s = max(pause_s, delay_s * random.uniform(1.0, 1.5))  # nosec B311 # no secret
    left_s = math.inf if end_s is None else end_s - time.monotonic()
    if pause_s is not None and delay_s is None and pause_s >= left_s > 2 * _LAST_PAUSE_S:
        # The server may be there sooner than after that, and the caller would still wait.
        pause_s = left_s / 2
    if pause_s is None or pause_s >= left_s:
        raise raised from None
    return pause_s


def pause_before_going_on_s(
    raised: errors.VecdbError, pauses: Pauses, end_s: float | None
) -> float | None:
    """The pause before an ingest goes on with a new stream; None when it must not."""
    try:
        return pause_before_retry_s(raised, True, pauses, end_s)
    except errors.VecdbError:
        return None


_CANCELLED_HERE = ("Channel closed!", "Locally cancelled by application!")
"""What gRPC says of a call that was cancelled on this side."""


def read_error(error: Any, target: str) -> errors.VecdbError:
    """The error of the tree that a grpc.RpcError stands for."""
    code: grpc.StatusCode = error.code()
    text: str = error.details() or ""
    trailing = tuple(error.trailing_metadata() or ())
    found = _carried(trailing) or _of_status(code, text, target)
    if (delay_ms := _retry_after_ms(trailing)) is not None:
        found.details = {**found.details, "retry_after_ms": delay_ms}
    return found


def _retry_after_ms(trailing: Iterable[tuple[str, Any]]) -> int | None:
    for key, value in trailing:
        if key == RETRY_AFTER_KEY and isinstance(value, str) and value.isdecimal():
            return min(int(value[:9]), _LONGEST_DELAY_MS)
    return None


_NAME = (
    "the certificate of the server at {} is not for that name; connect by the name that it is for, or give "
    "Tls(server_name=...)"
)
_OWN = (
    "the server at {} does not take this client's certificate, or wants one; give Tls(cert=..., key=...) of an "
    "authority that it trusts (its setting tls_client_ca)"
)
_TLS = {
    "Hostname Verification": _NAME,
    "is not in peer certificate": _NAME,
    "certificate has expired": "the certificate of the server at {} has expired; have it renewed, or set this machine's clock right",
    "certificate is not yet valid": "the certificate of the server at {} is not valid yet; set this machine's clock right, or the "
    "server's where the certificate was made",
    "CERTIFICATE_VERIFY_FAILED": "the certificate of the server at {} is of no authority that is trusted here; give Tls(ca=...)",
    "WRONG_VERSION_NUMBER": "what listens at {} speaks no TLS; if it is a server of vecdb, connect without `tls`",
    "ALERT_HANDSHAKE_FAILURE": _OWN,
    "ALERT_UNKNOWN_CA": _OWN,
    "ALERT_BAD_CERTIFICATE": _OWN,
    "ALERT_CERTIFICATE": _OWN,
    "CERTIFICATE_REQUIRED": _OWN,
}
"""What gRPC says of a connection that could not be made for TLS, and what it comes from: time does not mend it."""
_CLOSED = (
    "no server answers at {}, or one with TLS, which wants tls=True or Tls(ca=...), and where it asks for a certificate "
    "Tls(cert=..., key=...) of an authority that it trusts; is `vecdb serve` running there?"
)
"""So ends also a server that is just stopping, and it is all that gRPC says where a server speaks TLS and its client does
not, or where it does not like the client's certificate."""


def _whom_we_met(text: str, target: str) -> errors.VecdbError:
    meaning = "no server answers at {}; is `vecdb serve` running there?"
    kind: type[errors.VecdbError] = errors.Unavailable
    if "failed to connect" in text:
        found = next((said for word, said in _TLS.items() if word in text), None)
        if found is not None:
            meaning, kind = found, errors.TlsFailed
        elif "Socket closed" in text or "Unwrap failed" in text:
            meaning = _CLOSED
    return kind(f"{meaning.format(target)} ({text})", answered=False)


def _of_status(code: grpc.StatusCode, text: str, target: str) -> errors.VecdbError:
    kind = _BY_CODE.get(code, errors.Internal)
    if code is grpc.StatusCode.UNAVAILABLE:
        return _whom_we_met(text, target)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return kind("not done in time; give a larger timeout_s. A write may have happened or not")
    if code is grpc.StatusCode.CANCELLED:
        if text in _CANCELLED_HERE:
            return kind("the call was cancelled")
        # A server that stops ends so what it has no time to finish.
        return errors.Unavailable(
            f"the server at {target} has ended the call ({text})", answered=False
        )
    sizes = _SIZES.search(text)
    if kind is errors.LimitExceeded and sizes and "metadata size" in text:
        return kind(
            f"the metadata of the call have more than the {sizes[2]} bytes that the server takes; have `call_metadata` "
            "give less",
            limit_bytes=int(sizes[2]),
        )
    if kind is errors.LimitExceeded and sizes:
        given, limit = int(sizes[1]), int(sizes[2])
        return kind(
            f"a message of {given} bytes is larger than the limit of {limit} bytes; send or ask "
            "for fewer records at once, or raise max_message_bytes of client and server",
            given_bytes=given,
            limit_bytes=limit,
        )
    if kind is errors.LimitExceeded:
        # No size is named: too many calls at once, or headers that are too long.
        return errors.ResourceExhausted(f"the server has no room for this call: {text}")
    return kind(f"{code.name}: {text}")


def _carried(trailing: Iterable[tuple[str, Any]]) -> errors.VecdbError | None:
    for key, value in trailing:
        if key == ERROR_KEY:
            try:
                found = json.loads(value)
                return errors.by_reason(found["reason"])(found["message"], **found["details"])
            except (ValueError, KeyError, TypeError):
                return None
    return None
