"""JSON lines of any schema."""

from typing import Any

import msgspec

from data_tools.documents import LONG, Reason, check_utf8, parse_object, without_surrogates
from data_tools.ingest.encodings import NotTextError, Rule, find_encoding
from data_tools.ingest.fields import BadRecordError, Place, to_candidate
from data_tools.ingest.output import Output
from data_tools.ingest.plan import Job, Piece
from data_tools.ingest.records import Record, read_records
from data_tools.work.part import PartContext

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
BOM = b"\xef\xbb\xbf"


def read_jsonl(context: PartContext, output: Output, job: Job, piece: Piece) -> None:
    """A file of kind=jsonl, or a range of one. Values that are not asked for are passed on as they are spelled."""
    rule, limit = Rule(job.source.encodings, job.source.on_bad_bytes), 2 * output.options.max_document_bytes
    for number, record in read_records(context, output, piece, b"\n", limit):
        raw = record.data
        if record.offset == 0 and raw.startswith(BOM):
            raw = raw[len(BOM) :]
            context.repaired("bom")
        if not raw or raw.isspace():
            continue
        try:
            if record.size > len(record.data):
                raise BadRecordError(Reason.TOO_LONG, f"a line of {record.size:,} bytes; raise max_document_mb and memory_mb")
            values = _values(context, _utf8(context, raw, rule))
            place = Place(piece.name, "byte", record.offset, piece.path, number)
            candidate = to_candidate(values, job.source.fields, job.name, place)
        except BadRecordError as error:
            _reject(output, piece, number, record, error)
            continue
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _reject(output, piece, number, record, BadRecordError(Reason.NOT_JSON, f"is not JSON: {error}; mend or remove it"))
            continue
        candidate.size = record.size
        output.put(candidate)


def _reject(output: Output, piece: Piece, number: int, record: Record, error: BadRecordError) -> None:
    at = "" if number else f"at byte {record.offset}: "
    output.reject(piece.path, number, error.reason, f"{at}{error.detail}", bytes(record.data))


def _utf8(context: PartContext, raw: bytes | bytearray, rule: Rule) -> bytes | bytearray:
    """The line, if it is UTF-8; else by the rule of encodings."""
    try:
        check_utf8(raw)
        return raw
    except UnicodeDecodeError as why:
        if len(raw) >= LONG:
            raise BadRecordError(Reason.NOT_UTF8, "is not UTF-8 somewhere in its text; convert the file") from why
        try:
            decoded = find_encoding(lambda: [bytes(raw)], rule)
        except NotTextError:
            told = f"is not UTF-8: byte {why.start + 1} is 0x{raw[why.start]:02x}; convert the file, or name its `encodings`"
            raise BadRecordError(Reason.NOT_UTF8, told) from why
        context.repaired(decoded.repair or decoded.encoding)
        return "".join(decoded.pieces()).encode()


def _values(context: PartContext, raw: bytes | bytearray) -> dict[str, Any]:
    """Fields as they are spelled; where half a surrogate pair is among them, repaired."""
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if len(raw) >= LONG:
            is_object = raw.lstrip()[:1] == b"{"
            reason = Reason.NOT_JSON if is_object else Reason.NOT_OBJECT
            raise BadRecordError(reason, f"is not JSON, or holds half a surrogate pair: {error}; mend or remove it") from error
        found = parse_object(raw)
        if isinstance(found, tuple):
            raise BadRecordError(*found) from error
        repaired: dict[str, Any] = without_surrogates(found)
        if repaired == found:
            raise
        if found.get("id") != repaired.get("id"):
            raise BadRecordError(Reason.SURROGATE, f"id={found['id']!r} holds half a surrogate pair; ids are UTF-8") from error
        context.repaired("surrogate")
        return repaired
