"""Text from a run, a step folder, a Hugging Face folder or a hub: `olmo generate runs/first --prompt 'import os'`.

Text is printed as it is made. Several prompts or samples are made together and printed each when done.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.generate.engine import Batch, Finish, Limits, Sample
from checkpoints.generate.output import Printer
from checkpoints.generate.prompts import encode_prompts, read_prompts
from checkpoints.generate.sampling import Sampling
from checkpoints.generate.streaming import TextStream
from checkpoints.load import load_model, load_tokenizer
from checkpoints.opening import open_checkpoint
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError, run_command
from olmo_train.model.decode import Decoder
from olmo_train.parallel.mesh import choose_device
from olmo_train.tokenizer import Tokenizer

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


@dataclass(frozen=True)
class Job:
    """What to make."""

    samples: list[Sample]
    limits: Limits
    sampling: Sampling
    seed: int
    stops: list[str]
    batch_size: int


def main(argv: list[str]) -> None:
    """Print continuations of the prompts."""
    args = _parser().parse_args(argv)
    problems = _find_problems(args)
    if problems:
        raise ConfigError(problems)
    prompts = (args.prompt or [""]) if args.prompts_file is None else read_prompts(args.prompts_file)
    device = choose_device(Device(args.device))
    checkpoint = open_checkpoint(args.path, args.step)
    tokenizer = load_tokenizer(checkpoint, args.tokenizer)
    encoded = encode_prompts(prompts, tokenizer, checkpoint.seq_len, args.slide)
    samples = [Sample(ids, prompt, n) for prompt, ids in enumerate(encoded) for n in range(args.n)]
    sampling = Sampling(args.repetition_penalty, args.temperature, args.top_k, args.top_p, args.min_p)
    limits = Limits(args.max_tokens, checkpoint.seq_len, tokenizer.eos_id, args.slide)
    job = Job(samples, limits, sampling, args.seed, args.stop or [], args.batch_size)
    printer = Printer(prompts, args.n, args.seed, args.json, not args.no_stream)
    try:
        run(job, Decoder(load_model(checkpoint, device, getattr(torch, args.dtype))), tokenizer, printer)
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None


def run(job: Job, decoder: Decoder, tokenizer: Tokenizer, printer: Printer) -> None:
    """Make every sample and print it.

    Raises:
        KeyboardInterrupt: the user's; what was begun is printed first.
    """
    id_bytes = tokenizer.id_bytes()
    printer.begin()
    for first in range(0, len(job.samples), job.batch_size):
        samples = job.samples[first : first + job.batch_size]
        streams = {id(sample): TextStream(tokenizer, job.stops, id_bytes) for sample in samples}
        waiting = list(samples)
        try:
            batch = Batch(decoder, samples, job.limits, job.sampling, job.seed)
            while batch.live:
                _step(batch, streams, printer)
                waiting = _print_done(waiting, streams, printer)
        except KeyboardInterrupt:
            for sample in waiting:
                sample.finish = sample.finish or Finish.INTERRUPTED
                printer.piece(streams[id(sample)].end())
            _print_done(waiting, streams, printer)
            raise
    _tell_of_full_context(job)


def _step(batch: Batch, streams: dict[int, TextStream], printer: Printer) -> None:
    """One token for every live sample."""
    for sample, token in batch.step():
        stream = streams[id(sample)]
        if token is not None:
            printer.piece(stream.push(token))
        if sample.finish is not None:
            printer.piece(stream.end())
        if stream.is_stopped:
            sample.finish = Finish.STOP_TEXT


def _print_done(waiting: list[Sample], streams: dict[int, TextStream], printer: Printer) -> list[Sample]:
    """Print the samples that are done up to the first that is not; return the rest."""
    for place, sample in enumerate(waiting):
        if sample.finish is None:
            return waiting[place:]
        printer.done(sample, streams[id(sample)])
    return []


def _tell_of_full_context(job: Job) -> None:
    full = sum(s.finish == Finish.LENGTH and len(s.tokens) < job.limits.max_tokens for s in job.samples)
    if full:
        which = "the sample" if len(job.samples) == 1 else f"{full} of {len(job.samples)} samples"
        print(
            f"note: {which} ended where the context of {job.limits.context} tokens is full, before --max-tokens="
            f"{job.limits.max_tokens}; --slide goes on, without the first tokens and without a cache",
            file=sys.stderr,
        )


# ---- the command line ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("olmo generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("path", help="a run (its newest step), a step folder, a Hugging Face folder or owner/name@revision")
    add("--step", type=int, help="step of the run")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="texts to continue; none: begin a document")
    prompts.add_argument("--prompts-file", type=Path, metavar="FILE", help='a JSON string or {"prompt": ...} per line')
    add("--max-tokens", type=int, default=100)
    add("--temperature", type=float, default=0.8, help="0: always the most probable token")
    add("--top-p", type=float, default=0.95, help="draw among the most probable tokens that together have this probability")
    add("--top-k", type=int, default=0, help="draw among so many tokens; 0: all")
    add("--min-p", type=float, default=0.0, help="draw among tokens with this fraction of the largest probability")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: tokens that are there already become less probable")
    add("--stop", nargs="+", action="extend", metavar="TEXT", help="end before these texts")
    add(
        "--seed",
        type=int,
        default=0,
        help="with the prompt's place and the sample's number, of a sample's random numbers",
    )
    add("--n", type=int, default=1, metavar="SAMPLES", help="samples of each prompt")
    add("--batch-size", type=int, default=8, help="samples made together")
    add("--slide", action="store_true", help="go on when the context is full: see the last tokens only, at a full pass for each")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights and of the computation")
    add("--device", choices=[device.value for device in Device], default="auto")
    add("--json", action="store_true", help="print an object per sample")
    add("--tokenizer", type=Path, help="default: the one of the checkpoint or of the run's shards")
    add("--no-stream", action="store_true", help="print the text when it is whole")
    return parser


def _find_problems(args: argparse.Namespace) -> list[str]:
    rules: Iterable[tuple[str, object, str, bool]] = (
        ("max-tokens", args.max_tokens, "be positive", args.max_tokens > 0),
        ("temperature", args.temperature, "not be negative", 0 <= args.temperature < float("inf")),
        ("top-p", args.top_p, "be in (0, 1]", 0 < args.top_p <= 1),
        ("top-k", args.top_k, "be positive, or 0 for all tokens", args.top_k >= 0),
        ("min-p", args.min_p, "be in [0, 1]", 0 <= args.min_p <= 1),
        ("repetition-penalty", args.repetition_penalty, "be positive; 1: none", 0 < args.repetition_penalty < float("inf")),
        ("n", args.n, "be positive", args.n > 0),
        ("batch-size", args.batch_size, "be positive", args.batch_size > 0),
    )
    problems = [f"--{name}={value} must {rule}" for name, value, rule, ok in rules if not ok]
    if "" in (args.stop or []):
        problems.append("--stop '' would end every text before it begins; give a text")
    if args.n > 1 and args.temperature == 0:
        problems.append(f"--n={args.n} with --temperature=0 would be {args.n} times the same text; raise the temperature")
    return problems


if __name__ == "__main__":
    raise SystemExit(run_command(main))
