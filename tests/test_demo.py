"""The examples run as they are, on the sample of the repository."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import serving

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "examples" / "wordnet"


def example(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_demo_does_the_main_job_and_verifies_it(tmp_path: Path) -> None:
    """Serve, load, query, update, delete, restart, compare: exit code 0 and readable output."""
    done = example("demo.py", "--folder", str(tmp_path / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("4,000 records, durable", "recall@10 of 50 queries", "byte for byte", "check: ok"):
        assert said in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_demo_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    """The demo needs a fresh folder and touches no other."""
    (tmp_path / "precious.txt").write_text("mine")
    done = example("demo.py", "--folder", str(tmp_path))
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_rag_finds_passages_for_a_question(data_folder: Path) -> None:
    """The embedded example prints a prompt with four passages, and may be run again."""
    for _ in range(2):
        done = example("rag.py", str(data_folder))
        assert done.returncode == 0, done.stderr
        passages = [line for line in done.stdout.splitlines() if line.startswith("[wn-")]
        assert len(passages) == 4
        assert "microscop" in passages[0]


def test_pipeline_reads_back_what_it_streamed(data_folder: Path) -> None:
    """Every row of the stream is stored, and the slices of the scan add up to it."""
    with serving(data_folder) as address:
        done = example("pipeline.py", address)
    assert done.returncode == 0, done.stderr
    assert "4,000 records stored" in done.stdout
    assert "4,000 records read in 4 slices" in done.stdout


def test_sample_is_whole_and_licensed() -> None:
    """Rows and vectors belong together, all categories are there, the licence stands beside them,
    and the whole stays under 5 MB."""
    for rows_name, vectors_name, count in (
        ("rows.jsonl.gz", "vectors.f16.npy", 4_000),
        ("queries.jsonl.gz", "queries.f16.npy", 50),
    ):
        with gzip.open(SAMPLE / rows_name, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        vectors = np.load(SAMPLE / vectors_name)
        assert len(rows) == count
        assert vectors.shape == (count, 384)
        assert vectors.dtype == np.float16
        assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
        assert len({row["id"] for row in rows}) == count
        if count == 4_000:
            assert len({row["category"] for row in rows}) == 45
    licence = (SAMPLE / "LICENSE-WORDNET.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert sum(path.stat().st_size for path in (ROOT / "examples").rglob("*")) < 5_000_000


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "queries.jsonl.gz"])
def test_sample_is_what_the_script_makes(wordnet: Path, tmp_path: Path, name: str) -> None:
    """tools/make_sample.py gives the committed files again, from the full set."""
    subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_sample.py"), "--source", str(wordnet),
         "--target", str(tmp_path)],
        check=True, capture_output=True,
    )  # fmt: skip
    with gzip.open(SAMPLE / name) as committed, gzip.open(tmp_path / name) as fresh:
        assert committed.read() == fresh.read()
    vectors = name.replace(".jsonl.gz", ".f16.npy").replace("rows", "vectors")
    assert np.array_equal(np.load(SAMPLE / vectors), np.load(tmp_path / vectors))
