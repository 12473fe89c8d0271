"""Numbers of a dataset or shards: `olmo data stat FOLDER [--attributes NAME] [--json]`.

Documents, bytes and tokens by source at each stage of the lineage, what was rejected and dropped and why; distributions of
attributes; of shards, tokens per document and the most frequent ids.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from data_tools.datasets import find_document_files
from data_tools.documents import Reject, read_lines
from data_tools.inspect.attribute_stats import attribute_stats, parse_test
from data_tools.inspect.lineage import Root, StageFolder, by_reason, lineage
from data_tools.inspect.shard_stats import shard_stats
from data_tools.inspect.sketch import ERROR, MOST_EXACT
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, ShardError, run_command
from olmo_train.tokenizer import Tokenizer

FREQUENT = 20
BAR = 40
"""Characters of the longest bar of a histogram."""


def main(argv: list[str]) -> None:
    """Print tables, or one JSON object."""
    parser = argparse.ArgumentParser("olmo data stat", description=__doc__)
    parser.add_argument("folder", help="a dataset or shards")
    parser.add_argument("--attributes", metavar="NAME", help="distributions of attributes/NAME instead")
    parser.add_argument(
        "--pass", dest="tests", metavar="TEST", action="append", default=[],
        help="with --attributes: how many documents pass, e.g. 'length__words >= 50' (of the largest score in a document)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    if args.tests and not args.attributes:
        raise ConfigError("--pass goes with --attributes NAME")
    if args.attributes:
        stats = attribute_stats(Path(args.folder), args.attributes, [parse_test(text) for text in args.tests]).describe()
        print_any(stats, args.json, _print_attributes)
        return
    roots = lineage(args.folder)
    values: dict[str, Any] = {"stages": [row for root in roots for row in stage_rows(root)]}
    if roots[-1].is_shards:
        values["shards"] = shard_stats(Corpus(roots[-1].path), FREQUENT)
    elif not roots[-1].stages:
        values["documents"] = count_documents(roots[-1].path)
    print_any(values, args.json, lambda found: _print_stages(found, roots[-1]))


def print_any(values: dict[str, Any], is_json: bool, say: Any) -> None:
    """As JSON or by a function."""
    if is_json:
        print(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        say(values)


def stage_rows(root: Root) -> list[dict[str, Any]]:
    """What each stage of a root read, wrote, rejected and dropped."""
    return [_stage_row(root, stage) for stage in root.stages]


def _stage_row(root: Root, stage: StageFolder) -> dict[str, Any]:
    summary = stage.summary or {}
    totals = summary.get("totals", {})
    kinds = {kind: by_reason(stage, kind) for kind in stage.kinds() if kind != "quarantine"}
    return {
        "root": str(root.path),
        "stage": stage.name,
        "finished": stage.summary is not None,
        "lines": summary.get("lines"),
        "totals": totals,
        "rejected": summary.get("rejected", {}),
        "repaired": summary.get("repaired", {}),
        **kinds,
    }


def count_documents(folder: Path) -> dict[str, dict[str, int]]:
    """Documents and bytes by source of a dataset that no stage of ours wrote: read line by line.

    Raises:
        ShardError: a file cannot be read.
    """
    found: dict[str, dict[str, int]] = {}
    rejected: list[int] = []

    def note(reject: Reject) -> None:
        rejected.append(reject.line)

    for file in find_document_files([str(folder)]):
        for line in read_lines(file.path, note):
            row = found.setdefault(line.source, {"documents": 0, "text_bytes": 0})
            row["documents"] += 1
            row["text_bytes"] += sum(len(piece.encode("utf-8")) for piece in line.pieces())
    if rejected:
        raise ShardError(f"{folder}: {len(rejected):,} lines are no documents; `olmo data ingest` says which, and why")
    return found


# ---- tables ------------------------------------------------------------------------------------------------------------------


def _print_stages(values: dict[str, Any], last: Root) -> None:
    for row in values["stages"]:
        print(f"{row['root']}: {row['stage']}{'' if row['finished'] else ' (not finished)'}: {_totals(row)}")
        sources = row["totals"].get("by_source", {})
        kinds = {name: inner for name, inner in row.items() if isinstance(inner, dict) and name not in _OWN}
        names = [*sources, *(s for kind in kinds.values() for s in kind if s not in sources)]
        for source in dict.fromkeys(names):
            told = [_number(n, name) for name, n in sources.get(source, {}).items() if isinstance(n, (int, float))]
            told += [
                f"{kind} {sum(kinds[kind][source].values()):,} ({_reasons(kinds[kind][source])})"
                for kind in kinds
                if source in kinds[kind]
            ]
            print(f"    {source or '(no source)':<20} {', '.join(told)}")
    for source, row in values.get("documents", {}).items():
        print(f"    {source:<20} {', '.join(_number(n, name) for name, n in row.items())}")
    if "shards" in values:
        _print_shards(values["shards"], last)


_OWN = ("totals", "rejected", "repaired")


def _totals(row: dict[str, Any]) -> str:
    told = [_number(n, name) for name, n in row["totals"].items() if isinstance(n, (int, float))]
    for name in ("rejected", "repaired"):
        if row[name]:
            told.append(f"{name} {sum(row[name].values()):,} ({_reasons(row[name])})")
    return ", ".join(told) or "nothing counted"


def _reasons(numbers: dict[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(numbers.items(), key=lambda item: (-item[1], item[0])))


def _number(value: int | float, name: str) -> str:
    return f"{value:,} {name.replace('_', ' ')}" if isinstance(value, int) else f"{value:,.4g} {name.replace('_', ' ')}"


def _print_shards(stats: dict[str, Any], root: Root) -> None:
    print(f"shards: {stats['tokens']:,} tokens, {stats['ids_used']:,} of {stats['vocab_size']:,} ids occur")
    for source, row in stats["by_source"].items():
        lengths, ratio = row["tokens_per_document"], row["bytes_per_token"]
        q = lengths["quantiles"]
        print(
            f"    {source:<20} {row['documents']:,} documents, {row['tokens']:,} tokens, held out {row['heldout_frac']:.2%}, "
            f"{'? ' if ratio is None else f'{ratio:.2f} '}bytes/token; tokens per document: mean {lengths['mean']:,.1f}, median "
            f"{q['0.5']:,.0f}, 95 % {q['0.95']:,.0f}, longest {lengths['max']:,.0f}"
        )
    path = Corpus(root.path).tokenizer_path()
    tokenizer = Tokenizer(path) if path is not None else None
    for row in stats["frequent"]:
        text = "" if tokenizer is None else f"  {tokenizer.decode([row['id']])!r}"
        print(f"    id {row['id']:>7} {row['count']:>14,} {row['share']:>8.3%}{text}")
    print(f"quantiles of more than {MOST_EXACT:,} different values are off by at most {ERROR:.0%}; all else is exact")


def _print_attributes(stats: dict[str, Any]) -> None:
    documents = stats["documents"]
    print(f"{documents:,} documents")
    for name, row in stats["attributes"].items():
        scores, q = row["scores"], row["scores"]["quantiles"]
        print(
            f"{name}: in {row['documents']:,} documents ({row['documents'] / max(documents, 1):.2%}), {row['spans']:,} spans; "
            f"scores: mean {scores['mean']:.4g}, smallest {scores['min']:.4g}, 5 % {q['0.05']:.4g}, median {q['0.5']:.4g}, "
            f"95 % {q['0.95']:.4g}, largest {scores['max']:.4g}"
        )
        most = max((n for _, _, n in scores["histogram"]), default=0)
        for low, high, number in scores["histogram"]:
            print(f"    {low:>12.4g} .. {high:<12.4g} {number:>12,} {'#' * round(BAR * number / most)}")
    for test, number in stats["passed"].items():
        print(f"{test}: {number:,} documents pass ({number / max(documents, 1):.2%})")
    print(f"quantiles of more than {MOST_EXACT:,} different values are off by at most {ERROR:.0%}; all else is exact")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
