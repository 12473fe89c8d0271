"""Curves over a training run: tables, curves.json, figures, and an HTML report that explains itself.

olmo checkpoints curve runs/first [--steps 0,100,1000] [--measures norms,saturation,...] [--text "Once upon a time"]
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from checkpoints.inspect.curve_tables import terminal_tables
from checkpoints.inspect.curves_file import Origin, build_document, document_bytes, finite
from checkpoints.inspect.figures import draw_figures
from checkpoints.inspect.heldout import HeldoutOptions, read_heldout
from checkpoints.inspect.measures import SeriesResult, What
from checkpoints.inspect.page import page_html
from checkpoints.inspect.page_view import View
from checkpoints.inspect.places import find_checkpoints, is_run
from checkpoints.inspect.readable import one_line
from checkpoints.inspect.series import SeriesOptions, Text, measure_series
from checkpoints.load import load_tokenizer
from checkpoints.opening import Checkpoint, open_checkpoint
from checkpoints.publish.plots import require_matplotlib
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError, run_command
from olmo_train.files import write_atomic

ROUTING = ("saturation", "coactivation", "source_specialisation", "token_specialisation")
MEASURES = ("norms", "heldout", *ROUTING, "text", "evaluations", "loss")
MIN_WIDTH = 40
"""Columns of a terminal below which tables do not get narrower."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, checked."""

    where: str
    steps: tuple[int, ...] | None
    measures: tuple[str, ...]
    is_default: bool
    """Nobody named the measures: what cannot be had is left out with a sentence. Otherwise it is an error."""
    texts: tuple[Text, ...]
    heldout: HeldoutOptions
    tokenizer: Path | None
    output: Path
    device: Device


def main(argv: list[str]) -> None:
    """Measure, print, and write the files."""
    asked = parse(argv)
    require_matplotlib()
    addresses = find_checkpoints(asked.where, asked.steps)
    last = open_checkpoint(addresses[-1])
    what, left_out = plan(asked, last)
    _make_folder(asked.output)
    options = SeriesOptions(
        steps=asked.steps, what=what, heldout=asked.heldout, texts=asked.texts if What.TEXTS in what else (),
        tokenizer=asked.tokenizer, device=asked.device,
    )  # fmt: skip
    series = measure_series(asked.where, options)
    folders = [open_checkpoint(address).folder for address in addresses]
    origin = Origin(asked.where, folders, last, asked.measures)
    document = finite(build_document(origin, series, _token_texts(series, last, asked.tokenizer), left_out))
    view = View(document)
    files = {"curves.json": document_bytes(document), **draw_figures(view), "report.html": page_html(document).encode()}
    for name, data in files.items():
        write_atomic(asked.output / name, data)
    print("\n".join(terminal_tables(view, max(MIN_WIDTH, shutil.get_terminal_size().columns))))
    print(f"\nWrote {', '.join(files)} to {one_line(asked.output)}\nOpen {one_line(asked.output / 'report.html')} in a browser.")


def parse(argv: list[str]) -> Asked:
    """The command line, every problem of it at once.

    Raises:
        ConfigError: a value is none of those that can be.
    """
    args = _parser().parse_args(argv)
    problems: list[str] = []
    measures = tuple(dict.fromkeys(args.measures.split(","))) if args.measures is not None else MEASURES
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        problems.append(f"--measures={','.join(unknown)}: no such measure; there are {', '.join(MEASURES)}")
    steps = _steps(args.steps, problems)
    texts = _texts(args, problems)
    if args.measures is not None and "text" in measures and not texts:
        problems.append("--measures=text needs --text or --text-file")
    if args.tokens_per_source < 1:
        problems.append(f"--tokens-per-source={args.tokens_per_source} must be at least 1")
    output = args.output
    if output is None and is_run(args.where):
        output = Path(args.where) / "inspect"
    if output is None:
        problems.append(f"{args.where} is not the folder of a run, so say where the files go: --output FOLDER")
    elif output.exists() and not output.is_dir():
        problems.append(f"--output={output} is a file; give the name of a folder")
    if problems:
        raise ConfigError(problems)
    heldout = HeldoutOptions(args.tokens_per_source, tuple(args.shards))
    return Asked(args.where, steps, measures, args.measures is None, texts, heldout, args.tokenizer, output, Device(args.device))


def plan(asked: Asked, last: Checkpoint) -> tuple[frozenset[What], dict[str, str]]:
    """What the series measures, and why some measures are left out.

    Raises:
        ConfigError: a measure that was named cannot be had.
    """
    what: set[What] = {What.NORMS} if "norms" in asked.measures else set()
    left_out: dict[str, str] = {}
    routing = [name for name in ROUTING if name in asked.measures]
    if not routing:
        left_out["routing"] = f"Not measured: --measures asked for none of {', '.join(ROUTING)}."
    if last.model.moe is None:
        dense = "This model is dense: it has no routers and no experts."
        left_out |= dict.fromkeys(("routing", *routing), dense)
        routing = []
    needs_tokens = [*routing, *(name for name in asked.measures if name == "heldout")]
    try:
        if needs_tokens:
            read_heldout(last, asked.heldout)
            what |= {What.HELDOUT} | ({What.ROUTING} if routing else set())
    except ConfigError as error:
        if asked.heldout != HeldoutOptions():
            raise
        left_out |= dict.fromkeys(("routing", *needs_tokens), f"Held-out tokens could not be read: {error}.")
    if "text" in asked.measures:
        if asked.texts:
            what.add(What.TEXTS)
        else:
            left_out["text"] = "No text was given: --text or --text-file names one."
    refused = [f"--measures={name}: {left_out[name]}" for name in asked.measures if name in left_out]
    if refused and not asked.is_default:
        raise ConfigError(refused)
    return frozenset(what), left_out


def _steps(given: str | None, problems: list[str]) -> tuple[int, ...] | None:
    if given is None:
        return None
    words = [word.strip() for word in given.split(",")]
    if not all(word.isdecimal() for word in words):
        problems.append(f"--steps={given} must be steps with commas between them, e.g. --steps 0,100,1000")
        return None
    return tuple(dict.fromkeys(map(int, words)))


def _texts(args: argparse.Namespace, problems: list[str]) -> tuple[Text, ...]:
    found = list(args.text)
    for path in args.text_file:
        try:
            found.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            problems.append(f"--text-file={path}: {why}; give a text file in UTF-8")
    if any(not text for text in found):
        problems.append("--text='' has no tokens; give some text")
    return tuple(Text(text) for text in found)


def _token_texts(series: SeriesResult, last: Checkpoint, given: Path | None) -> dict[int, str]:
    """Texts of the ids in the vocabularies of the last checkpoint; none if no tokenizer is known."""
    routing = series.checkpoints[-1].routing
    if routing is None:
        return {}
    try:
        tokenizer = load_tokenizer(last, given)
    except ConfigError:
        if given is not None:
            raise
        return {}
    roles = [role for layer in routing.layers for role in (layer.vocabulary.input, layer.vocabulary.predicted)]
    ids = sorted({token.id for role in roles for tokens in role.tokens for token in tokens})
    return {number: tokenizer.decode([number]) for number in ids}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--output={folder}: {error.strerror}; give a folder that can be written") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "olmo checkpoints curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("where", help="folder of a run, a store of releases (folder, URL, owner/name), or one checkpoint")
    parser.add_argument("--steps", help="only these, with commas between them; default: every checkpoint")
    parser.add_argument("--measures", help=f"some of {','.join(MEASURES)}; default: all that can be had")
    parser.add_argument("--text", action="append", default=[], help="a text to give a probability to; may be given again")
    parser.add_argument("--text-file", action="append", default=[], type=Path, help="the same from a file")
    parser.add_argument(
        "--tokens-per-source",
        type=int,
        default=HeldoutOptions().tokens_per_source,
        help="held-out tokens measured (default %(default)s)",
    )
    parser.add_argument(
        "--shards", action="append", default=[], type=Path, help="held-out tokens of this corpus instead of the run's"
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json; default: the checkpoint's own")
    parser.add_argument("--output", type=Path, help="folder of the results; default: inspect/ in the run")
    parser.add_argument(
        "--device",
        choices=[str(device.value) for device in Device],
        default=Device.AUTO.value,
        help="where models run (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main))
