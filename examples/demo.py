"""The main job, from an empty folder to answers, and over a restart: `make demo`.

    python examples/demo.py [--folder FOLDER]

Runs a real server as a process of its own and talks to it with the Python client. Exits with 1 when
anything that was acknowledged is not there after the restart.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sample

from vecdb_client import Client, Collection, QueryResult, connect

ROOT = Path(__file__).resolve().parent.parent
BOLD = sys.stdout.isatty() and "NO_COLOR" not in os.environ
SHOWN = ("sandpiper", "concerto", "roomy")
K = 5


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if BOLD else f"\n{text}")


def fail(text: str) -> None:
    print(f"demo failed: {text}", file=sys.stderr)
    raise SystemExit(1)


def fresh_folder() -> Path:
    """A folder that did not exist, so that nothing of anybody is touched; not in ./data, which is the database of who
    follows README, or runs `vecdb serve` as it comes."""
    parent = ROOT / "demo-data"
    parent.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = parent / f"demo-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Client]:
    """`vecdb serve` on a free port; at the end SIGTERM, which lets running calls finish first."""
    words = ["serve", "--data", shown(folder), "--port", "0"]
    command = [sys.executable, "-m", "vecdb_server", *words, "--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            fail(f"the server did not start (exit code {process.wait()})")
        # The first line ends with the address, which is how a script learns a free port.
        address = line.split()[-1]
        print(f"$ vecdb {' '.join(words)}\n{line.rstrip()}")
        with connect(address) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)
        if code != 0:
            fail(f"the server ended with exit code {code} after SIGTERM")
        print("SIGTERM sent; the server finished what was running and stopped with exit code 0")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def load(client: Client, rows: sample.Sample) -> Collection:
    words = client.create_collection(
        "words", dimension=rows.vectors.shape[1], description="WordNet glosses, all-MiniLM-L6-v2"
    )
    started_s = time.perf_counter()
    result = words.insert(
        ids=rows.ids,
        vectors=rows.vectors,
        metadata=rows.metadata,
        documents=rows.texts,
        batch_size=500,
        progress=True,
    )
    seconds = time.perf_counter() - started_s
    print(
        f"{result.count:,} records, durable at commit {result.sequence},"
        f" in {seconds:.2f} s ({result.count / seconds:,.0f} rows/s)"
    )
    return words


def ask(words: Collection, text: str, vector: Any, where: dict[str, Any] | None) -> None:
    print(f"\n  query   {cut(text, 10)}")
    if where is not None:
        print(f"  filter  {where}")
    found = words.query(vector, k=K, filter=where, include=("metadata", "document"))
    for hit in found.hits():
        metadata = hit.metadata or {}
        head = f"  {hit.distance:.3f}   {metadata['lemma']:<20.20}  {metadata['category']:<18}  "
        print(head + cut((hit.document or "").partition(": ")[2], len(head)))


def cut(text: str, used: int) -> str:
    room = max(shutil.get_terminal_size().columns - used - 1, 30)
    return text if len(text) <= room else text[: room - 1] + "…"


def recall(rows: sample.Sample, queries: sample.Sample, found: QueryResult) -> float:
    """Share of answers that are as near as the true ones, computed here with numpy."""
    distances = 1 - queries.vectors @ rows.vectors.T
    k = found.distances.shape[1]
    bounds = np.sort(distances, axis=1)[:, k - 1 : k] + 1e-5
    return float(np.mean(found.distances <= bounds))


Records = dict[str, tuple[bytes, dict[str, Any], str | None]]


def stored(words: Collection) -> Records:
    """All that the collection holds: the bytes of each vector, the metadata, the document."""
    found: Records = {}
    for page in words.scan(include=("vector", "metadata", "document")):
        for one in page:
            assert one.vector is not None
            found[one.id] = (one.vector.tobytes(), one.metadata or {}, one.document)
    return found


def change(words: Collection, rows: sample.Sample, near: Any) -> Records:
    """Updates and deletes; what the collection must hold after it, by our own bookkeeping."""
    expected: Records = {
        record_id: (vector.tobytes(), dict(metadata), text)
        for record_id, vector, metadata, text in zip(
            rows.ids, rows.vectors, rows.metadata, rows.texts, strict=True
        )
    }
    changed = words.query(near, k=3).ids[0]
    words.update(changed, metadata=[{"reviewed": True, "n_lemmas": None}] * len(changed))
    for record_id in changed:
        expected[record_id][1].pop("n_lemmas")
        expected[record_id][1]["reviewed"] = True
    print(f"updated {len(changed)}, such as {changed[0]}: {words.get(changed[:1]).metadata}")

    gone = {"noun.motive", "verb.weather"}
    deleted = words.delete(filter={"category": {"$in": sorted(gone)}})
    expected = {name: one for name, one in expected.items() if one[1]["category"] not in gone}
    print(f"deleted {deleted.count} of two categories; {words.count():,} records are left")
    if deleted.count != len(rows.ids) - len(expected) or words.count() != len(expected):
        fail("counts do not agree with what was acknowledged")
    return expected


def verify(
    words: Collection, queries: sample.Sample, expected: Records, before: QueryResult
) -> None:
    """Compares what is there with what was acknowledged, and the answers with those before."""
    if words.count() != len(expected) or words.count({"reviewed": True}) != 3:
        fail("counts differ after the restart")
    if stored(words) != expected:
        fail("records differ after the restart")
    after = words.query(queries.vectors, k=before.distances.shape[1])
    if after.ids != before.ids or not np.allclose(after.distances, before.distances, atol=1e-5):
        fail("answers differ after the restart")
    report = words.check()
    if not report.ok:
        fail(f"check found: {report.problems}")
    print(
        f"all {len(expected):,} acknowledged records are there, byte for byte, and"
        f" {len(queries.ids)} queries give the same answers; check: ok"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="an empty folder; default: a new one in data/")
    args = parser.parse_args()
    folder = args.folder or fresh_folder()
    if folder.exists() and any(folder.iterdir()):
        fail(f"{folder} is not empty; name another folder")
    rows = sample.rows()
    queries = sample.queries()

    title("1. Start a server on an empty folder")
    with server(folder) as client:
        title(f"2. Load {len(rows.ids):,} WordNet glosses with their embeddings")
        words = load(client, rows)

        title("3. Query by meaning")
        for name in SHOWN:
            at = next(i for i, meta in enumerate(queries.metadata) if meta["lemma"] == name)
            ask(words, queries.texts[at], queries.vectors[at], None)
        at = next(i for i, meta in enumerate(queries.metadata) if meta["lemma"] == SHOWN[0])
        ask(words, queries.texts[at], queries.vectors[at], {"category": "noun.artifact"})
        where = {"$and": [{"pos": {"$ne": "noun"}}, {"$document": {"$contains": "music"}}]}
        at = next(i for i, meta in enumerate(queries.metadata) if meta["lemma"] == SHOWN[1])
        ask(words, queries.texts[at], queries.vectors[at], where)
        reached = recall(rows, queries, words.query(queries.vectors, k=10))
        print(f"\n  recall@10 of {len(queries.ids)} queries against exact answers: {reached:.4f}")
        if reached < 0.95:
            fail("recall is below the target of 0.95")

        title("4. Update and delete")
        expected = change(words, rows, queries.vectors[at])
        before = words.query(queries.vectors, k=10)

        title("5. Stop the server, and start it again")
    with server(folder) as client:
        verify(client.get_collection("words"), queries, expected, before)

    title("Next: try it yourself")
    near = before.ids[at][0]
    vecdb = shown(Path(sys.executable).with_name("vecdb"))
    python = shown(Path(sys.executable))
    print(f"""\
  {vecdb} serve --data {shown(folder)}

and in another terminal

  {vecdb} stats words
  {vecdb} query words --id {near} --k 5 --filter '{{"pos": "noun"}}'
  {vecdb} get words --filter '{{"reviewed": true}}'
  {python} -c '
from vecdb_client import connect
words = connect("127.0.0.1:7700").get_collection("words")
hits = words.query(ids=["{near}"], k=3, include=["document"])
print(hits.ids[0], hits.distances[0], hits.documents[0], sep="\\n")'""")


if __name__ == "__main__":
    main()
