"""Dolma's own deduper and mixer (the compiled part of the package dolma 1.2) on our files, and ours on theirs."""

import importlib.machinery
import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_tools.datasets import AttributeWriter, read_attributes
from data_tools.dedupe import command as dedupe
from data_tools.documents import Document, find_files, read_documents, write_documents
from data_tools.mix import command as mix


@pytest.fixture(scope="module")
def dolma() -> ModuleType:
    """The compiled part alone: the Python around it asks for numpy<2 and much else."""
    spec = importlib.util.find_spec("dolma")
    assert spec is not None, "pip install --no-deps dolma"
    assert spec.submodule_search_locations is not None
    (path,) = Path(spec.submodule_search_locations[0]).glob("dolma.*.so")
    loader = importlib.machinery.ExtensionFileLoader("dolma", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("dolma", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def call(entry: Any, folder: Path, config: dict[str, Any]) -> None:
    entry(json.dumps(config | {"processes": 1, "work_dir": {"input": f"{folder}/in", "output": f"{folder}/out"}}))


def make_dataset(folder: Path) -> list[Document]:
    rng = random.Random(3)
    texts = [f"text {rng.randrange(12)} é日本 🙂\nline {rng.randrange(4)}\n" for _ in range(60)]
    documents = [Document(f"d{i}", text, "web", metadata={"n": i}) for i, text in enumerate(texts)]
    write_documents(folder / "documents/a.jsonl.zst", documents[:20])
    write_documents(folder / "documents/b.jsonl.gz", documents[20:])
    return documents


def ids_of(folder: Path) -> list[str]:
    return [document.id for path in find_files([str(folder)]) for document in read_documents(path)]


def mixed_by_dolma(dolma: ModuleType, folder: Path, dataset: Path, attributes: str, **stream: Any) -> Path:
    for ending in ("zst", "gz"):  # one compression for each stream
        output = {"path": str(folder / "mixed"), "max_size_in_bytes": 10**9}
        values = {"name": ending, "documents": [f"{dataset}/documents/*.{ending}"], "attributes": [attributes], "output": output}
        call(dolma.mixer_entrypoint, folder, {"streams": [values | stream]})
    return folder / "mixed"


def mixed_by_us(folder: Path, dataset: Path, attributes: str, *words: str) -> Path:
    output = folder / "ours"
    mix.main(
        [
            f"sources.web.documents=[{dataset}]",
            f"sources.web.attributes=[{attributes}]",
            f"output={output}",
            "processes=1",
            *words,
        ]
    )
    return output


def test_dolmas_mixer_drops_by_our_attributes_what_ours_drops(dolma: ModuleType, tmp_path: Path) -> None:
    documents = make_dataset(tmp_path / "web")
    dedupe.main([f"documents=[{tmp_path / 'web'}]", "name=dup", "by=document", "processes=1"])
    dup = "@.dup__document__duplicate"
    exclude = [f"$.attributes[?({dup} && {dup}[0] && {dup}[0][2] >= 1.0)]"]
    theirs = mixed_by_dolma(dolma, tmp_path, tmp_path / "web", "dup", filter={"include": [], "exclude": exclude})
    ours = mixed_by_us(tmp_path, tmp_path / "web", "dup", "sources.web.drop.twice='dup__document__duplicate >= 1'")
    assert sorted(ids_of(theirs)) == sorted(ids_of(ours))
    first = {document.text: document.id for document in reversed(documents)}
    assert sorted(first.values()) == sorted(ids_of(ours))


def test_dolmas_mixer_replaces_the_spans_that_ours_replaces(dolma: ModuleType, tmp_path: Path) -> None:
    documents = make_dataset(tmp_path / "web")
    for path in find_files([str(tmp_path / "web")]):
        writer = AttributeWriter(tmp_path / "web/attributes/spans" / path.name)
        for document in read_documents(path):
            at = document.text.index("é")
            writer.write(document.id, "web", {"spans__x__y": [[at, at + 3, 0.9], [at + 4, at + 5, 0.1]]})
        writer.close()
    replacement = {"span": "$.attributes.spans__x__y", "min_score": 0.5, "replacement": "<HERE>"}
    theirs = mixed_by_dolma(dolma, tmp_path, tmp_path / "web", "spans", span_replacement=[replacement])
    redact = "sources.web.redact.here={spans: spans__x__y, replacement: '<HERE>', min_score: 0.5}"
    ours = mixed_by_us(tmp_path, tmp_path / "web", "spans", redact)
    texts = [{d.id: d.text for p in find_files([str(folder)]) for d in read_documents(p)} for folder in (theirs, ours)]
    assert texts[0] == texts[1] == {d.id: d.text.replace("é日本", "<HERE>") for d in documents}


def test_ours_reads_the_attributes_of_dolmas_deduper(dolma: ModuleType, tmp_path: Path) -> None:
    documents = make_dataset(tmp_path / "web")
    for ending in ("zst", "gz"):
        dedupe_config = {
            "name": "theirs",
            "skip_empty": True,
            "documents": {"key": "$.text", "attribute_name": "theirs__doc__dup"},
        }
        bloom = {"file": f"{tmp_path}/bloom", "read_only": False, "size_in_bytes": 2**20, "estimated_doc_count": 1000,
                 "desired_false_positive_rate": 1e-5}  # fmt: skip
        config = {"documents": [f"{tmp_path}/web/documents/*.{ending}"], "dedupe": dedupe_config, "bloom_filter": bloom,
                  "compression": {"input": None, "output": None}, "is_s3_volume": False, "dryrun": False}  # fmt: skip
        call(dolma.deduper_entrypoint, tmp_path, config)
    flagged = [name for p in (tmp_path / "web/attributes/theirs").iterdir() for name, found in read_attributes(p) if found]
    ours = mixed_by_us(tmp_path, tmp_path / "web", "theirs", "sources.web.drop.twice='theirs__doc__dup >= 1'")
    assert len(flagged) == len(documents) - len({d.text for d in documents})
    assert sorted(ids_of(ours) + flagged) == sorted(d.id for d in documents)
