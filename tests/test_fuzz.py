"""Strange input, for a moment; `make fuzz` goes on for as long as it is told."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fuzz_changes import changed, changed_bytes
from fuzz_seeds import SEEDS, Known
from fuzz_wire import METHODS, Caller, Found, Sent
from fuzzing import one_round
from seeds import RUN_SEED

from vecdb_client.v1 import vecdb_pb2 as pb

_ROUNDS = 5
"""At most. One of six seconds is enough, unless the machine is slow or the first calls dropped what others ask for."""


def test_strange_input_does_no_harm(tmp_path: Path) -> None:
    """Requests of every kind and filters are answered or refused as a client's mistake, and the server goes on; enough
    of both kinds come for that to mean something."""
    print("seed", RUN_SEED)
    seen = Counter[str]()
    for seed in range(RUN_SEED, RUN_SEED + _ROUNDS):
        seen += one_round(seed, 2_000, 6.0, tmp_path / str(seed))
        found = [seen["filter taken"], seen["filter refused"], seen["filter compared"]]
        calls = [sum(one.endswith(end) for one in seen) for end in (" OK", " INVALID_ARGUMENT")]
        if min(found) > 20 and min(calls) > 10:
            return
    raise AssertionError(f"too little came: {seen}")


def test_there_is_a_right_request_of_every_rpc() -> None:
    """What the fuzzer begins with covers the contract, and the same seed makes the same requests and changes."""

    def made(seed: int) -> list[bytes]:
        rng, known, found = random.Random(seed), Known(), []
        for make in SEEDS.values():
            request = make(rng, known)
            one = request[0] if isinstance(request, list) else request
            found += [one.SerializeToString(deterministic=True)]
            found += [changed(one, one, rng).SerializeToString(deterministic=True)]
            found += [changed_bytes(found[-1], rng)]
        return found

    assert set(SEEDS) == set(METHODS)
    assert made(RUN_SEED) == made(RUN_SEED) != made(RUN_SEED + 1)


class Told(Caller):
    """A caller that is answered what the test says, by nobody."""

    def __init__(self, code: str, reason: str, answers: list[bytes]) -> None:
        super().__init__(random.Random(1), "127.0.0.1:1", Counter())
        self.told = code, reason, answers

    def _answered(self, sent: Sent, answers: list[bytes]) -> tuple[str, str]:
        answers.extend(self.told[2])
        return self.told[:2]


_HITS = pb.RecordBatch(ids=["a", "b"])


@pytest.mark.parametrize(
    ("verb", "code", "answer"),
    [
        ("Query", "INTERNAL", None),
        ("Count", "UNKNOWN", None),
        ("Check", "OK", pb.CheckResponse(ok=False, problems=["x"])),
        ("Query", "OK", pb.QueryResponse(counts=[2], hits=_HITS, distances=b"\0" * 4)),
        ("Query", "OK", pb.QueryResponse(counts=[2], hits=_HITS, distances=b"\0\0\x80\x3f" + b"\0" * 4)),
        ("Query", "OK", pb.QueryResponse(counts=[2], hits=_HITS, distances=b"\xff" * 8)),
        ("QueryStream", "OK", pb.QueryStreamResponse(answers=[
            pb.StreamedAnswer(error=pb.StreamedError(code=13, error=b"{}"))])),
    ],
)  # fmt: skip
def test_what_must_not_happen_is_found(verb: str, code: str, answer: Any) -> None:
    """Statuses that no mistake has, checks that complain, answers that contradict themselves."""
    caller = Told(code, "INTERNAL", [] if answer is None else [answer.SerializeToString()])
    with pytest.raises(Found):
        caller.call(Sent(f"/vecdb.v1.VecdbService/{verb}", [b""], 1.0))
    caller.close()
