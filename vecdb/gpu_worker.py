"""The worker process of one GPU: `python -m vecdb.gpu_worker`, started by the engine, never by people.

It makes the card, says so, and serves one request after the other until the engine hangs up or is gone. See
`vecdb/device/worker.py` for how it is started, and `vecdb/device/serve.py` for what it does.

`--card=faiss` drives the GPU that CUDA calls device 0: which one that is, the engine decides by
CUDA_VISIBLE_DEVICES, so that a worker cannot touch another one's. `--card=stand-in` pretends one in memory,
for tests. `--count` prints how many GPUs FAISS sees, and is asked in a process of its own because a broken
driver aborts it.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import signal
import socket
import sys

from .device.card import Card, Limits
from .device.serve import serve
from .device.stand_in import GIB, Faults, StandInCard

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vecdb.gpu_worker", description=__doc__)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--socket", type=int)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--card", choices=["faiss", "stand-in"], default="faiss")
    parser.add_argument("--stand-in-bytes", type=int, default=GIB)
    parser.add_argument("--stand-in-graphs", type=int, default=1)
    parser.add_argument("--stand-in-masks", type=int, default=1)
    parser.add_argument("--stand-in-k", type=int, default=Limits().k)
    parser.add_argument("--stand-in-scan-k", type=int, default=32_768)
    parser.add_argument("--stand-in-faults", default="")
    given = parser.parse_args(arguments)
    if given.count:
        from .index.card import gpus_here

        print(gpus_here())
        return 0
    _live_with(given.parent)
    # The engine decides when its worker ends; a signal to the whole group is meant for the engine.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=given.socket)
    memory = mmap.mmap(given.memory, 0)
    os.close(given.memory)
    try:
        serve(_card(given), connection, memory)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the engine has gone while an answer was on its way
    # Not by way of the interpreter's end: a library of the card that fails to clean up would report a
    # crash, and has nothing left to clean.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _live_with(parent: int) -> None:
    """Die when the engine does, also when it is killed."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        print(f"prctl failed: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    if os.getppid() != parent:
        os._exit(0)  # it was gone before


def _card(given: argparse.Namespace) -> Card:
    if given.card == "faiss":
        from .index.card import FaissCard

        return FaissCard()
    from .index.host_lists import joined, read_lists

    return StandInCard(
        given.stand_in_bytes,
        graphs=bool(given.stand_in_graphs),
        masks=bool(given.stand_in_masks),
        limits=Limits(k=given.stand_in_k, scan_k=given.stand_in_scan_k),
        faults=Faults.parse(given.stand_in_faults),
        read_lists=read_lists,
        join=joined,
    )


if __name__ == "__main__":
    sys.exit(main())
