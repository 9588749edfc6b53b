"""Settings of a collection: checked when it is made, kept as JSON in its store."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

import msgspec

from .errors import Corrupted, InvalidName, InvalidSetting
from .metadata import check_schema
from .store import Shape
from .types import INDEX_KINDS, MAX_DIMENSION, METRICS, STORAGES, CollectionInfo

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MAX_DESCRIPTION_BYTES = 65_536


def check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(
            f"name {name!r}; a name has 1 to 128 characters of A-Z a-z 0-9 _ . - and starts with a letter "
            "or digit"
        )


def check_info(
    name: str,
    dimension: int,
    metric: str,
    storage: str,
    index: str,
    target_recall: float,
    schema: Mapping[str, str] | None,
    description: str,
) -> CollectionInfo:
    check_name(name)
    if (
        isinstance(dimension, bool)
        or not isinstance(dimension, int)
        or not 1 <= dimension <= MAX_DIMENSION
    ):
        raise InvalidSetting(
            f"dimension must be an integer from 1 to {MAX_DIMENSION}, given {dimension!r}"
        )
    for what, given, choices in (
        ("metric", metric, METRICS),
        ("storage", storage, STORAGES),
        ("index", index, INDEX_KINDS),
    ):
        if given not in choices:
            raise InvalidSetting(
                f"{what} must be one of {', '.join(choices)}, given {given!r}", setting=what
            )
    number = isinstance(target_recall, Real) and not isinstance(target_recall, bool)
    if not number or not 0.5 <= target_recall <= 1.0:
        raise InvalidSetting(f"target_recall must be from 0.5 to 1.0, given {target_recall!r}")
    try:
        described = len(description.encode())
    except (AttributeError, UnicodeEncodeError):
        described = _MAX_DESCRIPTION_BYTES + 1
    if described > _MAX_DESCRIPTION_BYTES:
        raise InvalidSetting(
            f"description must be a text of at most {_MAX_DESCRIPTION_BYTES} bytes of UTF-8"
        )
    return CollectionInfo(
        name,
        dimension,
        metric,  # type: ignore[arg-type]
        storage,  # type: ignore[arg-type]
        index,  # type: ignore[arg-type]
        float(target_recall),
        check_schema(schema or {}),
        description,
        dt.datetime.now(dt.UTC),
    )


def to_json(info: CollectionInfo) -> bytes:
    """The settings as stored; the name is the catalog's."""
    return msgspec.json.format(msgspec.json.encode(info))


def from_json(name: str, settings: bytes) -> CollectionInfo:
    try:
        info = msgspec.json.decode(settings, type=CollectionInfo)
    except msgspec.MsgspecError as error:
        raise Corrupted(f"the settings of collection {name!r} cannot be read: {error}") from error
    return dataclasses.replace(info, name=name)


def shape_of(settings: bytes) -> Shape:
    info = from_json("", settings)
    return Shape(info.dimension, info.storage)
