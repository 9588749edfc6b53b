"""A reading process: `python -m vecdb_server.readers.process`, started by the server, never by people.

It opens the database read-only, listens on the server's port beside it, answers reads, and passes all else
on. It ends when it is told to, and when the writer is gone.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Never

import grpc
import msgspec

import vecdb
from vecdb.errors import VecdbError

from .. import logs
from ..audit import AuditLines
from ..call_figures import CallFigures, of_this_process
from ..server import Server
from ..status import Border
from .channel import Channel, Said
from .passing import PassingBorder, connect

log = logging.getLogger("vecdb.server")

_INSTEAD = {
    # The writer's: it searches on GPUs, looks at answers, writes the log, and shows the metrics of all.
    "device": "cpu",
    "audit_share": 0.0,
    "audit_log": "",
    "metrics_address": "",
    "read_processes": 0,
}


class _Told(AuditLines):
    """Has the writer write the lines of its audit log. Changes of keys it sees itself."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def _append(self, fields: dict[str, Any]) -> None:
        if fields.get("event") != "keys changed":
            self._channel.send(Said(refused=fields))


class ReadingServer(Server):
    """A server of reads beside the writer, on its port."""

    def __init__(
        self, settings: Mapping[str, Any], port: int, writer: str, own: str, channel: Channel
    ) -> None:
        """`settings` are the writer's. `writer`: where it takes what is passed on; `own`: where this process
        listens alone."""
        super().__init__({**settings, **_INSTEAD, "port": port})
        self._writer = connect(writer)
        self._own = own
        self.is_stopping = False
        self._refusals = _Told(channel)

    def _opened(self) -> vecdb.Database:
        return vecdb.open(self.settings["data"], read_only=True, **self._engine_settings)

    def _audit(self) -> AuditLines | None:
        return self._refusals

    def _border(self) -> Border:
        return PassingBorder(
            self._pools,
            self.settings["max_message_bytes"],
            self._security.guard,
            self._observing,
            self._filter_s,
            self._observing.slow_calls,
            self._writer,
        )

    @property
    def _shares_port(self) -> bool:
        return True

    @property
    def _beside(self) -> str:
        return self._own

    def figures(self) -> CallFigures:
        """What this process has counted and used."""
        cpu_s, resident_bytes = of_this_process()
        counted = self._observing.metrics.of_this_process()
        return msgspec.structs.replace(counted, cpu_s=cpu_s, resident_bytes=resident_bytes)

    def take_up(self, changed: Mapping[str, Any]) -> None:
        """Takes up settings that the writer has taken up, keys and certificates. VecdbError as `reload`."""
        self.settings.update(
            {name: value for name, value in changed.items() if name in self.settings}
        )
        logs.configure(str(self.settings["log_level"]), str(self.settings["log_format"]))
        self._observing.reload(self.settings)
        self._security.reload()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vecdb_server.readers.process", description=__doc__
    )
    parser.add_argument("--socket", type=int, required=True)
    given = parser.parse_args(arguments)
    # The writer decides when its readers end; a signal to the whole group is meant for the writer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=given.socket))
    orders = map(msgspec.json.decode, channel.lines())
    order = next(orders, None)
    if order is None:
        _end(0)
    logs.configure(order["settings"]["log_level"], order["settings"]["log_format"])
    try:
        server = ReadingServer(
            order["settings"], order["port"], order["writer"], order["own"], channel
        )
        server.start()
    except (VecdbError, OSError, grpc.RpcError) as error:
        channel.send(Said(failed=str(error)))
        _end(1)
    channel.send(Said(ready=True))
    for asked in orders:
        _obey(server, channel, asked)
    # The writer is gone, however that came: nobody may read a folder for whose commits nobody speaks.
    if not server.is_stopping:
        shutil.rmtree(Path(order["own"].removeprefix("unix:")).parent, ignore_errors=True)
    _end(0)


def _obey(server: ReadingServer, channel: Channel, order: Mapping[str, Any]) -> None:
    what = order["do"]
    if what == "figures":
        try:
            channel.send(Said(figures=server.figures()))
        except OSError as error:
            # No descriptors left to look at itself: queries go on.
            log.error("a reading process cannot tell its figures: %s", error)
    elif what == "reload":
        try:
            server.take_up(order["settings"])
        except VecdbError as error:
            log.error("a reading process has not taken up all: %s", error.message)
    elif what == "stop":
        server.is_stopping = True
        # In a thread of its own: the end of the writer must be heard meanwhile.
        threading.Thread(target=_stop, args=(server,), name="vecdb-stop").start()


def _stop(server: Server) -> None:
    _end(0 if server.stop() else 1)


def _end(code: int) -> Never:
    # Not by way of the interpreter's end, which waits for threads.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
