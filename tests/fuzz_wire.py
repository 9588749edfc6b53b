"""Strange calls of a server in another process, and what must hold of every answer.

What is sent follows from the seed and from what the server answers, so a seed replays a round as far as the server
answers the same.
"""

from __future__ import annotations

import json
import random
import struct
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import grpc
from fuzz_changes import changed, changed_bytes, changed_list, random_message
from fuzz_seeds import ALIASES, KINDS, SEEDS, Known, records
from google.protobuf import message_factory
from google.protobuf.message import DecodeError

from vecdb_client.v1 import vecdb_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["VecdbService"]
METHODS = {one.name: one for one in SERVICE.methods}
OTHERS = ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]  # fmt: skip
MISTAKES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNAVAILABLE",
            "DEADLINE_EXCEEDED", "UNIMPLEMENTED"}  # fmt: skip
"""What a client's mistake, or want of time or room, may be answered with; UNIMPLEMENTED by other services only."""
PASSING = {"DEADLINE_EXCEEDED", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}
"""Codes that may come of a busy machine: they teach nothing that a replay would learn again."""
HANG_S = 30.0
"""A call that need not wait for anything and is not answered for so long hangs, on the busiest machine."""
_SHORT_S = 0.3
_RARE = {"DropCollection", "RenameCollection", "BackupDatabase", "RestoreBackup", "VerifyBackups", "BuildIndex", "Check", "Compact",
         "CreateCollection", "PruneBackups", "GetMetrics", "ListCollections", "ListBackups"}  # fmt: skip
"""They cost most, or take away what others ask: they come less often."""
_OFTEN = {
    "Insert",
    "Upsert",
    "Update",
    "Delete",
    "Ingest",
    "Get",
    "Query",
    "QueryStream",
    "Count",
    "Scan",
}
"""They take the most that can be wrong."""
_MOST_KEPT = 60
_MOST_KEPT_BYTES = 200_000


class Found(AssertionError):
    """What must not happen has happened."""

    seen: Counter[str] = Counter()
    """What was answered until then."""


@dataclass
class Sent:
    """One call as it went out."""

    path: str
    messages: list[bytes]
    timeout_s: float
    metadata: list[tuple[str, Any]] = field(default_factory=list)
    gzip: bool = False

    def shown(self) -> str:
        parts = " ".join(one.hex() if len(one) < 2500 else f"{one[:500].hex()}...({len(one)} bytes)" for one in self.messages)  # fmt: skip
        return f"{self.path} timeout {self.timeout_s:g} gzip {self.gzip} metadata {self.metadata}: {parts or 'no message'}"


def _parsed(kind: Any, raw: bytes) -> Any:
    try:
        return message_factory.GetMessageClass(kind).FromString(raw)
    except DecodeError:
        return None


def _may_wait(method: str, messages: list[Any]) -> bool:
    """Whether a call may last for as long as its deadline allows: it waits for a commit, or is slow as it asked to be."""
    if method in ("VerifyBackups", "RestoreBackup"):
        return False
    return any(getattr(one, "min_sequence", 0) or 0 < getattr(one, "limit_bytes_s", 0) < 1e6 for one in messages)  # fmt: skip


class Caller:
    """Sends strange calls over one connection and judges the answers. One thread."""

    def __init__(self, rng: random.Random, address: str, seen: Counter[str]) -> None:
        self.rng = rng
        self.seen = seen
        self.known = Known()
        self.last: deque[Sent] = deque(maxlen=20)
        self._kept: dict[str, list[list[bytes]]] = {}
        self._reached: set[tuple[str, str, str]] = set()
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]  # fmt: skip
        self._channel = grpc.insecure_channel(address, options=options)
        self._turns = [
            name for name in METHODS for _ in range(8 if name in _OFTEN else 2 - (name in _RARE))
        ]

    def close(self) -> None:
        self._channel.close()

    def prefer(self, methods: list[str]) -> None:
        """Half of the calls are of these from now on."""
        self._turns += methods * (len(self._turns) // len(methods))

    def ask(self, name: str, request: Any) -> Any:
        """A right call; its answer, None where it was refused."""
        answers: list[bytes] = []
        sent = Sent(f"/{SERVICE.full_name}/{name}", [request.SerializeToString()], HANG_S)
        self.call(sent, answers)
        kind = message_factory.GetMessageClass(METHODS[name].output_type)
        return kind.FromString(answers[0]) if answers else None

    def metrics(self) -> str:
        answer = self.ask("GetMetrics", pb.GetMetricsRequest())
        return str(answer.text) if answer else ""

    def check_all(self) -> list[tuple[str, list[str]]]:
        """What a check says of each collection."""
        listed = self.ask("ListCollections", pb.ListCollectionsRequest())
        checks = [
            (one.name, self.ask("Check", pb.CheckRequest(collection=one.name)))
            for one in listed.collections
        ]
        return [
            (name, ["no answer"] if found is None else list(found.problems))
            for name, found in checks
        ]

    # -- what is sent

    def strange(self) -> None:
        """One call, strange as a rule."""
        rng = self.rng
        if rng.random() < 0.01:
            path = rng.choice([*OTHERS, f"/{SERVICE.full_name}/Nothing", "/x/y"])
            self.call(Sent(path, [rng.randbytes(rng.randrange(40))], 5.0))
            return
        method = METHODS[rng.choice(self._turns)]
        sent = self._right(method.name)
        way = rng.random()
        if way > 0.25:
            sent = self._changed(method, sent)
        call = Sent(f"/{SERVICE.full_name}/{method.name}", sent, self._patience(method, sent))
        if rng.random() < 0.03:
            call.metadata = rng.choice([
                [("vecdb-collection-bin", rng.randbytes(rng.choice([0, 5, 600])))], [("traceparent", rng.choice(["", "00-x-y-z", "9" * 200]))],
                [("authorization", rng.choice(["", "Bearer ", "Bearer vecdb_x_y", "x" * 500]))], [("vecdb-peer-bin", b"ipv4:1.2.3.4:5")],
            ])  # fmt: skip
        call.gzip = rng.random() < 0.03
        self.call(call)

    def _right(self, method: str) -> list[bytes]:
        """A right request, or one that was kept."""
        kept = self._kept.get(method)
        if kept and self.rng.random() < 0.3:
            return self.rng.choice(kept)
        made = SEEDS[method](self.rng, self.known)
        return [one.SerializeToString() for one in (made if isinstance(made, list) else [made])]

    def _changed(self, method: Any, sent: list[bytes]) -> list[bytes]:
        rng, way = self.rng, self.rng.random()
        if way < 0.02:
            return [rng.randbytes(rng.randrange(200))]
        if way < 0.06:
            return [random_message(method.input_type, rng).SerializeToString()]
        if way < 0.08:
            return self._right(rng.choice(list(SEEDS)))
        if method.client_streaming and way < 0.2:
            return changed_list(sent, rng)
        if not sent:
            return sent
        at = rng.randrange(len(sent))
        message = _parsed(method.input_type, sent[at])
        if way < 0.2 or message is None:
            raw = changed_bytes(sent[at], rng)
        else:
            donor = SEEDS[rng.choice(list(SEEDS))](rng, self.known)
            donor = (donor[0] if donor else message) if isinstance(donor, list) else donor
            raw = changed(message, donor, rng).SerializeToString()
        return [*sent[:at], raw, *sent[at + 1 :]]

    def _patience(self, method: Any, sent: list[bytes]) -> float:
        parsed = [_parsed(method.input_type, one) for one in sent]
        return _SHORT_S if _may_wait(method.name, [one for one in parsed if one]) else HANG_S

    # -- what comes back

    def call(self, sent: Sent, answers: list[bytes] | None = None) -> str:
        """Sends a call and judges its answers, which are put into `answers`; the code. Found when it must not be."""
        answers = [] if answers is None else answers
        self.last.append(sent)
        name = sent.path.rpartition("/")[2]
        method = METHODS.get(name)
        began_s = time.monotonic()
        code, reason = self._answered(sent, answers)
        took_s = time.monotonic() - began_s
        self.seen[f"{name if method else 'other'} {code}"] += 1
        if reason:
            self.seen[f"reason {reason}"] += 1
        if method is None:
            return code
        # Somebody else may cancel a build that a caller waits for.
        cancelled = (name, code) == ("BuildIndex", "CANCELLED")
        if code not in MISTAKES - {"UNIMPLEMENTED"} and not cancelled:
            raise Found(f"{code}: {reason}")
        if took_s > HANG_S - 1:
            raise Found(f"{code} after {took_s:.1f} s")
        self._judge(method, sent, code, answers)
        if (what := (name, code, reason)) not in self._reached and code not in PASSING:
            self._reached.add(what)
            if sum(map(len, sent.messages)) < _MOST_KEPT_BYTES:
                kept = self._kept.setdefault(name, [])
                kept.append(sent.messages)
                del kept[:-_MOST_KEPT]
        return code

    def _answered(self, sent: Sent, answers: list[bytes]) -> tuple[str, str]:
        how: dict[str, Any] = {"timeout": sent.timeout_s, "metadata": sent.metadata}
        if sent.gzip:
            how["compression"] = grpc.Compression.Gzip
        try:
            # Whatever a verb takes is a stream on the wire.
            answers.extend(self._channel.stream_stream(sent.path)(iter(sent.messages), **how))
        except grpc.RpcError as error:
            held = dict(error.trailing_metadata() or ()).get("vecdb-error-bin")
            if not held and error.code().name not in ("DEADLINE_EXCEEDED", "UNIMPLEMENTED"):
                raise Found(f"{error.code().name} without a reason: {error.details()}") from None
            return error.code().name, json.loads(held)["reason"] if held else ""
        return "OK", ""

    def _judge(self, method: Any, sent: Sent, code: str, raw: list[bytes]) -> None:
        kind = message_factory.GetMessageClass(method.output_type)
        answers = [kind.FromString(one) for one in raw]
        if code == "OK" and not method.server_streaming and len(answers) != 1:
            raise Found(f"{len(answers)} answers to a call that has one")
        requests = [_parsed(method.input_type, one) for one in sent.messages]
        for answer in answers:
            if method.name == "Query":
                _judge_query(answer, requests[0])
            elif method.name == "QueryStream":
                self._judge_streamed(answer)
            elif method.name == "Check" and not answer.ok:
                raise Found(f"check finds {list(answer.problems)}")
            elif method.name == "VerifyBackups" and answer.HasField("report"):
                report = answer.report
                if not report.ok:
                    raise Found(f"verification finds {list(report.problems)}")
        if requests and requests[0] is not None:
            self.known.heard(method.name, requests[0], answers)

    def _judge_streamed(self, response: Any) -> None:
        for one in response.answers:
            if one.HasField("error"):
                held = json.loads(one.error.error)
                code = next(
                    code.name for code in grpc.StatusCode if code.value[0] == one.error.code
                )
                self.seen[f"QueryStream, a query {code}"] += 1
                if code not in MISTAKES:
                    raise Found(f"a query of a stream: {code}: {held}")
            else:
                self.seen["QueryStream, a query OK"] += 1
                _judge_query(one.answer, None)


def _judge_query(answer: Any, request: Any) -> None:
    """The columns of an answer agree, and distances rise within each query, where they are to."""
    hits = len(answer.hits.ids)
    if sum(answer.counts) != hits or len(answer.distances) != 4 * hits:
        raise Found(
            f"{list(answer.counts)} hits, {hits} ids, {len(answer.distances)} bytes of distances"
        )
    distances = struct.unpack(f"<{hits}f", answer.distances)
    if any(one != one for one in distances):
        raise Found("a distance is not a number")
    if request is None or request.group_by or request.HasField("mmr_lambda"):
        return
    at = 0
    for count in answer.counts:
        own = distances[at : at + count]
        at += count
        if list(own) != sorted(own) or len(set(answer.hits.ids[at - count : at])) != count:
            raise Found(f"answers of a query out of order, or twice: {own}")
        if request.k and count > request.k:
            raise Found(f"{count} answers for k = {request.k}")


def furnish(caller: Caller) -> None:
    """Makes what the requests of the fuzzer ask for, where it is not there, or not as it should be."""
    ask = caller.ask
    listed = ask("ListCollections", pb.ListCollectionsRequest())
    there = {one.name: one for one in listed.collections}
    spare = sorted(there.keys() - KINDS.keys() - ALIASES.keys())[8:]
    for name in [*(there.keys() & ALIASES.keys()), *spare]:
        ask("DropCollection", pb.DropCollectionRequest(name=name))
    for name, kind in KINDS.items():
        held = there.get(name)
        if held is not None and not _alike(held, kind.made):
            ask("DropCollection", pb.DropCollectionRequest(name=name))
            held = None
        if held is None:
            ask("DropAlias", pb.DropAliasRequest(alias=name))
            ask("CreateCollection", pb.CreateCollectionRequest(collection=kind.made))
        if kind.rows:
            names = [f"r{i}" for i in range(kind.rows)]
            batch = records(kind, kind.rows, caller.rng, names)
            ask("Upsert", pb.UpsertRequest(collection=name, records=batch))
        if kind.build and held is None:
            ask("BuildIndex", pb.BuildIndexRequest(collection=name, wait=True))
    for alias, name in ALIASES.items():
        ask("SetAlias", pb.SetAliasRequest(alias=alias, collection=name))


def _alike(held: Any, made: Any) -> bool:
    """Whether a collection is what the fuzzer has made under its name."""
    fields = ("dimension", "metric", "storage", "index", "quantization")
    same = all(getattr(made, one) in (0, getattr(held, one)) for one in fields)
    return same and [one.name for one in held.vectors] == [one.name for one in made.vectors]
