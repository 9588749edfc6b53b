"""An index on the disk: saved, mapped, damaged, and on a disk that is full."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from index_rows import Rows, build, check_index, filled, make_index

from vecdb import disk
from vecdb.errors import Corrupted, StorageFull
from vecdb.index import IndexRecord, codes, file_sums, files
from vecdb.index import index as index_module

KINDS = [
    ("hnsw", "cosine", "float32", "none"),
    ("hnsw", "cosine", "float16", "none"),
    ("hnsw", "l2", "float16", "none"),
    ("ivf", "cosine", "float32", "none"),
    ("ivf", "cosine", "float16", "none"),
    ("ivf", "l2", "float16", "none"),
    ("hnsw", "l2", "float32", "sq8"),
    ("hnsw", "ip", "float32", "sq4"),
    ("hnsw", "cosine", "float32", "float16"),
    ("hnsw", "l2", "int8", "none"),
    ("hnsw", "ip", "uint8", "none"),
    ("hnsw", "cosine", "int8", "none"),
    ("hnsw", "hamming", "binary", "none"),
    ("ivf", "ip", "float32", "sq8"),
    ("ivf", "l2", "float32", "pq4"),
    ("ivf", "l2", "uint8", "none"),
    ("exact", "l2", "float32", "sq8"),
    ("exact", "ip", "float16", "sq4"),
    ("ivf", "l2", "float16", "pq8"),
    ("ivf", "cosine", "float32", "pq8"),
]
OF_EACH_SHAPE = [KINDS[0], KINDS[6], KINDS[12], KINDS[14], KINDS[16]]
"""A graph alone, a graph with codes of its own, bits, lists and flat codes."""


@pytest.fixture(autouse=True)
def _flat_codes_for_few_rows(monkeypatch):
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)


def saved(folder, kind="hnsw", metric="l2", storage="float32", quantization="none", n=1_200):
    """Rows, an index of them, and the record of its files."""
    rows = Rows(n, storage=storage)
    index = filled(rows, kind, metric, quantization)
    built = build(index)
    index.install(built)
    return rows, index, index.save(built, folder)


def parts(record):
    return [part for part in (record.graph, record.numbers, record.codes) if part is not None]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), KINDS)
def test_a_saved_index_answers_as_before(kind, metric, storage, quantization, tmp_path):
    """Saved, recorded as JSON, and mapped by a new process's index, it gives the same answers."""
    rows = Rows(3_000, storage=storage)
    index = make_index(rows, kind, metric, quantization)
    index.append(rows.vectors[:2_500])
    dead = np.arange(3, 2_500, 11)
    index.kill(dead)
    index.publish(7)
    built = build(index)
    record = index.save(built, tmp_path)
    index.install(built)
    index.append(rows.vectors[2_500:])
    view = index.publish(8)
    assert sorted(os.listdir(tmp_path)) == sorted(record.files())
    assert record.file_bytes == sum((tmp_path / name).stat().st_size for name in record.files())
    assert record.high_water == 2_500
    assert record.sequence == 7
    apart = kind == "hnsw" and (quantization != "none" or storage == "float32")
    assert (record.codes is not None) == apart
    if kind == "hnsw" and storage != "binary":
        own = 0 if record.codes is None else record.codes.size
        assert record.file_bytes - own < 2_500 * 200, "vectors do not belong into the file"
    again = make_index(rows, kind, metric, quantization)
    again.install(again.load(IndexRecord.from_json(record.to_json()), tmp_path))
    again.append(rows.vectors[2_500:])
    again.kill(dead)
    opened = again.publish(8)
    assert opened.n_rows == view.n_rows == 3_000
    assert opened.n_live == view.n_live == 3_000 - len(dead)
    for options in ({}, {"exact": True}):
        one, two = (v.search(rows.queries, 10, **options) for v in (view, opened))
        np.testing.assert_array_equal(one.rows, two.rows)
        np.testing.assert_array_equal(one.distances, two.distances)
        assert one.plan == two.plan
    assert replace(again.stats(), age_s=0.0) == replace(index.stats(), age_s=0.0)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are listed on Linux")
@pytest.mark.parametrize(
    ("kind", "metric", "storage", "quantization"),
    [*OF_EACH_SHAPE, ("ivf", "ip", "float32", "sq8"), ("ivf", "l2", "float16", "pq8")],
)
def test_the_files_of_an_index_are_mapped(kind, metric, storage, quantization, tmp_path):
    """Graphs, lists and codes are used where the file system has them, not copied into memory; FAISS reads bits and
    lists of pq4 only."""
    rows, _, record = saved(tmp_path, kind, metric, storage, quantization)
    again = make_index(rows, kind, metric, quantization)
    loaded = again.load(record, tmp_path)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    names = {part.name for part in (record.graph, record.codes) if part is not None}
    assert {name for name in names if str(tmp_path / name) in mapped} == (
        set() if storage == "binary" or quantization == "pq4" else names
    )
    del loaded


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def damage_empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), OF_EACH_SHAPE)
@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_empty, os.unlink])
def test_a_damaged_file_is_found_before_it_is_used(
    damage, kind, metric, storage, quantization, tmp_path
):
    """A flipped bit, a cut or a missing file is Corrupted, and names the file."""
    rows, _, record = saved(tmp_path, kind, metric, storage, quantization)
    apart = kind == "hnsw" and (quantization == "sq8" or storage == "float32")
    assert len(record.files()) == (3 if apart else 2)
    for name in record.files():
        kept = (tmp_path / name).read_bytes()
        damage(tmp_path / name)
        with pytest.raises(Corrupted, match=name) as found:
            make_index(rows, kind, metric, quantization).load(record, tmp_path)
        assert found.value.details["file"] == name
        assert len(found.value.message.split()) >= 6, "a sentence for people"
        (tmp_path / name).write_bytes(kept)
    assert make_index(rows, kind, metric, quantization).load(record, tmp_path).rows == 1_200


@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), OF_EACH_SHAPE)
def test_a_file_cut_or_flipped_anywhere_is_found(kind, metric, storage, quantization, tmp_path):
    """Cuts within and between all parts of each file, and one bit flipped anywhere, are Corrupted."""
    rng = np.random.default_rng(len(kind))
    rows, _, record = saved(tmp_path, kind, metric, storage, quantization)
    index = make_index(rows, kind, metric, quantization)
    for part in parts(record):
        path = tmp_path / part.name
        data = path.read_bytes()
        cuts = {1, 3, 4, 5, 33, 40, 100, *rng.integers(0, part.size, 12).tolist()}
        for cut in cuts:
            path.write_bytes(data[:cut])
            with pytest.raises(Corrupted, match=part.name):
                index.load(record, tmp_path)
        path.write_bytes(data + b"\0")
        with pytest.raises(Corrupted, match=part.name):
            index.load(record, tmp_path)
        for at in (0, 4, part.size - 1, *rng.integers(0, part.size, 12).tolist()):
            flipped = bytearray(data)
            flipped[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(flipped))
            with pytest.raises(Corrupted, match=part.name):
                index.load(record, tmp_path)
        path.write_bytes(data)
    index.install(index.load(record, tmp_path))
    index.publish(1)
    check_index(index, rows, np.ones(1_200, np.bool_))


CUT_BY_THEIR_WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from index_rows import Rows, make_index
from vecdb.errors import Corrupted
from vecdb.index import IndexRecord, file_sums, files

folder = Path(sys.argv[1])
record = IndexRecord.from_json((folder / "record").read_bytes())
rows = Rows(1_200, storage=record.storage)
names = ["graph", "codes"] if record.codes else ["graph"]
for name in names:
    part = getattr(record, name)
    path = folder / part.name
    data = path.read_bytes()
    for cut in [0, 1, 4, 8, 33, 60, 200, *range(1_000, part.size, part.size // 16)]:
        path.write_bytes(data[:cut])
        checksum = file_sums.checksum(path, cut)
        wrong = replace(record, **{name: files.FilePart(part.name, cut, checksum)})
        try:
            make_index(rows, record.kind, record.metric).load(wrong, folder)
        except Corrupted:
            print("found")
        else:
            print("not found", name, cut, part.size)
    path.write_bytes(data)
"""


@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), OF_EACH_SHAPE)
def test_a_file_that_was_written_too_short_does_not_crash(
    kind, metric, storage, quantization, tmp_path
):
    """A file that ends early although its checksum is right is Corrupted, and the process lives."""
    _, _, record = saved(tmp_path, kind, metric, storage, quantization)
    (tmp_path / "record").write_bytes(record.to_json())
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", CUT_BY_THEIR_WRITER, str(tmp_path), str(here), str(here.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert set(done.stdout.split("\n")) == {"found", ""}


def test_records_that_do_not_fit_are_refused(tmp_path):
    """A record of another collection, another format or no record at all is Corrupted."""
    rows, _, record = saved(tmp_path)
    half = Rows(1_200, storage="float16")
    wide = Rows(1_200, dimension=32)
    for other in (make_index(rows, metric="ip"), make_index(half), make_index(wide)):
        with pytest.raises(Corrupted, match="the collection has"):
            other.load(record, tmp_path)
    with pytest.raises(Corrupted, match="does not fit"):
        make_index(rows).load(replace(record, rows=7), tmp_path)
    with pytest.raises(Corrupted, match="does not fit"):
        make_index(rows).load(replace(record, high_water=100), tmp_path)
    for data in (b"", b"{}", b"[1]", b"\xff", record.to_json()[:-9], b'{"format": 99}'):
        with pytest.raises(Corrupted, match="record"):
            IndexRecord.from_json(data)


def test_records_of_other_versions_are_told(tmp_path):
    """A record of a later format, or with fields that are missing or unknown, is Corrupted."""
    _, _, record = saved(tmp_path)
    fields = json.loads(record.to_json())
    assert fields["format"] == 5
    del fields["crc32"]

    def read(fields):
        IndexRecord.from_json(files.sealed(json.dumps(fields).encode()))

    read(fields)
    with pytest.raises(Corrupted, match="format 6, this version reads up to 5"):
        read({**fields, "format": 6})
    for other in (0, None, "3", [3]):
        with pytest.raises(Corrupted, match="record"):
            read({**fields, "format": other})
    with pytest.raises(Corrupted, match="record"):
        read({**fields, "surprise": 1})
    for name in ("kind", "dimension", "storage", "rows", "graph", "numbers", "curve", "code"):
        less = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(Corrupted, match="record"):
            read(less)


def test_a_flipped_bit_of_a_record_is_found(tmp_path):
    """Whichever bit of a record has changed, it is Corrupted: one of `high_water` could hide rows."""
    _, _, record = saved(tmp_path)
    data = bytearray(record.to_json())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupted, match="record"):
            IndexRecord.from_json(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
    assert IndexRecord.from_json(bytes(data)) == record


def test_files_swapped_between_records_are_found(tmp_path):
    """Files of one index under the record of another are Corrupted, whatever their checksums say."""
    rows, _, graph = saved(tmp_path)
    _, _, lists = saved(tmp_path, "ivf")
    _, _, fewer = saved(tmp_path, n=1_100)
    _, _, coded = saved(tmp_path, quantization="sq8")
    _, _, finer = saved(tmp_path, quantization="sq8", n=1_100)
    mixed = [
        replace(graph, numbers=fewer.numbers),
        replace(graph, graph=fewer.graph),
        replace(graph, graph=lists.graph),
        replace(lists, graph=graph.graph),
        replace(graph, graph=graph.numbers),
        replace(coded, codes=finer.codes),
        replace(coded, codes=coded.graph),
        replace(coded, codes=lists.graph),
        replace(graph, codes=fewer.codes),
        replace(graph, codes=lists.graph),
        replace(graph, kind="tree"),
        replace(graph, kind="ivf"),
        replace(lists, kind="flat"),
    ]
    for record in mixed:
        with pytest.raises(Corrupted, match="index"):
            make_index(rows).load(record, tmp_path)


def as_format_1(record):
    """The record as the first version wrote it: it knew no codes, no errors and no times."""
    fields = json.loads(record.to_json())
    for name in ("code", "codes", "error", "sequence", "built_at_s", "crc32"):
        del fields[name]
    for name in ("depth", "large"):
        del fields["curve"][name]
    for point in fields["curve"]["points"]:
        del point["cost_us"]
    return json.dumps({**fields, "format": 1}).encode()


@pytest.mark.parametrize(
    ("kind", "metric", "storage"),
    [("hnsw", "l2", "float32"), ("hnsw", "cosine", "float16"), ("ivf", "ip", "float32")],
)
def test_an_index_of_the_first_format_still_loads(kind, metric, storage, tmp_path, monkeypatch):
    """A record of format 1 and its files load, answer as before, and can be grown."""
    monkeypatch.setattr(codes, "LEAST_GUIDED_DIMENSION", 10_000)
    rows = Rows(2_500, storage=storage)
    index = make_index(rows, kind, metric)
    index.append(rows.vectors[:2_000])
    index.publish(1)
    built = build(index)
    index.install(built)
    old = IndexRecord.from_json(as_format_1(index.save(built, tmp_path)))
    again = make_index(rows, kind, metric)
    again.install(again.load(old, tmp_path))
    view = again.publish(1)
    assert again.stats().quantization == "none"
    assert again.stats().built_at_sequence == 0
    expected = index.view.search(rows.queries, 10)
    np.testing.assert_array_equal(view.search(rows.queries, 10).rows, expected.rows)
    check_index(again, rows, np.ones(2_000, np.bool_))
    again.append(rows.vectors[2_000:])
    again.publish(2)
    grown = build(again)
    assert grown.rows == 2_500
    assert IndexRecord.from_json(again.save(grown, tmp_path).to_json()).format == files.FORMAT
    again.install(grown)
    check_index(again, rows, np.ones(2_500, np.bool_))


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("form", ["sha256/16M:", ""])
def test_a_checksum_of_an_earlier_version_still_counts(form, damaged, tmp_path):
    """What was saved with SHA-256, or BLAKE2b over the whole file, loads, and is refused where it was changed."""
    rows, _, record = saved(tmp_path, "hnsw", "l2", "float32", "none")
    part = record.graph
    digest = file_sums.checksum(tmp_path / part.name, part.size, form)
    if not form:
        content = (tmp_path / part.name).read_bytes()
        assert digest == hashlib.blake2b(content, digest_size=32).hexdigest()
    old = replace(record, graph=replace(part, checksum=digest))
    if damaged:
        damage_flip(tmp_path / record.graph.name)
    index = make_index(rows)
    if damaged:
        with pytest.raises(Corrupted, match="checksum"):
            index.load(old, tmp_path)
    else:
        assert index.load(old, tmp_path).rows == record.rows


def test_an_index_of_the_second_format_still_loads(tmp_path, monkeypatch):
    """A graph over float32 that was saved without codes to walk over walks over its vectors."""
    monkeypatch.setattr(codes, "LEAST_GUIDED_DIMENSION", 10_000)
    rows = Rows(2_500)
    index = make_index(rows)
    index.append(rows.vectors[:2_000])
    index.publish(1)
    built = build(index)
    record = json.loads(index.save(built, tmp_path).to_json())
    del record["crc32"]
    assert record["codes"] is None
    monkeypatch.undo()
    again = make_index(rows)
    old = IndexRecord.from_json(json.dumps({**record, "format": 2}).encode())
    again.install(again.load(old, tmp_path))
    view = again.publish(1)
    assert view.main.guide is None
    check_index(again, rows, np.ones(2_000, np.bool_))


class FullDisk(io.BufferedRandom):
    """A file on a disk that has room for `room` more bytes."""

    room = 0

    def write(self, data):
        FullDisk.room -= len(data)
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), OF_EACH_SHAPE)
@pytest.mark.parametrize("missing", ["all", "last byte of the graph", "last byte"])
def test_a_full_disk_leaves_no_litter(
    kind, metric, storage, quantization, missing, tmp_path, monkeypatch
):
    """Saving on a full disk is StorageFull at whatever byte, and every file it began is gone."""
    rows = Rows(1_200, storage=storage)
    index = filled(rows, kind, metric, quantization)
    built = build(index)
    record = index.save(built, tmp_path)
    for name in record.files():
        (tmp_path / name).unlink()
    FullDisk.room = {
        "all": 0,
        "last byte of the graph": record.graph.size - 1,
        "last byte": record.file_bytes - 1,
    }[missing]

    def opened(path, mode):
        return FullDisk(io.FileIO(path, mode)) if "w" in mode else open(path, mode)

    monkeypatch.setattr(disk, "open", opened, raising=False)
    with pytest.raises(StorageFull, match="no space left"):
        index.save(built, tmp_path)
    assert os.listdir(tmp_path) == []
