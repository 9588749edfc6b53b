"""What every call of ours passes before and after its handler: key, rights, limits, audit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc

from vecdb.errors import Cancelled, InvalidSetting, PermissionDenied, Unauthenticated

from . import keys
from .access import CALLER, ROLE_OF, Caller
from .audit import AuditLines
from .fair_pool import this_pool
from .headroom import OF_PROCESS
from .keys import Key
from .limits import Limits, Peers
from .readers.forwarded import origin
from .slow_calls import named
from .status import code_of

log = logging.getLogger("vecdb.server")

_LOOK_EVERY_S = 1.0
_TELL_EVERY_S = 60.0
"""A file that stays bad is told of so often, and when its fault is another one."""
_CLOSE_S = 5.0
"""How long the end of a server waits for a file of keys that is being read."""
_SCHEME = "bearer "
_END = object()
_NAME_CHARS = 128


class KeyRing:
    """The keys of a file, read again when it changes, a second later. Any thread.

    A thread of its own looks and reads: keys are asked for by the thread that all messages of the server go through, and
    ten thousand take 0.1 s to read. Meanwhile the keys before are good. A file that has become unreadable changes
    nothing: the keys before stay good, and the log says so.
    """

    def __init__(self, path: Path, audit: AuditLines | None) -> None:
        """InvalidSetting when the file cannot be read. The audit log is told of every change, by ids."""
        self._path = path
        self._audit = audit
        self._lock = threading.Lock()
        """Held while the file is read."""
        self._stamp = self._now()
        self._keys = keys.load(path)
        self._untold = False
        """Whether they have changed since `reload` said so, or since the start."""
        self._ended = threading.Event()
        self._looker = threading.Thread(target=self._look, name="vecdb-keys", daemon=True)
        self._looker.start()

    def _now(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise InvalidSetting(f"cannot read keys file {self._path}: {error.strerror}") from None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def reload(self) -> bool:
        """Reads the file if it has changed; what is in it holds when this returns. Whether the keys have changed since
        the last time, also by themselves. InvalidSetting keeps the keys before."""
        with self._lock:
            self._read()
            told, self._untold = self._untold, False
        return told

    def _read(self) -> None:
        """With the lock."""
        stamp = self._now()
        if stamp == self._stamp:
            return
        before = self._keys
        self._keys, self._stamp = keys.load(self._path), stamp
        self._untold = True
        ids = keys.differences(before, self._keys, time.time())
        log.info("keys were read again", extra={what: len(which) for what, which in ids.items()})
        if self._audit is not None and any(ids.values()):
            self._audit.write(event="keys changed", **ids)

    def _look(self) -> None:
        told, told_s = "", 0.0
        while not self._ended.wait(_LOOK_EVERY_S):
            try:
                with self._lock:
                    self._read()
                told = ""
            except Exception as error:
                fault, now_s = str(error) or repr(error), time.monotonic()
                if fault == told and now_s - told_s < _TELL_EVERY_S:
                    continue
                told, told_s = fault, now_s
                unforeseen = None if isinstance(error, InvalidSetting) else error
                log.error("%s; the keys before stay in use", fault, exc_info=unforeseen)

    def close(self) -> None:
        """Looks no more."""
        self._ended.set()
        self._looker.join(_CLOSE_S)

    def find(self, metadata: Any) -> Key:
        """The key that the metadata of a call carry. Unauthenticated, which does not say why a key is bad."""
        given = next((value for name, value in metadata or () if name == "authorization"), None)
        if given is None:
            raise Unauthenticated(
                "this server wants an API key: give `api_key` to connect, set VECDB_API_KEY, or send the metadata entry "
                "authorization: Bearer <key>"
            )
        text = given if isinstance(given, str) else given.decode("latin-1")
        if text[: len(_SCHEME)].lower() == _SCHEME:
            found = keys.parsed(text[len(_SCHEME) :].strip())
            key = None if found is None else self._keys.get(found[0])
            if found is not None and key is not None and key.accepts(found[1], time.time()):
                return key
        raise Unauthenticated(
            "the API key is not one of this server's, or it has expired or was revoked; ask the operator"
        )


class Guard:
    """Wraps handlers; see the head of this file. `ring` and `audit` None: no keys, no audit log."""

    def __init__(
        self, ring: KeyRing | None, audit: AuditLines | None, limits: Limits, peers: Peers
    ) -> None:
        self._ring = ring
        self._audit = audit
        self._limits = limits
        self._peers = peers

    def known_as(self, metadata: Any) -> str:
        """The id of the key of a call, known before its request is read; empty where no keys are asked for.
        Unauthenticated when the call cannot be taken."""
        return "" if self._ring is None else self._ring.find(metadata).id

    def may_know(self, metadata: Any, collection: str) -> bool:
        """Whether a caller may be told of a collection: one whose key may read it, everybody without keys."""
        if self._ring is None:
            return True
        try:
            caller = Caller("GetCollection", self._ring.find(metadata), "")
        except Unauthenticated:
            return False
        return caller.may("read", collection)

    def refused(self, method: str, context: Any, error: Exception) -> None:
        """Tells the audit log of a call that `known_as` has stopped; only its number from a thread of no pool, which must
        not wait for a disk, and where the server ends."""
        pool = this_pool()
        if self._audit is not None and (pool is None or pool.ended):
            self._audit.leave_out()
            return
        peer = origin(context.peer(), context.invocation_metadata()).peer
        self._note(Caller(method, None, peer), None, None, error)

    def _caller(self, method: str, context: Any) -> Caller:
        came = origin(context.peer(), context.invocation_metadata())
        caller = Caller(method, None, came.peer)
        if self._ring is not None:
            caller.key = self._ring.find(context.invocation_metadata())
        if self._audit is not None:
            said = came.certificate
            caller.certificate = certificate_of(context) if said is None else said[:_NAME_CHARS]
        return caller

    def unary(self, method: str, behavior: Any) -> Any:
        def guarded(request: Any, context: Any) -> Any:
            caller = self._caller(method, context)
            token = CALLER.set(caller)
            try:
                with self._peers.counted(caller.peer):
                    self._limits.check(method, request)
                    with OF_PROCESS.serving(method, request):
                        answer = behavior(request, context)
            except Exception as error:
                self._note(caller, request, None, error)
                raise
            finally:
                CALLER.reset(token)
            self._note(caller, request, answer, None)
            return answer

        return guarded

    def stream(self, method: str, behavior: Any) -> Any:
        def guarded(given: Any, context: Any) -> Iterator[Any]:
            caller = self._caller(method, context)
            last: list[Any] = [None]
            told = False

            def limited(request: Any) -> Any:
                if last[0] is not None and self._ring is not None:
                    # A stream may stay open for days: a key that was revoked ends with its next message.
                    caller.key = self._ring.find(context.invocation_metadata())
                last[0] = request
                self._limits.check(method, request)
                return request

            try:
                with self._peers.counted(caller.peer):
                    many = hasattr(given, "__next__")
                    taken = _each_served(method, map(limited, given)) if many else limited(given)
                    answers = iter(behavior(taken, context))
                    asked = None if many else taken
                    while (answer := _next_as(caller, answers, method, asked)) is not _END:
                        if method != "Scan":
                            asked = None  # What has begun goes on.
                        if not _only_progress(answer):
                            told = True
                            self._note(caller, last[0], answer, None)
                        yield answer
            except grpc.RpcError:
                # The client has gone between two messages: those before it have their lines.
                raise
            except GeneratorExit:
                if not told:
                    self._note(caller, last[0], None, Cancelled("the client has gone"))
                raise
            except Exception as error:
                self._note(caller, last[0], None, error)
                raise

        return guarded

    def _note(self, caller: Caller, request: Any, answer: Any, error: Exception | None) -> None:
        """One line of the audit log, if the call belongs there."""
        if self._audit is None:
            return
        refused = isinstance(error, Unauthenticated | PermissionDenied)
        if not refused and ROLE_OF.get(caller.method) not in ("write", "admin"):
            return
        code = "OK" if error is None else getattr(code_of(error), "name", "INTERNAL")
        (self._audit.write_refusal if refused else self._audit.write)(
            key="" if caller.key is None else caller.key.id,
            certificate=caller.certificate,
            peer=caller.peer,
            method=caller.method,
            collection=caller.collection or named(request),
            **_beside(request),
            count=getattr(answer, "count", 0),
            sequence=getattr(answer, "sequence", 0),
            code=code,
            reason="" if error is None else str(getattr(error, "reason", "")),
        )


def certificate_of(context: Any) -> str:
    """Common names of the certificate that a caller has shown; empty where it showed none."""
    names = context.auth_context().get("x509_common_name", ())
    return b",".join(names).decode(errors="replace")[:_NAME_CHARS]


def _each_served(method: str, requests: Iterator[Any]) -> Iterator[Any]:
    """Each with room for what it takes until the next is asked for, which is when it was answered, or prepared."""
    for request in requests:
        with OF_PROCESS.serving(method, request):
            yield request


def _next_as(caller: Caller, answers: Iterator[Any], method: str, asked: Any) -> Any:
    """The next answer, with room for what `asked` takes, unless that is None."""
    room = nullcontext() if asked is None else OF_PROCESS.serving(method, asked)
    # Set for each step alone: a generator may be closed by another thread than the one that ran it.
    token = CALLER.set(caller)
    try:
        with room:
            return next(answers, _END)
    finally:
        CALLER.reset(token)


_TELLS: dict[Any, bool] = {}
"""Whether messages of a type may tell of progress, for those that were met."""


def _only_progress(answer: Any) -> bool:
    """Whether an answer says how far a call is, and not yet what came of it."""
    tells = _TELLS.get(type(answer))
    if tells is None:
        tells = _TELLS[type(answer)] = "progress" in answer.DESCRIPTOR.fields_by_name
    return tells and bool(answer.HasField("progress"))


def _beside(request: Any) -> dict[str, str]:
    """The second name of a call that has two."""
    found = {name: getattr(request, name, "") for name in ("new_name", "alias")}
    return {name: str(text)[:_NAME_CHARS] for name, text in found.items() if text}
