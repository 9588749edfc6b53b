"""Strange input for the wire and the filter language, and what must hold whatever comes.

    make fuzz MINUTES=30            prints the seed of each round; SEED=n replays from there

A round is a server in a process of its own, which is sent right requests of every RPC, as they are and changed
(`fuzz_seeds.py`, `fuzz_changes.py`, `fuzz_wire.py`): first by one caller, then by several at once, of which one takes
away, renames and makes again what the others use. What reached something new (a verb, a code, a reason) is changed
further. Between them random filters are asked of an engine and of a plain evaluator (`fuzz_filters.py`). Found is:
a status that no mistake of a client has, an error in the log, a call that hangs, calls that do not end, a process that
dies or grows, answers that contradict themselves, and whatever a check says, of a server and of its folder afterwards.

`one_round` is what `test_fuzz.py` runs for a moment in every test run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
from fuzz_filters import Compared
from fuzz_wire import METHODS, Caller, Found, furnish
from server_process import environment, resident_bytes

INPUTS = 24_000
"""Calls of a round, as many whatever the machine does, so that a seed replays it; and half as many filters."""
_PART = 600
"""After so many calls what was dropped is made again, and another kind of input has its turn."""
_CALLERS = 4
_MOST_BYTES = 900 << 20
"""What the server may take more than at its start. One batch of the largest may take a third of it."""
_END_S = 60.0
FLAGS = ["--max-collections", "40", "--device", "cpu", "--log-format", "json", "--log-level", "warning", "--history-s", "5",
         "--exact-max-scalars", "2000", "--max-open-collections", "8", "--map-initial-bytes", str(1 << 20)]  # fmt: skip
"""Small, so that indexes are built, files closed and maps enlarged while the server is asked."""


class Served:
    """A server in a process of its own, with a folder for backups and a file for its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process: subprocess.Popen[str] = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "vecdb_server", "serve", "--data", str(folder / "db"), "--port", "0",
                 "--backup-root", str(folder / "backups"), *FLAGS],
                stdout=subprocess.PIPE, stderr=log, text=True, env=environment(),
            )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]
        self.began_bytes = 0

    def judge(self) -> None:
        """Found when the process is gone, has grown or has told of an error."""
        if self.process.poll() is not None:
            raise Found(f"the server ended with {self.process.returncode}: {self._tail()}")
        grown = resident_bytes(self.process) - (self.began_bytes or resident_bytes(self.process))
        self.began_bytes = self.began_bytes or resident_bytes(self.process)
        if grown > _MOST_BYTES:
            raise Found(f"the server has grown by {grown >> 20} MiB")
        for line in self.log.read_text(errors="replace").splitlines():
            if "Traceback" in line or '"level": "error"' in line or '"level": "critical"' in line:
                raise Found(f"the server's log says: {line[:6000]}")

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def settle(self, caller: Caller) -> None:
        """Waits until no call is under way; Found when one never ends."""
        end_s = time.monotonic() + _END_S
        while (left := _running(caller)) and time.monotonic() < end_s:
            time.sleep(0.2)
        if left:
            raise Found(f"calls go on that nobody waits for: {left}")

    def stop(self) -> None:
        """Ends the server as an operator does, and checks what it leaves."""
        import vecdb

        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(90)
        except subprocess.TimeoutExpired:
            raise Found("the server does not stop when it is told to") from None
        if code:
            raise Found(f"the server ended with {code}: {self._tail()}")
        with vecdb.open(self.folder / "db", device="cpu", auto_build=False) as database:
            for info in database.list_collections():
                report = database.get_collection(info.name).check()
                if not report.ok:
                    raise Found(f"opened again, {info.name}: {report.problems}")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def _running(caller: Caller) -> list[str]:
    text = caller.metrics()
    lines = [one for one in text.splitlines() if one.startswith("vecdb_calls_running{")]
    # The call that asks is one of them.
    return [one for one in lines if float(one.split()[-1]) > ('"read"' in one)]


def _together(served: Served, rng: random.Random, seen: Counter[str], calls: int) -> None:
    """Several callers at once. What each sends follows from the seed, their order does not."""
    callers = [Caller(random.Random(rng.random()), served.address, Counter()) for _ in range(_CALLERS)]  # fmt: skip
    # One of them does mostly what the others must bear.
    callers[0].prefer(["DropCollection", "RenameCollection", "CreateCollection", "SetAlias", "DropAlias", "BuildIndex", "Compact",
                       "RestoreBackup", "Upsert", "Delete"])  # fmt: skip
    failed: list[tuple[Caller, BaseException]] = []

    def work(caller: Caller) -> None:
        try:
            for _ in range(calls // _CALLERS):
                if failed:
                    return
                caller.strange()
        except BaseException as error:
            failed.append((caller, error))

    threads = [threading.Thread(target=work, args=(one,)) for one in callers]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for caller in callers:
        seen.update(caller.seen)
        caller.close()
    if failed:
        caller, error = failed[0]
        raise Found(f"{error}; several callers, of which this one sent last:\n{_inputs(caller)}")


def _inputs(caller: Caller) -> str:
    return "\n".join(one.shown() for one in [*caller.last][-3:])


def one_round(seed: int, inputs: int, seconds: float, folder: Path) -> Counter[str]:
    """A round of so many calls, or of so many seconds if these are over sooner; what was seen. Found, which names the
    last inputs."""
    rng, seen = random.Random(seed), Counter[str]()
    served = Served(folder)
    caller = Caller(random.Random(rng.random()), served.address, seen)
    compared = Compared(random.Random(rng.random()), folder / "beside")
    try:
        furnish(caller)
        served.judge()
        end_s = time.monotonic() + seconds
        part = min(_PART, max(4, inputs // 40))
        for turn in range(inputs // part):
            if turn % 4 == 3:
                _together(served, rng, seen, part)
            else:
                for _ in range(part):
                    caller.strange()
                    if time.monotonic() > end_s:
                        break
            served.judge()
            for _ in range(part // 2):
                compared.ask(seen)
                if time.monotonic() > end_s:
                    break
            if time.monotonic() > end_s:
                break
            furnish(caller)
        served.settle(caller)
        _check_all(caller)
        served.judge()
        compared.close()
        served.stop()
    except (Found, AssertionError) as error:
        time.sleep(0.5)  # A process that dies tells of it a moment later.
        died = served.process.poll()
        found = Found(
            f"seed {seed}: {str(error)[:6000]}\nserver: {'serves' if died is None else f'ended with {died}'}\n"
            f"{served.log.read_text(errors='replace')[-6000:]}\nlast inputs, the newest last:\n{_inputs(caller)}"
        )
        found.seen = seen
        raise found from error
    finally:
        caller.close()
        served.kill()
    return seen


def _check_all(caller: Caller) -> None:
    for name, problems in caller.check_all():
        if problems:
            raise Found(f"check of {name}: {problems}")


def rounds(minutes: float, first_seed: int) -> Iterator[tuple[int, Counter[str]]]:
    """Rounds, each with a seed and a folder of its own."""
    end_s, seed = time.monotonic() + 60 * minutes, first_seed
    while (left_s := end_s - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory() as folder:
            yield seed, one_round(seed, INPUTS, left_s, Path(folder) / "round")
        seed += 1


def table(seen: Counter[str], took_s: float) -> str:
    """What was answered, as a page: inputs a second, codes by verb, errors by reason, filters."""
    codes = [one.name for one in grpc.StatusCode if any(key.endswith(f" {one.name}") for key in seen)]  # fmt: skip
    verbs = [*METHODS, "QueryStream, a query", "other"]
    calls = sum(count for key, count in seen.items() if key.split(" ")[0] in (*METHODS, "other"))
    filters = sum(seen[f"filter {how}"] for how in ("taken", "refused"))
    lines = [f"{calls:,} calls and {filters:,} filters in {took_s:,.0f} s: {(calls + filters) / took_s:,.0f} inputs a second.", ""]  # fmt: skip
    lines += ["| verb | " + " | ".join(codes) + " |", "| --- |" + " ---: |" * len(codes)]
    for verb in verbs:
        counts = [seen[f"{verb} {code}"] for code in codes]
        lines.append(f"| {verb} | " + " | ".join(f"{one:,}" if one else "" for one in counts) + " |")  # fmt: skip
    lines += ["", "| reason | answers |", "| --- | ---: |"]
    for key, count in sorted(seen.items()):
        if key.startswith("reason "):
            lines.append(f"| {key[7:]} | {count:,} |")
    lines += ["", "| filters | |", "| --- | ---: |"]
    for key, count in sorted(seen.items()):
        if key.startswith("filter "):
            lines.append(f"| {key[7:]} | {count:,} |")
    return "\n".join(lines)


def main() -> int:
    minutes = float(os.environ.get("MINUTES") or "5")
    seed = int(os.environ.get("SEED") or str(int.from_bytes(os.urandom(3), "little")))
    total, began_s = Counter[str](), time.monotonic()
    print(f"fuzzing for {minutes:g} minutes from seed {seed}", flush=True)
    failed = ""
    try:
        for used, seen in rounds(minutes, seed):
            total.update(seen)
            print(f"seed {used}: nothing found; {sum(seen.values()):,} counted", flush=True)
    except Found as found:
        failed = str(found)
        total.update(found.seen)
    print(table(total, time.monotonic() - began_s))
    if failed:
        print(f"\nFOUND {failed}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
