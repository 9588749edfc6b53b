"""Settings of a collection: checked when it is made, kept as JSON in its store."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

import msgspec

from .device.devices import checked as checked_device
from .errors import CollectionExists, Corrupted, InvalidName, InvalidSetting
from .metadata import check_schema
from .store import FieldShape, Shape
from .types import (
    INDEX_KINDS,
    LISTS_ONLY,
    MAX_DIMENSION,
    MAX_VECTOR_FIELDS,
    METRICS,
    QUANTIZATIONS,
    STORAGES,
    CollectionInfo,
    VectorSettings,
)

OWN_VECTOR = "vector"
"""How the record's own vector is named beside the named fields; none of them may bear it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MAX_DESCRIPTION_BYTES = 65_536
_WHOLE_STORAGES = ("int8", "uint8", "binary")
_FIELD_SETTINGS = {f.name: f.default for f in dataclasses.fields(VectorSettings)}


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
    quantization: str = "auto",
    vectors: Mapping[str, VectorSettings | Mapping[str, Any]] | None = None,
    device: str = "auto",
) -> CollectionInfo:
    """The settings of a new collection, as they were given; InvalidName, InvalidSetting."""
    check_name(name)
    own = _check_space("", dimension, metric, storage, index, quantization, target_recall)
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
        own.dimension,
        own.metric,
        own.storage,
        own.index,
        own.target_recall,
        check_schema(schema or {}),
        description,
        dt.datetime.now(dt.UTC),
        own.quantization,
        _check_fields(vectors),
        checked_device(device),
    )


def _check_fields(vectors: Any) -> dict[str, VectorSettings]:
    """Named vector fields, in the order given, which numbers them in the store."""
    if vectors is None:
        return {}
    if not isinstance(vectors, Mapping):
        raise InvalidSetting(
            f"vectors must map names to VectorSettings, given {type(vectors).__name__}",
            setting="vectors",
        )
    if len(vectors) > MAX_VECTOR_FIELDS:
        raise InvalidSetting(
            f"vectors names {len(vectors)} fields, at most {MAX_VECTOR_FIELDS} are taken",
            setting="vectors",
            limit=MAX_VECTOR_FIELDS,
        )
    fields = {}
    for name, given in vectors.items():
        check_name(name)
        if name == OWN_VECTOR:
            raise InvalidName(
                f"{OWN_VECTOR!r} is the record's own vector; choose another name for the field"
            )
        where = f"vector field {name!r}: "
        if isinstance(given, VectorSettings):
            given = dataclasses.asdict(given)
        if not isinstance(given, Mapping) or "dimension" not in given:
            raise InvalidSetting(
                f"{where}expected VectorSettings, or a mapping with a dimension; given {given!r:.80}",
                setting="vectors",
            )
        unknown = sorted(map(str, set(given) - set(_FIELD_SETTINGS)))
        if unknown:
            raise InvalidSetting(
                f"{where}no setting {unknown[0]!r}; there are {', '.join(_FIELD_SETTINGS)}",
                setting="vectors",
            )
        fields[name] = _check_space(where, **{**_FIELD_SETTINGS, **given})
    return fields


def _check_space(
    where: str,
    dimension: Any,
    metric: Any,
    storage: Any,
    index: Any,
    quantization: Any,
    target_recall: Any,
) -> VectorSettings:
    """The settings that the record's own vector and named ones have alike."""
    if (
        isinstance(dimension, bool)
        or not isinstance(dimension, int)
        or not 1 <= dimension <= MAX_DIMENSION
    ):
        raise InvalidSetting(
            f"{where}dimension must be an integer from 1 to {MAX_DIMENSION}, given {dimension!r}"
        )
    for what, given, choices in (
        ("metric", metric, METRICS),
        ("storage", storage, STORAGES),
        ("index", index, INDEX_KINDS),
        ("quantization", quantization, QUANTIZATIONS),
    ):
        if given not in choices:
            raise InvalidSetting(
                f"{where}{what} must be one of {', '.join(choices)}, given {given!r}", setting=what
            )
    if (storage == "binary") != (metric == "hamming"):
        raise InvalidSetting(
            f"{where}storage binary and metric hamming go together only, given {storage} and {metric}",
            setting="metric",
        )
    if storage == "binary" and dimension % 8:
        raise InvalidSetting(
            f"{where}dimension counts bits in storage binary, 8 a byte: it must be a multiple of 8, "
            f"given {dimension}",
            setting="dimension",
        )
    if storage in _WHOLE_STORAGES and quantization not in ("auto", "none"):
        raise InvalidSetting(
            f"{where}storage {storage} is compact already: quantization must be auto or none, given "
            f"{quantization}",
            setting="quantization",
        )
    if quantization in LISTS_ONLY and index not in ("auto", "ivf"):
        raise InvalidSetting(
            f"{where}quantization {quantization} is for index ivf or auto, given {index}",
            setting="quantization",
        )
    number = isinstance(target_recall, Real) and not isinstance(target_recall, bool)
    if not number or not 0.5 <= target_recall <= 1.0:
        raise InvalidSetting(
            f"{where}target_recall must be from 0.5 to 1.0, given {target_recall!r}"
        )
    return VectorSettings(dimension, metric, storage, index, quantization, float(target_recall))


def to_json(info: CollectionInfo) -> bytes:
    """The settings as stored; the name is the catalog's, and `error` is of a moment."""
    stored = msgspec.to_builtins(info)
    del stored["error"]
    return msgspec.json.format(msgspec.json.encode(stored))


def made_of(info: CollectionInfo) -> str:
    """All settings as a text, equal for those that are equal."""
    stored = msgspec.to_builtins(info)
    del stored["error"], stored["created_at"]
    return msgspec.json.encode(stored, order="sorted").decode()


def from_json(name: str, settings: bytes) -> CollectionInfo:
    try:
        info = msgspec.json.decode(settings, type=CollectionInfo)
        checked_device(info.device)
    except (msgspec.MsgspecError, RecursionError, InvalidSetting) as error:
        raise Corrupted(f"the settings of collection {name!r} cannot be read: {error}") from error
    return dataclasses.replace(info, name=name, error=None)


def shape_of(settings: bytes) -> Shape:
    info = from_json("", settings)
    named = tuple(FieldShape(field.dimension, field.storage) for field in info.vectors.values())
    return Shape(info.dimension, info.storage, named)


def must_agree(wanted: CollectionInfo, found: CollectionInfo) -> None:
    """CollectionExists where a collection that is there has another setting than is asked for."""
    given, held = dataclasses.asdict(wanted), dataclasses.asdict(found)
    for setting, value in held.items():
        if setting != "created_at" and value != given[setting]:
            raise CollectionExists(
                f"collection {found.name!r} exists with {setting}={value!r}, asked for "
                f"{setting}={given[setting]!r}; drop it or choose another name",
                name=found.name,
                setting=setting,
            )
