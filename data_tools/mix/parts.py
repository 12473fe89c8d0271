"""Phases that read documents: `count` measures what filters leave, `write` writes the documents that go on."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.documents import PIECE, Line, Reason, Reject, read_lines
from data_tools.files import InputFile
from data_tools.id_index import DocumentWriter
from data_tools.mix.attributes import Row, in_step
from data_tools.mix.budget import BLOCK_ROWS, KeyWriter, copies_of, facts_of, key_of
from data_tools.mix.judge import Judge, JudgeError, Verdict
from data_tools.mix.plan import MixPlan, SourceFiles, SourcePlan
from data_tools.mix.redact import METADATA, SpanError, changed_line, check_metadata, redacted
from data_tools.mix.table import Tally
from data_tools.work.part import PartContext
from olmo_train.errors import ShardError

COPY = "#copy"
"""Between a document's id and the number of its copy, 2 or more."""
_COPY_ID = re.compile(rf"{COPY}\d+\Z")
SCRATCH = "scratch"


def count_documents(context: PartContext, shared: MixPlan) -> None:
    """Phase: key and size of every document that the filters leave."""
    todo: SourceFiles = context.part.payload
    judge = Judge(shared.sources[todo.source], count_tokens=True)
    keys = KeyWriter(context.output(keys_path(context.folder, context.part.name)))
    for line, _, verdict in _judged(context, shared, judge):
        if verdict.rule < 0 and not verdict.is_short:
            keys.write(key_of(shared.seed, todo.source, line.id), *verdict.left)
    keys.close()


def keys_path(folder: Path, part_name: str) -> Path:
    """What `count` leaves of a part."""
    return folder / SCRATCH / "keys" / f"{part_name}.u64"


def write_documents(context: PartContext, shared: MixPlan) -> None:
    """Phase: the documents that go on, as they stood where nothing changes; and why the others do not."""
    todo: SourceFiles = context.part.payload
    plan = shared.sources[todo.source]
    judge = Judge(plan, count_tokens=shared.is_first)
    counted = None if shared.is_first else _Counted(keys_path(context.folder, context.part.name))
    is_all, tally = plan.threshold.rest == 0, Tally(plan)
    with _Output(context, shared, todo) as output:
        for line, row, verdict in _judged(context, shared, judge):
            if verdict.rule >= 0:
                failed = plan.rules[verdict.rule]
                tally.drop(verdict)
                context.drop(line, failed.name, rule=failed.text, values=judge.values(verdict, row, line))
                continue
            if verdict.is_short:
                tally.drop(verdict)
                rule = f"length() >= {plan.min_text_length}"
                context.drop(line, "min_text_length", rule=rule, values={"length()": verdict.length})
                continue
            if counted is not None:
                verdict.left = counted.next(line, verdict)
            key = 0 if is_all else key_of(shared.seed, todo.source, line.id)
            copies = plan.threshold.passes if is_all else copies_of(plan.threshold, key)
            if copies == 0:
                context.drop(line, "sampled", **facts_of(plan.threshold, key))
            else:
                output.write(line, verdict, copies)
            tally.take(verdict, copies)
    tally.add_to(context.counts)


def _judged(context: PartContext, shared: MixPlan, judge: Judge) -> Iterator[tuple[Line, Row, Verdict]]:
    """Every document of a part with the verdict on it; one that cannot be judged goes to quarantine, in the first phase."""
    plan, todo = judge.plan, context.part.payload
    for file in todo.files:
        documents = _Documents(context, file.path, shared.is_first)
        for line, row in in_step(context, file, plan, iter(documents), documents.rejected):
            try:
                verdict = judge.judge(line, row)
                if verdict.rule < 0:
                    _check_copies(line, plan)
            except JudgeError as error:
                documents.refuse(line, Reason.WRONG_TYPE, str(error))
            except _CopyIdError as error:
                documents.refuse(line, Reason.DUPLICATE_ID, str(error))
            else:
                yield line, row, verdict


class _CopyIdError(ValueError):
    pass


def _check_copies(line: Line, plan: SourcePlan) -> None:
    if plan.may_repeat:
        if COPY in line.id and _COPY_ID.search(line.id):
            raise _CopyIdError(f"id {line.id!r} is that of a copy; copies of copies would get ids twice: mix the originals")
        try:
            check_metadata(line)
        except SpanError as error:
            raise JudgeError(str(error)) from None


class _Documents:
    """The documents of one file. Only the first phase tells of what is none: each reject counts once."""

    def __init__(self, context: PartContext, path: Path, is_first: bool) -> None:
        self._context, self._path, self._is_first = context, path, is_first
        self._number, self._is_damaged, self._refused = 0, False, 0

    def __iter__(self) -> Iterator[Line]:
        file = InputFile(self._path, self._context.tick)
        for line in read_lines(self._path, self._reject, self._repaired, file):
            self._context.record.lines += self._is_first
            yield line
        self._context.note_input(self._path, file)

    def _reject(self, reject: Reject) -> None:
        self._number += 1
        self._is_damaged |= reject.reason == Reason.CUT_SHORT
        if self._is_first:
            self._context.reject(reject)

    def _repaired(self, name: str) -> None:
        if self._is_first:
            self._context.repaired(name)

    def refuse(self, line: Line, reason: Reason, detail: str) -> None:
        """Of a document that was read, and has attributes."""
        if self._is_first:
            self._context.record.lines -= 1  # it was counted as a document
            self._context.reject(Reject(line.path, line.line, reason, detail, bytes(line.raw)))

    def rejected(self) -> tuple[int, bool]:
        """(lines that were none so far, whether the file is damaged)."""
        return self._number, self._is_damaged


class _Counted:
    """What the phase `count` found out about the documents of a part, in order: bytes and tokens after redaction."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed at its end
        self._rows: list[list[int]] = []

    def next(self, line: Line, verdict: Verdict) -> tuple[int, int]:
        """Raises:
        ShardError: it was another document then."""
        if not self._rows:
            block = np.fromfile(self._file, np.uint64, 3 * BLOCK_ROWS // 16).reshape(-1, 3)
            self._rows = block.tolist()[::-1]
        row = self._rows.pop() if self._rows else None
        if row is None or row[1] != verdict.left[0]:
            raise ShardError(f"{line.path}: line {line.line} has changed since it was counted; remove the output and begin anew")
        return row[1], row[2]


class _Output:
    """Files of documents of one part, each of `max_file_mb` at most unless one document is larger."""

    def __init__(self, context: PartContext, shared: MixPlan, todo: SourceFiles) -> None:
        self._context, self._shared, self._todo = context, shared, todo
        self._plan = shared.sources[todo.source]
        self._writer: DocumentWriter | None = None
        self._files = 0

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def _next(self, size: int) -> DocumentWriter:
        """The writer of a line of `size` bytes."""
        if self._writer is not None and self._writer.size + size > self._shared.max_file_bytes:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            name = f"{self._todo.source}/{self._todo.number:05d}-{self._files:03d}{self._shared.ending}"
            path = self._context.output(Path(self._shared.output, "documents", name))
            self._writer = DocumentWriter(path, self._context.output(self._context.folder / "ids" / f"{name}.idx"))
            self._files += 1
        return self._writer

    def write(self, line: Line, verdict: Verdict, copies: int) -> None:
        """A document, and its copies after it."""
        rename = self._plan.rename
        fields: dict[str, Any] = {"source": rename} if rename is not None and rename != line.source else {}
        metadata: dict[str, Any] = {}
        if verdict.cuts:
            metadata[METADATA] = _by_rule(verdict)
            self._tell_cuts(line, verdict)
        for number in range(1, copies + 1):
            id, more = line.id, {}
            if number > 1:
                id, more = f"{line.id}{COPY}{number}", {"copy_of": line.id, "copy": number}
            writer = self._next(len(line.raw))
            if fields or metadata or more:
                changed = fields | ({"id": id} if more else {})
                self._write_changed(writer, id, line, (changed, metadata | more), verdict)
            elif line.is_long:
                view = memoryview(line.raw)
                writer.write_pieces(id, (bytes(view[at : at + PIECE]) for at in range(0, len(view), PIECE)))
            else:
                writer.write_raw(id, line.raw)

    def _write_changed(
        self, writer: DocumentWriter, id: str, line: Line, new: tuple[dict[str, Any], dict[str, Any]], verdict: Verdict
    ) -> None:
        pieces = None
        if verdict.cuts:
            pieces = iter([verdict.text]) if verdict.text is not None else redacted(line.pieces(), verdict.cuts)
        writer.write_pieces(id, changed_line(line, *new, pieces))

    def _tell_cuts(self, line: Line, verdict: Verdict) -> None:
        cuts = [[cut.start, cut.end, cut.rule, cut.spans] for cut in verdict.cuts]
        place = {"id": line.id, "source": line.source, "path": line.path, "line": line.line}
        self._context.write_line("redactions", {**place, "cuts": cuts})


def _by_rule(verdict: Verdict) -> dict[str, int]:
    counts: dict[str, int] = {}
    for cut in verdict.cuts:
        counts[cut.rule] = counts.get(cut.rule, 0) + 1
    return counts
