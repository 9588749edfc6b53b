"""`vecdb top`: what it shows is what the server says, in a terminal and in a pipe."""

from __future__ import annotations

import fcntl
import math
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import serving
from server_process import environment

from vecdb_client import connect
from vecdb_server import __main__ as command_line
from vecdb_server.cli_top import picture
from vecdb_server.samples import Between, Sample

FIRST = """\
# HELP vecdb_calls_seconds x
# TYPE vecdb_calls_seconds histogram
vecdb_calls_seconds_bucket{code="OK",le="0.01",method="Query"} 0
vecdb_calls_seconds_bucket{code="OK",le="0.1",method="Query"} 100
vecdb_calls_seconds_bucket{code="OK",le="+Inf",method="Query"} 100
vecdb_calls_seconds_count{code="OK",method="Query"} 100
vecdb_calls_seconds_sum{code="OK",method="Query"} 5
"""
SECOND = """\
# HELP vecdb_calls_seconds x
# TYPE vecdb_calls_seconds histogram
vecdb_calls_seconds_bucket{code="OK",le="0.01",method="Query"} 50
vecdb_calls_seconds_bucket{code="OK",le="0.1",method="Query"} 200
vecdb_calls_seconds_bucket{code="OK",le="+Inf",method="Query"} 200
vecdb_calls_seconds_count{code="OK",method="Query"} 200
vecdb_calls_seconds_sum{code="OK",method="Query"} 7
vecdb_calls_seconds_bucket{code="NOT_FOUND",le="0.01",method="Query"} 20
vecdb_calls_seconds_bucket{code="NOT_FOUND",le="0.1",method="Query"} 20
vecdb_calls_seconds_bucket{code="NOT_FOUND",le="+Inf",method="Query"} 20
vecdb_calls_seconds_count{code="NOT_FOUND",method="Query"} 20
vecdb_calls_seconds_sum{code="NOT_FOUND",method="Query"} 0.1
"""


def test_rates_and_quantiles_are_of_the_time_between() -> None:
    """Two samples give what happened between them: rates, and quantiles of what was observed since."""
    between = Between(Sample.read(FIRST, 10.0), Sample.read(SECOND, 12.0))
    name = "vecdb_calls_seconds"
    assert between.rate(f"{name}_count", method="Query") == 60
    assert between.rate(f"{name}_count", code="OK") == 50
    # Of the 100 good calls since, 50 took up to 10 ms and 50 up to 100.
    assert between.quantile(name, 0.5, code="OK") == pytest.approx(0.01)
    assert between.quantile(name, 0.75, code="OK") == pytest.approx(0.055)
    assert between.quantile(name, 0.25, code="OK") == pytest.approx(0.005)
    assert math.isnan(between.quantile(name, 0.5, code="INTERNAL"))
    lines = picture(between, "here:1", 100, 50)
    (row,) = [line.split() for line in lines if line.startswith("Query")]
    assert (row[1], row[4]) == ("60.0", "10.0")


def test_a_server_that_was_started_again_counts_anew() -> None:
    """A counter that has become less is no negative rate."""
    between = Between(Sample.read(SECOND, 10.0), Sample.read(FIRST, 12.0))
    assert between.rate("vecdb_calls_seconds_count") == 0


def test_a_picture_fits_its_terminal() -> None:
    """No line is wider and no more are drawn than the terminal has; the last says how many are missing."""
    rows = "".join(
        f'vecdb_rows_live{{collection="a rather long name {n}"}} {n}\n' for n in range(40)
    )
    sample = Sample.read("# TYPE vecdb_rows_live gauge\n" + rows, 1.0)
    lines = picture(Between(sample, sample), "here:1", 30, 12)
    assert len(lines) == 11
    assert max(map(len, lines)) <= 30
    whole = picture(Between(sample, sample), "here:1", 30, 1_000)
    assert lines[-1] == f"... {len(whole) - 10} lines more"


def fill(address: str) -> None:
    with connect(address) as client:
        docs = client.create_collection("films", dimension=4)
        docs.insert([f"r{i}" for i in range(300)], np.eye(300, 4) + 1)
        docs.delete(["r1", "r2"])
        for _ in range(20):
            docs.query([1, 1, 1, 1], k=3)


def test_one_picture_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --once, or without a terminal, one picture goes out as plain text."""
    with serving(tmp_path / "db") as address:
        fill(address)
        code = command_line.main(["top", "--once", "--interval-s", "0.1", "--server", address])
    out = capsys.readouterr().out
    assert code == 0
    assert "\x1b" not in out
    assert address in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("films")]
    assert row[1:4] == ["298", "2", "300"]


def test_it_looks_at_servers_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder has nothing to show, and an interval has bounds."""
    assert command_line.main(["top", "--data", str(tmp_path)]) == 2
    assert command_line.main(["top", "--interval-s", "0"]) == 2
    assert "--server" in capsys.readouterr().err


class Screen:
    """A terminal of 100 x 30 with the command in it."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vecdb_server", *words],
            stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True,
        )  # fmt: skip
        self.seen = ""
        # `select` knows no file beyond the 1,023rd, and this process may have more open.
        self.drawn = select.poll()
        self.drawn.register(self.master, select.POLLIN)

    def until(self, text: str, limit_s: float = 20.0) -> str:
        """All that was drawn until `text` came."""
        end = time.monotonic() + limit_s
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if self.drawn.poll(100):
                self.seen += os.read(self.master, 65_536).decode()
        return self.seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("way", ["q", "ctrl-c"])
def test_it_draws_until_it_is_left(tmp_path: Path, way: str) -> None:
    """In a terminal it draws again and again, and gives the terminal back as it was however it is left."""
    with serving(tmp_path / "db") as address:
        fill(address)
        screen = Screen("top", "--server", address, "--interval-s", "0.2")
        try:
            screen.until("films")
            assert "\x1b[?1049h" in screen.seen
            with connect(address) as client:
                films = client.get_collection("films")
                films.insert(["more"], [[1, 2, 3, 4]])
                screen.until("299")
            screen.seen = ""
            if way == "q":
                os.write(screen.master, b"q")
            else:
                screen.process.send_signal(signal.SIGINT)
            screen.until("\x1b[?1049l")
            assert screen.process.wait(10) == (0 if way == "q" else 130)
            assert termios.tcgetattr(screen.slave) == screen.before
        finally:
            screen.close()


def test_health_as_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 where the server, or a collection of it, serves; 1 where it does not; 5 where nobody answers."""
    with serving(tmp_path / "db") as address:
        fill(address)
        where = ["--server", address, "--timeout-s", "5"]
        assert command_line.main(["health", *where]) == 0
        assert command_line.main(["health", "films", *where]) == 0
        assert command_line.main(["health", "none", *where]) == 1
        assert capsys.readouterr().out.split("\n")[:3] == ["serving", "serving", "service unknown"]
        assert command_line.main(["health", "films", "--json", *where]) == 0
        assert '"SERVING"' in capsys.readouterr().out
    assert command_line.main(["health", *where]) == 5
    assert command_line.main(["health", "--data", str(tmp_path)]) == 2
