"""A random sample as a page: `olmo data sample FOLDER --n 50 --seed 1 --out page.html [--of dropped] [--by source]`.

Uniform, and the same for one seed: the n documents whose hash of (seed, source, id) is smallest, of all or of each group. One
pass, in memory for n texts. `--of dropped`, `quarantine` or `duplicates` shows what stages took out.
"""

import argparse
import heapq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from data_tools.datasets import find_document_files, read_attributes
from data_tools.documents import Line, Reject, read_lines
from data_tools.inspect.attribute_stats import Test, parse_test
from data_tools.inspect.document_at import attribute_names, lines_at
from data_tools.inspect.lineage import StageFolder, open_root
from data_tools.inspect.sample_page import Shown, page_html
from olmo_train.errors import ConfigError, ShardError, run_command
from olmo_train.files import write_atomic

KINDS = ("documents", "dropped", "quarantine", "duplicates")


@dataclass
class Question:
    """What to sample."""

    folder: Path
    n: int
    seed: int
    of: str = "documents"
    by: str = "all"
    """all, source, reason, or an attribute whose largest score falls between `edges`."""
    edges: list[float] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    tests: list[Test] = field(default_factory=list)
    characters: int = 5000


def main(argv: list[str]) -> None:
    """Write the page, and say how many documents it shows of how many."""
    parser = argparse.ArgumentParser("olmo data sample", description=__doc__)
    parser.add_argument("folder", help="a dataset")
    parser.add_argument("--n", type=int, default=50, help="documents; with --by: of each group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="the page to write")
    parser.add_argument("--of", choices=KINDS, default="documents", help="documents, or what stages took out")
    parser.add_argument("--by", default="all", help="groups: source, reason, or an attribute's name with --edges")
    parser.add_argument("--edges", default="", help="e.g. 0.2,0.5: groups below 0.2, from 0.2 below 0.5, from 0.5")
    parser.add_argument("--attributes", nargs="*", help="names of attributes to show (default: all)")
    parser.add_argument(
        "--where", dest="tests", action="append", default=[], help="only documents with e.g. 'length__words >= 50'"
    )
    parser.add_argument("--characters", type=int, default=5000, help="of each text")
    args = parser.parse_args(argv)
    question = Question(
        Path(args.folder), args.n, args.seed, args.of, args.by, _edges(args.edges), args.attributes or [],
        [parse_test(text) for text in args.tests], args.characters,
    )  # fmt: skip
    _check(question, args.attributes)
    seen, shown = sample(question)
    title = f"{args.of} of {args.folder}"
    told = f"{sum(map(len, shown.values())):,} of {seen:,}, seed {args.seed}"
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page_html(title, told, shown).encode("utf-8"))
    print(f"{args.out}: {told}")


def _edges(text: str) -> list[float]:
    try:
        return sorted(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ConfigError(f"--edges={text} must be numbers with commas between, e.g. 0.2,0.5") from None


def _check(question: Question, attributes: list[str] | None) -> None:
    problems = [
        f"--{name}={value} must be positive"
        for name, value in (("n", question.n), ("characters", question.characters))
        if value < 1
    ]
    if question.of == "documents":
        known = attribute_names(question.folder)
        unknown = [name for name in attributes or [] if name not in known]
        if unknown:
            problems.append(f"--attributes: {question.folder} has no {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
        if question.by == "reason":
            problems.append("--by reason goes with --of dropped, quarantine or duplicates")
        if question.by not in ("all", "source", "reason") and not question.edges:
            problems.append(f"--by {question.by} needs --edges, the scores at which groups begin")
        if attributes is None:
            question.attributes = known
    elif question.tests or question.by not in ("all", "source", "reason"):
        problems.append(f"--where and --by ATTRIBUTE go with documents, not with --of {question.of}")
    if problems:
        raise ConfigError(problems)


def sample(question: Question) -> tuple[int, dict[str, list[Shown]]]:
    """How many there are, and by group those that were drawn, in the order of their hash.

    Raises:
        ShardError: something cannot be read. ConfigError: there is nothing to draw from.
    """
    draw = _Draw(question)
    if question.of == "documents":
        _draw_documents(question, draw)
    else:
        _draw_kept(question, draw)
    if not draw.seen:
        raise ConfigError(f"{question.folder}: no {question.of} to draw from{' that pass --where' if question.tests else ''}")
    return draw.seen, draw.groups()


class _Draw:
    """The n of each group with the smallest hashes."""

    def __init__(self, question: Question) -> None:
        self.question, self.seen, self._number = question, 0, 0
        self.heaps: dict[str, list[tuple[int, int, Any]]] = {}

    def takes(self, group: str, source: str, document_id: str, place: str) -> int | None:
        """Its hash, if it belongs to what is drawn up to now. `place` tells copies of one id apart."""
        self.seen += 1
        key = f"{self.question.seed}\0{source}\0{document_id}\0{place}"
        value = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
        heap = self.heaps.setdefault(group, [])
        return value if len(heap) < self.question.n or value < -heap[0][0] else None

    def put(self, group: str, value: int, shown: Any) -> None:
        """Keep it, and give up the one with the largest hash."""
        self._number += 1
        heap = self.heaps[group]
        (heapq.heappush if len(heap) < self.question.n else heapq.heapreplace)(heap, (-value, self._number, shown))

    def groups(self) -> dict[str, list[Any]]:
        """By name of the group."""
        return {name: [shown for _, _, shown in sorted(heap, key=lambda e: -e[0])] for name, heap in sorted(self.heaps.items())}


def _draw_documents(question: Question, draw: _Draw) -> None:
    needed = bool(question.tests) or question.by not in ("all", "source")
    known = attribute_names(question.folder)
    rejected: list[int] = []

    def note(reject: Reject) -> None:
        rejected.append(reject.line)

    for file in find_document_files([str(question.folder)]):
        names = [n for n in known if (needed or n in question.attributes) and file.attributes(n).exists()]
        readers = [read_attributes(file.attributes(name)) for name in names]
        for line in read_lines(file.path, note):
            attributes = _next(readers, line)
            if not all(test.passes(attributes) for test in question.tests):
                continue
            group = _group(question, line.source, attributes)
            value = draw.takes(group, line.source, line.id, f"{file.name}:{line.line}")
            if value is not None:
                draw.put(group, value, _shown(question, line, attributes))


def _next(readers: list[Any], line: Line) -> dict[str, list[list[Any]]]:
    found: dict[str, list[list[Any]]] = {}
    for reader in readers:
        line_id, attributes = next(reader, ("", {}))
        if line_id != line.id:
            raise ShardError(
                f"{line.path}: line {line.line} is {line.id!r}, its attributes are of {line_id!r}: they do not belong together; "
                "write the attributes again"
            )
        found |= attributes
    return found


def _group(question: Question, source: str, attributes: dict[str, list[list[Any]]]) -> str:
    if question.by == "source":
        return source
    if question.by == "all":
        return ""
    spans = next((s for n, s in attributes.items() if n == question.by or n.endswith(f"__{question.by}")), None)
    if not spans:
        return f"{question.by}: none"
    score = max(float(span[2]) for span in spans)
    below = [edge for edge in question.edges if edge <= score]
    above = [edge for edge in question.edges if edge > score]
    low, high = (f"{below[-1]:g}" if below else "..."), (f"{above[0]:g}" if above else "...")
    return f"{question.by} from {low} to {high}"


def _shown(question: Question, line: Line, attributes: dict[str, list[list[Any]]]) -> Shown:
    text = ""
    for piece in line.pieces():
        text += piece[: question.characters + 1 - len(text)]
        if len(text) > question.characters:
            break
    more = len(text) > question.characters
    values: dict[str, Any] = {} if line.is_long else {k: v for k, v in line.values().items() if k not in ("id", "text", "source")}
    return Shown(line.id, line.source, f"{line.path} line {line.line}", text[: question.characters], more, values, attributes)


# ---- what stages took out ----------------------------------------------------------------------------------------------------


def _draw_kept(question: Question, draw: _Draw) -> None:
    for stage in open_root(question.folder).stages:
        if question.of not in stage.kinds():
            continue
        for kept in stage.kept(question.of):
            values = msgspec.json.decode(kept.raw)
            about = values["removed"] if isinstance(values.get("removed"), dict) else values
            reason = str(values.get("reason", question.of))
            group = {"source": str(about.get("source", "")), "reason": f"{stage.name}: {reason}"}.get(question.by, "")
            identity = str(about.get("id", "")), str(about.get("source", ""))
            value = draw.takes(group, identity[1], identity[0], f"{stage.name} {kept.path.name}:{kept.line}")
            if value is not None:
                draw.put(group, value, _Kept(stage, values, about))
    _fill(question, draw)


@dataclass
class _Kept:
    stage: StageFolder
    values: dict[str, Any]
    about: dict[str, Any]


def _fill(question: Question, draw: _Draw) -> None:
    """Replace what was drawn by documents with their texts, file by file."""
    wanted: dict[Path, list[int]] = {}
    drawn = [entry[2] for heap in draw.heaps.values() for entry in heap]
    if question.of != "quarantine":
        for kept in drawn:
            path = kept.stage.locate(str(kept.about.get("path", "")))
            if path is not None and path.is_file():
                wanted.setdefault(path, []).append(int(kept.about.get("line", 0)))
    texts = {(path, line.line): line for path, numbers in sorted(wanted.items()) for line in lines_at(path, numbers)}
    for heap in draw.heaps.values():
        for i, (value, number, kept) in enumerate(heap):
            path = kept.stage.locate(str(kept.about.get("path", "")))
            line = texts.get((path, int(kept.about.get("line", 0)))) if path is not None else None
            facts = {name: v for name, v in kept.values.items() if name not in ("raw", "raw_base64")}
            facts = {"stage": kept.stage.name, **facts}
            if line is not None:
                shown = _shown(question, line, {})
                shown.values = facts
            else:
                raw = str(kept.values.get("raw", kept.values.get("raw_base64", "")))
                place = f"{kept.about.get('path', '')} line {kept.about.get('line', 0)}"
                text = raw or ("" if question.of == "quarantine" else "(the file is not there any more)")
                shown = Shown(
                    str(kept.about.get("id", "")), str(kept.about.get("source", "")), place, text[: question.characters],
                    len(text) > question.characters, facts, {},
                )  # fmt: skip
            heap[i] = (value, number, shown)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
