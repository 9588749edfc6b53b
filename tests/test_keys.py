"""The file of API keys: what it keeps, how keys end, and what a pattern of names covers."""

from __future__ import annotations

import fnmatch
import json
import random
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from seeds import RUN_SEED

from vecdb import failpoints
from vecdb.errors import InvalidArgument, InvalidSetting, NotFound
from vecdb_server import __main__ as command_line
from vecdb_server import keys
from vecdb_server.keys import Grant


def added(path: Path, *grants: str, expires_s: float | None = None) -> tuple[keys.Key, str, str]:
    """(key, its text, its secret)"""
    key, text = keys.add(path, tuple(map(keys.parse_grant, grants)), "note", 1_000.0, expires_s)
    found = keys.parsed(text)
    assert found is not None
    assert found[0] == key.id
    return key, text, found[1]


def test_the_file_has_no_secret(tmp_path: Path) -> None:
    """Only hashes are stored, for the owner's eyes only, and what was stored is what is read."""
    path = tmp_path / "keys.json"
    key, text, secret = added(path, "read:docs-*", "admin:own")
    other = added(path, "write")[0]
    held = path.read_text()
    assert secret not in held
    assert text not in held
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load(path) == {key.id: key, other.id: other}
    assert keys.load(path)[key.id].accepts(secret, 2_000.0)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]


def test_keys_end(tmp_path: Path) -> None:
    """A key is good until it expires or is revoked, and a wrong secret never is."""
    path = tmp_path / "keys.json"
    key, _, secret = added(path, "read", expires_s=5_000.0)
    assert key.accepts(secret, 4_999.0)
    assert not key.accepts(secret, 5_000.0)
    assert not key.accepts(secret[:-1] + "_", 1.0)
    assert not key.accepts("", 1.0)
    assert (key.state(4_999.0), key.state(5_000.0)) == ("active", "expired")
    revoked = keys.revoke(path, key.id, 2_000.0)
    assert not revoked.accepts(secret, 2_001.0)
    assert revoked.state(2_001.0) == "revoked"
    with pytest.raises(InvalidArgument, match="revoked"):
        keys.rotate(path, key.id, 3_000.0, 0.0, None)
    with pytest.raises(NotFound, match="aaaaaaaa"):
        keys.revoke(path, "aaaaaaaa", 2_000.0)


def test_rotation_has_an_overlap(tmp_path: Path) -> None:
    """After a rotation the old secret is good until the overlap has passed, the new one from then on."""
    path = tmp_path / "keys.json"
    key, _, old = added(path, "read")
    _, text = keys.rotate(path, key.id, 2_000.0, 600.0, None)
    found = keys.parsed(text)
    assert found is not None
    assert found[0] == key.id
    new = keys.load(path)[key.id]
    assert new.accepts(old, 2_599.0)
    assert not new.accepts(old, 2_600.0)
    assert new.accepts(found[1], 2_001.0)
    assert new.accepts(found[1], 1e9)
    keys.rotate(path, key.id, 2_700.0, 0.0, None)
    last = keys.load(path)[key.id]
    assert len(last.secrets) == 1
    assert not last.accepts(found[1], 2_700.0)


def test_changes_at_once_lose_nothing(tmp_path: Path) -> None:
    """Keys that several add at the same time are all there."""
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=added, args=(path, "read")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys.load(path)) == 8


def test_patterns_cover_what_a_shell_would_say() -> None:
    """A pattern with stars covers the same names as the shell's, for random patterns and names."""
    print("seed", RUN_SEED)
    rng = random.Random(RUN_SEED)
    for _ in range(5_000):
        pattern = "".join(rng.choices("ab.*", k=rng.randrange(1, 7)))
        name = "".join(rng.choices("ab.", k=rng.randrange(1, 8)))
        expected = re.fullmatch(fnmatch.translate(pattern), name) is not None
        assert Grant("read", pattern).covers(name) is expected, (pattern, name)


@pytest.mark.parametrize(
    "text", ["", "root", "read:", "read:a/b", "read:[a]", "write:" + "x" * 129]
)
def test_a_wrong_grant_is_refused(text: str) -> None:
    """A grant has a known role and a pattern of characters that names have."""
    with pytest.raises(InvalidArgument, match="grant"):
        keys.parse_grant(text)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 200_000, '{"format": 2, "keys": []}', '{"format": 1, "keys": [{"id": "a"}]}', "\x00",
     '{"format": 1, "keys": [{"id": "a", "note": "", "grants": [{"role": "root", "collections": "*"}],'
     ' "created_at": null, "revoked_at": null, "secrets": []}]}'],
)  # fmt: skip
def test_a_damaged_file_says_so(text: str, tmp_path: Path) -> None:
    """A file that is no list of keys is InvalidSetting or InvalidArgument, never a key for everyone."""
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(InvalidArgument):
        keys.load(path)
    with pytest.raises(InvalidSetting, match="cannot read"):
        keys.load(tmp_path / "none.json")


def test_the_command_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`vecdb keys` adds, lists, rotates and revokes; a key is printed when it is made, never again."""
    file = str(tmp_path / "keys.json")

    def run(*words: str) -> Any:
        code = command_line.main(["keys", *words, "--keys-file", file, "--json"])
        out, err = capsys.readouterr()
        return (code, [json.loads(line) for line in out.splitlines()], err)

    code, (made,), _ = run("add", "--grant", "read:docs-*", "--days", "2", "--note", "shop")
    assert code == 0
    assert made["grants"] == ["read:docs-*"]
    assert made["note"] == "shop"
    code, (rotated,), _ = run("rotate", made["id"], "--overlap-hours", "1")
    assert code == 0
    assert rotated["key"] != made["key"]
    assert rotated["id"] == made["id"]
    held = keys.load(Path(file))[made["id"]]
    assert held.accepts(keys.parsed(made["key"])[1], held.created_s + 60)  # type: ignore[index]
    code, (listed,), _ = run("list")
    assert code == 0
    assert listed["state"] == "active"
    assert "key" not in listed
    code, (ended,), _ = run("revoke", made["id"])
    assert code == 0
    assert ended["state"] == "revoked"
    for words, expected in (
        (("revoke", "zzzzzzzz"), 1),
        (("revoke",), 2),
        (("add", made["id"]), 2),
        (("add", "--grant", "root"), 2),
        (("add", "--days", "-1"), 2),
    ):
        assert run(*words)[0] == expected, words


def test_a_change_that_fails_leaves_the_keys_there_were(tmp_path: Path) -> None:
    """A key is acknowledged when file and name are durable; an error before the rename leaves the old file, whole."""
    path, names = tmp_path / "keys.json", []
    before = failpoints.install(lambda name, _: names.append(name))
    try:
        first = added(path, "read")[0]
        steps = ["sync.before", "sync.after", "rename.before", "rename.after"]
        steps += ["sync-folder.before", "sync-folder.after"]
        assert names == [f"keys.{step}" for step in steps]
        for step in steps[:3]:
            failpoints.arm(f"keys.{step}=error:ENOSPC")
            with pytest.raises(OSError, match="No space"):
                added(path, "write")
            assert list(keys.load(path)) == [first.id]
    finally:
        failpoints.install(before)
    added(path, "write")
    assert len(keys.load(path)) == 2
