"""The commands about backups, against a folder and against a server."""

from __future__ import annotations

import pytest
from conftest import serving

import vecdb
from vecdb_server import __main__ as command_line


@pytest.fixture
def call(capsys):
    """Runs a command in this process; (exit code, what it printed)."""

    def run(*words):
        code = command_line.main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def folder(data_folder):
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2).insert(["a", "b"], [[1, 2], [2, 1]])
        db.set_alias("live", "docs")
    return data_folder


def test_a_folder_is_backed_up_listed_verified_restored_and_pruned(call, folder, tmp_path):
    """Without a server: backup, backups, verify, restore into a new folder and into the same, prune."""
    target = tmp_path / "b"
    code, text = call("backup", target, "--data", folder)
    assert code == 0
    assert "full" in text
    assert "docs: 2 records at commit 1" in text
    assert call("backup", target, "--data", folder, "--json")[1].count('"incremental"') == 1
    code, text = call("backups", target)
    assert code == 0
    assert "docs (0-1)" in text
    assert call("verify", target)[1].startswith("2 backups")
    code, text = call("restore", target, "--into", tmp_path / "new", "--json")
    assert code == 0
    assert '"live"' in text
    with vecdb.open(tmp_path / "new", read_only=True) as db:
        assert db.get_collection("live").count() == 2
    code, text = call(
        "restore", target, "--collection", "docs:old", "--sequence", 0, "--data", folder
    )
    assert (code, text) == (0, "old: 0 records at commit 0, from docs\n")
    code, text = call(
        "backup", target, "--data", folder, "--kind", "full", "--keep", 1, "--no-verify"
    )
    assert code == 0
    assert text.count("removed") == 2
    assert len(vecdb.list_backups(target)) == 1
    (path, *_) = target.glob("*/*.chunk")
    path.write_bytes(b"nonsense")
    code, text = call("verify", target)
    assert code == 4
    assert path.name in text
    assert call("restore", target, "--into", tmp_path / "newer")[0] == 1
    assert call("restore", tmp_path / "no", "--into", tmp_path / "newer")[0] == 1
    assert call("restore", target, "--into", tmp_path / "newer", "--at", "soon")[0] == 2


def test_a_server_backs_up_below_its_root(call, folder, tmp_path):
    """With a server a target is a name below its backup_root."""
    with serving(folder, backup_root=str(tmp_path / "root")) as address:
        at = ("--server", address)
        assert call("backup", "nightly", *at)[0] == 0
        assert (tmp_path / "root" / "nightly").is_dir()
        assert "docs (0-1)" in call("backups", "nightly", *at)[1]
        assert call("verify", "nightly", *at)[0] == 0
        code, text = call("restore", "nightly", "--collection", "docs:again", *at)
        assert (code, text) == (0, "again: 2 records at commit 1, from docs\n")
        assert call("prune", "nightly", "--keep", 1, *at) == (0, "")
        assert call("backup", "../out", *at)[0] == 1


def test_a_backup_whose_manifest_was_lost(call, folder, tmp_path):
    """Verification says in words what a backup without a manifest may be; one that another continues is a problem."""
    target = tmp_path / "b"
    for _ in range(2):
        assert call("backup", target, "--data", folder)[0] == 0
    first, last = (info.id for info in vecdb.list_backups(target))
    kept = (target / last / "manifest.json").read_bytes()
    (target / last / "manifest.json").unlink()
    code, text = call("verify", target)
    assert code == 6
    assert call("verify", target, "--json")[0] == 6
    # Asked for a backup that is there, the others are of no account.
    assert call("verify", target, "--backup", first)[0] == 0
    assert "ok; 1 more without a manifest" in text.splitlines()[0]
    assert f"{last}: no manifest.json" in text
    assert "its manifest was lost" in text
    (target / last / "manifest.json").write_bytes(kept)
    code, text = call("verify", target)
    assert (code, text.endswith(": ok\n")) == (0, True)
    (target / first / "manifest.json").unlink()
    assert call("verify", target)[0] == 4


def test_a_target_without_any_backup_is_not_verified(call, folder, tmp_path):
    """A name that leads nowhere, and a target of which only files without manifests are left, are no good news: so says
    the exit code, for scripts that look at nothing else."""
    code, text = call("verify", tmp_path / "typo")
    assert code == 6
    assert "0 backups" in text.splitlines()[0]
    assert "is this the right target?" in text
    target = tmp_path / "b"
    assert call("backup", target, "--data", folder)[0] == 0
    assert call("verify", target)[0] == 0
    for manifest in target.glob("*/manifest.json"):
        manifest.unlink()
    code, text = call("verify", target)
    assert code == 6
    assert "no manifest.json" in text
    with serving(folder, backup_root=str(tmp_path / "root")) as address:
        assert call("verify", "nightly", "--server", address)[0] == 6


def test_backups_of_a_server_with_keys_and_encryption(
    call, start, add, keys_file, authority, tmp_path
):
    """All commands about them show the key and the certificate, also what prunes after a backup."""
    secret = tmp_path / "secret"
    secret.write_text(add("admin") + "\n")
    cert, key = authority.issue("server", "127.0.0.1")
    server = start(
        tls_cert=cert, tls_key=key, keys_file=str(keys_file), backup_root=str(tmp_path / "backups")
    )
    where = ["--server", server.address, "--tls-ca", authority.ca, "--api-key-file", secret]
    assert call("create", "docs", "--dimension", 2, *where)[0] == 0
    for kept in (1, 1):
        code, text = call("backup", "nightly", "--kind", "full", "--keep", kept, *where)
        assert code == 0, text
    assert text.count("removed") == 1
    for words in (["backups"], ["verify"], ["prune", "--keep", 1]):
        code, text = call(words[0], "nightly", *words[1:], *where)
        assert code == 0, text
    assert call("backups", "nightly", *where[:4])[0] == 1, "without a key"
