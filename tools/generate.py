"""Makes the generated files of the Python client from their sources, or says which are stale.

    python tools/generate.py            writes them
    python tools/generate.py --check    writes nothing, exits with 1 when a committed file is stale

The gRPC stubs come from proto/vecdb/v1/vecdb.proto; errors.py, types.py, backup_types.py and
repair_types.py are copies of the engine's, so that the client depends on nothing but numpy, grpcio and protobuf.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENT = Path("clients/python/vecdb_client")
STUBS = ("vecdb_pb2.py", "vecdb_pb2.pyi", "vecdb_pb2_grpc.py")
COPIES = ("errors.py", "types.py", "backup_types.py", "repair_types.py")
COPY_HEADER = "# A copy of vecdb/{name}, made by tools/generate.py: change it there.\n"


def generate(out: Path) -> list[Path]:
    """Writes every generated file under `out`, laid out as in the repository; their paths."""
    from grpc_tools import protoc

    (out / CLIENT / "v1").mkdir(parents=True, exist_ok=True)
    python_root = out / CLIENT.parent
    # The virtual path makes the stubs import `vecdb_client.v1.vecdb_pb2`: a module called `vecdb`
    # would hide the engine.
    code = protoc.main(
        [
            "protoc",
            f"-Ivecdb_client/v1={ROOT / 'proto/vecdb/v1'}",
            f"--python_out={python_root}",
            f"--pyi_out={python_root}",
            f"--grpc_python_out={python_root}",
            str(ROOT / "proto/vecdb/v1/vecdb.proto"),
        ]
    )
    if code != 0:
        raise SystemExit(f"protoc failed with exit code {code}")
    made = [CLIENT / "v1" / name for name in STUBS]
    for name in COPIES:
        text = (ROOT / "vecdb" / name).read_text(encoding="utf-8")
        (out / CLIENT / name).write_text(COPY_HEADER.format(name=name) + text, encoding="utf-8")
        made.append(CLIENT / name)
    return made


def stale(fresh_root: Path, paths: list[Path]) -> list[str]:
    """One line for each committed file that differs from the fresh one, with counts of lines."""
    found = []
    for path in paths:
        fresh = (fresh_root / path).read_text(encoding="utf-8").splitlines()
        committed_path = ROOT / path
        if not committed_path.exists():
            found.append(f"{path}: missing")
            continue
        committed = committed_path.read_text(encoding="utf-8").splitlines()
        if committed != fresh:
            diff = list(difflib.unified_diff(committed, fresh, lineterm="", n=0))[2:]
            added = sum(line.startswith("+") for line in diff)
            removed = sum(line.startswith("-") for line in diff)
            found.append(f"{path}: +{added} -{removed} lines, first change {diff[0]}")
    return found


def main() -> int:
    """Generates, or with --check compares; the exit code."""
    parser = argparse.ArgumentParser(description="Makes the generated files of the Python client.")
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    if not parser.parse_args().check:
        for path in generate(ROOT):
            print(path)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh_root = Path(folder)
        found = stale(fresh_root, generate(fresh_root))
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("run: python tools/generate.py", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
