"""Records of any schema to candidates: which field is what by the config, all others into the metadata."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import msgspec

from data_tools.documents import LONG, Line, Reason
from data_tools.ingest.candidate import Candidate, Pieces, made_id
from data_tools.ingest.config import FieldsConfig

NOT_THERE = object()


class BadRecordError(Exception):
    """A record that is no document."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Place:
    """Of a record, for its id and for whoever looks for it."""

    name: str
    """Of the file, as ids are made of it."""
    unit: str
    """byte or row."""
    number: int
    path: str
    line: int


def to_candidate(values: dict[str, Any], fields: FieldsConfig, source: str, place: Place) -> Candidate:
    """A document from a record, whose fields are taken out of `values`. Values may be Python's or msgspec.Raw.

    Raises:
        BadRecordError: id or text is missing, or of a type that has no rule.
    """
    for name in fields.leave_out:
        take(values, name)
    text = _text(_required(values, fields.text, "text"))
    if fields.id is None:
        document_id = made_id(source, place.name, place.number)
    else:
        document_id = _id(_required(values, fields.id, "id"), fields.id)
    stated = _optional(values, fields.source, "source") or source
    added, created = _optional(values, fields.added, "added"), _optional(values, fields.created, "created")
    metadata = _metadata(values)
    if fields.id is None:
        metadata.setdefault("path", place.name)
        metadata.setdefault(place.unit, place.number)
    return Candidate(
        document_id, stated, text, metadata, created, added, path=place.path, line=place.line,
        facts={} if place.line else {place.unit: place.number},
    )  # fmt: skip


def take(values: dict[str, Any], name: str) -> Any:
    """Take a field out of a record: by its whole name, else by its dotted one; NOT_THERE: there is none."""
    if name in values:
        return values.pop(name)
    outer, dot, inner = name.partition(".")
    if not dot or outer not in values:
        return NOT_THERE
    below = values[outer]
    if isinstance(below, msgspec.Raw):
        try:
            below = msgspec.json.decode(below, type=dict[str, msgspec.Raw])
        except msgspec.ValidationError:
            return NOT_THERE
    if not isinstance(below, dict):
        return NOT_THERE
    values[outer] = below
    found = take(below, inner)
    if not below:
        del values[outer]
    return found


def _plain(value: Any) -> Any:
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def _required(values: dict[str, Any], name: str, what: str) -> Any:
    value = take(values, name)
    if value is NOT_THERE:
        there = ", ".join(sorted(values)[:12])
        raise BadRecordError(Reason.MISSING_FIELD, f"has no field {name}, its {what}; it has {there}; give fields.{what}")
    return value


def _text(value: Any) -> str | Pieces:
    if isinstance(value, msgspec.Raw):
        view = memoryview(value)
        if view[:1] == b'"' and len(view) >= LONG:
            pieces = Line("", "", None, b"", "", 0, value).pieces
            for _ in pieces():
                pass  # a DecodeError belongs to the record, and must come before anything of it is written
            return pieces
        value = msgspec.json.decode(value)
    if isinstance(value, str) or callable(value):
        return value
    raise BadRecordError(Reason.WRONG_TYPE, f"its text is {_named(value)}, must be a string")


def _id(value: Any, name: str) -> str:
    value = _plain(value)
    if isinstance(value, str) and value:
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise BadRecordError(Reason.SURROGATE, f"{name}={value!r} holds half a surrogate pair; ids are UTF-8")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    told = "is empty" if value == "" else f"is {_named(value)}"
    raise BadRecordError(
        Reason.WRONG_TYPE, f"{name}, its id, {told}; strings and whole numbers are ids; fields.id=null makes some"
    )


def _optional(values: dict[str, Any], name: str | None, what: str) -> str | None:
    """A text or time; a number as its digits; null and what is not there: None."""
    value = None if name is None else take(values, name)
    value = None if value is NOT_THERE else _plain(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRecordError(Reason.WRONG_TYPE, f"{name}, its {what}, is {_named(value)}, must be a string, a number or a time")


def _metadata(values: dict[str, Any]) -> dict[str, Any]:
    """Fields that are left; an object `metadata` among them is opened, unless a name would stand twice."""
    inner = values.get("metadata")
    if isinstance(inner, msgspec.Raw):
        if memoryview(inner)[:1] == b"{":
            inner = msgspec.json.decode(inner, type=dict[str, msgspec.Raw])
        elif inner == b"null":
            inner = {}
    if not isinstance(inner, dict) or inner.keys() & (values.keys() - {"metadata"}):
        return values
    del values["metadata"]
    return {**inner, **values}


def _named(value: Any) -> str:
    told = repr(value)
    return f"{type(value).__name__} {told if len(told) <= 60 else told[:57] + '...'}"
