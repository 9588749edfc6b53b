"""The recall audit: what it samples, what it finds, what it does about it, and what it never does."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time

import numpy as np
import pytest
from conftest import wait_until

import vecdb
from vecdb import errors, recall_audit
from vecdb.recall_audit import LOOK_EVERY, Audit, hits_of, interval
from vecdb.types import AuditStats

N, D = 6_000, 48


def vectors_of(seed, n):
    """Without clusters, so that a short walk misses neighbours."""
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A database whose collection has an HNSW index; opened again by each test."""
    folder = tmp_path_factory.mktemp("audit") / "data"
    with vecdb.open(folder) as db:
        docs = db.create_collection("docs", dimension=D, index="hnsw", target_recall=0.9)
        docs.insert(
            [f"r{i}" for i in range(N)],
            vectors_of(1, N),
            metadata=[{"even": i % 2 == 0} for i in range(N)],
        )
        docs.build_index()
    return folder


@pytest.fixture(autouse=True)
def restless(monkeypatch):
    """Audits that do not rest beside queries, so that many of them take no minutes."""
    monkeypatch.setattr(recall_audit, "_REST", 0.0)


def settled(docs):
    """The audit's figures when nothing waits any more."""
    docs._audit.wait()
    return docs.stats().index.audit


# -- figures


def test_the_interval_holds_what_it_says():
    """Of many simulated windows nearly 95 % hold the true recall, though hits of a query go together."""
    rng = np.random.default_rng(5)
    for mean, spread, n in (
        (0.95, 8.0, 200),
        (0.9, 3.0, 500),
        (0.99, 20.0, 1_000),
        (0.8, 2.0, 100),
    ):
        held = 0
        for _ in range(400):
            # Queries are of different difficulty: a beta distribution of the chance of each hit.
            chances = rng.beta(mean * spread, (1 - mean) * spread, n)
            hits = rng.binomial(10, chances)
            _, low, high = interval([(int(h), 10) for h in hits])
            held += low <= mean <= high
        assert held / 400 >= 0.92, (mean, spread, n)


def test_the_interval_is_narrower_than_the_worst_case():
    """Where queries are alike the interval is nearly that of independent hits, else that of queries."""
    rng = np.random.default_rng(6)
    alike = [(int(h), 10) for h in rng.binomial(10, 0.9, 500)]
    apart = [(10, 10)] * 450 + [(0, 10)] * 50
    width = [high - low for _, low, high in (interval(alike), interval(apart))]
    assert width[0] < width[1] / 2


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], (1.0, 0.0, 1.0)),
        ([(10, 10)], (1.0, 0.206, 1.0)),
        ([(0, 10)], (0.0, 0.0, 0.794)),
        ([(10, 10)] * 1_000, (1.0, 0.996, 1.0)),
        ([(0, 1)] * 100, (0.0, 0.0, 0.037)),
        ([(1, 2), (20, 20)], (21 / 22, 0.3, 1.0)),
    ],
)
def test_the_interval_of_little_and_of_extremes(pairs, expected):
    """Nothing at all, one query, all hits and no hit give an interval within 0 to 1."""
    assert interval(pairs) == pytest.approx(expected, abs=0.02)


def test_hits_count_ties_and_padding():
    """An answer as near as the last true neighbour is a hit; padding is no answer and no neighbour."""
    nan = np.float32(np.nan)
    near = np.array([0.1, 0.2, 0.2, nan], np.float32)
    for metric in ("l2", "cosine"):
        assert hits_of(near, np.array([0.1, 0.15, 0.2], np.float32), metric) == (3, 3)
        assert hits_of(near, np.array([0.1, 0.15, nan], np.float32), metric) == (1, 2)
        assert hits_of(near, np.array([nan, nan], np.float32), metric) == (0, 0)
        none = np.array([nan, nan], np.float32)
        assert hits_of(none, np.array([1, 2], np.float32), metric) == (0, 2)


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e12])
def test_a_miss_is_a_miss_however_short_the_vectors_are(scale):
    """Squared distances of l2 are as small as the vectors; those of cosine are rounded where 1 is."""
    near, exact = np.array([[0.1, 0.25, 0.3], [0.1, 0.2, 0.21]], np.float32) * np.float32(scale)
    assert hits_of(near, exact, "l2") == (1, 3)
    assert hits_of(exact, exact, "l2") == (3, 3)
    assert hits_of(np.float32([0.1, 0.2 + 1e-7]), np.float32([0.1, 0.2]), "cosine") == (2, 2)


def test_a_process_of_low_priority_audits_as_others_do(built, monkeypatch):
    """It may not raise the priority of a thread, which is as low already."""

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(recall_audit.os, "setpriority", refused)
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        for query in vectors_of(2, 30):
            docs.query(query, k=10)
            docs._audit.wait()
        assert settled(docs).queries == 30
        assert not docs._audit._queue


# -- sampling


def test_the_audit_finds_the_recall_that_users_had(built):
    """With a share of 1 every approximate query is audited, and the recall is the true one."""
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        assert docs.stats().index.audit == AuditStats(0, 1.0, 0.0, 1.0)
        queries = vectors_of(2, 120)
        hits = 0
        for n, query in enumerate(queries):
            where = {"even": True} if n % 3 == 0 else None
            near = docs.query(query, k=10, filter=where).distances[0]
            last = docs.query(query, k=10, filter=where, exact=True).distances[0, 9]
            hits += int((near <= last + 1e-6).sum())
            docs._audit.wait()
        stats = settled(docs)
        assert stats.queries <= 120
        assert (
            stats.queries >= 60
        )  # a plan under a filter may be exact, which there is no need to audit
        if stats.queries == 120:
            assert stats.recall == pytest.approx(hits / 1_200)
        assert 0 <= stats.low <= stats.recall <= stats.high <= 1
        assert stats.low > 0.8


def test_batches_and_general_queries_are_audited_too(built):
    """Each query of a batch is a chance, whatever is included; and the batch does not wait."""
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        docs.query(vectors_of(3, 10), k=5, include=["metadata"])
        assert settled(docs).queries == 10
        docs.query(vectors_of(3, 500), k=5)
        assert 10 < settled(docs).queries <= 10 + 17


def test_every_vector_field_has_an_audit_of_its_own(data_folder):
    """Queries of a named field count for that field, and are searched again in it."""
    with vecdb.open(data_folder, audit_share=1.0) as db:
        docs = db.create_collection(
            "docs", dimension=2, index="exact",
            vectors={"deep": {"dimension": D, "metric": "l2", "index": "hnsw", "storage": "float16"}},
        )  # fmt: skip
        n = 6_000
        docs.insert(
            [f"r{i}" for i in range(n)],
            np.ones((n, 2)),
            named_vectors={"deep": [v if i % 5 else None for i, v in enumerate(vectors_of(20, n))]},
        )
        docs.build_index()
        for query in vectors_of(21, 12):
            docs.query(query[:2])
            docs.query(query, vector_name="deep")
            docs._audit.wait()
        stats = docs.stats()
        assert stats.index.audit.queries == 0
        assert stats.vectors["deep"].audit.queries == 12
        assert stats.vectors["deep"].audit.recall > 0.8


def test_exact_answers_and_own_targets_are_not_audited(built):
    """Only what the collection's target was promised for is audited."""
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        query = vectors_of(4, 1)
        docs.query(query, exact=True)
        docs.query(query, target_recall=0.7)
        docs.query(query, target_recall=1.0)
        docs.query(query, max_distance=0.5)
        docs.query(query, k=3, group_by="even")
        docs.query(query, k=3, mmr_lambda=0.5)
        docs.query(query, filter={"id": "r7"})
        assert settled(docs).queries == 0


def test_no_share_no_audit(built):
    """With audit_share=0 there is nothing to ask, and the figures are empty."""
    with vecdb.open(built, audit_share=0.0) as db:
        docs = db.get_collection("docs")
        assert docs._audit is None
        docs.query(vectors_of(5, 5))
        assert docs.stats().index.audit == AuditStats()


def test_the_share_is_kept(built):
    """About the asked share of queries is sampled; the seed decides which."""
    with vecdb.open(built) as db:
        core = db.get_collection("docs")._core
        view = core.view

        class Counting(Audit):
            taken = 0

            def _take(self, taken, *rest):
                self.taken += len(taken)

        counts = []
        for seed in (1, 1, 2):
            audit = Counting(core, None, 0.1, seed)
            for _ in range(2_000):
                audit.offer("", view, vectors_of(6, 1), 5, None, np.zeros((1, 5), np.float32))
            audit.offer("", view, np.ones((2_000, D), np.float32), 5, None, np.zeros((2_000, 5)))
            counts.append(audit.taken)
        assert counts[0] == counts[1] != counts[2]
        assert all(300 < count < 500 for count in counts)


def test_a_full_queue_drops_and_never_waits(built, monkeypatch):
    """While the audit is held up, queries go on, and at most 16 samples are kept."""
    gate = threading.Event()
    plain = Audit._answer_again
    monkeypatch.setattr(
        Audit, "_answer_again", lambda self, *given: (gate.wait(20), plain(self, *given))
    )
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        begun = time.monotonic()
        for query in vectors_of(7, 200):
            docs.query(query)
        docs.query(vectors_of(8, 300))
        assert time.monotonic() - begun < 15
        assert len(docs._audit._queue) == 16
        gate.set()
        assert settled(docs).queries <= 18


def test_an_audit_looks_at_the_moment_of_the_answer(built, monkeypatch):
    """Records that come and go between answer and audit are no misses."""
    gate = threading.Event()
    plain = Audit._answer_again
    monkeypatch.setattr(
        Audit, "_answer_again", lambda self, *given: (gate.wait(20), plain(self, *given))
    )
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        query = vectors_of(9, 1)
        docs.query(query, k=10, target_recall=None)
        exact = docs.query(query, k=10, exact=True)
        copies = [f"copy{i}" for i in range(20)]
        docs.insert(copies, np.repeat(query, 20, axis=0))
        gate.set()
        stats = settled(docs)
        assert stats.queries == 1
        assert stats.recall > 0.5
        docs.delete(copies)
        assert docs.query(query, k=10, exact=True).ids == exact.ids


def test_audits_rest_while_queries_come(built, monkeypatch):
    """Beside queries that never pause, an audit waits until the rest after the last one is over; once nobody asks,
    those that wait come at once."""
    monkeypatch.setattr(recall_audit, "_REST", 1e9)
    monkeypatch.setattr(recall_audit, "_LONGEST_REST_S", 60.0)
    monkeypatch.setattr(recall_audit, "_QUIET_S", 1.0)
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        queries = vectors_of(11, 100)
        docs.query(queries[:1])
        assert settled(docs).queries == 1
        end_s, asked = time.monotonic() + 2.0, 0
        while time.monotonic() < end_s:
            docs.query(queries[asked % 100])
            asked += 1
        assert asked > 100
        assert docs.stats().index.audit.queries == 1
        begun_s, waiting = time.monotonic(), len(docs._audit._queue)
        assert waiting >= 1
        assert settled(docs).queries >= 1 + waiting
        assert time.monotonic() - begun_s < 30
        # A shorter rest ends beside queries too, and what waited with it is dropped.
        monkeypatch.setattr(recall_audit, "_LONGEST_REST_S", 0.1)
        monkeypatch.setattr(recall_audit, "_SPARE_S", 0.1)
        docs._audit._rest_until_s = 0.0
        before, end_s, asked = docs.stats().index.audit.queries, time.monotonic() + 20, 0
        while docs.stats().index.audit.queries < before + 3:
            docs.query(queries[asked % 100])
            asked += 1
            assert time.monotonic() < end_s
        assert asked > 3


def test_closing_ends_the_audit(built, monkeypatch):
    """A close does not wait for what is queued, and no thread of the audit goes on behind it."""
    plain = Audit._answer_again
    monkeypatch.setattr(
        Audit, "_answer_again", lambda self, *given: (time.sleep(0.1), plain(self, *given))
    )
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        docs.query(vectors_of(10, 16))
        audit = docs._audit
        assert audit._thread is not None
    wait_until(lambda: audit._thread is None, "the thread has ended", 2.0)
    with pytest.raises(errors.Closed):
        docs.query(vectors_of(10, 1))


# -- what follows from it


class Care:
    """Remembers what was asked for."""

    def __init__(self):
        self.asked = []

    def recalibrate(self, core, number, queries):
        self.asked.append(("recalibrate", number, queries.shape))

    def rebuild(self, core, number):
        self.asked.append(("rebuild", number))


def boast(core, claimed=0.999):
    """Makes the calibration claim that the shortest walk is as good as any."""
    index = core.field(None).index
    main = index.view.main
    first = dataclasses.replace(
        main.curve.points[0],
        recall_10=claimed, bound_10=claimed, recall_100=claimed, bound_100=claimed,
    )  # fmt: skip
    curve = dataclasses.replace(main.curve, points=(first,))
    index.install(vecdb.index.BuiltIndex(main.with_curve(curve)))


def audited(docs, n, seed):
    for query in vectors_of(seed, n):
        docs.query(query, k=10)
        docs._audit.wait()


def test_a_fall_below_target_is_told_and_mended_step_by_step(built, caplog):
    """First the curve is measured again with users' queries, then the index is built anew; once each."""
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        care = Care()
        docs._audit = Audit(docs._core, care, 1.0)
        boast(docs._core)
        with caplog.at_level(logging.WARNING, "vecdb"):
            audited(docs, LOOK_EVERY - 1, 11)
            assert not care.asked
            audited(docs, 1, 12)
            assert care.asked == [("recalibrate", 0, (LOOK_EVERY, D))]
            audited(docs, 2 * LOOK_EVERY, 13)
            assert len(care.asked) == 1  # answers by the old curve say nothing new
            boast(docs._core, 0.998)
            audited(docs, LOOK_EVERY, 13)
            assert care.asked[1:] == [("rebuild", 0)]
            audited(docs, 120, 14)
            assert len(care.asked) == 2
        told = [
            record.getMessage() for record in caplog.records if "audited" in record.getMessage()
        ]
        assert "below the target of 0.900: its recall curve is measured again" in told[0]
        assert "its index is built anew" in told[1]
        assert len(told) == 2
        assert settled(docs).recall < 0.9


def test_a_mended_curve_keeps_the_target_again(built, caplog):
    """The real thing: a curve that boasts is found out, measured again, and the recall is back."""
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        boast(docs._core)
        before = len(docs.stats().index.curve)
        assert before == 1
        audited(docs, 250, 15)
        wait_until(lambda: len(docs.stats().index.curve) > 1, "the curve was measured again", 60)
        docs._audit.wait()
        audited(docs, 100, 16)
        stats = docs.stats().index
        assert stats.audit.recall >= 0.9
        assert stats.audit.high >= 0.9
        assert "is built anew" not in caplog.text


def test_a_good_index_is_left_alone(built, caplog):
    """As long as the interval reaches the target nothing is asked for."""
    with vecdb.open(built, audit_share=1.0) as db:
        docs = db.get_collection("docs")
        care = Care()
        docs._audit = Audit(docs._core, care, 1.0)
        audited(docs, 200, 17)
        assert care.asked == []
        assert settled(docs).queries == 200
