"""An index on the disk: saved, mapped, damaged, and on a disk that is full."""

from __future__ import annotations

import errno
import io
import os
from dataclasses import replace

import numpy as np
import pytest
from index_rows import Rows, build, make_index

from vecdb.errors import Corrupted, StorageFull
from vecdb.index import IndexRecord, files


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize(
    ("metric", "storage"), [("cosine", "float32"), ("cosine", "float16"), ("l2", "float16")]
)
def test_a_saved_index_answers_as_before(kind, metric, storage, tmp_path):
    """Saved, recorded as JSON, and mapped by a new process's index, it gives the same answers."""
    rows = Rows(3_000, storage=storage)
    index = make_index(kind, metric, storage)
    index.append(rows.vectors[:2_500])
    dead = np.arange(3, 2_500, 11)
    index.kill(dead)
    index.publish(7)
    built = build(index, rows)
    record = index.save(built, tmp_path)
    index.install(built)
    index.append(rows.vectors[2_500:])
    view = index.publish(8)
    assert sorted(os.listdir(tmp_path)) == sorted(record.files())
    assert record.file_bytes == sum((tmp_path / name).stat().st_size for name in record.files())
    assert record.high_water == 2_500
    if kind == "hnsw":
        assert record.file_bytes < 2_500 * 200, "vectors do not belong into the file"
    again = make_index(kind, metric, storage)
    again.install(again.load(IndexRecord.from_json(record.to_json()), tmp_path, rows.read))
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
    assert again.stats() == index.stats()


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def damage_empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_empty, os.unlink])
def test_a_damaged_file_is_found_before_it_is_used(damage, which, tmp_path):
    """A flipped bit, a cut or a missing file is Corrupted, and names the file."""
    rows = Rows(1_200)
    index = make_index()
    index.append(rows.vectors)
    index.publish(1)
    record = index.save(build(index, rows), tmp_path)
    name = record.files()[which]
    damage(tmp_path / name)
    with pytest.raises(Corrupted, match=name):
        make_index().load(record, tmp_path, rows.read)


def test_records_that_do_not_fit_are_refused(tmp_path):
    """A record of another collection, another format or no record at all is Corrupted."""
    rows = Rows(1_200)
    index = make_index()
    index.append(rows.vectors)
    index.publish(1)
    record = index.save(build(index, rows), tmp_path)
    for other in (make_index(metric="ip"), make_index(storage="float16")):
        with pytest.raises(Corrupted, match="the collection has"):
            other.load(record, tmp_path, rows.read)
    with pytest.raises(Corrupted, match="does not fit"):
        make_index().load(replace(record, rows=7), tmp_path, rows.read)
    with pytest.raises(Corrupted, match="does not fit"):
        make_index().load(replace(record, high_water=100), tmp_path, rows.read)
    for data in (b"", b"{}", b"[1]", b"\xff", record.to_json()[:-9], b'{"format": 99}'):
        with pytest.raises(Corrupted, match="record"):
            IndexRecord.from_json(data)


class FullDisk(io.BufferedRandom):
    """A file on a disk that has room for `room` more bytes."""

    room = 0

    def write(self, data):
        FullDisk.room -= len(data)
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("missing", ["all", "last byte of the graph", "last byte"])
def test_a_full_disk_leaves_no_litter(kind, missing, tmp_path, monkeypatch):
    """Saving on a full disk is StorageFull at whatever byte, and every file it began is gone."""
    rows = Rows(1_200)
    index = make_index(kind)
    index.append(rows.vectors)
    index.publish(1)
    built = build(index, rows)
    record = index.save(built, tmp_path)
    for name in record.files():
        (tmp_path / name).unlink()
    FullDisk.room = {
        "all": 0,
        "last byte of the graph": record.graph.size - 1,
        "last byte": record.file_bytes - 1,
    }[missing]
    monkeypatch.setattr(
        files, "open", lambda path, mode: FullDisk(io.FileIO(path, mode)), raising=False
    )
    with pytest.raises(StorageFull, match="no space left"):
        index.save(built, tmp_path)
    assert os.listdir(tmp_path) == []
