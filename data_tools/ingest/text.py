"""Text files: one document per file, per line, or per piece between separators; and source trees, one document per file."""

import codecs
from collections.abc import Iterator

from data_tools.documents import Reason
from data_tools.files import CutShortError
from data_tools.ingest.candidate import Candidate, made_id
from data_tools.ingest.config import Kind, Per
from data_tools.ingest.encodings import Decoded, NotTextError, Rule, declared_in_python, find_encoding, front_of
from data_tools.ingest.languages import language_of
from data_tools.ingest.output import Output
from data_tools.ingest.plan import Job, Piece
from data_tools.ingest.records import read_records, read_small, unpacked
from data_tools.work.part import PartContext


def separator_of(job_separator: str | None) -> bytes:
    """Of a config: with its escapes."""
    return (job_separator or "\n").replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r").encode()


def read_text(context: PartContext, output: Output, job: Job, piece: Piece) -> None:
    """A file of kind=text."""
    if job.source.per == Per.FILE:
        read_file(context, output, job, piece)
        return
    rule, is_line = Rule(job.source.encodings, job.source.on_bad_bytes), job.source.per == Per.LINE
    separator = separator_of(None if is_line else job.source.separator)
    limit = 2 * output.options.max_document_bytes
    for number, record in read_records(context, output, piece, separator, limit):
        candidate = Candidate(
            made_id(job.name, piece.name, record.offset), job.name, "", {"path": piece.name, "byte": record.offset},
            size=record.size, path=piece.path, line=number, facts={"byte": record.offset},
        )  # fmt: skip
        data = bytes(record.data)
        if is_line:
            data = data.removesuffix(b"\r")
        if not data:
            continue  # an empty line, or the text between two separators in a row
        if record.size > len(record.data):
            output.drop(candidate, "too_long", at_least_bytes=record.size)
            continue
        _put(context, output, candidate, lambda data=data: [data], rule, None)


def read_file(context: PartContext, output: Output, job: Job, piece: Piece) -> None:
    """A file that is one document; of a tree its language and licence are noted."""
    try:
        small = read_small(unpacked(context, piece))
        blocks = (lambda: unpacked(context, piece)) if small is None else (lambda: [small])
        metadata = {"path": piece.name}
        declared = None
        if job.source.kind == Kind.TREE:
            language = language_of(piece.name)
            metadata |= {"language": language} if language else {}
            metadata |= {"license_file": piece.license_file} if piece.license_file else {}
            front = front_of(blocks, 8192)
            if b"\0" in front and not front.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                output.skip("binary")
                return
            if spdx := _spdx(front):
                metadata["license"] = spdx
            declared = declared_in_python(front) if language == "Python" else None
        size = len(small) if small is not None else piece.size
        candidate = Candidate(made_id(job.name, piece.name), job.name, "", metadata, size=size, path=piece.path, line=0)
        _put(context, output, candidate, blocks, Rule(job.source.encodings, job.source.on_bad_bytes), declared)
    except CutShortError as error:
        output.reject(piece.path, 0, Reason.CUT_SHORT, f"damaged: {error}; the file was cut short or changed; get it again")


def _put(context: PartContext, output: Output, candidate: Candidate, blocks, rule: Rule, declared: str | None) -> None:  # type: ignore[no-untyped-def]
    try:
        decoded = find_encoding(blocks, rule, declared, binding=True)
    except NotTextError as error:
        at = f"at byte {candidate.facts['byte']}: " if candidate.facts else ""
        raw = front_of(blocks, 65536)
        output.reject(candidate.path, candidate.line, Reason.NOT_TEXT, f"{at}{error}", raw)
        return
    note_encoding(context, candidate, decoded)
    candidate.text = "".join(decoded.pieces()) if candidate.size < 2**22 else decoded.pieces
    output.put(candidate)


def note_encoding(context: PartContext, candidate: Candidate, decoded: Decoded) -> None:
    """In the metadata where it is not UTF-8; a repair is counted."""
    if decoded.encoding != "utf-8":
        candidate.metadata["encoding"] = decoded.encoding
    if decoded.repair:
        context.repaired(decoded.repair)


def _spdx(front: bytes) -> str | None:
    """What a file says of its licence: SPDX-License-Identifier, in the first lines."""
    for line in _lines(front):
        _, found, rest = line.partition(b"SPDX-License-Identifier:")
        if found:
            return rest.decode("ascii", "replace").strip().rstrip("*/->").strip()[:100] or None
    return None


def _lines(front: bytes) -> Iterator[bytes]:
    yield from front.split(b"\n")[:50]
