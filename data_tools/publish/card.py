"""The dataset card: front matter that hubs read, then what it is, where it came from, how to verify and load it."""

import json
from collections.abc import Iterable
from typing import Any

from data_tools.inspect.stat import stage_rows
from data_tools.publish.assemble import Assembled, Numbers
from data_tools.publish.manifest import Release
from data_tools.work.counts import add_counts
from olmo_train.data.manifest import read_manifest

_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)  # fmt: skip
_COUNTED = ("documents", "tokens", "heldout_tokens")
_OWN = ("totals", "rejected", "repaired")


def card_of(release: Release, made: Assembled) -> str:
    """README.md."""
    parts = [
        _front_matter(release, made),
        f"# {_text(release.name)}\n\n{release.description.strip()}\n",
        _contents(release, made),
        _stages(made),
        _treatment(made),
        _how_to(release, made),
    ]
    return "\n".join(parts)


def document_totals(made: Assembled) -> dict[str, Numbers]:
    """Documents and bytes of each published dataset, by source."""
    totals: dict[str, Numbers] = {}
    for path, numbers in made.sources_of.items():
        add_counts(totals.setdefault(path.split("/", 1)[0], {}), numbers)
    return totals


# ---- front matter ------------------------------------------------------------------------------------------------------------


def _front_matter(release: Release, made: Assembled) -> str:
    n_documents = sum(row["documents"] for totals in document_totals(made).values() for row in totals.values())
    licenses = sorted(set(release.licenses.values()))
    lines = ["---", f"pretty_name: {_yaml(release.name)}"]
    if licenses:
        lines.append("license:")
        lines += [f"- {_yaml(name)}" for name in licenses]
    lines += ["task_categories:", "- text-generation"]
    if made.sources_of:
        size = next((name for limit, name in _SIZES if n_documents < limit), "n>1T")
        lines += ["size_categories:", f"- {size}", "configs:"]
        for name, files in configs(made).items():
            lines += [f"- config_name: {_yaml(name)}", "  data_files:"]
            lines += [f"  - {_yaml(path)}" for path in files]
    return "\n".join([*lines, "---", ""])


def configs(made: Assembled) -> dict[str, list[str]]:
    """Files by name of a configuration: of each source, where every file holds one source; else of each dataset."""
    datasets = list(dict.fromkeys(path.split("/", 1)[0] for path in made.sources_of))
    found: dict[str, list[str]] = {}
    for dataset in datasets:
        files = {path: numbers for path, numbers in made.sources_of.items() if path.startswith(f"{dataset}/") and numbers}
        is_split = all(len(numbers) == 1 for numbers in files.values())
        for path, numbers in files.items():
            source = next(iter(numbers)) if is_split else ""
            name = "-".join(word for word in ((dataset if len(datasets) > 1 or not source else ""), source) if word)
            found.setdefault(name.replace("/", "-"), []).append(path)
    return found


def _yaml(value: str) -> str:
    """A string as YAML: JSON's strings are YAML's."""
    return json.dumps(value, ensure_ascii=False)


# ---- sections ----------------------------------------------------------------------------------------------------------------


def _contents(release: Release, made: Assembled) -> str:
    lines = ["## What is in it", ""]
    for name, kind in made.kinds.items():
        said = {
            "dataset": "documents, attributes and the records of every stage, in Dolma's formats",
            "shards": "token shards with spans of documents (`.csv.gz`), a manifest and the records of their stage",
            "records": "records of the stages before, without documents",
        }[kind]
        lines.append(f"- `{name}/`: {said}")
    rows = [
        (f"`{dataset}`", _text(source), _text(_license(release, source)), f"{row['documents']:,}", f"{row['text_bytes']:,}")
        for dataset, totals in document_totals(made).items()
        for source, row in sorted(totals.items())
    ]
    if rows:
        lines += ["", *_table(("dataset", "source", "license", "documents", "bytes of text"), rows)]
    for name, kind in made.kinds.items():
        if kind == "shards":
            manifest = read_manifest(made.roots[name].path)
            cells = (
                (_text(source), _text(_license(release, source)), *(f"{row[key]:,}" for key in _COUNTED))
                for source, row in manifest.totals().items()
            )
            lines += ["", f"Shards `{name}/` ({manifest.dtype}, {manifest.vocab_size:,} ids):", ""]
            lines += _table(("source", "license", "documents", "tokens", "held out"), cells)
    return "\n".join([*lines, ""])


def _license(release: Release, source: str) -> str:
    return release.licenses.get(source) or release.licenses.get("default", "")


def _stages(made: Assembled) -> str:
    lines = ["## At each stage", ""]
    rows: list[tuple[str, ...]] = []
    for name, root in made.roots.items():
        for row in stage_rows(root):
            by_source = row["totals"].get("by_source", {})
            kinds = _kinds(row)
            sources = list(dict.fromkeys([*by_source, *(s for kind in kinds.values() for s in kind)]))
            for source in sources or [""]:
                numbers = by_source.get(source, {})
                gone = ", ".join(
                    f"{kind}: {reason} {n:,}" for kind in kinds for reason, n in sorted(kinds[kind].get(source, {}).items())
                )
                rows.append((
                    f"`{name}` {_text(row['stage'])}", _text(source),
                    *(f"{numbers[key]:,}" if key in numbers else "" for key in ("documents", "text_bytes", "tokens")),
                    _text(gone),
                ))  # fmt: skip
    return "\n".join([*lines, *_table(("stage", "source", "documents", "bytes", "tokens", "taken out or marked"), rows), ""])


def _kinds(row: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    return {name: inner for name, inner in row.items() if isinstance(inner, dict) and name not in _OWN}


def _treatment(made: Assembled) -> str:
    """Every stage with its settings and versions, as they stand in the release."""
    lines = ["## How each document was treated", ""]
    for name, root in made.roots.items():
        for stage in root.stages:
            plan = json.loads(made.files[f"{name}/stages/{stage.name}/stage.json"].read_text(encoding="utf-8"))
            summary = json.loads(made.files[f"{name}/stages/{stage.name}/summary.json"].read_text(encoding="utf-8"))
            rejected = ", ".join(f"{reason} {n:,}" for reason, n in sorted(summary.get("rejected", {}).items())) or "none"
            repaired = ", ".join(f"{what} {n:,}" for what, n in sorted(summary.get("repaired", {}).items())) or "none"
            versions = ", ".join(f"{package} {version}" for package, version in summary.get("versions", {}).items())
            lines += [
                f"### `{name}`: {_text(stage.name)}",
                "",
                f"{summary.get('lines', 0):,} lines read; rejected: {_text(rejected)}; repaired: {_text(repaired)}.",
                f"With {_text(versions) or 'no versions recorded'}.",
                "",
                "```json",
                json.dumps(plan.get("settings", {}), indent=1, ensure_ascii=False).replace("```", "\\u0060``"),
                "```",
                "",
            ]  # fmt: skip
    lines.append(
        "What was dropped, and which document was kept instead of which, stands line by line in "
        "`<dataset>/stages/<stage>/dropped/` and `duplicates/`; `parts/` has a record of every part with "
        "hashes of what it read and wrote.\n"
    )
    return "\n".join(lines)


def _how_to(release: Release, made: Assembled) -> str:
    lines = [
        "## How to verify it",
        "",
        "`data_manifest.json` has size and SHA-256 of every file. `olmo data verify PLACE` compares all of them, and what each",
        "stage read with what the one before it wrote; `olmo data find ID PLACE/<dataset>` follows one document.",
        "",
    ]  # fmt: skip
    if release.rewritten:
        lines += [
            f"In {len(release.rewritten):,} files names of folders were replaced by relative ones; `data_manifest.json` lists",
            "them with the hashes they had.",
            "",
        ]  # fmt: skip
    lines += ["## How to load it", ""]
    if made.sources_of:
        name = next(iter(configs(made)), "default")
        lines += [
            "```python",
            "from datasets import load_dataset",
            f"load_dataset(PLACE, {json.dumps(name)}, streaming=True)",
            "```",
            "",
        ]
    shards = [name for name, kind in made.kinds.items() if kind == "shards"]
    if shards:
        lines += [f"Shards: `olmo train data.sources.demo.path=PLACE/{shards[0]}`, or any reader of Dolma's `.npy` memmaps.", ""]
    return "\n".join(lines)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    head = f"| {' | '.join(heads)} |"
    return [head, f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]


def _text(value: str) -> str:
    """Any string as one line of Markdown text."""
    line = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in line)
