"""Where the documents of a part go: files of bounded size, named by source, part and number; what does not go on is told."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from data_tools.documents import LONG, SOURCE, Line, Reason, Reject, without_surrogates
from data_tools.files import Compression
from data_tools.id_index import DocumentWriter
from data_tools.ingest.candidate import Candidate, text_pieces
from data_tools.ingest.config import Newlines, Unicode
from data_tools.work.counts import count
from data_tools.work.part import PartContext

MB = 2**20


@dataclass(frozen=True)
class OutputOptions:
    """Of the whole stage."""

    dataset: str
    added: str | None
    unicode: Unicode
    newlines: Newlines
    max_document_bytes: int
    max_file_bytes: int
    compression: Compression


class Output:
    """Takes the candidates of one part."""

    def __init__(self, context: PartContext, options: OutputOptions, source: str, number: int, license: str | None) -> None:
        """number: of the part within its source."""
        self.context, self.options, self.source, self.number, self.license = context, options, source, number, license
        self._writer: DocumentWriter | None = None
        self._files = 0
        self._is_plain = options.unicode == Unicode.NONE and options.newlines == Newlines.KEEP

    # ---- what goes on ----------------------------------------------------------------------------------------------------

    def put(self, candidate: Candidate) -> None:
        """Write it, or say why not."""
        self.context.record.lines += 1
        count(self.context.counts, "documents_in")
        count(self.context.counts, "text_bytes_in", candidate.size)
        if not SOURCE.fullmatch(candidate.source):
            detail = f"source={candidate.source!r} cannot name a folder; words that begin with a letter or digit can"
            return self._uncount_and_reject(candidate, Reason.BAD_SOURCE, detail)
        if self.license is not None:
            candidate.metadata.setdefault("license", self.license)
        if isinstance(candidate.text, str) and len(candidate.text) < LONG:
            text = candidate.text if self._is_plain else "".join(self._pieces(candidate))
            return self._put_text(candidate, text)
        return self._put_pieces(candidate)

    def _pieces(self, candidate: Candidate) -> Iterator[str]:
        return text_pieces(candidate.text, self.options.newlines, self.options.unicode)

    def _put_text(self, candidate: Candidate, text: str) -> None:
        size = len(text.encode("utf-8", "surrogatepass"))
        if self._is_dropped(candidate, size, not text or text.isspace()):
            return
        values = self._head(candidate) | {"text": text} | self._rest(candidate)
        try:
            raw = msgspec.json.encode(values)
        except UnicodeEncodeError:  # half a pair: legal in JSON and in Python, but no UTF-8
            self.context.repaired("surrogate")
            raw = msgspec.json.encode(without_surrogates(values))
        self._open().write_raw(candidate.id, raw)
        self._written(candidate, size)

    def _put_pieces(self, candidate: Candidate) -> None:
        """Twice through a long text: first to see whether it goes on, then to write it."""
        size, is_blank = 0, True
        for piece in self._pieces(candidate):
            size += len(piece.encode())
            is_blank = is_blank and (not piece or piece.isspace())
            if size > self.options.max_document_bytes:
                break
        if self._is_dropped(candidate, size, is_blank):
            return
        self._open().write_pieces(candidate.id, self._line(candidate))
        self._written(candidate, size)

    def _line(self, candidate: Candidate) -> Iterator[bytes]:
        yield msgspec.json.encode(self._head(candidate))[:-1] + b',"text":"'
        for piece in self._pieces(candidate):
            yield msgspec.json.encode(piece)[1:-1]
        rest = msgspec.json.encode(self._rest(candidate))
        yield b'",' + rest[1:] if len(rest) > 2 else b'"}'

    def _head(self, candidate: Candidate) -> dict[str, Any]:
        return {"id": candidate.id}

    def _rest(self, candidate: Candidate) -> dict[str, Any]:
        values: dict[str, Any] = {
            "source": candidate.source,
            "added": candidate.added or self.options.added,
            "created": candidate.created,
        }
        values["metadata"] = candidate.metadata or None
        return {name: value for name, value in values.items() if value is not None}

    def _open(self) -> DocumentWriter:
        if self._writer is not None and self._writer.size >= self.options.max_file_bytes:
            self.close()
        if self._writer is None:
            name = f"{self.source}/{self.number:05d}-{self._files:03d}{self.options.compression.ending}"
            documents = self.context.output(Path(self.options.dataset, "documents", name))
            ids = self.context.output(self.context.folder / "ids" / f"{name}.idx")
            self._writer = DocumentWriter(documents, ids)
            self._files += 1
        return self._writer

    def _written(self, candidate: Candidate, size: int) -> None:
        counts = self.context.counts
        count(counts, "documents_out")
        count(counts, "text_bytes_out", size)
        by_source = counts.setdefault("by_source", {}).setdefault(candidate.source, {})
        count(by_source, "documents")
        count(by_source, "text_bytes", size)

    def close(self) -> None:
        """Everything is written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # ---- what does not ---------------------------------------------------------------------------------------------------

    def _is_dropped(self, candidate: Candidate, size: int, is_blank: bool) -> bool:
        if is_blank:
            self._drop(candidate, "empty")
        elif size > self.options.max_document_bytes:
            self._drop(candidate, "too_long", at_least_bytes=size)
        return is_blank or size > self.options.max_document_bytes

    def _drop(self, candidate: Candidate, reason: str, **facts: Any) -> None:
        count(self.context.counts.setdefault("dropped", {}), reason)
        line = Line(candidate.id, candidate.source, "", b"", candidate.path, candidate.line)
        self.context.drop(line, reason, **candidate.facts, **facts)

    def drop(self, candidate: Candidate, reason: str, **facts: Any) -> None:
        """A record that no text is made of."""
        self.context.record.lines += 1
        count(self.context.counts, "documents_in")
        count(self.context.counts, "text_bytes_in", candidate.size)
        self._drop(candidate, reason, **facts)

    def skip(self, reason: str) -> None:
        """A record that is none of documents by the kind's rule: counted only."""
        self.context.record.lines += 1
        count(self.context.counts.setdefault("skipped", {}), reason)

    def reject(self, path: str, line: int, reason: Reason, detail: str, raw: bytes = b"") -> None:
        """Into quarantine."""
        count(self.context.counts, "documents_in")
        count(self.context.counts, "text_bytes_in", len(raw))
        self.context.reject(Reject(path, line, reason, detail, raw))

    def _uncount_and_reject(self, candidate: Candidate, reason: Reason, detail: str) -> None:
        self.context.record.lines -= 1
        count(self.context.counts, "documents_in", -1)
        count(self.context.counts, "text_bytes_in", -candidate.size)
        self.reject(candidate.path, candidate.line, reason, detail)
