"""Corpora with planted duplicates, a dedupe that a reader can check, and what a run wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.datasets import find_document_files, read_attributes
from data_tools.dedupe.command import main
from data_tools.files import InputFile, LineWriter, lines

Values = dict[str, Any]


def write(path: Path, documents: list[Values]) -> Path:
    with LineWriter(path) as writer:
        for values in documents:
            writer.write(json.dumps(values, ensure_ascii=False).encode())
    return path


def run(documents: list[Path], *overrides: str, name: str = "x") -> Values:
    """The verb; returns the summary."""
    main([f"documents=[{','.join(map(str, documents))}]", f"name={name}", "processes=1", *overrides])
    folder = find_document_files([str(path) for path in documents])[0].dataset
    summary: Values = json.loads(Path(folder, "stages", f"dedupe-{name}", "summary.json").read_text())
    return summary


def duplicates(folder: Path, name: str = "x") -> list[Values]:
    """Records of what is removed, sorted by their place."""
    found = [
        json.loads(line)
        for path in (folder / "stages" / f"dedupe-{name}" / "duplicates").glob("*")
        for line in lines(path, InputFile(path))
    ]
    return sorted(found, key=lambda record: (record["path"], record["line"]))


def attributes(documents: list[Path], name: str = "x") -> list[list[tuple[str, Values]]]:
    """Of every file, line by line."""
    return [list(read_attributes(file.attributes(name))) for file in find_document_files([str(path) for path in documents])]


def contents(folders: list[Path]) -> dict[str, bytes]:
    """All that a run wrote, but for what tells the time."""
    return {
        f"{i}/{path.relative_to(folder)}": path.read_bytes()
        for i, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "summary.json" and "documents" not in path.relative_to(folder).parts
    }


def remove(folders: list[Path]) -> None:
    """All that a run wrote."""
    for folder in folders:
        for name in ("attributes", "stages"):
            shutil.rmtree(folder / name, ignore_errors=True)


LINES = ["", " ", "the fox", "日本語 の 文", "straße", "x = 1", "\u3000", "naïve été", "😀", "once more", "a b c d e"]


def random_text(rng: np.random.Generator) -> str:
    """Some lines, many of them equal to lines of other texts."""
    return "\n".join(
        str(rng.choice(LINES)) if rng.random() < 0.8 else f"line {rng.integers(30)}" for _ in range(rng.integers(1, 9))
    )


def corpus(folder: Path, seed: int, n: int = 40) -> list[Path]:
    """Two datasets of three files each: equal texts, ids and URLs in a file, across files, sources and datasets."""
    rng = np.random.default_rng(seed)
    texts = [random_text(rng) for _ in range(n)]
    datasets = [folder / "one", folder / "two"]
    for dataset in datasets:
        for name in ("a.jsonl.gz", "b/c.jsonl", "d.jsonl.zst"):
            documents = []
            for _ in range(n):
                values: Values = {
                    "id": f"é{rng.integers(n)}",
                    "text": str(rng.choice(texts)),
                    "source": str(rng.choice(["web", "wiki", "x"])),
                }
                if rng.random() < 0.7:
                    www, slash = ("www." if rng.random() < 0.5 else ""), ("/" if rng.random() < 0.5 else "")
                    values["metadata"] = {"url": f"https://{www}Example.org/{rng.integers(n)}{slash}"}
                documents.append(values)
            write(dataset / "documents" / name, documents)
    return datasets
