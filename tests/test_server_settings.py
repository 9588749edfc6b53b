"""Where settings come from, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vecdb.errors import InvalidSetting
from vecdb_server import settings

MIB = 1024 * 1024


def test_settings_come_from_flag_then_environment_then_file_then_default(tmp_path: Path) -> None:
    """Each source gives way to the one before it, setting by setting."""
    file = tmp_path / "vecdb.toml"
    file.write_text('port = 1\nhost = "127.0.0.2"\nlog_level = "error"\nauto_build = false\n')
    environ = {"VECDB_PORT": "2", "VECDB_HOST": "127.0.0.3", "VECDB_INDEX_DEAD_SHARE": "0.5"}
    found = settings.load({"port": "3", "host": None, "data": None}, environ, file)
    assert found["port"] == 3
    assert found["host"] == "127.0.0.3"
    assert found["log_level"] == "error"
    assert found["index_dead_share"] == 0.5
    assert found["auto_build"] is False
    assert found["max_message_bytes"] == 64 * MIB
    assert set(found) == {row.name for row in settings.SETTINGS}


def test_devices_are_set_like_the_rest(tmp_path: Path) -> None:
    """What the engine takes about devices comes from flag, environment and file, and goes to the engine."""
    file = tmp_path / "vecdb.toml"
    file.write_text('device = "cpu"\ndevice_timeout_s = 2.5\n')
    environ = {"VECDB_DEVICE_QUEUE": "8", "VECDB_DEVICE_MEMORY_BYTES": "1_000"}
    _, engine = settings.split(settings.load({"device": "gpu:0,1"}, environ, file))
    assert {name: value for name, value in engine.items() if name.startswith("device")} == {
        "device": "gpu:0,1",
        "device_memory_bytes": 1_000,
        "device_queue": 8,
        "device_timeout_s": 2.5,
    }


def test_defaults_are_valid_and_only_for_this_machine() -> None:
    """Without any source the settings are valid, and the server listens on loopback only."""
    found = settings.load({}, {})
    assert found == {row.name: row.default for row in settings.SETTINGS}
    assert settings.is_loopback(str(found["host"]))
    own, engine = settings.split(found)
    assert "port" in own
    assert "map_limit_bytes" in engine
    assert not set(own) & set(engine)


@pytest.mark.parametrize(
    ("flags", "environ", "toml", "named"),
    [
        ({"prot": "1"}, {}, "", "prot"),
        ({"port": "many"}, {}, "", "--port"),
        ({"port": 65_536}, {}, "", "port"),
        ({}, {"VECDB_PORT": "tcp://10.0.0.1:7700"}, "", "VECDB_PORT"),
        ({}, {"VECDB_DRAIN_TIMEOUT_S": "-1"}, "", "VECDB_DRAIN_TIMEOUT_S"),
        ({}, {"VECDB_LOG_FORMAT": "xml"}, "", "log_format"),
        ({}, {}, "prot = 1", "prot"),
        ({}, {}, 'port = "7700"', "port"),
        ({}, {}, "[server]\nport = 1", "server"),
        ({}, {}, "port = ", "TOML"),
        ({"data": "  "}, {}, "", "data"),
    ],
)
def test_a_wrong_setting_names_its_source(
    flags: Any, environ: Any, toml: str, named: str, tmp_path: Path
) -> None:
    """Unknown names and wrong values are InvalidSetting that says where they stand."""
    file = tmp_path / "vecdb.toml"
    file.write_text(toml)
    with pytest.raises(InvalidSetting, match=named):
        settings.load(flags, environ, file)


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    """A file that was named must be readable."""
    with pytest.raises(InvalidSetting, match=r"none\.toml"):
        settings.load({}, {}, tmp_path / "none.toml")


def test_variables_that_look_like_settings() -> None:
    """Variables of that prefix which are no setting are found, for a warning."""
    environ = {"VECDB_PROT": "1", "VECDB_PORT": "1", "VECDB_CONFIG": "x", "HOME": "/"}
    assert settings.unknown_variables(environ) == ["VECDB_PROT"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("db.example", False),
    ],
)
def test_what_counts_as_loopback(host: str, expected: bool) -> None:
    """Only addresses that no other machine reaches count as loopback; names never do."""
    assert settings.is_loopback(host) is expected
