"""WARC and HTML: responses and files to text, by an extractor that cannot take the stage down with it."""

import functools
from collections.abc import Callable
from datetime import datetime

from data_tools.documents import Reason
from data_tools.files import CutShortError
from data_tools.ingest.candidate import Candidate, made_id
from data_tools.ingest.config import MEMORY_PER_MB, Extractor, SourceConfig
from data_tools.ingest.encodings import Blocks, NotTextError, Rule, as_browsers, declared_in_html, find_encoding, front_of
from data_tools.ingest.guard import FailedError, guard_of
from data_tools.ingest.output import MB, Output
from data_tools.ingest.plan import Job, Piece
from data_tools.ingest.records import read_small, unpacked
from data_tools.ingest.text import note_encoding
from data_tools.ingest.warc import BadRecordError, Response, WarcRecord, parse_response, read_warc
from data_tools.work.part import PartContext

PAGES = ("text/html", "application/xhtml+xml", "")
HEAD = 2**16
"""Bytes of a response beside its body."""


def resiliparse_text(page: bytes, main_content: bool) -> bytes:
    """UTF-8 HTML to UTF-8 text."""
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(page.decode("utf-8"), main_content=main_content, alt_texts=False, preserve_formatting=True)
    return text.encode("utf-8", "replace")


def trafilatura_text(page: bytes, main_content: bool) -> bytes:
    """UTF-8 HTML to UTF-8 text; `main_content` also leaves out comments, and prefers less noise."""
    import trafilatura

    text = trafilatura.extract(page.decode("utf-8"), include_comments=not main_content, favor_precision=main_content)
    return (text or "").encode("utf-8", "replace")


def extractor_of(source: SourceConfig) -> Callable[[bytes], bytes]:
    """The guarded extractor of a source."""
    function = resiliparse_text if source.extractor == Extractor.RESILIPARSE else trafilatura_text
    call = functools.partial(function, main_content=source.main_content)
    return guard_of(call, source.extract_cpu_s, MEMORY_PER_MB * source.max_page_mb)


def read_warc_file(context: PartContext, output: Output, job: Job, piece: Piece) -> None:
    """Responses with a page or plain text and a status of success; other records are counted."""
    limit, number = job.source.max_page_mb * MB, 0
    try:
        for record in read_warc(unpacked(context, piece), limit + HEAD):
            number = record.number
            if record.problem:
                output.reject(piece.path, number, Reason.BAD_RECORD, f"record {number}: {record.problem}")
            elif record.headers.get("warc-type") != "response":
                output.skip(f"record_{record.headers.get('warc-type', 'without_type')[:20]}")
            else:
                _read_response(context, output, job, piece, record)
    except CutShortError as error:
        detail = f"damaged after record {number}: {error}; the file was cut short or changed; get it again"
        output.reject(piece.path, number + 1, Reason.CUT_SHORT, detail)


def _read_response(context: PartContext, output: Output, job: Job, piece: Piece, record: WarcRecord) -> None:
    limit = job.source.max_page_mb * MB
    url = record.headers.get("warc-target-uri", "").strip("<>")
    when = record.headers.get("warc-date", "")
    try:
        if not url or not when:
            raise BadRecordError("has no WARC-Target-URI or no WARC-Date")
        response = parse_response(record.body, limit)
    except BadRecordError as error:
        output.reject(piece.path, record.number, Reason.BAD_RECORD, f"record {record.number}: {error}", record.body)
        return
    content_type, _, rest = response.headers.get("content-type", "").partition(";")
    content_type = content_type.strip().lower()
    if not 200 <= response.status < 300:
        output.skip(f"http_{response.status}")
    elif content_type not in (*PAGES, "text/plain"):
        output.skip("content_type")
    else:
        candidate = Candidate(
            made_id(job.name, url, when), job.name, "", _facts(record, response, url, when), _time(when),
            size=record.size, path=piece.path, line=record.number,
        )  # fmt: skip
        if not response.is_whole or record.size > limit + HEAD:
            output.drop(candidate, "too_long", at_least_bytes=max(len(response.body), record.size))
            return
        declared = next((v.strip(" \t\"'") for k, _, v in _parameters(rest) if k == "charset"), None)
        put_page(context, output, job, candidate, lambda: [response.body], declared, content_type != "text/plain")


def _parameters(text: str) -> list[tuple[str, str, str]]:
    found = [part.partition("=") for part in text.split(";")]
    return [(key.strip().lower(), equals, value) for key, equals, value in found]


def _facts(record: WarcRecord, response: Response, url: str, when: str) -> dict[str, str]:
    facts = {
        "url": url,
        "date": when,
        "digest": record.headers.get("warc-payload-digest"),
        "content_type": response.headers.get("content-type"),
        "warc_record_id": record.headers.get("warc-record-id"),
    }
    return {name: value for name, value in facts.items() if value}


def _time(when: str) -> str | None:
    """`created`; None where the date is none."""
    try:
        datetime.fromisoformat(when)
    except ValueError:
        return None
    return when


def read_html(context: PartContext, output: Output, job: Job, piece: Piece) -> None:
    """A file that is one page."""
    try:
        page = read_small(unpacked(context, piece), job.source.max_page_mb * MB)
    except CutShortError as error:
        output.reject(piece.path, 0, Reason.CUT_SHORT, f"damaged: {error}; the file was cut short or changed; get it again")
        return
    candidate = Candidate(made_id(job.name, piece.name), job.name, "", {"path": piece.name}, size=piece.size, path=piece.path)
    if page is None:
        output.drop(candidate, "too_long", at_least_bytes=piece.size)
    else:
        put_page(context, output, job, candidate, lambda: [page], None, True)


def put_page(
    context: PartContext, output: Output, job: Job, candidate: Candidate, blocks: Blocks, declared: str | None, is_html: bool
) -> None:
    """Decode, extract, write."""
    declared = as_browsers(declared) or (as_browsers(declared_in_html(front_of(blocks, 4096))) if is_html else None)
    try:
        decoded = find_encoding(blocks, Rule(job.source.encodings, job.source.on_bad_bytes), declared)
        text = "".join(decoded.pieces())
        if is_html and text:
            text = extractor_of(job.source)(text.encode("utf-8", "replace")).decode("utf-8")
    except NotTextError as error:
        output.reject(candidate.path, candidate.line, Reason.NOT_TEXT, f"{_where(candidate)}{error}", front_of(blocks, 65536))
        return
    except FailedError as error:
        detail = f"{_where(candidate)}{job.source.extractor} {error}; leave it out, or take the other extractor"
        output.reject(candidate.path, candidate.line, Reason.FAILED, detail, b"".join(blocks()))
        return
    note_encoding(context, candidate, decoded)
    candidate.text = text
    output.put(candidate)


def _where(candidate: Candidate) -> str:
    url = candidate.metadata.get("url")
    return f"{url}: " if url else ""
