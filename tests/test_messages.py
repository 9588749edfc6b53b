"""Results and settings as messages: unchanged on the other side."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_columns import QUICK, over_the_wire, texts

from vecdb_client import answers, messages
from vecdb_client.errors import (
    Internal,
    InvalidQuery,
    InvalidSetting,
)
from vecdb_client.repair_types import RepairStats
from vecdb_client.types import (
    INDEX_KINDS,
    METRICS,
    QUANTIZATIONS,
    STORAGES,
    AuditStats,
    CheckReport,
    CollectionInfo,
    CollectionStats,
    CompactResult,
    Content,
    CurvePoint,
    DeviceStats,
    Explain,
    IndexStats,
    QueryResult,
    Records,
    VectorSettings,
)
from vecdb_client.v1 import vecdb_pb2 as pb

keys = texts.filter(lambda key: key != "$date")
search_settings: dict[str, st.SearchStrategy[Any]] = {
    "dimension": st.integers(1, 65_535),
    "metric": st.sampled_from(METRICS),
    "storage": st.sampled_from(STORAGES),
    "index": st.sampled_from(INDEX_KINDS),
    "quantization": st.sampled_from(QUANTIZATIONS),
    "target_recall": st.floats(0.5, 1.0),
}


@QUICK
@given(
    st.builds(
        CollectionInfo,
        name=texts,
        **search_settings,
        vectors=st.dictionaries(texts, st.builds(VectorSettings, **search_settings), max_size=3),
        schema=st.dictionaries(texts, texts, max_size=3),
        description=texts,
        created_at=st.datetimes(
            min_value=dt.datetime(1970, 1, 1),
            max_value=dt.datetime(2200, 1, 1),
            timezones=st.just(dt.UTC),
        ),
        device=texts.filter(bool),
    )
)
def test_collection_info_round_trip(info: CollectionInfo) -> None:
    """The settings of a collection arrive unchanged, its vector fields in their order."""
    arrived = messages.decode_info(over_the_wire(messages.encode_info(info)))
    assert arrived == info
    assert list(arrived.vectors) == list(info.vectors)


def test_defaults_of_a_collection() -> None:
    """Fields that a caller in another language leaves out take the defaults of the contract."""
    info = messages.decode_info(pb.Collection(name="c", dimension=3))
    assert (info.metric, info.storage, info.index) == ("cosine", "float32", "auto")
    assert (info.target_recall, info.quantization, info.vectors) == (0.95, "auto", {})
    assert info.device == "auto"
    bits = pb.VectorField(name="print", dimension=64, storage=pb.ELEMENT_TYPE_BINARY)
    info = messages.decode_info(pb.Collection(name="c", dimension=3, vectors=[bits]))
    assert info.vectors == {"print": VectorSettings(64, "hamming", "binary")}
    with pytest.raises(InvalidSetting, match="more than once"):
        messages.decode_info(pb.Collection(name="c", dimension=3, vectors=[bits, bits]))


def test_unknown_enums_are_refused() -> None:
    """Numbers of a later contract, and names of none, are typed errors."""
    for field in ("metric", "storage", "index", "quantization"):
        message = pb.Collection(name="c", dimension=3)
        setattr(message, field, 77)
        with pytest.raises(InvalidSetting):
            messages.decode_info(message)
        wrong: dict[str, Any] = {field: "other"}
        info = replace(CollectionInfo("c", 3), **wrong)
        with pytest.raises(InvalidSetting):
            messages.encode_info(info)
    for numbers in ([0], [77], [1] * 65):
        with pytest.raises(InvalidQuery):
            messages.decode_includes(numbers)
    with pytest.raises(InvalidQuery):
        messages.encode_includes(["vectors"])
    assert messages.decode_includes(messages.encode_includes("uri")) == ("uri",)


index_stats = st.builds(
    IndexStats,
    kind=texts,
    device=texts,
    indexed_rows=st.integers(0, 2**63),
    tail_rows=st.integers(0, 2**63),
    dead_rows=st.integers(0, 2**63),
    building=st.booleans(),
    build_progress=st.floats(0, 1),
    memory_bytes=st.integers(0, 2**63),
    file_bytes=st.integers(0, 2**63),
    target_recall=st.floats(0, 1),
    measured_recall=st.floats(0, 1),
    last_error=texts,
    quantization=texts,
    curve=st.lists(
        st.builds(
            CurvePoint, st.integers(0, 2**40), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1e9)
        ),
        max_size=3,
    ).map(tuple),
    built_at_sequence=st.integers(0, 2**63),
    age_s=st.floats(0, 1e9),
    audit=st.builds(
        AuditStats, st.integers(0, 2**63), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)
    ),
    device_bytes=st.integers(0, 2**63),
    device_note=texts,
)
id_lists = st.lists(texts, max_size=3).map(tuple)
repair_stats = st.builds(
    RepairStats,
    st.datetimes(dt.datetime(1970, 1, 1), timezones=st.just(dt.UTC)),
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    id_lists,
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    st.booleans(),
    st.integers(0, 2**63),
    id_lists,
    st.integers(0, 2**63),
    id_lists,
    id_lists,
    texts,
)
device_stats = st.builds(DeviceStats, *[texts] * 3, *[st.integers(0, 2**63)] * 8, texts)


@QUICK
@given(
    st.builds(
        CollectionStats,
        name=texts,
        sequence=st.integers(0, 2**63),
        count=st.integers(0, 2**63),
        rows=st.integers(0, 2**63),
        disk_bytes=st.integers(0, 2**63),
        map_used_bytes=st.integers(0, 2**63),
        map_limit_bytes=st.integers(0, 2**63),
        fields=st.dictionaries(texts, st.integers(0, 2**63), max_size=3),
        index=index_stats,
        vectors=st.dictionaries(texts, index_stats, max_size=2),
        purged_rows=st.integers(0, 2**63),
        devices=st.lists(device_stats, max_size=2).map(tuple),
        durability=texts,
        synced_sequence=st.integers(0, 2**63),
        repairs=st.lists(repair_stats, max_size=2).map(tuple),
    )
)
def test_stats_round_trip(stats: CollectionStats) -> None:
    """Every number of a collection arrives unchanged."""
    assert messages.decode_stats(over_the_wire(messages.encode_stats(stats))) == stats


@QUICK
@given(st.booleans(), st.integers(0, 2**40), st.lists(texts, max_size=3))
def test_check_round_trip(ok: bool, records: int, problems: list[str]) -> None:
    """A report arrives unchanged."""
    report = CheckReport(ok, records, tuple(problems))
    assert messages.decode_check(over_the_wire(messages.encode_check(report))) == report


@QUICK
@given(st.builds(CompactResult, *[st.integers(0, 2**63)] * 3))
def test_compaction_round_trip(result: CompactResult) -> None:
    """What a compaction did arrives unchanged."""
    assert messages.decode_compaction(over_the_wire(messages.encode_compaction(result))) == result


def test_stats_of_a_server_without_an_audit() -> None:
    """Numbers that a server leaves out take the values of an index that was never audited."""
    assert messages.decode_index_stats(pb.IndexStats(kind="exact")).audit == AuditStats()


counts_below = st.integers(0, 2**62)
shares = st.floats(0, 1)


@QUICK
@given(
    st.builds(
        Explain, texts, texts, texts, texts, counts_below, shares, shares, counts_below, counts_below,
        counts_below, counts_below, counts_below, counts_below, counts_below, st.floats(0, 1e9),
        counts_below, counts_below, st.dictionaries(texts, st.floats(0, 1e9), max_size=6),
        counts_below, texts, texts,
    )
)  # fmt: skip
def test_explain_round_trip(explain: Explain) -> None:
    """Every number of an explanation arrives unchanged."""
    assert answers.decode_explain(over_the_wire(answers.encode_explain(explain))) == explain


# --- records and answers


@pytest.mark.parametrize("include", [("named_vectors",), ()])
def test_named_vectors_of_records(include: tuple[str, ...]) -> None:
    """A field arrives as float32 with NaN where a record lacks it, packed bits as uint8 with zeros."""
    present = np.array([True, False, True])
    page = Records(
        ["a", "b", "c"],
        named_vectors={
            "title": np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32),
            "print": np.array([[7], [0], [255]], np.uint8),
            "all": np.ones((3, 1), np.float32),
            "none": np.full((3, 5), np.nan, np.float32),
        },
        named_present={"title": present, "print": present, "all": np.ones(3, bool),
                       "none": np.zeros(3, bool)},
    )  # fmt: skip
    sent = over_the_wire(messages.encode_records(page if include else Records(["a", "b", "c"])))
    arrived = messages.decode_records(sent, include, "", 1)
    if not include:
        assert (arrived.named_vectors, arrived.named_present) == (None, None)
        return
    assert arrived.named_vectors is not None
    assert arrived.named_present is not None
    assert page.named_vectors is not None
    assert page.named_present is not None
    assert set(arrived.named_vectors) == set(page.named_vectors)
    for name, rows in page.named_vectors.items():
        got = arrived.named_vectors[name]
        assert got.dtype == rows.dtype
        assert got.flags.writeable
        assert np.array_equal(got, rows, equal_nan=got.dtype.kind == "f")
        assert np.array_equal(arrived.named_present[name], page.named_present[name])
    second = list(arrived)[1]
    assert set(second.named_vectors or ()) == {"all"}


def test_packed_bits_stay_packed() -> None:
    """Vectors of a binary collection come back as uint8; all others as float32."""
    bits = np.array([[1, 255]], np.uint8)
    page = messages.decode_records(
        over_the_wire(messages.encode_records(Records(["a"], bits))), ("vector",), "", 1
    )
    assert page.vectors is not None
    assert page.vectors.dtype == np.uint8
    assert page.vectors.tolist() == [[1, 255]]


@QUICK
@given(st.lists(st.integers(0, 4), max_size=5), st.integers(4, 6), st.data())
def test_query_result_round_trip(counts: list[int], k: int, data: st.DataObject) -> None:
    """Answers of uneven length arrive nested as they were, distances padded with NaN to k."""
    include = data.draw(st.sets(st.sampled_from(sorted(messages.INCLUDES))))

    def nested(values: st.SearchStrategy[Any]) -> list[list[Any]]:
        return [data.draw(st.lists(values, min_size=n, max_size=n)) for n in counts]

    distances = np.full((len(counts), k), np.nan, np.float32)
    for i, n in enumerate(counts):
        distances[i, :n] = np.arange(n)
    documents = nested(st.none() | texts)
    entries = nested(st.dictionaries(keys, st.integers(-5, 5), max_size=2))
    contents = nested(st.none() | st.builds(Content, st.binary(max_size=4), texts))
    uris = nested(st.none() | texts)
    vectors = [np.arange(n * 3, dtype=np.float32).reshape(n, 3) for n in counts]
    present = [np.arange(n) % 2 == 0 for n in counts]
    wants_named = "named_vectors" in include and bool(counts)
    moment = dt.datetime(2026, 1, 31, tzinfo=dt.UTC)
    groups = data.draw(st.none() | st.just(nested(st.sampled_from([1, 1.5, "x", True, moment]))))
    raw = [[json.dumps(entry).encode() if entry else b"" for entry in row] for row in entries]
    sent = QueryResult(
        ids=nested(texts),
        distances=distances,
        vectors=vectors if "vector" in include else None,
        metadata=raw if "metadata" in include else None,  # type: ignore[arg-type]
        documents=documents if "document" in include else None,
        contents=contents if "content" in include else None,
        uris=uris if "uri" in include else None,
        sequence=7,
        named_vectors={"title": vectors} if wants_named else None,
        named_present={"title": present} if wants_named else None,
        groups=groups,
    )
    arrived = answers.decode_query_result(
        over_the_wire(answers.encode_query_result(sent)),
        tuple(include),
        k,
        grouped=groups is not None,
    )
    assert repr(arrived.groups) == repr(groups)
    assert arrived.explain is None
    if wants_named:
        for i, n in enumerate(counts):
            got_rows = (arrived.named_vectors or {})["title"][i]
            got_present = (arrived.named_present or {})["title"][i]
            assert np.array_equal(got_present, present[i])
            assert np.array_equal(got_rows[got_present], vectors[i][present[i]])
            assert np.isnan(got_rows[~got_present]).all()
            assert got_rows.shape == (n, 3)
    assert arrived.ids == sent.ids
    assert np.array_equal(arrived.distances, distances, equal_nan=True)
    assert arrived.distances.dtype == np.float32
    assert arrived.metadata == (entries if "metadata" in include else None)
    assert arrived.documents == sent.documents
    assert arrived.contents == sent.contents
    assert arrived.uris == sent.uris
    assert arrived.sequence == 7
    assert (arrived.vectors is None) == ("vector" not in include)
    for got, want in zip(arrived.vectors or [], vectors if arrived.vectors else [], strict=True):
        assert got.dtype == np.float32
        assert got.shape[0] == want.shape[0]
        assert np.array_equal(got, want) or not len(want)


def test_query_result_as_wide_as_its_longest_answer() -> None:
    """Without a k the distances are as wide as the longest answer."""
    message = pb.QueryResponse(counts=[1, 3], distances=b"\0" * 16)
    message.hits.ids.extend("abcd")
    assert answers.decode_query_result(message, (), None).distances.shape == (2, 3)


@pytest.mark.parametrize(
    "message",
    [
        pb.QueryResponse(counts=[2], distances=b"\0" * 8),
        pb.QueryResponse(counts=[0], distances=b"\0" * 3),
        pb.QueryResponse(counts=[0], distances=b"\0" * 4),
    ],
)
def test_query_result_that_disagrees_with_itself(message: pb.QueryResponse) -> None:
    """An answer whose counts, ids and distances do not agree is Internal, not a wrong result."""
    with pytest.raises(Internal):
        answers.decode_query_result(message, (), 5)


def test_groups_that_disagree_with_the_hits() -> None:
    """An answer with more or fewer groups than hits is Internal."""
    message = pb.QueryResponse(counts=[1], distances=b"\0" * 4, groups=[b"1", b"2"])
    message.hits.ids.append("a")
    with pytest.raises(Internal, match="groups"):
        answers.decode_query_result(message, (), 5, grouped=True)


def test_empty_pages_have_the_columns_that_were_asked_for() -> None:
    """A page without records still says which columns were included."""
    page = messages.decode_records(pb.RecordBatch(), ("metadata", "vector", "uri"), "", 3)
    assert (page.ids, page.metadata, page.uris, page.documents) == ([], [], [], None)
    assert page.vectors is not None
    assert len(page.vectors) == 0
    assert page.cursor is None
