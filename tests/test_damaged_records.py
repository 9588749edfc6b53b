"""Records whose stored bytes were changed: who compares them with their checksums, and what is refused then."""

from __future__ import annotations

import numpy as np
import pytest
from test_damage import data_file, flip

import vecdb
from vecdb.errors import Corrupted

PARTS = ["vector", "metadata", "document", "content", "uri", "title"]


def make_hurt(folder, part):
    """A database of two records, `whole`, and `hurt` with a flipped bit in one of its parts."""
    title = np.array([[1.5, 2.5], [3.25, 4.75]], np.float32)
    vectors = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], np.float32)
    with vecdb.open(folder) as db:
        docs = db.create_collection(
            "docs", dimension=4, metric="l2", vectors={"title": {"dimension": 2, "metric": "l2"}}
        )
        docs.insert(
            ["whole", "hurt"], vectors, metadata=[{"n": "first"}, {"n": "second"}],
            documents=["one text", "another text"], contents=[b"some bytes", b"more bytes"],
            uris=["file:one", "file:other"], named_vectors={"title": title},
        )  # fmt: skip
    stored = {"vector": vectors[1].tobytes(), "metadata": b"second", "document": b"another text",
              "content": b"more bytes", "uri": b"file:other", "title": title[1].tobytes()}[part]  # fmt: skip
    path = data_file(folder)
    raw = path.read_bytes()
    places = [at for at in range(len(raw)) if raw.startswith(stored, at)]
    assert places
    for at in places:  # pages that are not in use any more hold it too
        flip(path, 8 * at + 3)


@pytest.mark.parametrize("part", PARTS)
def test_a_scan_names_the_damaged_record(data_folder, part):
    """A flipped bit in any part of a record: check and scan name it, other records can still be read."""
    make_hurt(data_folder, part)
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        (problem,) = docs.check().problems
        assert "'hurt' (row 1) fails its checksum" in problem
        with pytest.raises(Corrupted, match="'hurt'") as raised:
            list(docs.scan(include=["vector", "metadata", "document", "content", "named_vectors"]))
        assert raised.value.details["ids"] == ["hurt"]
        assert docs.get(["whole"], include=["document"]).documents == ["one text"]
        docs.delete(["hurt"])
        (batch,) = docs.scan(include=["content"])
        assert batch.ids == ["whole"]


@pytest.mark.parametrize("part", PARTS)
def test_whatever_is_included_the_whole_record_is_compared(data_folder, part):
    """Scans and pages of any part name a record that is damaged in any other, contents among them; ids alone and what
    is asked by ids is not compared."""
    make_hurt(data_folder, part)
    with vecdb.open(data_folder, read_only=True) as db:
        docs = db.get_collection("docs")
        for include in (
            ["vector", "metadata", "document"],
            ["uri"],
            ["named_vectors"],
            ["content"],
        ):
            for call in (
                docs.scan,
                lambda include: [docs.get(filter={}, order_by="-id", include=include)],
            ):
                with pytest.raises(Corrupted, match="'hurt'"):
                    list(call(include=include))
        assert [batch.ids for batch in docs.scan(include=[])] == [["whole", "hurt"]]
        assert docs.get(["hurt"], include=["uri"]).ids == ["hurt"]


def test_contents_that_nobody_asked_for_are_read_some_at_a_time(data_folder, monkeypatch):
    """Of large contents that are read for checksums alone a batch or page has as many as are read in one go, at least
    one, and none is left out."""
    monkeypatch.setattr("vecdb.fetching._COMPARED_BYTES", 2_500)
    ids = [f"r{n}" for n in range(20)]
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        contents = [bytes(5_000) if n == 7 else bytes(1_000) if n % 3 else None for n in range(20)]
        docs.insert(ids, np.ones((20, 2)), contents=contents, documents=ids)
        batches = list(docs.scan(include=["document"]))
        assert [i for batch in batches for i in batch.ids] == ids
        assert [i for batch in batches for i in batch.documents] == ids
        assert len(batches) > 4
        assert len(list(docs.scan(include=[]))) == 1
        page, found = docs.get(filter={}, limit=20, include=["document"]), []
        while page.cursor:
            found += page.documents
            page = docs.get(filter={}, limit=20, include=["document"], cursor=page.cursor)
        assert found + page.documents == ids


@pytest.mark.parametrize("part", PARTS)
def test_an_update_does_not_take_damage_for_right(data_folder, part):
    """Whatever part of a record is damaged, an update that would keep it is refused and names the record, nothing of
    its batch is done, and the damage is found as before; to write the record anew mends it."""
    make_hurt(data_folder, part)
    with vecdb.open(data_folder, history_s=0) as db:
        docs = db.get_collection("docs")
        before = docs.stats().sequence
        for clear in ((), "document"):
            with pytest.raises(
                Corrupted, match=r"'hurt' \(row 1\).*Nothing of the batch.*upsert"
            ) as raised:
                docs.update(["hurt", "whole"], metadata=[{"m": 1}, {"m": 1}], clear=clear)
            assert raised.value.details["ids"] == ["hurt"]
        assert docs.stats().sequence == before
        assert docs.get(["whole"]).metadata == [{"n": "first"}]
        assert len(docs.check().problems) == 1
        docs.update(["whole"], metadata=[{"m": 1}], uris=["file:new"])
        docs.upsert(["hurt"], [[5.0, 6.0, 7.0, 8.0]], documents=["again"])
        docs.update(["hurt", "whole"], metadata=[{"m": 2}, {"m": 3}])
        found = docs.get(["hurt", "whole"], include=["metadata", "document", "content", "uri"])
        assert found.metadata == [{"m": 2}, {"n": "first", "m": 3}]
        assert found.documents == ["again", "one text"]
        assert found.contents[1].data == b"some bytes"
        assert found.uris == [None, "file:new"]
        docs.compact()  # the version that was damaged goes
        assert docs.check().ok


def test_metadata_that_are_no_json_any_more_are_named(data_folder):
    """Where columns cannot be made of the metadata of a row, whatever needs them names the row and what to do; that
    brings the others back."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        ids = [f"r{n}" for n in range(30)]
        docs.insert(
            ids, np.ones((30, 2)), metadata=[{"t": f"number {n} of all"} for n in range(30)]
        )
    path = data_file(data_folder)
    path.write_bytes(path.read_bytes().replace(b'"number 7 of all"', b"number 7 of allxx"))
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        for call in (
            lambda: docs.count({"t": "number 8 of all"}),
            lambda: docs.update(["r8"], metadata=[{"n": 1}]),
            lambda: docs.upsert(["r8"], np.ones((1, 2))),
        ):
            with pytest.raises(Corrupted, match=r"row 7: .*check --repair") as raised:
                call()
            assert raised.value.details["row"] == 7
        assert docs.get(["r8"]).metadata == [{"t": "number 8 of all"}]
    assert vecdb.check(data_folder, repair=True)[1].repair.lost == ("r7",)
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert docs.count({"t": "number 8 of all"}) == 1
        docs.upsert(["r7"], np.ones((1, 2)))
