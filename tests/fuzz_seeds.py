"""Right requests of every RPC, for the fuzzer to begin with: what is changed a little passes many of the checks that
random bytes never pass.

Each comes from a random number generator and from what the server has said so far (cursors, backups, sequences), so
that the same generator gives the same requests as long as the server gives the same answers.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fuzz_filters import right_filter, right_metadata

from vecdb_client.v1 import vecdb_pb2 as pb

F32, F16, I8, U8 = 1, 2, 3, 4


@dataclass(frozen=True)
class Kind:
    """A collection of the fuzzer's: `width` numbers a vector travel, in the format `code` of `struct`."""

    made: Any
    width: int
    element_type: int
    code: str
    rows: int = 60
    build: bool = False


def _kind(name: str, code: str, rows: int = 60, build: bool = False, **settings: Any) -> Kind:
    made = pb.Collection(name=name, **settings)
    bits = made.storage == pb.ELEMENT_TYPE_BINARY
    width = made.dimension // 8 if bits else made.dimension
    element_type = {"f": F32, "e": F16, "b": I8, "B": U8}[code]
    return Kind(made, width, element_type, code, rows, build)


_NAMED = [
    pb.VectorField(name="img", dimension=4, metric=pb.METRIC_L2),
    pb.VectorField(name="bits", dimension=16, storage=pb.ELEMENT_TYPE_BINARY),
]
KINDS = {
    one.made.name: one
    for one in (
        _kind("docs", "f", 120, dimension=4, vectors=_NAMED, description="all that there is"),
        _kind("half", "e", dimension=4, storage=pb.ELEMENT_TYPE_FLOAT16, metric=pb.METRIC_IP),
        _kind("int8", "b", dimension=4, storage=pb.ELEMENT_TYPE_INT8, metric=pb.METRIC_L2),
        _kind("uint8", "B", dimension=4, storage=pb.ELEMENT_TYPE_UINT8, metric=pb.METRIC_L2),
        _kind("bits", "B", dimension=24, storage=pb.ELEMENT_TYPE_BINARY),
        _kind("graph", "f", 400, True, dimension=8, index=pb.INDEX_KIND_HNSW),
        _kind("lists", "f", 400, True, dimension=8, index=pb.INDEX_KIND_IVF, metric=pb.METRIC_L2),
        _kind("sq8", "f", 300, True, dimension=8, index=pb.INDEX_KIND_HNSW, quantization=pb.QUANTIZATION_SQ8),
        _kind("pq4", "f", 400, True, dimension=8, index=pb.INDEX_KIND_IVF, quantization=pb.QUANTIZATION_PQ4),
        _kind("strict", "f", dimension=4, index=pb.INDEX_KIND_EXACT, metric=pb.METRIC_L2,
              schema={"n": "int", "t": "string", "tags": "string[]"}),
        _kind("passing", "f", 20, dimension=4),
        _kind("empty", "f", 0, dimension=4),
    )
}  # fmt: skip
"""What is there while fuzzing; `passing` is dropped, renamed and made again all the time."""
ALIASES = {"al": "docs", "moved": "graph"}
_SPARE = ["passing", "passing2", "passing3", "fresh"]
INCLUDES = [1, 2, 3, 4, 5, 6]


@dataclass
class Known:
    """What the server has said, in the order in which it was said."""

    cursors: list[tuple[str, Any]] = field(default_factory=list)
    """Verb and request with a cursor that continues it."""
    backups: list[str] = field(default_factory=list)
    """Ids of backups, of the target "kept"."""
    sequences: list[int] = field(default_factory=lambda: [1])
    request_ids: list[tuple[str, Any]] = field(default_factory=list)
    """Verb and write that had an id of its own."""

    def heard(self, method: str, message: Any, answers: list[Any]) -> None:
        """Notes what further calls may go on with."""
        for answer in answers:
            if getattr(answer, "cursor", ""):
                following = type(message)()
                following.CopyFrom(message)
                following.cursor = answer.cursor
                _kept(self.cursors, (method, following))
            if method == "BackupDatabase" and answer.HasField("backup"):
                _kept(self.backups, answer.backup.id)
            if sequence := getattr(answer, "sequence", 0):
                _kept(self.sequences, sequence)
        if getattr(message, "request_id", ""):
            _kept(self.request_ids, (method, message))


def _kept(some: list[Any], one: Any) -> None:
    some.append(one)
    del some[:-40]


def vectors(kind: Kind, count: int, rng: random.Random) -> Any:
    """`count` vectors that the collection takes."""
    return _packed(kind.code, kind.element_type, kind.width, count, rng)


def _packed(code: str, element_type: int, width: int, count: int, rng: random.Random) -> Any:
    low, high = {"b": (-128, 127), "B": (0, 255)}.get(code, (-9, 9))
    numbers = [rng.randint(low, high) or 1 for _ in range(width * count)]
    data = struct.pack(f"<{len(numbers)}{code}", *numbers)
    return pb.Vectors(data=data, count=count, dimension=width, element_type=element_type)


def ids(count: int, rng: random.Random, most: int = 90) -> list[str]:
    """So many ids, no two alike, most of which are stored."""
    return [f"r{i}" for i in rng.sample(range(max(most, count)), count)]


def records(kind: Kind, count: int, rng: random.Random, names: list[str] | None = None) -> Any:
    """A batch that the collection takes."""
    bits = bytes([255] * (count // 8) + [(1 << count % 8) - 1] * (count % 8 > 0))
    batch = pb.RecordBatch(ids=names or ids(count, rng), vectors=vectors(kind, count, rng))
    if rng.random() < 0.8:
        batch.metadata.extend(
            right_metadata(rng, strict=kind.made.name == "strict") for _ in range(count)
        )
    if rng.random() < 0.5:
        batch.documents.values.extend(f"text {rng.choice('abc')} {i}" for i in range(count))
        batch.documents.present = bits if rng.random() < 0.5 else b""
    if rng.random() < 0.3:
        batch.contents.values.extend(rng.randbytes(5) for _ in range(count))
        batch.contents.media_types.extend(["image/png"] * count)
    if rng.random() < 0.3:
        batch.uris.values.extend(f"file:///{i}" for i in range(count))
    if kind.made.vectors and rng.random() < 0.6:
        batch.named_vectors.add(name="img", vectors=_packed("f", F32, 4, count, rng), present=bits)
    if kind.made.vectors and rng.random() < 0.3:
        batch.named_vectors.add(name="bits", vectors=_packed("B", U8, 2, count, rng))
    return batch


def _some(rng: random.Random) -> tuple[str, Kind]:
    """A name to call a collection by, and what it is."""
    name = rng.choice([*KINDS, *ALIASES, "docs"])
    return name, KINDS[ALIASES.get(name, name)]


def _includes(rng: random.Random) -> list[int]:
    return rng.sample(INCLUDES, rng.choice([0, 0, 1, 2, 6]))


def _filter(rng: random.Random, share: float = 0.5) -> str:
    return right_filter(rng) if rng.random() < share else ""


def _query(rng: random.Random) -> Any:
    name, kind = _some(rng)
    asked = pb.QueryRequest(collection=name, k=rng.choice([0, 1, 3, 10, 50]))
    asked.filter = _filter(rng, 0.4)
    asked.include.extend(_includes(rng))
    asked.exact = rng.random() < 0.2
    asked.explain = rng.random() < 0.2
    by = rng.choice(["vectors", "vectors", "vectors", "ids", "positive", "named"])
    if by == "vectors":
        asked.vectors.CopyFrom(vectors(kind, rng.choice([1, 1, 2, 9]), rng))
    elif by == "ids":
        asked.ids.extend(ids(rng.choice([1, 3]), rng, 20))
    elif by == "named":
        asked.collection, asked.vector_name = "docs", "img"
        asked.vectors.CopyFrom(_packed("f", F32, 4, 1, rng))
    else:
        asked.positive.ids.extend(ids(2, rng, 20))
        if rng.random() < 0.5:
            asked.positive.vectors.CopyFrom(vectors(kind, 1, rng))
        if rng.random() < 0.5:
            asked.negative.ids.extend(ids(1, rng, 20))
    way = rng.randrange(5)
    if way == 0:
        asked.group_by, asked.group_size = rng.choice(["t", "n", "tags", "x.y"]), rng.choice([0, 2])
    elif way == 1:
        asked.mmr_lambda, asked.mmr_candidates = rng.random(), rng.choice([0, 60])
    elif way == 2:
        asked.max_distance = rng.choice([0.0, 0.5, 2.0, 1000.0])
    if rng.random() < 0.2:
        asked.target_recall = rng.choice([0.5, 0.9, 1.0])
    return asked


def _write(make: Any, rng: random.Random, known: Known) -> Any:
    name, kind = _some(rng)
    fresh = [f"f{rng.randrange(10**9)}-{i}" for i in range(rng.choice([1, 3, 9]))]
    if make is pb.InsertRequest:
        asked = make(collection=name, records=records(kind, len(fresh), rng, fresh))
    else:
        asked = make(collection=name, records=records(kind, rng.choice([1, 3, 9]), rng))
    if make is pb.UpdateRequest:
        del asked.records.ids[:]
        count = asked.records.vectors.count
        asked.records.ids.extend(ids(count, rng, 20))
        if rng.random() < 0.5:
            asked.records.ClearField("vectors")
        asked.clear.extend(rng.sample([2, 3, 4, 5], rng.choice([0, 1, 2])))
    if rng.random() < 0.3:
        asked.request_id = f"id{rng.randrange(10**6)}"
    return asked


def _repeated(method: str, otherwise: Any, rng: random.Random, known: Known) -> Any:
    """Now and then a write once more, as it was."""
    same = [asked for verb, asked in known.request_ids if verb == method]
    return rng.choice(same) if same and rng.random() < 0.1 else otherwise


def _continued(method: str, otherwise: Any, rng: random.Random, known: Known) -> Any:
    same = [asked for verb, asked in known.cursors if verb == method]
    return rng.choice(same) if same and rng.random() < 0.3 else otherwise


def _get(rng: random.Random, known: Known) -> Any:
    asked = pb.GetRequest(collection=_some(rng)[0], include=_includes(rng), filter=_filter(rng))
    if rng.random() < 0.4:
        asked.ids.extend(ids(rng.choice([1, 5]), rng))
    else:
        asked.limit = rng.choice([0, 1, 7, 50])
        asked.order_by = rng.choice(["", "n", "-t", "id", "-x.y"])
    return _continued("Get", asked, rng, known)


def _scan(rng: random.Random, known: Known) -> Any:
    asked = pb.ScanRequest(collection=_some(rng)[0], include=_includes(rng), filter=_filter(rng))
    asked.batch_size = rng.choice([0, 7, 50])
    if rng.random() < 0.3:
        asked.slices = 3
        asked.slice = rng.randrange(3)
    return _continued("Scan", asked, rng, known)


def _create(rng: random.Random) -> Any:
    made = pb.Collection()
    made.CopyFrom(KINDS[rng.choice([*KINDS, "passing", "passing"])].made)
    if rng.random() < 0.7:
        made.name = rng.choice(_SPARE)
    return pb.CreateCollectionRequest(collection=made, exist_ok=rng.random() < 0.6)


def _backup(rng: random.Random) -> Any:
    some = rng.sample(["docs", "strict", "al", "bits"], rng.choice([1, 2]))
    return pb.BackupDatabaseRequest(target="kept", collections=some, kind=rng.randrange(4))


def _restore(rng: random.Random, known: Known) -> Any:
    asked = pb.RestoreBackupRequest(target="kept", collections={"docs": rng.choice(_SPARE)})
    if known.backups and rng.random() < 0.5:
        asked.backup = rng.choice(known.backups)
    if rng.random() < 0.3:
        asked.sequence = rng.choice(known.sequences)
    return asked


def _ingest(rng: random.Random) -> list[Any]:
    name, kind = _some(rng)
    sent = [
        pb.IngestRequest(collection=name, records=records(kind, rng.choice([1, 5]), rng), upsert=True)
        for _ in range(rng.choice([1, 2, 4]))
    ]  # fmt: skip
    for later in sent[1:]:
        if rng.random() < 0.5:
            later.collection = ""
    for one in sent:
        if rng.random() < 0.3:
            one.request_id = f"id{rng.randrange(10)}"
    return sent


def _streamed(rng: random.Random) -> list[Any]:
    sent = []
    for _ in range(rng.choice([1, 1, 3])):
        alike = _query(rng)
        queries = [
            alike if rng.random() < 0.5 else _query(rng) for _ in range(rng.choice([1, 2, 6]))
        ]
        sent.append(pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=one) for one in queries]))
    return sent


def _one_by_name(make: Any, rng: random.Random) -> Any:
    return make(collection=_some(rng)[0])


Make = Callable[[random.Random, Known], Any]

SEEDS: dict[str, Make] = {
    "GetServerInfo": lambda rng, known: pb.GetServerInfoRequest(),
    "GetMetrics": lambda rng, known: pb.GetMetricsRequest(),
    "CreateCollection": lambda rng, known: _create(rng),
    "GetCollection": lambda rng, known: pb.GetCollectionRequest(name=_some(rng)[0]),
    "ListCollections": lambda rng, known: pb.ListCollectionsRequest(),
    "DropCollection": lambda rng, known: pb.DropCollectionRequest(name=rng.choice(_SPARE)),
    "RenameCollection": lambda rng, known: pb.RenameCollectionRequest(name=rng.choice(_SPARE), new_name=rng.choice(_SPARE)),
    "SetAlias": lambda rng, known: pb.SetAliasRequest(alias=rng.choice(["x", "y"]), collection=rng.choice([*_SPARE, "docs"])),
    "DropAlias": lambda rng, known: pb.DropAliasRequest(alias=rng.choice(["x", "y"])),
    "ListAliases": lambda rng, known: pb.ListAliasesRequest(),
    "Insert": lambda rng, known: _repeated("Insert", _write(pb.InsertRequest, rng, known), rng, known),
    "Upsert": lambda rng, known: _repeated("Upsert", _write(pb.UpsertRequest, rng, known), rng, known),
    "Update": lambda rng, known: _repeated("Update", _write(pb.UpdateRequest, rng, known), rng, known),
    "Delete": lambda rng, known: pb.DeleteRequest(collection=_some(rng)[0], ids=ids(rng.choice([1, 3]), rng), filter=_filter(rng, 0.3)),
    "Ingest": lambda rng, known: _ingest(rng),
    "Get": _get,
    "Query": lambda rng, known: _query(rng),
    "QueryStream": lambda rng, known: _streamed(rng),
    "Count": lambda rng, known: pb.CountRequest(collection=_some(rng)[0], filter=_filter(rng, 0.8), min_sequence=rng.choice([0, 1])),
    "Scan": _scan,
    "GetStats": lambda rng, known: _one_by_name(pb.GetStatsRequest, rng),
    "Check": lambda rng, known: _one_by_name(pb.CheckRequest, rng),
    "BuildIndex": lambda rng, known: pb.BuildIndexRequest(collection=_some(rng)[0], wait=rng.random() < 0.5),
    "CancelBuild": lambda rng, known: _one_by_name(pb.CancelBuildRequest, rng),
    "Flush": lambda rng, known: _one_by_name(pb.FlushRequest, rng),
    "Compact": lambda rng, known: pb.CompactRequest(collection=_some(rng)[0], wait=rng.random() < 0.5),
    "BackupDatabase": lambda rng, known: _backup(rng),
    "ListBackups": lambda rng, known: pb.ListBackupsRequest(target="kept"),
    "VerifyBackups": lambda rng, known: pb.VerifyBackupsRequest(target="kept", backup=rng.choice([*known.backups, ""])),
    "RestoreBackup": _restore,
    "PruneBackups": lambda rng, known: pb.PruneBackupsRequest(target="kept", keep=rng.choice([1, 2])),
}  # fmt: skip
"""What makes a right request of an RPC, or the messages of a stream."""
