"""One worker process: started, spoken to, found dead, ended.

A process and not a thread, because every CUDA error but "out of memory" aborts the process that makes it,
and would take the database along.

The worker must not outlive the engine. It asks the kernel to be killed when the thread that started it
ends (PR_SET_PDEATHSIG is about threads), so a `Worker` is made by a thread that lives as long as the
worker should; and it ends when the socket does. It has a session of its own, so that Ctrl-C in a terminal
does not reach it, and what it prints goes to the logger "vecdb", line by line.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from . import messages as m
from .card import CardInfo, Limits

log = logging.getLogger("vecdb")

_ROOT = str(Path(__file__).resolve().parents[2])
_KEPT_LINES = 5
_END_S = 2.0
"""Time that a worker gets to end by itself."""


class Died(Exception):
    """The worker has ended, or was ended because it did not answer; the text says which."""


class Worker:
    """See above. Only the thread that made it may call, except `interrupt` and `hang_up`."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        memory_bytes: int,
        environment: Mapping[str, str],
        on_death: Callable[[], None],
    ) -> None:
        """`arguments` choose the card, see `vecdb/gpu_worker.py`. `on_death` is called once, from
        another thread, when the process has ended."""
        self._name = name
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._timeout_s = 0.0
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        handle = os.memfd_create("vecdb-device", os.MFD_CLOEXEC)
        try:
            os.ftruncate(handle, memory_bytes)
            self.memory = mmap.mmap(handle, memory_bytes)
            self.memory.madvise(mmap.MADV_DONTFORK)
            paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
            # -P: a file called numpy.py in the current folder is not ours.
            self._process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "vecdb.gpu_worker",
                    f"--socket={theirs.fileno()}", f"--memory={handle}", f"--parent={os.getpid()}",
                    *arguments,
                ],
                pass_fds=(theirs.fileno(), handle),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
            )  # fmt: skip
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
            os.close(handle)
        assert self._process.stdout is not None
        threading.Thread(
            target=self._listen,
            args=(self._process.stdout, on_death),
            name=f"vecdb-{name}-output",
            daemon=True,
        ).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self, timeout_s: float) -> CardInfo:
        """Waits until the card is there. Died when that takes longer, or fails."""
        said = self._receive(timeout_s, "start")
        if not isinstance(said, m.Ready):
            raise self._died(f"the first message of the worker was {type(said).__name__}")
        limits = Limits(said.k, said.nprobe, said.scan_k)
        return CardInfo(
            said.name, said.total_bytes, said.free_bytes, limits, said.graphs, said.masks
        )

    def call(self, request: m.Request, timeout_s: float) -> m.Done | m.Failed:
        """One request and its answer. Died when the worker ends meanwhile or takes longer."""
        try:
            self._connection.send(m.encode(request))
        except OSError as error:
            raise self._died(f"it cannot be reached ({error.strerror})") from None
        said = self._receive(timeout_s, type(request).__name__)
        if isinstance(said, m.Ready):
            raise self._died("it said twice that it is ready")
        return said

    def interrupt(self) -> None:
        """Any thread: lets a call that waits fail at once with Died."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone already

    def hang_up(self) -> None:
        """In a forked child: lets go of the parent's worker without disturbing it."""
        self._connection.close()

    def end(self) -> None:
        """Ends the process: kindly first, then by SIGKILL."""
        self._connection.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        try:
            self.memory.close()
        except BufferError:
            pass  # an array still looks at it; it goes with the last one

    def kill(self) -> None:
        """SIGKILL at once, for one that does not answer."""
        self._process.kill()
        self.end()

    def _receive(self, timeout_s: float, what: str) -> m.Answer:
        if timeout_s != self._timeout_s:
            # SO_RCVTIMEO and not settimeout, which would poll before each call.
            whole, part = divmod(max(timeout_s, 1e-3), 1.0)
            packed = struct.pack("ll", int(whole), int(part * 1e6))
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
            self._timeout_s = timeout_s
        try:
            data = self._connection.recv(m.MAX_MESSAGE_BYTES)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise self._died(f"no answer to {what} within {timeout_s:g} s") from None
            raise self._died(f"it cannot be reached ({error.strerror})") from None
        if not data:
            raise self._died(f"it ended during {what}")
        said: m.Answer = m.decode_answer(data)
        return said

    def _died(self, how: str) -> Died:
        self.kill()
        code = self._process.returncode
        last = f"; last words: {' / '.join(self._lines)}" if self._lines else ""
        return Died(f"{how}, exit status {code}{last}")

    def _listen(self, output: IO[bytes], on_death: Callable[[], None]) -> None:
        with output:
            for line in output:
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._lines.append(text[:500])
                    log.warning("%s: %s", self._name, text)
        on_death()
