"""What all parts of one run share: the data set, the rounds, and collections that several parts look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import peers
from ..children import Child, Sampler, settled
from ..peers import Peer
from ..sources import Source

WORKER = "bench.worker:Worker"
_ROWS_A_LOAD = 300_000
_RAW_BATCH = 8_192
_ROWS_THAT_MATTER = 100_000


@dataclass(frozen=True, slots=True)
class Made:
    """A collection that was filled and indexed in a process of its own, and is closed now."""

    folder: Path
    kind: str
    quantization: str
    figures: dict[str, Any]


@dataclass(slots=True)
class Plan:
    """One run. Collections are made when a part first asks for them, one at a time."""

    source: Source
    folder: Path
    results: Path
    name: str
    rounds: int
    say: Callable[[str], None]
    take_memory: bool = False
    """Inserts find all of the machine's memory in use; see `bench/host_memory.py`."""
    peers: Sequence[peers.Peer] = peers.PEERS
    _made: dict[tuple[str, str], Made] = field(default_factory=dict)
    _raws: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def loads(self) -> int:
        """How often a load is repeated: as rounds, but a large one only once."""
        return max(1, min(self.rounds, _ROWS_A_LOAD // self.source.rows))

    @property
    def settle_s(self) -> float:
        """How long a process is left alone before its memory at rest is read."""
        return 1.0 if self.source.rows >= _ROWS_THAT_MATTER else 0.05

    def collection(self, index: str = "auto", quantization: str = "auto") -> Made:
        """A collection of vecdb with the whole set in it, its index built; see `_fill` for figures.

        What "auto" has chosen serves for the same thing asked for by name. Raises ChildFailed where the
        engine does not offer it.
        """
        asked = (index, quantization)
        built = {(made.kind, made.quantization): made for made in self._made.values()}
        built |= {
            (i, made.quantization): made for (i, _), made in self._made.items() if i == "auto"
        }
        if asked not in self._made:
            folder = self.folder / f"vecdb-{index}-{quantization}"
            self._made[asked] = built.get(asked) or self._fill(folder, index, quantization)
        return self._made[asked]

    def _fill(self, folder: Path, index: str = "auto", quantization: str = "auto") -> Made:
        """Fills a collection while its process is watched from outside.

        `bare`: its memory after imports. `peak`: highest while inserting and while building. `rest`: a second
        after the build, in the same process. `ready_s`: from the first insert to all indexed at target, and
        `finished_s` to nothing being left to build.
        """
        options = {"index": index, "quantization": quantization}
        name = f"{index}/{quantization}"
        with Child(WORKER, self.source) as child:
            child.call("load", "engine")
            bare = settled(child.pid, 0)
            child.call("open", name, "engine", folder, True, options)
            with Sampler(child.pid) as inserting:
                filled = child.call("fill", name)
            with Sampler(child.pid) as building:
                build_s = child.call("ready", name)
                finished_s = build_s + child.call("finish", name)
            child.call("settle")
            rest = settled(child.pid, self.settle_s)
            stats = child.call("stats", name)
            child.call("close", name)
        figures = {
            "insert_s": filled["insert_s"],
            "build_wait_s": build_s,
            "ready_s": filled["wall_s"] + build_s,
            "finished_s": filled["wall_s"] + finished_s,
            "bare": bare,
            "peak_inserting": inserting.peak,
            "peak_building": building.peak,
            "rest": rest,
            "index": stats,
        }
        self.say(
            f"  {name}: {stats['kind']}/{stats['quantization']}, inserted in"
            f" {figures['insert_s']:.1f} s, indexed after {figures['ready_s']:.1f} s, done after"
            f" {figures['finished_s']:.1f} s"
        )
        return Made(folder, stats["kind"], stats["quantization"], figures)

    def served(self) -> Made:
        """The collection as `auto` makes it, where that is a graph or lists; else HNSW over float32."""
        auto = self.collection()
        return auto if auto.kind == "ivf" else self.hnsw()

    def hnsw(self) -> Made:
        """The collection as `auto` makes it, where raw FAISS has that index too; else HNSW over float32."""
        auto = self.collection()
        same = auto.kind == "hnsw" and auto.quantization in peers.SAME
        return auto if same else self.collection("hnsw", "none")

    def raw(self, peer: Peer) -> dict[str, Any]:
        """One of `peers.RAWS` built with all cores: folder of its file, and the seconds it took."""
        if peer.module not in self._raws:
            self._raws[peer.module] = self._build_raw(peer, self.folder / peer.module)
        return self._raws[peer.module]

    def _build_raw(self, peer: Peer, folder: Path) -> dict[str, Any]:
        with Child(WORKER, self.source) as child:
            child.call("open", "raw", peer.module, folder, True, {})
            filled = child.call("fill", "raw", _RAW_BATCH)
            child.call("save", "raw")
        self.say(f"  {peer.name}: indexed after {filled['wall_s']:.1f} s")
        return {"folder": folder, "build_s": filled["wall_s"]}

    def builds(self, peer: Peer) -> list[tuple[float, float]]:
        """Seconds to all indexed, of vecdb and of one of `peers.RAWS` in turns, `loads` times."""
        times = [(self.collection().figures["ready_s"], self.raw(peer)["build_s"])]
        while len(times) < self.loads:
            again = self.folder / "again"
            own_s = self._fill(again).figures["ready_s"]
            times.append((own_s, self._build_raw(peer, again)["build_s"]))
            shutil.rmtree(again)
        return times
