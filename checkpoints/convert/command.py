"""A checkpoint in another format: `olmo convert runs/first exports/first`; `--to step` and back; `--to gguf`.

SOURCE is whatever names a checkpoint: a run (its newest step), a step folder, a Hugging Face folder, a release
(owner/name@revision or a URL), or a checkpoint of OLMo-core (`step1000` with model_and_optim; its metadata is a pickle, which can
execute code: only of people you trust).
"""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from checkpoints.convert.gguf import QUANTIZATIONS, write_gguf
from checkpoints.convert.hf_folder import FLOAT_DTYPES, SHARD_BYTES, HFOptions, write_hf
from checkpoints.convert.new_folder import refuse_existing
from checkpoints.convert.step_folder import write_step
from checkpoints.opening import Checkpoint, open_checkpoint, open_step_folder
from checkpoints.overrides import differences, hydra_word
from checkpoints.release import weights_digest
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError, run_command
from olmo_train.schema import CONFIG_DIR, load_config, to_plain

HF, STEP, GGUF = "hf", "step", "gguf"


def main(argv: list[str]) -> None:
    """Convert, and say what was written and what to try next."""
    parser = argparse.ArgumentParser("olmo convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a run, a step folder, a Hugging Face folder, owner/name@revision, or one of OLMo-core")
    parser.add_argument("target", type=Path, help="folder (or .gguf file) to write; must not exist")
    parser.add_argument("--to", choices=[HF, STEP, GGUF], default=HF, help="format; default: a Hugging Face folder")
    parser.add_argument("--step", type=int, help="step of the run; default: the newest")
    parser.add_argument("--dtype", choices=[*FLOAT_DTYPES], help="hf: of the weights; default: as saved, bit for bit")
    parser.add_argument("--shard-gb", type=float, help=f"hf: size of one file of weights; default: {SHARD_BYTES / 1e9:g}")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="gguf: of the matrices; default: bf16")
    parser.add_argument("--tokenizer", type=Path, help="default: the source's own")
    args = parser.parse_args(argv)
    problems = _problems(args)
    if problems:
        raise ConfigError(problems)
    checkpoint = open_checkpoint(args.source, args.step, with_optimizer=args.to == STEP)
    if args.tokenizer is not None:
        checkpoint = replace(checkpoint, tokenizer=args.tokenizer)
    match args.to:
        case "step":
            lines = _to_step(checkpoint, args.target)
        case "gguf":
            lines = _to_gguf(checkpoint, args.target, args.quantization or "bf16")
        case _:
            lines = _to_hf(checkpoint, args.target, args.dtype, args.shard_gb)
    print("\n".join(lines))


def _problems(args: argparse.Namespace) -> list[str]:
    """What the flags alone, and the target, have wrong."""
    given = {"--dtype": (args.dtype, HF), "--shard-gb": (args.shard_gb, HF), "--quantization": (args.quantization, GGUF)}
    problems = [
        f"{flag}={value} goes with --to {wanted}, not with --to {args.to}"
        for flag, (value, wanted) in given.items()
        if value is not None and args.to != wanted
    ]
    if args.shard_gb is not None and args.shard_gb <= 0:
        problems.append(f"--shard-gb={args.shard_gb} must be positive")
    try:
        refuse_existing(args.target)
    except ConfigError as error:
        problems += error.problems
    return problems


def _to_hf(checkpoint: Checkpoint, target: Path, dtype: str | None, shard_gb: float | None) -> list[str]:
    shard_bytes = SHARD_BYTES if shard_gb is None else max(1, round(shard_gb * 1e9))
    written = write_hf(checkpoint, target, HFOptions(None if dtype is None else FLOAT_DTYPES[dtype], shard_bytes))
    kinds = ", ".join(sorted({entry["dtype"] for entry in written.tensors.values()}))
    size = _mib(sum(entry["bytes"] for entry in written.files.values()))
    how = "bit for bit" if dtype is None else "rounded where they were wider"
    lines = [f"{target}: {len(written.files)} files, {size}, {len(written.tensors)} tensors in {kinds}, {how}"]
    lines.append(f"SHA-256 of the weights: {weights_digest(written.tensors)}")
    if "tokenizer.json" not in written.files:
        return [*lines, "No tokenizer is known, so there is none in the folder: --tokenizer tokenizer.json adds it."]
    load = f"AutoModelForCausalLM.from_pretrained({str(target)!r})"
    return [*lines, "Try next:", f"  {shlex.join(['olmo', 'generate', str(target)])} --prompt 'Once'", f"  transformers: {load}"]


def _to_step(checkpoint: Checkpoint, target: Path) -> list[str]:
    written = write_step(checkpoint, target)
    size = sum(path.stat().st_size for path in target.iterdir())
    what = "weights, optimizer and random states" if written.is_rebuilt else (
        "weights and optimizer state" if written.has_optimizer else "weights, no optimizer state"
    )  # fmt: skip
    lines = [f"{target}: a step folder of {_mib(size)}: {what}{f' ({written.note})' if written.note else ''}"]
    words = continue_words(target, written.has_optimizer)
    return [*lines, "Try next (data.sources: shards of the same tokenizer):", f"  {shlex.join(['olmo', 'train', *words])}"]


def _to_gguf(checkpoint: Checkpoint, target: Path, quantization: str) -> list[str]:
    write_gguf(checkpoint, target, quantization)
    lines = [f"{target}: {_mib(target.stat().st_size)}, matrices in {quantization}"]
    return [*lines, "Try next:", f"  {shlex.join(['llama-cli', '-m', str(target)])} -p 'Once'"]


def continue_words(folder: Path, with_optimizer: bool) -> list[str]:
    """Overrides of a run that begins with the weights of a step folder; its model as the nearest of configs/model."""
    checkpoint = open_step_folder(folder)
    wanted, best = to_plain(checkpoint.model), None
    for path in sorted((CONFIG_DIR / "model").glob("*.yaml")):
        base = to_plain(load_config("train", TrainConfig, ["run_name=x", f"model={path.stem}"]).model)
        words = [f"model={path.stem}", *differences(wanted, base, "model")]
        best = words if best is None or len(words) < len(best) else best
    assert best is not None
    assert checkpoint.run is not None
    data = checkpoint.run.data
    rest = ["run_name=continued", f"load.path={hydra_word(str(folder))}", *best]
    rest += [f"data.{name}={getattr(data, name)}" for name in ("seq_len", "global_batch_size", "micro_batch_size")]
    return rest if with_optimizer else [*rest, "load.optimizer_state=false"]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
