"""Parquet files and Hugging Face datasets: batches of Arrow in bounded memory."""

import codecs
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_tools.documents import LONG, PIECE, Reason
from data_tools.ingest.candidate import Candidate
from data_tools.ingest.config import FieldsConfig, SourceConfig
from data_tools.ingest.fields import BadRecordError, Place, to_candidate
from data_tools.ingest.inputs import Input
from data_tools.ingest.output import MB, Output
from data_tools.ingest.plan import Job, Piece, Planned
from data_tools.ingest.records import open_piece
from data_tools.work.part import PartContext
from olmo_train.errors import ShardError

BATCH_BYTES = 8 * MB
"""Of unpacked columns at once, as far as the average row says."""
ROWS_PER_PIECE = 100_000
"""Of a dataset."""


# ---- Parquet -----------------------------------------------------------------------------------------------------------------


def plan_parquet(source: SourceConfig, inputs: list[Input]) -> Planned:
    """Row groups as pieces; a file without a readable footer is one piece, which is rejected when its turn comes."""
    import pyarrow
    import pyarrow.parquet

    planned = Planned()
    for each in inputs:
        try:
            with pyarrow.parquet.ParquetFile(each.path) as file:
                planned.problems += _column_problems(each.path, set(file.schema_arrow.names), source.fields)
                groups, row = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)], 0
                for number, found in enumerate(groups):
                    size = each.size * found.num_rows // max(1, file.metadata.num_rows)
                    planned.pieces.append(Piece(each.path, each.name, number, number + 1, size, row))
                    row += found.num_rows
        except (pyarrow.ArrowException, OSError):
            planned.pieces.append(Piece(each.path, each.name, size=each.size))
    return planned


def _column_problems(path: str, columns: set[str], fields: FieldsConfig) -> list[str]:
    wanted = {"id": fields.id, "text": fields.text, "source": fields.source, "added": fields.added, "created": fields.created}
    return [
        f".fields.{what}: {path} has no column {name}; it has {', '.join(sorted(columns)[:12])}"
        + ("; fields.id=null makes ids" if what == "id" else "")
        for what, name in wanted.items()
        if name is not None and name not in columns and name.partition(".")[0] not in columns
    ]


def read_parquet(context: PartContext, output: Output, job: Job, piece: Piece) -> None:
    """One row group. What cannot be read of it is one reject."""
    import pyarrow
    import pyarrow.parquet

    done = 0
    file = open_piece(context, piece)
    file.close()  # it is there; Arrow opens it itself
    try:
        with pyarrow.parquet.ParquetFile(piece.path, buffer_size=MB, pre_buffer=False) as table:
            group = table.metadata.row_group(piece.start)
            columns = _columns(table.schema_arrow.names, job.source.fields)
            rows = max(1, min(4096, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
            for batch in table.iter_batches(rows, [piece.start], columns, use_threads=False):
                read_batch(output, job, piece, batch, piece.row + done)
                done += len(batch)
                context.tick(piece.size * len(batch) // max(1, group.num_rows))
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ShardError(f"{piece.path}: cannot be read: {error}; get it again") from error
        told, after = " ".join(str(error).split()), f"row {piece.row + done} (row group {piece.start})"
        detail = f"damaged after {after}: {told}; the file was cut short or changed; get it again"
        output.reject(piece.path, piece.row + done + 1, Reason.CUT_SHORT, detail)


def _columns(names: list[str], fields: FieldsConfig) -> list[str]:
    return [name for name in names if name not in fields.leave_out]


# ---- Hugging Face ------------------------------------------------------------------------------------------------------------


def load(source: SourceConfig) -> Any:
    """A saved folder, memory-mapped, or a dataset of the hub, from its cache or the network.

    Raises:
        ShardError: it cannot be had; says what can be done.
    """
    import datasets

    name = str(source.dataset)
    try:
        if Path(name).is_dir() and ((Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists()):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # the hub's clients have no common base
        told = " ".join(str(error).split())[:300]
        raise ShardError(
            f"dataset={name} cannot be loaded: {type(error).__name__}: {told}; without a network give the folder of a dataset "
            "that save_to_disk wrote, or its files with kind=parquet or kind=jsonl"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        splits = sorted(found)
        if source.split not in found:
            raise ShardError(f"split={source.split} is not one of those of dataset={name}: {', '.join(splits)}")
        found = found[source.split]
    return found


def plan_dataset(source: SourceConfig) -> tuple[Planned, list[Path]]:
    """Ranges of rows as pieces; and the files below, by which the stage knows the dataset."""
    planned = Planned()
    try:
        found = load(source)
    except ShardError as error:
        planned.problems.append(f".{error}")
        return planned, []
    planned.problems += _column_problems(str(source.dataset), set(found.column_names), source.fields)
    files = sorted({Path(entry["filename"]) for entry in found.cache_files})
    size = sum(os.path.getsize(file) for file in files)
    name = "/".join(filter(None, [Path(str(source.dataset)).name, source.subset, source.split]))
    for start in range(0, len(found), ROWS_PER_PIECE):
        stop = min(start + ROWS_PER_PIECE, len(found))
        planned.pieces.append(Piece(str(source.dataset), name, start, stop, size * (stop - start) // len(found), start))
    return planned, files


def read_dataset(context: PartContext, output: Output, job: Job, piece: Piece) -> None:
    """A range of rows."""
    found = load(job.source).with_format("arrow")
    size = max(1, sum(os.path.getsize(entry["filename"]) for entry in found.cache_files))
    rows = max(1, min(4096, BATCH_BYTES * len(found) // size))
    columns = _columns(found.column_names, job.source.fields)
    stop = piece.stop or len(found)
    for start in range(piece.start, stop, rows):
        table = found.select_columns(columns)[start : min(start + rows, stop)].combine_chunks()
        for batch in table.to_batches():
            read_batch(output, job, piece, batch, start)
            start += len(batch)
            context.tick(piece.size * len(batch) // (stop - piece.start))


# ---- batches -----------------------------------------------------------------------------------------------------------------


def read_batch(output: Output, job: Job, piece: Piece, batch: Any, first: int) -> None:
    """Rows of a batch; `first`: the number of the first in its file."""
    text_name = job.source.fields.text
    texts = batch.column(text_name) if text_name in batch.schema.names else None
    others = batch.drop_columns([text_name]) if texts is not None else batch
    try:
        rows: list[dict[str, Any]] | None = others.to_pylist()
    except UnicodeDecodeError:
        rows = None  # one row is bad: each by itself
    for i in range(len(batch)):
        row = first + i
        try:
            values = rows[i] if rows is not None else others.slice(i, 1).to_pylist()[0]
            size = 0
            if texts is not None:
                values[text_name], size = _text(texts[i])
            candidate = to_candidate(values, job.source.fields, job.name, Place(piece.name, "row", row, piece.path, row + 1))
        except BadRecordError as error:
            output.reject(piece.path, row + 1, error.reason, error.detail)
            continue
        except UnicodeDecodeError as error:
            output.reject(piece.path, row + 1, Reason.NOT_UTF8, f"is not UTF-8: {error}; mend or remove it")
            continue
        candidate.size = size or _size_of(candidate)
        output.put(candidate)


def _size_of(candidate: Candidate) -> int:
    return len(candidate.text.encode("utf-8", "surrogatepass")) if isinstance(candidate.text, str) else 0


def _text(scalar: Any) -> tuple[Any, int]:
    """The text and its bytes; a long one in pieces, from where Arrow has it."""
    if not hasattr(scalar, "as_buffer") or (buffer := scalar.as_buffer()) is None:
        value = scalar.as_py()
        return value, len(value) if isinstance(value, str) else 0
    if buffer.size < LONG:
        return scalar.as_py(), buffer.size
    pieces = _pieces_of(memoryview(buffer))
    for _ in pieces():
        pass  # what is not UTF-8 must be found before anything is written
    return pieces, buffer.size


def _pieces_of(view: memoryview) -> Callable[[], Iterator[str]]:
    def pieces() -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, len(view), PIECE):
            yield decoder.decode(view[start : start + PIECE])
        yield decoder.decode(b"", True)

    return pieces
