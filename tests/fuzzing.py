"""Strange input for the wire and the filter language, and what must hold whatever comes.

    make fuzz MINUTES=30            prints the seed of each round; SEED=n replays from there

`rounds` is what `test_fuzz.py` runs for a moment in every test run. Requests are made three ways: random bytes,
random values in every field of a message, and real requests with some bytes or fields changed. A server must answer
each with a status that a client's mistake can have, log nothing unexpected, and go on answering.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor

from vecdb.errors import InvalidFilter
from vecdb.filters import parse
from vecdb_client.v1 import vecdb_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["VecdbService"]
MISTAKES = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
TEXTS = ["", "docs", "a", "n", "id", "$document", "x.y", "-n", "\0", "ä" * 200, "../x", "\u202e", "{}", "[]", "null", "{",
         '{"n": 1}', '{"n": {"$gt": 0}}', '{"$not": {"t": {"$regex": "(a+)+$"}}}', '{"$and": []}', "9" * 400]  # fmt: skip
NUMBERS = [
    0,
    1,
    2,
    3,
    10,
    255,
    256,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
_LIVE_S = 1.0


def _hold(promise: bool, given: Any) -> None:
    if not promise:
        raise AssertionError(given)


def random_text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    if rng.random() < 0.5:
        return random_filter(rng)
    return "".join(
        chr(rng.choice([rng.randrange(128), rng.randrange(0xD800)]))
        for _ in range(rng.randrange(40))
    )


def random_value(field: Any, rng: random.Random, depth: int) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return random_text(rng)
    if kind == FieldDescriptor.TYPE_BYTES:
        if rng.random() < 0.5:
            return rng.choice(
                [
                    b"",
                    b"{}",
                    b'{"n": 1}',
                    b"\0\0\x80\x3f" * rng.randrange(1, 9),
                    b"\xff" * 8,
                    b"null",
                ]
            )
        return rng.randbytes(rng.randrange(64))
    if kind == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if kind in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return rng.choice(
            [0.0, -1.0, 0.5, 0.95, 1.0, 1e308, -1e308, float("nan"), float("inf"), -0.0, 1e-320]
        )
    if kind == FieldDescriptor.TYPE_ENUM:
        return rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 99, -1])
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return random_message(field.message_type, rng, depth + 1)
    unsigned = kind in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
    wide = kind in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_INT64)
    top = 2 ** ((64 if wide else 32) - (0 if unsigned else 1)) - 1
    return min(rng.choice(NUMBERS), top)


def random_message(descriptor: Any, rng: random.Random, depth: int = 0) -> Any:
    """A message with random values in some of its fields."""
    from google.protobuf import message_factory

    made: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if rng.random() < 0.4 or depth > 3:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(rng.randrange(3)):
                key = random_text(rng)
                held = getattr(made, field.name)
                value = field.message_type.fields_by_name["value"]
                if value.type == FieldDescriptor.TYPE_STRING:
                    held[key] = random_text(rng)
            continue
        values = [
            random_value(field, rng, depth)
            for _ in range(rng.randrange(4) if field.is_repeated else 1)
        ]
        if field.is_repeated:
            getattr(made, field.name).extend(values)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(made, field.name).CopyFrom(values[0])
        else:
            setattr(made, field.name, values[0])
    return made


def random_operand(rng: random.Random, depth: int) -> Any:
    plain = [None, True, False, 0, 1, -1, 2**63, 2**64, 1e308, float("nan"), "", "a", "\0", "ä", [], {}, [1], ["a", 1],
             {"$date": "2026-01-01T00:00:00Z"}, {"$date": "x"}, {"$date": 5}, {"a": 1}]  # fmt: skip
    if depth < 4 and rng.random() < 0.3:
        return [random_operand(rng, depth + 1) for _ in range(rng.randrange(4))]
    return rng.choice(plain)


def random_tree(rng: random.Random, depth: int = 0) -> Any:
    """Something like a filter: mostly right, often wrong somewhere."""
    operators = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains", "$not_contains", "$regex",
                 "$and", "$or", "$not", "$document", "$what", "$"]  # fmt: skip
    found: dict[str, Any] = {}
    for _ in range(rng.randrange(3) + (depth == 0)):
        name = rng.choice(
            [
                "n",
                "t",
                "tags",
                "x.y",
                "id",
                "$document",
                "$and",
                "$or",
                "$not",
                "",
                ".",
                "a..b",
                "$eq",
            ]
        )
        if name in ("$and", "$or"):
            found[name] = (
                [random_tree(rng, depth + 1) for _ in range(rng.randrange(3))] if depth < 40 else []
            )
        elif name == "$not":
            found[name] = random_tree(rng, depth + 1) if depth < 40 else {}
        elif rng.random() < 0.5:
            found[name] = random_operand(rng, 0)
        else:
            pattern = rng.choice(
                [
                    "a",
                    "(a+)+",
                    "[",
                    "a{1,1000}",
                    "(?i)x",
                    "\\p{L}*",
                    "(((((a)*)*)*)*)*",
                    "\\C",
                    "(?P<a>b)",
                ]
            )
            operator = rng.choice(operators)
            found[name] = {operator: pattern if operator == "$regex" else random_operand(rng, 0)}
    return found


def random_filter(rng: random.Random) -> str:
    """A filter as text, sometimes with its bytes changed."""
    text = json.dumps(random_tree(rng), ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.3:
        raw = bytearray(text.encode(errors="replace"))
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return raw.decode(errors="replace")
    return text


def fuzz_filters(rng: random.Random, docs: Any, seen: Counter[str], end_s: float) -> None:
    """Filters parse or are InvalidFilter with a path; what parses answers, and `$not` of it answers the rest."""
    from vecdb.errors import VecdbError

    total = docs.count()
    while time.monotonic() < end_s:
        text = random_filter(rng)
        began_s = time.monotonic()
        try:
            found = parse(text)
        except InvalidFilter as error:
            _hold(error.details["path"].startswith("$"), text)
            seen["filter refused"] += 1
        else:
            seen["filter taken"] += 1
            assert parse(found.text).text == found.text, text
            try:
                matching, others = docs.count(text), docs.count(f'{{"$not": {found.text}}}')
            except VecdbError as error:
                _hold(isinstance(error, InvalidFilter), (text, error))
            else:
                assert matching + others == total, text
        assert time.monotonic() - began_s < 5, f"slow: {text}"


def mutated(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(4)
        if what == 0:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif what == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif what == 2 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at:at] = data[rng.randrange(len(data) + 1) :][:32]
    return bytes(data)


def random_request(method: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(200))
    made = random_message(method.input_type, rng)
    for name in ("collection", "name"):
        field = method.input_type.fields_by_name.get(name)
        # Mostly the collection that is there: else nearly all would end at its name.
        if field is not None and field.type == FieldDescriptor.TYPE_STRING and rng.random() < 0.8:
            setattr(made, name, "docs")
    raw: bytes = made.SerializeToString()
    return mutated(raw, rng) if rng.random() < 0.4 else raw


def fuzz_wire(rng: random.Random, address: str, seen: Counter[str], end_s: float) -> None:
    """Requests of every RPC, as raw bytes over one connection."""
    with grpc.insecure_channel(address) as channel:
        while time.monotonic() < end_s:
            method = rng.choice(SERVICE.methods)
            if method.name in ("DropCollection", "RenameCollection") and rng.random() < 0.95:
                continue
            raw, path = random_request(method, rng), f"/{SERVICE.full_name}/{method.name}"
            try:
                if method.client_streaming:
                    list(channel.stream_stream(path)(iter([raw]), timeout=_LIVE_S))
                elif method.server_streaming:
                    list(channel.unary_stream(path)(raw, timeout=_LIVE_S))
                else:
                    channel.unary_unary(path)(raw, timeout=_LIVE_S)
                code = grpc.StatusCode.OK
            except grpc.RpcError as error:
                code = error.code()
                _hold(code in MISTAKES, (method.name, raw, error))
            seen[f"{method.name} {code.name}"] += 1


class Complaints(logging.Handler):
    """Errors that the server logs: an unexpected failure is one, whatever the client was told."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def one_round(seed: int, seconds: float, folder: Path) -> Counter[str]:
    """A server in this process, fuzzed for some time; what was seen. AssertionError names the input."""
    import numpy as np

    from vecdb_client import connect
    from vecdb_server.server import Server

    rng, seen = random.Random(seed), Counter[str]()
    complaints = Complaints()
    logger = logging.getLogger("vecdb")
    logger.addHandler(complaints)
    server = Server({"data": str(folder), "port": 0, "device": "cpu", "max_collections": 20})
    server.start()
    try:
        with connect(server.address, timeout_s=60) as db:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                docs = (
                    db.create_collection("docs", dimension=2, exist_ok=False)
                    if not _there(db)
                    else db.get_collection("docs")
                )
                ids = [f"r{i}" for i in range(40)]
                made = [
                    {"n": i, "t": "ab" * i, "tags": ["a", i], "x": {"y": i / 2}} if i % 3 else None
                    for i in range(40)
                ]
                docs.upsert(ids, np.ones((40, docs.info.dimension)), metadata=made, documents=ids)
                fuzz_filters(
                    rng,
                    server._database.get_collection("docs"),
                    seen,
                    min(end_s, time.monotonic() + seconds / 6),
                )
                fuzz_wire(rng, server.address, seen, min(end_s, time.monotonic() + seconds / 6))
            assert db.server_info().version
            assert all(db.get_collection(one.name).check().ok for one in db.list_collections())
    finally:
        logger.removeHandler(complaints)
        assert server.stop()
    assert not complaints.found, complaints.found
    return seen


def _there(db: Any) -> bool:
    infos = {one.name: one for one in db.list_collections()}
    if "docs" in infos and infos["docs"].dimension != 2:
        db.drop_collection("docs")
        return False
    return "docs" in infos or "docs" in db.list_aliases()


def rounds(minutes: float, first_seed: int) -> Iterator[tuple[int, Counter[str]]]:
    """Rounds of at most a minute, each with a seed and a folder of its own."""
    end_s, seed = time.monotonic() + 60 * minutes, first_seed
    while (left_s := end_s - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory() as folder:
            yield seed, one_round(seed, min(60.0, left_s), Path(folder) / "db")
        seed += 1


def main() -> None:
    minutes = float(os.environ.get("MINUTES") or "5")
    seed = int(os.environ.get("SEED") or str(int.from_bytes(os.urandom(3), "little")))
    total = Counter[str]()
    print(f"fuzzing for {minutes:g} minutes from seed {seed}", flush=True)
    for used, seen in rounds(minutes, seed):
        total += seen
        print(f"seed {used}: {sum(seen.values()):,} inputs, nothing found", flush=True)
    print(f"{sum(total.values()):,} inputs")
    for what, count in sorted(total.items()):
        print(f"  {count:9,}  {what}")


if __name__ == "__main__":
    sys.exit(main())
