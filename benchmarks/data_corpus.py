"""Text that lies on this machine, as Dolma documents with planted copies: what the data stages are measured on.

python benchmarks/data_corpus.py FOLDER [--mb 300] [--shards 24 | --one-document]

FOLDER/documents/shard-00.jsonl.gz ...   Python's library, documentation of packages, man pages, /usr/share/doc, packages' code
FOLDER/planted.json                      {"pairs": [{"kind", "replaced", "base", "copy"}], "sources": ..., "text_bytes": ...}

No text stands twice except as planted: 12.6 % of the documents once more as they are, 25.7 % with 0.3, 1 or 2 % of their words
replaced. The same machine gives the same corpus; another one has other packages.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

from data_tools.documents import Document, write_documents

SHARES = {"stdlib": 31.5, "package_docs": 11.5, "man": 70.0, "doc": 50.3, "packages": 51.0}
"""MB of each source in 300 MB with their copies."""
UNIQUE_FRAC = 0.691
"""Of the bytes; the rest are copies."""
EXACT, NEAR = 3_259 / 25_910, 6_672 / 25_910
"""Copies per document."""
REPLACED = (0.003, 0.01, 0.02)
LEAST_WORDS = 200
"""Of a document that a near copy is made of."""
LARGEST = 8_000_000
"""Bytes of a file that is taken."""
DOC_ENDINGS = (".md", ".rst", ".txt", "METADATA")
MORE = ("/usr/include", "/usr/share/perl", "/usr/share/vim", "/usr/share/info", "/usr/lib/python3")
"""Where what the sources lack is made up from."""


@dataclass(frozen=True)
class Text:
    """One document to be."""

    source: str
    id: str
    text: str


def main(argv: list[str]) -> None:
    """Write the corpus and tell what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, default=300.0)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--one-document", action="store_true", help="all of it, without copies: what a long document costs")
    arguments = parser.parse_args(argv)
    if arguments.one_document:
        whole = "\n".join(text.text for text in collect(arguments.mb * 1e6))
        write_documents(arguments.folder / "documents" / "one.jsonl.gz", [Document("one", whole, "all")])
        print(f"{arguments.folder}: 1 document, {len(whole.encode()) / 1e6:.1f} MB of text")
        return
    texts = list(collect(arguments.mb * 1e6 * UNIQUE_FRAC))
    copies, pairs = plant(texts)
    everything = texts + copies
    random.Random(0).shuffle(everything)
    for shard in range(arguments.shards):
        documents = (to_document(text) for text in everything[shard :: arguments.shards])
        write_documents(arguments.folder / "documents" / f"shard-{shard:02d}.jsonl.gz", documents)
    sources: dict[str, dict[str, int]] = {}
    for text in everything:
        row = sources.setdefault(text.source, {"documents": 0, "text_bytes": 0})
        row["documents"] += 1
        row["text_bytes"] += len(text.text.encode())
    totals = {name: sum(row[name] for row in sources.values()) for name in ("documents", "text_bytes")}
    (arguments.folder / "planted.json").write_text(json.dumps({"pairs": pairs, "sources": sources, **totals}, indent=0) + "\n")
    megabytes = totals["text_bytes"] / 1e6
    print(f"{arguments.folder}: {totals['documents']:,} documents, {megabytes:.1f} MB of text; {len(pairs):,} copies")
    for name, row in sources.items():
        print(f"  {name}: {row['documents']:,} documents, {row['text_bytes'] / 1e6:.1f} MB")


def to_document(text: Text) -> Document:
    """With an address; a copy has that of its base, and a fragment."""
    base, _, copy = text.id.partition("#")
    url = f"https://{text.source.replace('_', '-')}.example.org/{base}{f'#{copy}' if copy else ''}"
    return Document(text.id, text.text, text.source, added="2026-01-01T00:00:00Z", metadata={"url": url})


# ---- text --------------------------------------------------------------------------------------------------------------------


def collect(total: float) -> Iterator[Text]:
    """About `total` bytes, each source its share as far as it has so much, then whatever else there is."""
    seen: set[bytes] = set()
    rest, left = [], total
    for source, share in SHARES.items():
        wanted = total * share / sum(SHARES.values())
        for text in texts_of(source, seen):
            size = len(text.text.encode())
            if wanted < size:
                rest.append(text)
                continue
            wanted -= size
            left -= size
            yield text
    for texts in (rest, texts_of("more", seen)):
        for text in texts:
            size = len(text.text.encode())
            if size <= left:
                left -= size
                yield text


def texts_of(source: str, seen: set[bytes]) -> Iterator[Text]:
    """Files of a source that are UTF-8 and were not seen, in an order that is random but always the same."""
    found = [(root, path) for root in roots_of(source) for path in root.rglob("*") if is_of(source, path, root)]
    names = {f"{root.name}/{path.relative_to(root)}": path for root, path in found}
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = read_text(names[name])
        digest = hashlib.sha256(text.encode()).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            yield Text(source, f"{source}:{name.replace('#', '_')}", text)


def roots_of(source: str) -> list[Path]:
    """Folders."""
    stdlib, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    match source:
        case "stdlib":
            roots = [stdlib]
        case "man" | "doc":
            roots = [Path("/usr/share", source)]
        case "more":
            roots = [Path(name) for name in MORE]
        case _:
            roots = [packages]
    return [root for root in roots if root.is_dir()]


def is_of(source: str, path: Path, root: Path) -> bool:
    """Whether a file belongs to a source."""
    match source:
        case "stdlib":
            belongs = path.suffix == ".py" and "site-packages" not in path.relative_to(root).parts
        case "packages":
            belongs = path.suffix == ".py"
        case "package_docs":
            belongs = path.name.endswith(DOC_ENDINGS)
        case _:
            belongs = True
    return belongs and path.is_file() and not path.is_symlink() and 0 < path.stat().st_size <= LARGEST


def read_text(path: Path) -> str:
    """Of a file; empty: it is no text."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
    return "" if "\0" in text or len(text) > LARGEST else text


# ---- copies ------------------------------------------------------------------------------------------------------------------


def plant(texts: list[Text]) -> tuple[list[Text], list[dict[str, str | float]]]:
    """Copies of random documents, and what they are copies of."""
    rng = random.Random(1)
    copies: list[Text] = []
    pairs: list[dict[str, str | float]] = []
    exact = rng.sample(texts, round(len(texts) * EXACT))
    long_enough = [text for text in texts if len(text.text.split(None, LEAST_WORDS)) > LEAST_WORDS]
    near = rng.sample(long_enough, min(round(len(texts) * NEAR), len(long_enough)))
    words = sorted({word for text in texts[:200] for word in text.text.split() if word.isalpha()}) or ["word"]
    for base in exact:
        copies.append(Text(base.source, f"{base.id}#exact", base.text))
        pairs.append({"kind": "exact", "replaced": 0.0, "base": base.id, "copy": copies[-1].id})
    for number, base in enumerate(near):
        replaced = REPLACED[number % len(REPLACED)]
        copies.append(Text(base.source, f"{base.id}#near", replace_words(base.text, replaced, words, rng)))
        pairs.append({"kind": "near", "replaced": replaced, "base": base.id, "copy": copies[-1].id})
    return copies, pairs


def replace_words(text: str, share: float, words: list[str], rng: random.Random) -> str:
    """Of the text's words `share`, at least one, become others; spaces stay."""
    pieces = re.split(r"(\s+)", text)
    places = [i for i in range(0, len(pieces), 2) if pieces[i]]
    for i in rng.sample(places, max(1, round(len(places) * share))):
        pieces[i] = rng.choice([word for word in rng.sample(words, min(2, len(words))) if word != pieces[i]] or ["another"])
    return "".join(pieces)


if __name__ == "__main__":
    main(sys.argv[1:])
