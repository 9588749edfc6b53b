"""One table of settings: name, type, default, bounds, and a sentence for people.

The engine's settings are `ENGINE`. The server adds its own rows to the same form, so that keyword,
flag, environment variable, TOML key and documentation all come from one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InvalidSetting

SettingValue = str | int | float | bool

_KIND_NAMES = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of a settings table. `low` and `high` are inclusive bounds of numbers."""

    name: str
    kind: type[str | int | float | bool]
    default: SettingValue
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    """Texts that it may be; any, if there are none."""
    reload: bool = False
    """Whether a server takes up a change of it while it runs."""

    def check(self, value: Any) -> SettingValue:
        """`value` in this setting's type; InvalidSetting says what is wrong with it."""
        given = value
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            raise InvalidSetting(
                f"setting {self.name!r} takes {_KIND_NAMES[self.kind]}, given {given!r}",
                setting=self.name,
            )
        too_low = self.low is not None and not isinstance(value, str) and not value >= self.low
        too_high = self.high is not None and not isinstance(value, str) and not value <= self.high
        if too_low or too_high:
            low = "any" if self.low is None else f"{self.low:,}"
            high = "any" if self.high is None else f"{self.high:,}"
            raise InvalidSetting(
                f"setting {self.name!r} must be from {low} to {high}, given {given!r}",
                setting=self.name,
            )
        if self.choices and value not in self.choices:
            raise InvalidSetting(
                f"setting {self.name!r} must be {' or '.join(self.choices)}, given {given!r}",
                setting=self.name,
            )
        return value

    def parse(self, text: str) -> SettingValue:
        """`check` for a value that arrives as text: a flag or an environment variable."""
        text = text.strip()
        try:
            if self.kind is bool:
                return {"1": True, "true": True, "yes": True, "on": True,
                        "0": False, "false": False, "no": False, "off": False}[text.lower()]  # fmt: skip
            if self.kind is int:
                return self.check(int(text.replace("_", "")))
            if self.kind is float:
                return self.check(float(text))
        except (KeyError, ValueError) as error:
            if isinstance(error, InvalidSetting):
                raise
            raise InvalidSetting(
                f"setting {self.name!r} takes {_KIND_NAMES[self.kind]}, given {text!r}",
                setting=self.name,
            ) from None
        return self.check(text)


def resolve(table: tuple[Setting, ...], given: Mapping[str, Any]) -> dict[str, SettingValue]:
    """All settings of `table`, from `given` where named and from the defaults elsewhere."""
    known = {row.name: row for row in table}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InvalidSetting(
            f"unknown setting {unknown[0]!r}; known are: {', '.join(sorted(known))}",
            setting=unknown[0],
        )
    return {row.name: row.check(given.get(row.name, row.default)) for row in table}


GIB = 1024**3

ENGINE: tuple[Setting, ...] = (
    Setting("map_initial_bytes", int, GIB // 4, "Size a new collection's LMDB map starts with. The file is sparse: it takes only what is written.", 1 << 20, 1 << 46),
    Setting("map_limit_bytes", int, 1 << 42, "Size the LMDB map of one collection may grow to; beyond it writes answer STORAGE_FULL. A sixteenth of it, no less than 1 MiB or a quarter, no more than 1 GiB, is kept for deletes and compaction.", 1 << 20, 1 << 46),
    Setting("durability", str, "commit", "When a write is acknowledged: `commit`, when it is on the disk; `interval`, when the kernel has it, and it is on the disk soon after: see docs/durability.md.", choices=("commit", "interval")),
    Setting("durability_interval_ms", float, 100.0, "With `interval`: writes wait as soon as one that was acknowledged so long ago is not on the disk, so that a power cut takes what was acknowledged in such a time at most.", 1.0, 60_000.0),
    Setting("keep_old_format", bool, True, "Before a collection of an older format is upgraded, its file is copied, so that `vecdb downgrade` can go back."),
    Setting("exact_max_scalars", int, 8_000_000, "An `auto` collection is searched exactly while rows x dimension stays at or below this.", 0, 1 << 40),
    Setting("index_tail_share", float, 0.05, "A build starts when fresh rows exceed this share of the indexed ones (and 10,000 rows).", 0.01, 10.0),
    # 60,000 WordNet vectors with 10, 25 and 50 % dead, single queries at 0.95: 0.83, 0.73 and 0.47 of the rate of a graph built anew,
    # 0.55, 0.47 and 0.10 of lists. To build one costs two cores 1.1, 0.4 and 0.14 ms a dead row. ARCHITECTURE.md, "Dead rows".
    Setting("index_dead_share", float, 0.25, "The main index is built anew when this share of its rows is dead.", 0.01, 1.0),
    Setting("build_threads", int, 0, "Threads of an index build, which runs at low priority; 0: one a core.", 0, 1024),
    Setting("build_memory_bytes", int, 0, "Memory that an index build may take, beside what is there already; 0: no limit.", 0, 1 << 50),
    Setting("index_memory_bytes", int, 0, "Memory that the index of a collection should stay below: quantization `auto` codes vectors as tightly as that takes; 0: a sixteenth of the machine's memory.", 0, 1 << 50),
    Setting("audit_share", float, 0.001, "Share of live queries that are answered again exactly in spare time, for the running recall in `stats`; never of those with `group_by`, `mmr_lambda` or a `target_recall` of their own; 0: none.", 0.0, 1.0),
    Setting("compact_dead_share", float, 0.2, "A collection is compacted when this share of its rows is dead and still takes space.", 0.01, 1.0),
    Setting("history_s", float, 3600.0, "Dead rows keep their content for this many seconds, so that cursors of running scans stay good.", 0.0, 31_536_000.0),
    Setting("auto_build", bool, True, "Build indexes in the background as collections grow; off: only when asked, and where the recall audit finds one below its target.", ),
    Setting("filter_cache_entries", int, 32, "Filter results kept a collection; each takes one byte a row.", 0, 10_000),
    Setting("max_fields", int, 1_000, "Distinct metadata paths a collection may have.", 1, 65_535),
    Setting("max_collections", int, 10_000, "Collections that a database may have; each takes a folder, and the memory of its vectors once it was used.", 1, 1_000_000),
    Setting("max_open_collections", int, 40, "Collections whose LMDB files are open at once, five for each. Beyond it, those not used lately are closed until they are used again, which takes about 0.5 ms; their vectors stay in memory.", 1, 1_000_000),
    Setting("device", str, "auto", "What searches: `cpu`, `gpu` (all of them), `gpu:0,1` (these), or `auto`: GPUs where there are any. A GPU that is asked for by name must be there."),
    Setting("device_memory_bytes", int, 0, "Memory that placements may take on each GPU; 0: 0.9 of what is free at the start.", 0, 1 << 50),
    Setting("device_queue", int, 1_024, "Searches that may wait for one GPU; further ones are answered LIMIT_EXCEEDED.", 1, 1_000_000),
    Setting("device_timeout_s", float, 30.0, "A GPU's process that answers neither a search nor a ping for this long is ended and started again.", 0.1, 3_600.0),
)  # fmt: skip
"""Settings of `vecdb.open(path, **settings)`."""
