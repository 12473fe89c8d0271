"""A small stage for the tests: counts the words of documents, file by file, then adds up."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from data_tools.documents import find_files
from data_tools.work.config import DocumentsConfig, stage_problems
from data_tools.work.part import Part, PartContext
from data_tools.work.stage import Plan, Stage, settings_of
from olmo_train.errors import run_command
from olmo_train.schema import to_dataclass


def count_words(context: PartContext, shared: Any) -> None:
    """Of the documents of one file; dies, waits or fails where a text tells it to, if no file `alive` is there."""
    words = documents = 0
    path = Path(context.part.payload)
    output = context.output(context.folder / "words" / f"{context.part.name}.txt")
    with open(output, "w") as out:
        for line in context.read(path):
            command = line.text.split(" ")[0]
            if not (context.folder / "alive").exists():
                if command == "KILL":
                    os.kill(os.getpid(), signal.SIGKILL)
                if command == "SLEEP":
                    time.sleep(60)
                if command == "FAIL":
                    raise RuntimeError(f"told to fail by {line.id}")
            if not line.text:
                context.drop(line, "empty")
            n = len(line.text.split())
            out.write(f"{line.id} {n}\n")
            words += n
            documents += 1
    context.counts.update(words=words, documents=documents, by_worker={"all": {"parts": 1}})


def run(folder: Path, config: DocumentsConfig, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """The stage."""
    assert stage_problems(config) == []
    files = find_files(config.documents)
    plan = Plan("words", {**settings_of(config), **(settings or {})}, files)
    with Stage(folder, plan, config) as stage:
        if not stage.is_finished:
            parts = [Part(file.name, str(file), file.stat().st_size) for file in files]
            records = stage.run("count", parts, count_words)
            stage.finish({"words": sum(r.counts["words"] for r in records)}, remove=["scratch"])
        return stage.summary()


def main(argv: list[str]) -> None:
    """FOLDER name=value ..."""
    values: dict[str, Any] = dict(word.split("=", 1) for word in argv[1:])
    values["documents"] = [values["documents"]]
    for name in ("processes", "task", "n_tasks"):
        if name in values:
            values[name] = int(values[name])
    print(run(Path(argv[0]), to_dataclass(values, DocumentsConfig))["totals"])


if __name__ == "__main__":
    sys.exit(run_command(main))
