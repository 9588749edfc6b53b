"""Data sets that are measured on: files of many kinds, seeded sets, and their exact answers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeds

from bench import __main__, sources
from bench.children import Child
from bench.sources import BadDataset, Condition, State, exact, seeded

ROWS, QUERIES, DIMENSION = 500, 20, 12


def written(path: Path, rows: Any, queries: Any) -> Path:
    """The rows in a file of the kind that the name says, and the queries in it or beside it."""
    path = path.with_stem(f"{path.stem}_base")
    beside = path.with_stem(path.stem.replace("base", "query"))
    kind = path.suffix
    if kind == ".npy":
        np.save(path, rows)
        np.save(beside, queries)
    elif kind in (".fvecs", ".bvecs"):
        for place, held in ((path, rows), (beside, queries)):
            number = "<f4" if kind == ".fvecs" else "u1"
            record = np.dtype([("d", "<i4"), ("v", number, (held.shape[1],))])
            lines = np.empty(len(held), record)
            lines["d"], lines["v"] = held.shape[1], held
            lines.tofile(place)
    elif kind == ".parquet":
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        for place, held in ((path, rows), (beside, queries)):
            parquet.write_table(arrow.table({"emb": held.tolist()}), place)
    else:
        h5py: Any = importlib.import_module("h5py")
        with h5py.File(path, "w") as file:
            file["train"], file["test"] = rows, queries
            file["neighbors"] = np.zeros((len(queries), 10), np.int32)
            file["distances"] = np.zeros((len(queries), 10), np.float32)
    return path


@pytest.fixture(params=[".npy", ".fvecs", ".bvecs", ".hdf5", ".h5", ".parquet"])
def suffix(request: pytest.FixtureRequest) -> str:
    needed = {".hdf5": "h5py", ".h5": "h5py", ".parquet": "pyarrow"}
    if request.param in needed:
        pytest.importorskip(needed[request.param])
    return str(request.param)


def unit(vectors: Any) -> Any:
    floats = np.asarray(vectors, np.float32)
    return floats / np.linalg.norm(floats, axis=1, keepdims=True)


def numbers(count: int, seed: int) -> Any:
    """Whole numbers that a byte holds, so that one set fits all kinds of file; no row is all zero."""
    return np.random.default_rng(seed).integers(1, 255, (count, DIMENSION)).astype(np.uint8)


def test_what_is_written_to_a_file_is_what_is_measured_on(tmp_path: Path, suffix: str) -> None:
    """Rows and queries of every kind of file come out as they went in, in order, at unit length."""
    rows, queries = numbers(ROWS, 1), numbers(QUERIES, 2)
    path = written(tmp_path / f"mine{suffix}", rows, queries)
    made = sources.prepare(str(path), None, 1_000, 7, tmp_path / "cache")
    assert (made.name, made.rows, made.dimension) == ("mine_base", ROWS, DIMENSION)
    assert np.allclose(made.vectors(0, ROWS), unit(rows), atol=1e-6)
    assert np.allclose(made.queries, unit(queries), atol=1e-6)
    part = made.part(100, 103)
    assert np.allclose(part.vectors, unit(rows[100:103]), atol=1e-6)
    assert made.rows_of(part.ids) == [100, 101, 102]
    assert all(part.documents)
    assert "unit length" in made.structure
    assert made.described()["rows"] == ROWS


def test_a_file_without_queries_holds_some_of_its_rows_out(tmp_path: Path) -> None:
    """Held-out rows are asked and not inserted; no row is lost, none is in both."""
    rows = numbers(ROWS, 3)
    np.save(tmp_path / "one.npy", rows)
    made = sources.prepare(str(tmp_path / "one.npy"), None, 30, 1, tmp_path / "cache")
    assert (made.rows, len(made.queries)) == (ROWS - 30, 30)
    together = np.concatenate([made.vectors(0, made.rows), made.queries])
    assert np.allclose(np.sort(together, axis=0), np.sort(unit(rows), axis=0), atol=1e-6)
    fewer = sources.prepare(str(tmp_path / "one.npy"), 100, 1_000, 1, tmp_path / "cache")
    assert (fewer.rows, len(fewer.queries)) == (100, 50)


def test_parquet_columns_become_ids_texts_and_metadata(tmp_path: Path) -> None:
    """Columns beside the vector are records, empty cells are left out, filters come from them."""
    pytest.importorskip("pyarrow")
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    rows, queries = numbers(ROWS, 1), numbers(QUERIES, 2)
    table = {
        "id": [f"n{i}" for i in range(ROWS)],
        "vector": rows.tolist(),
        "text": [f"word {i}" for i in range(ROWS)],
        "year": [None if i == 3 else i for i in range(ROWS)],
        "kind": ["much" if i % 10 < 7 else "little" for i in range(ROWS)],
        "tags": [["a"]] * ROWS,
    }
    parquet.write_table(arrow.table(table), tmp_path / "train.parquet")
    parquet.write_table(arrow.table({"emb": queries.tolist()}), tmp_path / "test.parquet")
    made = sources.prepare(str(tmp_path / "train.parquet"), None, 100, 1, tmp_path / "cache")
    part = made.part(2, 4)
    assert part.ids == ["n2", "n3"]
    assert part.documents == ["word 2", "word 3"]
    assert part.metadata == [{"year": 2, "kind": "much"}, {"kind": "much"}]
    assert [str(one) for one in made.conditions()][-1] == "kind = much"
    shares = [made.share(one) for one in made.conditions()]
    assert np.allclose(shares, [0.002, 0.01, 0.1, 0.2, 0.7], atol=0.003)
    assert not made.flags(Condition("year", ">=", 0))[3]
    assert made.rows_of(["n499"]) == [499]


def broken(tmp_path: Path) -> dict[str, tuple[Callable[[Path], Any], str]]:
    """What is done to a file, and a word of the message that it ends in."""
    zero = numbers(ROWS, 1)
    zero[17] = 0
    nan = numbers(ROWS, 1).astype(np.float32)
    nan[18, 2] = np.nan
    fvecs = written(tmp_path / "whole.fvecs", numbers(50, 1), numbers(5, 1)).read_bytes()
    other = bytearray(fvecs)
    other[4 * 13 * 4 : 4 * 13 * 4 + 4] = (11).to_bytes(4, "little")
    return {
        "absent.npy": (lambda path: None, "no file"),
        "text.csv": (lambda path: path.write_text("1,2"), "write the vectors as one of"),
        "noise.npy": (lambda path: path.write_bytes(b"noise"), "no .npy"),
        "objects.npy": (lambda path: np.save(path, np.array([{}], object)), "no .npy"),
        "flat.npy": (lambda path: np.save(path, np.ones(9)), "shape"),
        "words.npy": (lambda path: np.save(path, np.array([["a"]])), "type"),
        "none.npy": (lambda path: np.save(path, np.ones((0, 4))), "0 rows"),
        "few.npy": (lambda path: np.save(path, np.ones((9, 4))), "ten rows"),
        "zero.npy": (lambda path: np.save(path, zero), "row 17"),
        "nan.npy": (lambda path: np.save(path, nan), "row 18"),
        "torn.fvecs": (lambda path: path.write_bytes(fvecs[:-1]), "multiple"),
        "empty.fvecs": (lambda path: path.write_bytes(b""), "multiple"),
        "other.fvecs": (lambda path: path.write_bytes(other), "row 4"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *(
            "absent.npy",
            "text.csv",
            "noise.npy",
            "objects.npy",
            "flat.npy",
            "words.npy",
            "none.npy",
        ),
        *("few.npy", "zero.npy", "nan.npy", "torn.fvecs", "empty.fvecs", "other.fvecs"),
    ],
)
def test_a_file_that_cannot_be_measured_on_says_why(tmp_path: Path, name: str) -> None:
    """A malformed file raises BadDataset with what is wrong, and leaves no half-made set behind."""
    spoil, word = broken(tmp_path)[name]
    spoil(tmp_path / name)
    with pytest.raises(BadDataset, match=word):
        sources.prepare(str(tmp_path / name), None, 10, 1, tmp_path / "cache")
    assert not [one for one in (tmp_path / "cache").glob("*") if one.is_dir()]


def test_hdf5_without_rows_says_what_it_has(tmp_path: Path) -> None:
    """HDF5 of another layout, or that is none, is refused with the names that it has."""
    h5py: Any = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["points"] = np.ones((20, 3))
    with pytest.raises(BadDataset, match="it has points"):
        sources.prepare(str(tmp_path / "other.hdf5"), None, 10, 1, tmp_path)
    (tmp_path / "none.h5").write_bytes(b"nothing")
    with pytest.raises(BadDataset, match="no HDF5"):
        sources.prepare(str(tmp_path / "none.h5"), None, 10, 1, tmp_path)
    with h5py.File(tmp_path / "apart.hdf5", "w") as file:
        file["train"], file["test"] = np.ones((20, 3)), np.ones((2, 4))
    with pytest.raises(BadDataset, match="same dimension"):
        sources.prepare(str(tmp_path / "apart.hdf5"), None, 10, 1, tmp_path)


def test_parquet_without_one_vector_column_says_what_it_has(tmp_path: Path) -> None:
    """Parquet without lists, with lists of unlike lengths, or ids that repeat, is refused."""
    arrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    vectors = [[1.0, float(i)] for i in range(20)]
    for table, word in (
        ({"a": [1, 2]}, "columns of lists"),
        ({"a": [[1.0]] * 20, "b": [[1.0]] * 20}, "columns of lists"),
        ({"vector": [*vectors[:-1], [1.0]]}, "row 19"),
        ({"vector": vectors, "id": ["same"] * 20}, "unique"),
        ({"vector": vectors, "id": [*"abcdefghijklmnopqrs", None]}, "row 19"),
    ):
        parquet.write_table(arrow.table(table), tmp_path / "t.parquet")
        with pytest.raises(BadDataset, match=word):
            sources.prepare(str(tmp_path / "t.parquet"), None, 10, 1, tmp_path / "cache")
    (tmp_path / "t.parquet").write_bytes(b"nothing")
    with pytest.raises(BadDataset, match="no Parquet"):
        sources.prepare(str(tmp_path / "t.parquet"), None, 10, 1, tmp_path / "cache")


def test_the_command_line_says_what_is_wrong_with_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data set that cannot be had ends a measurement with one line and code 2, without a traceback."""
    monkeypatch.setattr(sources, "WORDNET", tmp_path)
    monkeypatch.setattr(sources.WordNet, "available", staticmethod(lambda: 0))
    words = ["bench", "index", "--dataset", "wordnet", "--folder", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    assert __main__.main() == 2
    assert "WordNet is not at hand" in capsys.readouterr().err


def plain_bound(source: sources.Source, k: int, rows: Any, vectors: Any) -> Any:
    """Distance of each query's k-th nearest of `rows`, one query after another, in float64."""
    bounds = []
    for query in source.queries.astype(np.float64):
        apart = np.sort(1 - vectors[rows].astype(np.float64) @ query)
        bounds.append(apart[k - 1] if len(apart) >= k else np.inf)
    return np.array(bounds)


@pytest.mark.parametrize("number", range(3))
def test_truth_is_brute_force_under_filters_deletes_and_upserts(
    tmp_path: Path, number: int
) -> None:
    """Bounds and counts equal those of a plain loop, whatever is filtered, deleted or replaced."""
    seed = seeds.RUN_SEED + number
    print(f"TEST_SEED={seeds.RUN_SEED}")
    rng = np.random.default_rng(seed)
    made = sources.prepare("clusters", 700, 15, seed % 1_000, tmp_path, 24)
    live = rng.random(made.rows) < 0.6
    replaced = np.sort(rng.choice(made.rows, 150, replace=False))
    new = unit(rng.standard_normal((150, 24)))
    now = made.vectors(0, made.rows)
    now[replaced] = new
    for condition in (None, *made.conditions()):
        flags = np.ones(made.rows, np.bool_) if condition is None else made.flags(condition)
        for state, vectors, allowed in (
            (None, made.vectors(0, made.rows), flags),
            (State(live), made.vectors(0, made.rows), flags & live),
            (State(live, replaced, new), now, flags & live),
        ):
            truth = made.truth(10, condition, state)
            rows = np.flatnonzero(allowed)
            assert truth.wanted == min(10, len(rows))
            assert np.allclose(
                truth.bounds, plain_bound(made, 10, rows, vectors), atol=1e-6, equal_nan=True
            )
            found = np.full((15, 10), -1)
            for line, query in zip(found, made.queries, strict=True):
                best = rows[np.argsort(1 - vectors[rows] @ query)][:10]
                line[: len(best)] = best
            assert made.recall(found, truth) == (1.0 if truth.wanted else 0.0)
            if not allowed.all():
                gone = np.full((15, 10), np.flatnonzero(~allowed)[0])
                assert made.recall(gone, truth) == 0.0


def test_rows_at_the_distance_of_the_last_are_right_answers(tmp_path: Path) -> None:
    """Twins of the k-th nearest count as found; farther rows and twins of one id do not."""
    base = unit(np.random.default_rng(1).standard_normal((40, 8)))
    rows = np.concatenate([base, base])
    np.save(tmp_path / "twins_base.npy", rows)
    np.save(tmp_path / "twins_query.npy", base[:5])
    made = sources.prepare(str(tmp_path / "twins_base.npy"), None, 5, 1, tmp_path / "cache")
    truth = made.truth(1)
    first, twin = np.arange(5)[:, None], np.arange(40, 45)[:, None]
    assert made.recall(first, truth) == made.recall(twin, truth) == 1.0
    assert made.recall(first + 5, truth) == 0.0
    both = made.truth(2)
    assert made.recall(np.hstack([first, twin]), both) == 1.0
    assert made.recall(np.hstack([first, first]), both) == 0.5


def test_truth_is_computed_once_and_kept_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second ask reads the file, also of a set made anew; other content, k or state is asked anew."""
    made = sources.prepare("clusters", 400, 10, 1, tmp_path, 16)
    truth = made.truth(10, made.conditions()[3])
    counted: list[int] = []
    computed = exact.bounds

    def counting(*words: Any) -> Any:
        counted.append(1)
        return computed(*words)

    monkeypatch.setattr(exact, "bounds", counting)
    again = sources.prepare("clusters", 400, 10, 1, tmp_path, 16)
    assert np.array_equal(again.truth(10, again.conditions()[3]).bounds, truth.bounds)
    assert not counted
    again.truth(5, again.conditions()[3])
    again.truth(10)
    again.truth(10, None, State(np.arange(400) % 2 == 0))
    again.first(200).truth(10)
    sources.prepare("clusters", 400, 10, 2, tmp_path, 16).truth(10)
    assert len(counted) == 5
    # A torn file is made again, not believed.
    for path in (tmp_path / "truth").glob("10-*.npy"):
        path.write_bytes(path.read_bytes()[:-7])
    assert np.array_equal(again.truth(10, again.conditions()[3]).bounds, truth.bounds)
    assert len(counted) == 6


def test_a_file_that_changes_is_another_set(tmp_path: Path) -> None:
    """The set of a path follows the bytes of the file, not its name."""
    keys = set()
    for seed in (1, 2, 1):
        np.save(tmp_path / "one.npy", numbers(100, seed))
        made = sources.prepare(str(tmp_path / "one.npy"), None, 5, 1, tmp_path / "cache")
        keys.add(made.key)
    assert len(keys) == 2


def test_seeded_sets_are_the_same_in_parts_of_any_size(tmp_path: Path) -> None:
    """Vectors, records and seeded columns do not depend on the slices that they are read by."""
    made = sources.prepare("clusters", 1_000, 10, 5, tmp_path, 16)
    np.save(tmp_path / "plain.npy", numbers(1_000, 5))
    plain = sources.prepare(str(tmp_path / "plain.npy"), None, 10, 5, tmp_path)
    for source in (made, plain):
        whole = source.part(0, source.rows)
        for size in (1, 7, 333):
            for start in (0, 400, source.rows - size):
                part = source.part(start, start + size)
                stop = start + size
                assert np.array_equal(part.vectors, whole.vectors[start:stop])
                assert part.ids == whole.ids[start:stop]
                assert part.metadata == whole.metadata[start:stop]
                assert part.documents == whole.documents[start:stop]
        for condition in source.conditions():
            column = source.column(condition.field)
            assert column.tolist() == [one[condition.field] for one in whole.metadata]
        cut = source.first(300)
        assert cut.part(0, 300).metadata == whole.metadata[:300]
        assert cut.column(condition.field).tolist() == column[:300].tolist()


def test_slices_of_a_file_do_not_change_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever block size a file is read by, the set has the same bytes."""
    np.save(tmp_path / "one.npy", numbers(1_000, 9))
    keys = set()
    for rows in (1, 77, 20_000):
        monkeypatch.setattr(sources.readers._Npy.blocks, "__defaults__", (rows,))
        made = sources.prepare(str(tmp_path / "one.npy"), 600, 20, 4, tmp_path / f"cache-{rows}")
        keys.add(made.key)
    assert len(keys) == 1


def test_five_filters_allow_what_they_say(tmp_path: Path) -> None:
    """Seeded filters allow their stated shares; every set has five, told apart by their cases."""
    rows = np.arange(200_000)
    for condition, share in zip(seeded.CONDITIONS, seeded.SHARES, strict=True):
        column = seeded.column(condition.field, rows, 3)
        allowed = column == condition.value if condition.op == "=" else column >= condition.value
        assert abs(allowed.mean() / share - 1) < 0.2
    made = sources.prepare("clusters", 5_000, 10, 1, tmp_path, 16)
    np.save(tmp_path / "plain.npy", numbers(5_000, 5))
    plain = sources.prepare(str(tmp_path / "plain.npy"), None, 10, 5, tmp_path)
    for source in (made, plain):
        cases = [source.case(one) for one in source.conditions()]
        shares = [source.share(one) for one in source.conditions()]
        assert len(set(cases)) == 5
        assert shares == sorted(shares)
        assert all(case.partition(" %")[1] for case in cases)
    assert sources.seeded.WORDS in plain.structure


def test_a_source_goes_to_a_child_without_what_it_has_read(tmp_path: Path) -> None:
    """A pickled source is small and gives the same rows in another process, cut or whole."""
    np.save(tmp_path / "plain.npy", numbers(2_000, 5))
    plain = sources.prepare(str(tmp_path / "plain.npy"), None, 10, 5, tmp_path)
    cut = plain.first(500)
    plain.truth(10, plain.conditions()[0])
    with Child("bench.worker:Worker", cut) as child:
        assert child.call("load", "engine") is None


def test_states_are_refused_where_they_contradict_themselves() -> None:
    """A state names each replaced row once, in order, with a vector for each."""
    with pytest.raises(ValueError, match="2 rows are replaced by 1"):
        State(None, np.array([1, 2]), np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="rising"):
        State(None, np.array([2, 1]), np.ones((2, 4), np.float32))
    assert json.dumps(State.nothing().digest) == '""'
