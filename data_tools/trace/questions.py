"""What the commands that ask about the corpus share: the texts asked about, how a trace is opened, how an answer is given."""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from data_tools.trace.opening import Trace, load_trace_config, open_trace
from data_tools.trace.print_answer import visible
from data_tools.trace.searcher import Searcher
from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic


@dataclass(frozen=True)
class Asked:
    """Tokens asked about. text: None where ids were given and no manifest names a tokenizer."""

    text: str | None
    ids: list[int]


def new_parser(verb: str, doc: str | None, wants_texts: bool = True) -> argparse.ArgumentParser:
    """A parser with what all of these commands take."""
    parser = argparse.ArgumentParser(f"olmo trace {verb}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("where", metavar="WHERE", help="folder of a run, of a release, of an index or of shards")
    if wants_texts:
        add("--text", action="append", default=[], metavar="TEXT", help="ask about this text; may be given again")
        add("--ids", action="append", default=[], metavar="1,2,3", help="ask about these token ids; may be given again")
        add("--file", type=Path, metavar="FILE", help="ask about every line of a text file")
    add("--json", metavar="FILE", help="also write the answer to this file; -: print it instead of text")
    add("overrides", nargs="*", metavar="name=value", help="of configs/trace.yaml, e.g. indexes=[...] privacy.blocked=[...]")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str], at_least_one: Iterable[str] = ()) -> argparse.Namespace:
    """Parse, and check that flags which count something are positive.

    Raises:
        ConfigError: one is not, or an override is no name=value.
    """
    args = parser.parse_intermixed_args(argv)
    values = [(flag, getattr(args, flag.replace("-", "_"))) for flag in at_least_one]
    problems = [f"--{flag}={value} must be positive" for flag, value in values if value is not None and value < 1]
    problems += [f"{word} is no name=value; flags begin with --" for word in args.overrides if "=" not in word]
    if problems:
        raise ConfigError(problems)
    return args


def open_question(args: argparse.Namespace) -> Trace:
    """Open what the command line names; what the reader must know of it goes to stderr."""
    trace = open_trace(args.where, load_trace_config(args.overrides))
    for note in trace.find_notes():
        print(f"note: {visible(note)}", file=sys.stderr)
    return trace


def read_asked(args: argparse.Namespace, searcher: Searcher) -> list[Asked]:
    """What --text, --ids and --file ask about, in this order.

    Raises:
        ConfigError: nothing is asked about, a text is empty, an id is not in the vocabulary, or the file cannot be read; says
            all of it.
    """
    problems: list[str] = []
    texts = [("--text", text) for text in args.text]
    if args.file is not None:
        texts += [(f"{args.file}: line {number}", line) for number, line in enumerate(_lines(args.file, problems), 1)]
    problems += [f"{name}: the text is empty; give at least one character" for name, text in texts if not text]
    by_ids = [ids for given in args.ids if (ids := _parse_ids(given, searcher.vocab_size, problems))]
    if not texts and not by_ids and not problems:
        problems.append("nothing is asked about; give --text, --ids or --file")
    if problems:
        raise ConfigError(problems)
    asked = [Asked(text, ids) for (_, text), ids in zip(texts, _encode([t for _, t in texts], searcher), strict=True)]
    return asked + [Asked(text_of(searcher, ids), ids) for ids in by_ids]


def spaced_count(searcher: Searcher, asked: Asked, split: str = "train") -> int | None:
    """Occurrences of the text with a space before it, as words stand within a sentence; None: it begins with white space, or
    there is no text."""
    if not asked.text or asked.text[0].isspace() or not has_tokenizer(searcher):
        return None
    return searcher.count(_encode([f" {asked.text}"], searcher)[0], split)


def spaced_lines(count: int | None) -> list[str]:
    """What is said of that, if there is anything to say."""
    return [f"  with a space before it: {count:,} times (--text ' ...')"] if count else []


def text_of(searcher: Searcher, ids: list[int]) -> str | None:
    """The text of ids; None without a tokenizer. Bytes that are no whole character become U+FFFD."""
    if not has_tokenizer(searcher):
        return None
    return searcher.tokenizer.decode(ids)


def has_tokenizer(searcher: Searcher) -> bool:
    """Whether a manifest names a tokenizer."""
    return any(corpus.tokenizer_path() is not None for corpus in searcher.corpora)


def _encode(texts: list[str], searcher: Searcher) -> list[list[int]]:
    """Raises ConfigError where a text is not UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"--text: character {error.start} is half of a surrogate pair, which no document holds; give UTF-8"
            ) from None
    return searcher.tokenizer.encode_batch(texts) if texts else []


def _parse_ids(given: str, vocab_size: int, problems: list[str]) -> list[int]:
    try:
        ids = [int(word) for word in given.split(",")]
    except ValueError:
        problems.append(f"--ids={given} must be whole numbers with commas between them, e.g. --ids 12,7,300")
        return []
    wrong = [i for i in ids if not 0 <= i < vocab_size]
    if wrong:
        problems.append(f"--ids={given}: {wrong[0]} is not in the vocabulary of {vocab_size} ids")
    return ids


def _lines(path: Path, problems: list[str]) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"--file={path}: {error}; give a text file in UTF-8, with a text per line")
        return []
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def give(args: argparse.Namespace, answer: Any, lines: Iterable[str]) -> None:
    """Print the lines, with nothing in them that a terminal would obey, and write the answer where --json asks for it.

    Raises:
        ConfigError: the file cannot be written.
    """
    if args.json is not None:
        text = json.dumps(_plain(answer), indent=1, ensure_ascii=args.json == "-") + "\n"
        if args.json == "-":
            sys.stdout.write(text)
            return
        try:
            write_atomic(Path(args.json), text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise ConfigError(f"--json={args.json}: {error.strerror}; give a file in a folder that exists") from error
    for line in lines:
        print(visible(line))


def _plain(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_plain(entry) for entry in answer]
    return asdict(answer) if is_dataclass(answer) and not isinstance(answer, type) else answer


def shown(text: str | None, ids: list[int]) -> str:
    """A text on one line, for a terminal."""
    return json.dumps(text, ensure_ascii=False) if text is not None else f"ids {','.join(map(str, ids))}"
