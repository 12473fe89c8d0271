"""A small pipeline of real stages: raw lines, ingest, tag, dedupe, mix and tokenize, each by the base that all stages stand on."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.datasets import AttributeWriter, DocumentFile, find_document_files
from data_tools.id_index import DocumentWriter
from data_tools.work.config import DocumentsConfig
from data_tools.work.part import Part, PartContext
from data_tools.work.stage import Plan, Stage
from tests.data_tools.texts import tokenize, write_lines

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202egnp.exe\x1b[31m & \"q\" 'p'"


def raw_documents() -> dict[str, list[dict[str, Any]]]:
    """Two files of raw lines: web has duplicates and short texts, books a secret and hostile text."""
    web = [{"id": f"w{i}", "text": f"page {i} about foxes and hens " * (i % 5 + 1), "source": "web"} for i in range(30)]
    web[7]["text"] = "short"
    web[9]["text"] = web[3]["text"]
    books = [{"id": f"b{i}", "text": f"chapter {i}: it was a dark night " * 3, "source": "books"} for i in range(12)]
    books[4]["text"] = "my number is SECRET, tell nobody, tell nobody"
    books[5]["text"] = HOSTILE
    return {"web.jsonl": web, "books.jsonl": books}


def _ingest(context: PartContext, shared: Any) -> None:
    path = Path(context.part.payload)
    name = f"{path.stem}.jsonl.zst"
    out = DocumentWriter(context.output(Path(shared, "documents", name)), context.output(context.folder / "ids" / f"{name}.idx"))
    by_source: dict[str, dict[str, int]] = {}
    for line in context.read(path):
        out.write(line.values() | {"metadata": {"origin": f"{path.name}:{line.line}"}})
        row = by_source.setdefault(line.source, {"documents": 0, "text_bytes": 0})
        row["documents"] += 1
        row["text_bytes"] += len(line.text.encode())
    out.close()
    context.counts.update(documents_out=out.documents, by_source=by_source)


def _tag(context: PartContext, shared: Any) -> None:
    file: DocumentFile = context.part.payload
    out = AttributeWriter(context.output(file.attributes("rules")))
    for line in context.read(file.path):
        spans = {"rules__length__characters": [[0, len(line.text), float(len(line.text))]]}
        at = line.text.find("SECRET")
        if at >= 0:
            spans["rules__pii__secret"] = [[at, at + 6, 1.0]]
        out.write(line.id, line.source, spans)
    out.close()


def _dedupe(context: PartContext, shared: Any) -> None:
    file: DocumentFile = context.part.payload
    out = AttributeWriter(context.output(file.attributes("exact")))
    seen: dict[str, dict[str, Any]] = {}
    for line in context.read(file.path):
        place = {"id": line.id, "source": line.source, "path": line.path, "line": line.line}
        first = seen.setdefault(line.text, place)
        if first is not place:
            context.write_line("duplicates", {**place, "reason": "document", "kept": first})
        out.write(line.id, line.source, {"exact__dedupe__duplicate": [[0, len(line.text), 1.0]]} if first is not place else {})
    out.close()


def _mix(context: PartContext, shared: Any) -> None:
    file: DocumentFile = context.part.payload
    out = DocumentWriter(
        context.output(Path(shared, "documents", file.name)), context.output(context.folder / "ids" / f"{file.name}.idx")
    )
    by_source: dict[str, dict[str, int]] = {}
    for line in context.read(file.path):
        if len(line.text) < 10:
            context.drop(line, "rules__length__characters < 10", value=len(line.text))
            continue
        values = line.values()
        values["text"] = values["text"].replace("SECRET", "|||")
        out.write(values)
        row = by_source.setdefault(line.source, {"documents": 0, "text_bytes": 0})
        row["documents"] += 1
        row["text_bytes"] += len(values["text"].encode())
    out.close()
    context.counts.update(documents_out=out.documents, by_source=by_source)


def run_stage(name: str, root: Path, patterns: list[Path], work: Any, shared: Any, **settings: Any) -> None:
    """One stage over files of documents, in this process."""
    config = DocumentsConfig(documents=[str(p) for p in patterns], processes=1, max_rejected_frac=0.1)
    files = find_document_files(config.documents)
    with Stage(root / "stages" / name, Plan(name, settings, [file.path for file in files]), config) as stage:
        payload = [file.path if name == "ingest" else file for file in files]
        parts = [Part(file.part_name, p, file.path.stat().st_size) for file, p in zip(files, payload, strict=True)]
        records = stage.run("work", parts, work, shared)
        totals: dict[str, Any] = {"documents_in": sum(r.lines - sum(r.rejected.values()) for r in records)}
        for record in records:
            totals["documents_out"] = totals.get("documents_out", 0) + record.counts.get("documents_out", 0)
            totals.setdefault("by_source", {}).update(record.counts.get("by_source", {}))
        stage.finish(totals)


@dataclass(frozen=True)
class Made:
    """What the pipeline wrote, in one folder."""

    folder: Path

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def mixed(self) -> Path:
        return self.folder / "mixed"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"


def make(folder: Path, tokenizer: Path | None) -> Made:
    """Run all of it."""
    made = Made(folder)
    for name, documents in raw_documents().items():
        write_lines(made.raw / name, documents)
    with open(made.raw / "web.jsonl", "a") as file:
        file.write('{"id": "w99", "text": 7, "source": "web"}\n')
    before = os.getcwd()
    os.chdir(folder)  # names are recorded as they were given: these are relative
    try:
        run_stage("ingest", made.base, [made.raw], _ingest, str(made.base))
        base = Path("base")
        run_stage("tag", base, [base], _tag, None, taggers=["length", "pii"])
        run_stage("dedupe", base, [base], _dedupe, None, by="document")
        run_stage("mix", Path("mixed"), [base], _mix, "mixed", keep="length >= 10", model=str(folder / "private" / "model.bin"))
        if tokenizer is not None:
            tokenize(Path("mixed"), tokenizer, Path("shards"), "heldout_frac=0.1", "processes=1")
    finally:
        os.chdir(before)
    return made
