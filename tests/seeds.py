"""The seed of tests that kill processes: another one in each run, the same in all processes of a run, replayed by
setting TEST_SEED. And what names it."""

import os

import pytest

RUN_SEED = int(os.environ.setdefault("TEST_SEED", str(int.from_bytes(os.urandom(3), "little"))))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Names both seeds first, and with -q too, which leaves out what pytest calls the header: a run that hangs tells
    nothing later."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        seed = session.config.option.hypothesis_seed
        reporter.write_line(f"hypothesis seed: {seed}, TEST_SEED={RUN_SEED}")
