"""The optional typed schema of a collection: declared metadata paths and what they may hold.

Any thread may call these.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from .errors import InvalidMetadata, InvalidSetting
from .pivot import MAX_PATHS
from .scalars import Refused, plain_key, shown
from .types import FIELD_TYPES

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "datetime": (dt.datetime,),
}


def check_schema(schema: Mapping[str, str]) -> dict[str, str]:
    """A typed schema as a plain dict: dotted path to a type of FIELD_TYPES, `[]` behind it for lists.

    InvalidSetting names the path that is wrong.
    """
    if not isinstance(schema, Mapping):
        raise InvalidSetting(
            f"schema must map metadata paths to types, given {type(schema).__name__}",
            setting="schema",
        )
    # Whoever lists collections is sent the schemas of all.
    if len(schema) > MAX_PATHS:
        raise InvalidSetting(
            f"a schema declares at most {MAX_PATHS:,} metadata paths, given {len(schema):,}",
            setting="schema",
        )
    for path, name in schema.items():
        try:
            if plain_key(path) == "id":
                raise Refused("'id' is the record id and has no place in a schema")
            if not isinstance(name, str) or name.removesuffix("[]") not in FIELD_TYPES:
                known = ", ".join(FIELD_TYPES)
                raise Refused(f"type must be one of {known}, or one with [], given {shown(name)}")
        except Refused as reason:
            named = path if isinstance(path, str) else shown(path)
            raise InvalidSetting(
                f"schema field {named}: {reason}", setting="schema", path=named
            ) from None
    return dict(schema)


def conform(value: dict[str, Any], schema: Mapping[str, str], where: str) -> None:
    """InvalidMetadata if normalised metadata holds another type at a path that `schema` declares.

    Missing and null pass, also inside lists; an int passes for a float. Costs nothing without a
    schema, and does not walk nested mappings unless the schema has dotted paths.
    """
    if not schema:
        return
    holdings = _holdings(value, "") if any("." in path for path in schema) else value
    for path, name in schema.items():
        item = holdings.get(path)
        if item is None:
            continue
        allowed = _TYPES[name.removesuffix("[]")]
        if name.endswith("[]"):
            wrong = type(item) is not list or any(
                x is not None and type(x) not in allowed for x in item
            )
        else:
            wrong = type(item) not in allowed
        if wrong:
            raise InvalidMetadata(
                f"{where}: metadata at {path!r}: the collection's schema says {name}, given "
                f"{shown(item)}",
                path=path,
                where=where,
            )


def _holdings(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Dotted path to what stands there, mappings included: these have the wrong type anywhere."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found[prefix + key] = item
        if type(item) is dict:
            found.update(_holdings(item, f"{prefix}{key}."))
    return found
