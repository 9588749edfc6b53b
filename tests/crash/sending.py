"""A part of the journal as a call: the same the first time, and when it is sent again after a kill."""

from __future__ import annotations

from typing import Any

from crash import records
from crash.model import OF_NAMES, Model, Part


def send(database: Any, model: Model, part: Part) -> int:
    """Has `database`, a `vecdb.Database` or a client, do a part; of records, the count of its answer. What has a `request`
    goes with that as its id: sent again, it is answered and not done again."""
    given = {"request_id": part["request"]} if "request" in part else {}
    if part["do"] in OF_NAMES:
        _change_names(database, part, given)
        return 0
    held = model.collections[part["in"]]
    docs = database.get_collection(model.name_of(part["in"]))
    if part["do"] == "put":
        write = docs.insert if part.get("new") else docs.upsert
        return int(write(**records.columns(part["ids"], part["v"], held.shape), **given).count)
    if part["do"] == "change":
        columns = records.changed(part["ids"], part["v"], held.shape, part["what"])
        return int(docs.update(**columns, **given).count)
    if "where" in part:
        return int(docs.delete(filter=part["where"], **given).count)
    return int(docs.delete(records.names(part["ids"]), **given).count)


def _change_names(database: Any, part: Part, given: dict[str, Any]) -> None:
    verb, name = part["do"], part["name"]
    if verb == "create":
        database.create_collection(name, **records.SHAPES[part["shape"]], **given)
    elif verb == "drop":
        database.drop_collection(name, **given)
    elif verb == "rename":
        database.rename_collection(name, part["to"], **given)
    elif verb == "alias":
        database.set_alias(name, part["to"], **given)
    else:
        database.drop_alias(name, **given)


def state(database: Any) -> Any:
    """What any write would change: names, aliases, and of each collection the newest commit and the count."""
    return (
        database.list_aliases(),
        {
            info.name: (stats.sequence, stats.count)
            for info in database.list_collections()
            for stats in [database.get_collection(info.name).stats()]
        },
    )
