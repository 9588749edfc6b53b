"""Makes vecdb one of VectorDBBench's databases in this process.

Their list of databases is an enumeration with a branch for each, and has no place to add one. So a member
is put into it while it runs, and the three questions that a member answers are asked here first. No file of
theirs is changed. Processes that their runner starts get the client object, which needs no registration.
"""

from __future__ import annotations

from typing import Any

from vectordb_bench.backend import clients

from .client import Vecdb, VecdbCaseConfig, VecdbConfig

NAME = "Vecdb"
VALUE = "vecdb"


def registered() -> Any:
    """The member `DB.Vecdb`; put there by the first call. Raises RuntimeError where theirs has one by then."""
    enumeration: Any = clients.DB
    there = enumeration._member_map_.get(NAME)
    if there is not None:
        if there.init_cls is not Vecdb:
            raise RuntimeError(f"VectorDBBench has a database {NAME} of its own: use that one")
        return there
    member = object.__new__(enumeration)
    member._name_, member._value_, member.__objclass__ = NAME, VALUE, enumeration
    member._sort_order_ = len(enumeration._member_names_)
    enumeration._member_names_.append(NAME)
    enumeration._member_map_[NAME] = member
    enumeration._value2member_map_[VALUE] = member
    theirs = {name: enumeration.__dict__[name] for name in ("init_cls", "config_cls")}
    of_case = enumeration.case_config_cls
    for name, mine in (("init_cls", Vecdb), ("config_cls", VecdbConfig)):
        asked = _asked_first(member, mine, theirs[name])
        setattr(enumeration, name, asked)

    def case_config_cls(self: Any, *words: Any, **named: Any) -> Any:
        return VecdbCaseConfig if self is member else of_case(self, *words, **named)

    enumeration.case_config_cls = case_config_cls
    return member


def _asked_first(member: Any, mine: type, theirs: property) -> property:
    def answer(self: Any) -> Any:
        if self is member:
            return mine
        assert theirs.fget is not None
        return theirs.fget(self)

    return property(answer)
