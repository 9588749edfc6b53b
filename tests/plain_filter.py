"""The filter language once more, one record at a time in plain Python, to compare the engine with.

Written from the rules, not from the engine: it shares no code with it and has no columns, tags or
bounds. Python compares ints with floats exactly, which is what the rules ask for.
"""

from __future__ import annotations

import datetime as dt
import operator
import re
from collections.abc import Mapping
from typing import Any

ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def matches(
    expression: Mapping[str, Any], record_id: str, metadata: Mapping[str, Any], document: str | None
) -> bool:
    """Whether one record matches a filter given as a mapping with datetimes as values."""
    for name, condition in expression.items():
        if name == "$and":
            ok = all(matches(part, record_id, metadata, document) for part in condition)
        elif name == "$or":
            ok = any(matches(part, record_id, metadata, document) for part in condition)
        elif name == "$not":
            ok = not matches(condition, record_id, metadata, document)
        else:
            if name == "id":
                value: Any = record_id
            elif name == "$document":
                value = document
            else:
                value = look_up(metadata, name)
            operators = condition if isinstance(condition, Mapping) else {"$eq": condition}
            ok = all(holds(value, op, operand) for op, operand in operators.items())
        if not ok:
            return False
    return True


def look_up(metadata: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path, however its keys are spelled; None if nothing does."""
    for key, item in metadata.items():
        if key == path and not isinstance(item, Mapping):
            return item
        if isinstance(item, Mapping) and path.startswith(key + "."):
            found = look_up(item, path[len(key) + 1 :])
            if found is not None:
                return found
    return None


def holds(value: Any, op: str, operand: Any) -> bool:
    if op in ("$ne", "$nin", "$not_contains"):
        return not holds(
            value, {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}[op], operand
        )
    if op == "$exists":
        return bool((value is not None) == operand)
    if op == "$in":
        return any(holds(value, "$eq", one) for one in operand)
    if op == "$eq" and operand is None:
        return value is None
    if isinstance(value, list):
        if op == "$contains":
            op = "$eq"
        return any(item is not None and scalar_holds(item, op, operand) for item in value)
    return value is not None and scalar_holds(value, op, operand)


def scalar_holds(value: Any, op: str, operand: Any) -> bool:
    if kind(value) != kind(operand):
        return False
    if op == "$eq":
        return bool(value == operand)
    if op == "$contains":
        return isinstance(value, str) and operand in value
    if op == "$regex":
        # RE2's $ is the end of the text alone, and its classes are ASCII.
        pattern = operand.replace("$", r"\Z")
        return isinstance(value, str) and re.search(pattern, value, re.ASCII) is not None
    return bool(ORDER[op](value, operand))


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "datetime" if isinstance(value, dt.datetime) else type(value).__name__
