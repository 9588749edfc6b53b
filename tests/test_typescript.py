"""The contract stands without our Python: a TypeScript program, made from the proto by stock tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import StartServer

from vecdb_server import keys

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "typescript"


def test_the_typescript_example(start: StartServer, tmp_path: Path) -> None:
    """It compiles in strict mode, and inserts, repeats, queries, scans and is refused, over TLS with a key."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path / "typescript"
    names = ("package.json", "package-lock.json", "tsconfig.json", "demo.ts", ".npmrc")
    folder.mkdir()
    for name in names:
        shutil.copy(EXAMPLE / name, folder)
    installed = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--prefer-offline"],
        cwd=folder, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    if installed.returncode and any(
        w in installed.stderr for w in ("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN")
    ):
        pytest.skip("npm reaches no registry here")
    assert installed.returncode == 0, installed.stderr
    ca = pytest.importorskip("trustme").CA()
    made = ca.issue_cert("localhost")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    made.private_key_pem.write_to_path(str(tmp_path / "s.key"))
    (tmp_path / "s.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    grants = (keys.parse_grant("admin:typescript-*"),)
    _, key = keys.add(tmp_path / "keys.json", grants, "", 0.0, None)
    server = start(
        tls_cert=str(tmp_path / "s.pem"), tls_key=str(tmp_path / "s.key"),
        keys_file=str(tmp_path / "keys.json"),
    )  # fmt: skip
    done = subprocess.run(
        ["npm", "run", "--silent", "demo"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={
            **os.environ,
            "VECDB_SERVER": f"localhost:{server.port}",
            "VECDB_API_KEY": key,
            "VECDB_TLS_CA": str(tmp_path / "ca.pem"),
            "VECDB_PROTO": str(ROOT / "proto/vecdb/v1/vecdb.proto"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "inserted 3 repeated true",
        "moss 0.001 moss on the stone",
        "rain 0.156 rain on the roof",
        "scanned 3",
        "refused RECORD_EXISTS",
    ]
