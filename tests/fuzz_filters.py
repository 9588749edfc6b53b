"""Random filters: those that are right, those that are not, and what the engine makes of them beside the plain
evaluator of `plain_filter.py`, over random metadata."""

from __future__ import annotations

import datetime as dt
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from plain_filter import matches

INTS = [0, 1, -1, 2, 7, 20, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, 0.5, 1.0, -1.5, 7.0, 2.0**53, 2.0**63, -(2.0**63), 1e300, 5e-324]
WIDE = [2**63, 2**64, -(2**70), 10**300]
STRINGS = [
    "",
    "a",
    "A",
    "ab",
    "abab",
    "b",
    "ä",
    "日本",
    "😀",
    "\uffff",
    "0",
    "true",
    "a\nb",
    "null",
]
DATES = ["2026-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00"]  # fmt: skip
PLAIN_PATTERNS = ["a", "^a", "b$", "^$", "[ab]+", "a.b", "日", "(a|0)", r"\d", ".", "(ab)+", ""]
"""RE2 and Python's re agree about these, and neither takes long."""
OTHER_PATTERNS = ["(a+)+$", "[", "a{1,1000}", "(?i)x", r"\p{L}*", "(((((a)*)*)*)*)*", r"\C", "(?P<a>b)", "a{1001}",
                  "(a{1,100}){1,100}", "(a*)*b|" * 50 + "c", "\\", "(?", "[^\\x00-\\x{10FFFF}]", "\0", "(" * 1500 + ")" * 1500,
                  r"\pN\b\B\A\z", "(?s).*" * 30, "[[:alpha:]]", "\\Qa.b\\E", "x" * 5000]  # fmt: skip
FIELDS = ["n", "t", "tags", "x.y", "x.z", "x", "d", "b", "never"]
COMPARED = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]
OPERATORS = [*COMPARED, "$in", "$nin", "$exists", "$contains", "$not_contains", "$regex"]


def _scalar(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(INTS)
    if kind == 2:
        return rng.choice(FLOATS)
    if kind < 6:
        return rng.choice(STRINGS)
    return rng.random() < 0.5 if kind == 6 else {"$date": rng.choice(DATES)}


def _value(rng: random.Random) -> Any:
    if rng.random() < 0.25:
        return [_scalar(rng) for _ in range(rng.randrange(4))]
    return None if rng.random() < 0.1 else _scalar(rng)


def random_metadata(rng: random.Random) -> dict[str, Any]:
    """Metadata that the engine takes, of any types."""
    found: dict[str, Any] = {}
    for name in ("n", "t", "tags", "d", "b", "x.z"):
        if rng.random() < 0.6:
            found[name] = _value(rng)
    if rng.random() < 0.5:
        found["x"] = {"y": _value(rng)}
    return found


def right_metadata(rng: random.Random, strict: bool) -> bytes:
    """The same as JSON; `strict`: as the schema of the collection "strict" wants it."""
    if strict:
        made: Any = {
            "n": rng.randrange(9),
            "t": rng.choice("abc"),
            "tags": ["a"] * rng.randrange(3),
        }
    elif rng.random() < 0.3:
        made = random_metadata(rng)
    else:
        made = {
            "n": rng.randrange(30),
            "t": rng.choice("abcd"),
            "tags": [rng.choice("ab"), 1],
            "x": {"y": 0.5},
        }
    return json.dumps(made).encode()  # fmt: skip


def right_tree(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A filter that is right: it parses, and may be compared with the plain evaluator."""
    found: dict[str, Any] = {}
    for _ in range(rng.choice([1, 1, 2])):
        way = rng.random()
        if depth < 4 and way < 0.3:
            name = rng.choice(["$and", "$or"])
            found[name] = [right_tree(rng, depth + 1) for _ in range(rng.choice([1, 2, 3]))]
        elif depth < 4 and way < 0.45:
            found["$not"] = right_tree(rng, depth + 1)
        elif way < 0.55:
            found["id"] = _on_id(rng)
        elif way < 0.65:
            found["$document"] = _on_document(rng)
        else:
            found[rng.choice(FIELDS)] = _on_field(rng)
    return found


def _on_field(rng: random.Random) -> Any:
    if rng.random() < 0.2:
        return _scalar(rng)
    found: dict[str, Any] = {}
    for _ in range(rng.choice([1, 1, 2])):
        operator = rng.choice(OPERATORS)
        if operator in ("$in", "$nin"):
            operand: Any = [_scalar(rng) if rng.random() < 0.9 else None for _ in range(rng.choice([1, 3, 200]))]  # fmt: skip
        elif operator == "$exists":
            operand = rng.random() < 0.5
        elif operator == "$regex":
            operand = rng.choice(PLAIN_PATTERNS)
        elif operator in ("$gt", "$gte", "$lt", "$lte"):
            operand = rng.choice([*INTS, *FLOATS, *WIDE, *STRINGS, {"$date": rng.choice(DATES)}])
        else:
            operand = rng.choice(WIDE) if rng.random() < 0.05 else _scalar(rng)
        found[operator] = operand
    return found


def _on_id(rng: random.Random) -> Any:
    one = f"r{rng.randrange(60)}"
    operator = rng.choice(["$eq", "$in", "$nin", "$gt", "$lte", "$contains", "$regex", "$ne"])
    if operator in ("$in", "$nin"):
        return {operator: [f"r{rng.randrange(60)}" for _ in range(rng.choice([1, 5]))]}
    return {operator: "^r1" if operator == "$regex" else one}


def _on_document(rng: random.Random) -> Any:
    operator = rng.choice(["$contains", "$not_contains", "$regex", "$eq", "$ne", "$exists"])
    if operator == "$exists":
        return {operator: rng.random() < 0.5}
    return {operator: rng.choice(PLAIN_PATTERNS if operator == "$regex" else STRINGS)}


def right_filter(rng: random.Random) -> str:
    return json.dumps(right_tree(rng), ensure_ascii=rng.random() < 0.5)


def _broken(tree: Any, rng: random.Random) -> Any:
    """A filter with one place of it replaced by what rarely belongs there."""
    if rng.random() < 0.3 or not isinstance(tree, dict | list) or not tree:
        return rng.choice([None, True, 0, -1, 2**64, 1e308, float("nan"), float("-inf"), "", "\0", "\ud800", [], {}, [1],
                           [[1]], {"$date": "x"}, {"$date": 5}, {"$date": "9999-12-31T23:59:59-23:59"}, {"a": 1}, {"$eq": 1},
                           {"$regex": rng.choice(OTHER_PATTERNS)}, {"$in": list(range(10_001))},
                           {"$not": {"$not": {}}}, {"$what": 1}, {"$and": []}, [{}]])  # fmt: skip
    if isinstance(tree, list):
        at = rng.randrange(len(tree))
        return [*tree[:at], _broken(tree[at], rng), *tree[at + 1 :]]
    name = rng.choice(list(tree))
    changed = {**tree, name: _broken(tree[name], rng)}
    if rng.random() < 0.2:
        odd = rng.choice(
            ["", ".", "a..b", "$eq", "$", "$document", "id", "\0", "x" * 2000, "x.y.z"]
        )
        changed[odd] = changed.pop(name)
    return changed


def deep(rng: random.Random) -> str:
    """A filter that is deep or long, in one of the ways in which it can be."""
    n = rng.choice([5, 31, 32, 33, 900, 900, 900, 9_000])
    return rng.choice([
        '{"$not":' * n + '{"n":1}' + "}" * n,
        '{"$and":[' * n + '{"n":1}' + "]}" * n,
        '{"n":{"$in":' + "[" * n + "1" + "]" * n + "}}",
        '{"n":' + '{"$eq":' * n + "1" + "}" * (n + 1),
        '{"$or":[' + ",".join(f'{{"n":{i}}}' for i in range(n)) + "]}",
        "{" + ",".join(f'"k{i}":1' for i in range(n)) + f',"k{n - 1}":2}}',
        '{"n":' + "9" * n + "}", '{"n":1e' + "9" * n + "}", '{"n":"' + "\\ud83d\\ude00" * n + '"}',
        "[" * n, '{"a":' * n, '{"$and":[' + ",".join(['{"t":{"$regex":"a"}}'] * n) + "]}",
        '{"t":{"$regex":"' + "(a|" * n + "b" + ")" * n + '"}}', '{"' + "a." * n + 'a":1}',
    ])  # fmt: skip


def random_filter(rng: random.Random) -> str:
    """A filter as text: right, wrong somewhere, deep, or with its bytes changed."""
    way = rng.random()
    if way < 0.03:
        return deep(rng)
    tree: Any = right_tree(rng)
    for _ in range(rng.choice([0, 1, 1, 2]) if way < 0.6 else 0):
        tree = _broken(tree, rng)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.15:
        raw = bytearray(text.encode(errors="replace"))
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        text = raw.decode(errors="replace")
    return text.encode(errors="replace").decode()


def _dated(value: Any) -> Any:
    """Metadata or a filter with datetimes in place of what stands for them."""
    if isinstance(value, list):
        return [_dated(one) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$date"}:
        return dt.datetime.fromisoformat(value["$date"])
    return {name: _dated(one) for name, one in value.items()}


def _patterns(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return set().union(*map(_patterns, tree))
    if not isinstance(tree, dict):
        return set()
    own = {one for name, one in tree.items() if name == "$regex" and isinstance(one, str)}
    return own.union(*map(_patterns, tree.values()))


class Compared:
    """A collection of random records beside a list of the same, and filters asked of both."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        import vecdb

        self.rng = rng
        self.database = vecdb.open(folder, device="cpu", history_s=0.0)
        self.docs = self.database.create_collection("docs", dimension=2, metric="l2")
        self.held: dict[str, tuple[dict[str, Any], str | None]] = {}
        self.write(200)

    def write(self, count: int) -> None:
        """Writes and deletes some records, so that filters meet dead rows and columns of several batches."""
        rng = self.rng
        names = [f"r{i}" for i in rng.sample(range(300), count)]
        metadata = [random_metadata(rng) for _ in names]
        documents = [rng.choice([None, *STRINGS]) for _ in names]
        self.docs.upsert(
            names, [[i, 1] for i in range(count)], metadata=metadata, documents=documents
        )
        for name, one, text in zip(names, metadata, documents, strict=True):
            self.held[name] = (_dated(one), text)
        gone = rng.sample(sorted(self.held), count // 8 + 1)
        self.docs.delete(gone)
        for name in gone:
            del self.held[name]

    def ask(self, seen: Counter[str]) -> None:
        """One filter. AssertionError where the engine and the plain evaluator differ."""
        if self.rng.random() < 0.002:
            self.write(self.rng.choice([1, 8, 60]))
        text = random_filter(self.rng)
        try:
            self._ask(text, seen)
        except Exception as error:
            raise AssertionError(
                f"filter {text[:3000]!r}: {type(error).__name__}: {error}"
            ) from error

    def _ask(self, text: str, seen: Counter[str]) -> None:
        from vecdb.errors import InvalidFilter
        from vecdb.filters import parse

        began_s = time.monotonic()
        try:
            found = parse(text)
        except InvalidFilter as error:
            refused = error.details["path"]
            seen["filter refused"] += 1
        else:
            refused = "$"
            seen["filter taken"] += 1
            assert parse(found.text).text == found.text, text
            self._compare(text, found, seen)
        assert refused.startswith("$"), refused
        took_s = time.monotonic() - began_s
        assert took_s < 20, f"{took_s:.1f} s: {text[:2000]}"

    def _compare(self, text: str, found: Any, seen: Counter[str]) -> None:
        from vecdb.errors import InvalidFilter, LimitExceeded

        rng = self.rng
        try:
            count = self.docs.count(text)
        except (InvalidFilter, LimitExceeded):
            seen["filter refused when asked"] += 1
            return
        others = self.docs.count(f'{{"$not": {found.text}}}') if found.depth < 32 else None
        assert others is None or count + others == len(self.held), text
        tree = json.loads(text)
        if not _patterns(tree) <= set(PLAIN_PATTERNS) or len(text) > 20_000:
            return
        wanted = _dated(tree)
        names = {name for name, held in self.held.items() if matches(wanted, name, *held)}
        way = rng.randrange(4)
        if way == 0:
            got = self.docs.get(filter=text, limit=10_000).ids
        elif way == 1:
            got = [name for page in self.docs.scan(filter=text) for name in page.ids]
        elif way == 2:
            got = self.docs.query([1, 1], k=10_000, filter=text, exact=True).ids[0]
        else:
            asked = rng.sample(sorted(self.held), 20)
            got, names = self.docs.get(asked, filter=text).ids, names & set(asked)
            count = len(names)
        assert sorted(got) == sorted(names), (text, sorted(set(got) ^ names)[:5])
        assert count == len(names), text
        seen["filter compared"] += 1

    def close(self) -> None:
        """Checks what is there once more, and ends."""
        report = self.docs.check()
        self.database.close()
        assert report.ok, report.problems
