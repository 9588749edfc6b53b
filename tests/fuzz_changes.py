"""What the fuzzer does to right requests: fields dropped, doubled, exchanged between messages, numbers at borders,
lengths off by one, other types; and bytes changed without looking."""

from __future__ import annotations

import base64
import binascii
import random
import struct
import zlib
from typing import Any

from fuzz_filters import random_filter
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor as Of

NAMES = ["docs", "half", "int8", "uint8", "bits", "graph", "lists", "sq8", "pq4", "strict", "passing", "empty", "al",
         "moved", "none"]  # fmt: skip
TEXTS = ["", "a", "n", "-n", "id", "$document", "x.y", "x", "r1", "img", "bits", "\0", "ä" * 200, "../x", "..", "/etc/passwd", "DOCS", "docs ",
         "docs\n", "\u202edocs", "\uff44\uff4f\uff43\uff53", "{}", "[]", "null", "{", '{"n": 1}', '{"$and": []}', "9" * 400, "x" * 128, "x" * 129,
         "x" * 8193, "gpu:0", "cpu", "int", "string[]", "file:///etc/passwd", "s3://bucket/x", "kept", "id7"]  # fmt: skip
BYTES = [b"", b"{}", b"null", b"[]", b'{"n": 1}', b'{"n": NaN}', b'{"x": {"x": {"x": 1}}}', b'{"n": 9223372036854775808}',
         b'{"a": 1, "a": 2}', b'{"$date": "2026-01-01T00:00:00Z"}', b'{"d": {"$date": "x"}}', b'{"\\u0000": 1}', b'{"a": "\\ud800"}',
         b'{"a.b": 1, "a": {"b": 2}}', b'{"n": 1e400}', b"\xff\xfe", b"{" * 3000, b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000,
         b'{"t": "%s"}' % (b"x" * 70_000), b'{"n": null}', b'{"": 1}', b'{"tags": [[1]]}', b'{"tags": [1, "a", null]}'] \
        + [b'{%s}' % b",".join(b'"k%d": 1' % i for i in range(n)) for n in (200, 1200)]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 7, 8, 10, 100, 101, 255, 256, 257, 10_000, 10_001, 65_535, 65_536, 65_537, 100_001, 2**31 - 1, 2**31,
           2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1]  # fmt: skip
DOUBLES = [0.0, -0.0, -1.0, 0.5, 0.4999, 0.95, 1.0, 1.0001, 2.0, 1e-9, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 5e-324]  # fmt: skip
_ODD_FLOATS = [float("nan"), float("inf"), float("-inf"), 0.0, 3.4e38, -3.4e38, 1e-45, 1e20]


def _forged(cursor: str, rng: random.Random) -> str:
    """A cursor whole as to its checksum, with one of its numbers at a border: a caller can make it."""
    try:
        body = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))[:33])
    except binascii.Error:
        return cursor
    at = rng.choice([9, 17, 25])
    (was,) = struct.unpack_from("<Q", body, at)
    number = rng.choice([*NUMBERS, max(0, was - 1), was + 1 & 2**64 - 1, rng.randrange(200)])
    struct.pack_into("<Q", body, at, number)
    raw = bytes(body) + struct.pack("<I", zlib.crc32(body))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _text(name: str, was: str, rng: random.Random) -> str:
    if name == "filter":
        return random_filter(rng)
    if name in ("collection", "alias", "new_name") and rng.random() < 0.85:
        return rng.choice(NAMES)
    if name == "cursor" and len(was) == 50 and was.isascii() and rng.random() < 0.7:
        return _forged(was, rng)
    if rng.random() < 0.8:
        return rng.choice(TEXTS)
    return "".join(
        chr(rng.choice([rng.randrange(128), rng.randrange(0xD800)]))
        for _ in range(rng.randrange(40))
    )


def _bytes(was: bytes, rng: random.Random) -> bytes:
    way = rng.randrange(8)
    if way == 0:
        return was[:-1]
    if way == 1:
        return was + rng.choice([b"\0", b"\xff", was])
    if way == 2 and len(was) >= 4:
        # A number of a vector, if it is one.
        at = 4 * rng.randrange(len(was) // 4)
        return was[:at] + struct.pack("<f", rng.choice(_ODD_FLOATS)) + was[at + 4 :]
    if way == 3:
        return bytes(len(was))
    if way == 4 and was:
        return changed_bytes(was, rng)
    if way == 5:
        return b"\xff" * len(was)
    return rng.choice(BYTES)


def _value(field: Any, was: Any, rng: random.Random, depth: int = 0) -> Any:
    """A value for a field; `was` is what it holds, None for a new one."""
    kind = field.type
    if kind == Of.TYPE_STRING:
        return _text(field.name, was or "", rng)
    if kind == Of.TYPE_BYTES:
        return _bytes(was or b"", rng)
    if kind == Of.TYPE_BOOL:
        return not was
    if kind in (Of.TYPE_DOUBLE, Of.TYPE_FLOAT):
        return rng.choice(DOUBLES)
    if kind == Of.TYPE_ENUM:
        return rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 99, -1, 2**31 - 1])
    if kind == Of.TYPE_MESSAGE:
        return random_message(field.message_type, rng, depth + 1)
    signed = kind in (Of.TYPE_INT32, Of.TYPE_INT64)
    wide = kind in (Of.TYPE_UINT64, Of.TYPE_INT64)
    top = 2 ** ((64 if wide else 32) - signed) - 1
    if was and rng.random() < 0.5:
        return max(0, min(top, was + rng.choice([-1, 1])))
    chosen = min(rng.choice(NUMBERS), top)
    return -chosen if signed and rng.random() < 0.4 else chosen


def random_message(descriptor: Any, rng: random.Random, depth: int = 0) -> Any:
    """A message with random values in some of its fields."""
    made: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if rng.random() < 0.5 and depth < 4:
            _set(made, field, rng, depth)
    return made


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _set(message: Any, field: Any, rng: random.Random, depth: int = 0) -> None:
    """Gives a field a new value, or one entry more."""
    held = getattr(message, field.name)
    if _is_map(field):
        if field.message_type.fields_by_name["value"].type == Of.TYPE_STRING:
            held[_text(rng.choice(["collection", ""]), "", rng)] = _text("collection", "", rng)
    elif field.is_repeated:
        held.extend([_value(field, None, rng, depth)])
    elif field.type == Of.TYPE_MESSAGE:
        held.CopyFrom(_value(field, None, rng, depth))
    else:
        setattr(message, field.name, _value(field, held, rng, depth))


def _parts(message: Any) -> list[Any]:
    """The message and all messages in it."""
    found, at = [message], 0
    while at < len(found) and len(found) < 400:
        for field, held in found[at].ListFields():
            if field.type == Of.TYPE_MESSAGE and not _is_map(field):
                found.extend(held if field.is_repeated else [held])
        at += 1
    return found


def _change_list(held: Any, field: Any, rng: random.Random) -> None:
    """Changes a repeated field: one entry gone, doubled, moved, replaced; or very many."""
    at, way = rng.randrange(len(held)), rng.randrange(7)
    if way == 0:
        del held[at]
    elif way == 1:
        held.extend([held[at]])
    elif way == 2:
        held.extend(list(held) if len(held) < 1000 else [])
    elif field.type == Of.TYPE_MESSAGE:
        held[at].CopyFrom(held[rng.randrange(len(held))])
    elif way == 3 and len(held) > 1:
        other = rng.randrange(len(held))
        held[at], held[other] = held[other], held[at]
    elif way == 4 and rng.random() < 0.05:
        held.extend([held[at]] * rng.choice([300, 10_001, 100_001]))
    else:
        held[at] = _value(field, held[at], rng)


def _change(part: Any, donor: Any, rng: random.Random) -> None:
    """One change of one message, to which `donor` may give something."""
    fields, set_ones = part.DESCRIPTOR.fields, [field for field, _ in part.ListFields()]
    if not fields:
        return
    way = rng.random()
    if way < 0.15 or not set_ones:
        _set(part, rng.choice(fields), rng)
        return
    field = rng.choice(set_ones)
    held = getattr(part, field.name)
    if way < 0.3:
        part.ClearField(field.name)
    elif way < 0.45:
        # What another message has of the same kind, or the same field, comes here.
        alike = [one for one in _parts(donor) if one.DESCRIPTOR is part.DESCRIPTOR]
        if alike:
            given = rng.choice(alike)
            if rng.random() < 0.5:
                part.MergeFrom(given)
            else:
                part.CopyFrom(given)
    elif _is_map(field):
        _set(part, field, rng)
    elif field.is_repeated:
        _change_list(held, field, rng)
    elif field.type != Of.TYPE_MESSAGE:
        setattr(part, field.name, _value(field, held, rng))


def changed(message: Any, donor: Any, rng: random.Random) -> Any:
    """A copy of a message with one to four changes of its structure."""
    made = type(message)()
    made.CopyFrom(message)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        _change(rng.choice(_parts(made)), donor, rng)
    return made


def changed_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Bytes with a few of them changed, lost, doubled or added."""
    data = bytearray(raw)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(5)
        if what == 0:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif what == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif what == 2 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 3 and at < len(data):
            # Lengths and numbers are bytes of a varint.
            data[at] = (data[at] + rng.choice([-1, 1])) % 256
        else:
            data[at:at] = data[rng.randrange(len(data) + 1) :][:32]
    return bytes(data)


def changed_list(sent: list[bytes], rng: random.Random) -> list[bytes]:
    """The messages of a stream: one lost, doubled, moved, or none at all."""
    made = list(sent)
    way = rng.randrange(5)
    if way == 0 and made:
        del made[rng.randrange(len(made))]
    elif way == 1 and made:
        made.append(made[rng.randrange(len(made))])
    elif way == 2:
        made.insert(rng.randrange(len(made) + 1), b"")
    elif way == 3:
        rng.shuffle(made)
    return made
