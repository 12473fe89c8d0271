"""Measures over the checkpoints of a run, one at a time, each kept as soon as it is made: an interrupted series goes on."""

import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.inspect.heldout import Heldout, HeldoutOptions, read_heldout
from checkpoints.inspect.identity import weights_identity
from checkpoints.inspect.kept import Kept
from checkpoints.inspect.measures import CheckpointMeasures, Norms, SeriesResult, SourceLoss, TextProbability, What
from checkpoints.inspect.norms import weight_norms
from checkpoints.inspect.observe import Observation, observe
from checkpoints.inspect.places import find_checkpoints, is_run
from checkpoints.inspect.routing import RoutingOptions, layer_routing
from checkpoints.inspect.text_probability import text_probability
from checkpoints.load import load_model, load_tokenizer
from checkpoints.opening import Checkpoint, open_checkpoint
from olmo_train.config.train import Device
from olmo_train.data.loader import IGNORE
from olmo_train.errors import ConfigError
from olmo_train.model.transformer import Transformer
from olmo_train.parallel.mesh import choose_device
from olmo_train.tokenizer import Tokenizer

KEPT = "inspect/kept"
"""Folder of a run's results."""


@dataclass(frozen=True)
class Text:
    """A text to give a probability to."""

    text: str
    context: str = ""
    """Stands before it; not counted."""


@dataclass(frozen=True)
class SeriesOptions:
    """What to measure, and how."""

    steps: tuple[int, ...] | None = None
    """None: every one."""
    what: frozenset[What] | None = None
    """None: norms; held-out loss and routing where there are held-out tokens and routers; texts if there are some."""
    heldout: HeldoutOptions = field(default_factory=HeldoutOptions)
    texts: tuple[Text, ...] = ()
    routing: RoutingOptions = field(default_factory=RoutingOptions)
    """`with_matrix` and `n_tokens`: for the last checkpoint only."""
    tokenizer: Path | None = None
    """For texts; None: the checkpoint's own."""
    device: Device = Device.AUTO
    cache: Path | None = None
    """Where results are kept; None: in `inspect/kept/` of a run, nowhere for anything else."""
    keep: bool = True
    """False: read and write no results."""


def measure_series(where: str, options: SeriesOptions | None = None) -> SeriesResult:
    """Measure the checkpoints of `where`: a run, a store of releases (folder, URL, owner/name), or one checkpoint.

    One model is in memory at a time, in float32. A line per checkpoint goes to stderr. Saturation compares with the last step
    measured, and updates with the step before among them.

    Raises:
        ConfigError: nothing to measure, or it cannot be measured; checked before the first model is loaded.
    """
    options = options or SeriesOptions()
    addresses = find_checkpoints(where, options.steps)
    last = open_checkpoint(addresses[-1])
    folder = options.cache if options.cache is not None or not is_run(where) else Path(where) / KEPT
    work = _Work(options, last, Kept(folder if options.keep else None))
    final = work.observe_final(_Subject(last)) if What.ROUTING in work.what else None
    result = SeriesResult(where, None if final is None else last.where, work.settings())
    before: _Subject | None = None
    for number, address in enumerate(addresses, 1):
        subject, start = _Subject(open_checkpoint(address)), time.monotonic()
        result.checkpoints.append(work.measure(subject, before, final, is_last=number == len(addresses)))
        before = _Subject(subject.checkpoint)  # without its model
        line = _line(result.checkpoints[-1])
        print(f"{line}   ({number} of {len(addresses)}, {time.monotonic() - start:.1f} s)", file=sys.stderr, flush=True)
    return result


class _Subject:
    """A checkpoint, its identity, and its model once something asks for it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.digest = checkpoint, weights_identity(checkpoint)
        self._model: Transformer | None = None

    def model(self, device: torch.device) -> Transformer:
        if self._model is None:
            self._model = load_model(self.checkpoint, device)
        return self._model

    @property
    def label(self) -> str:
        """Begins the names of its results."""
        step = self.checkpoint.step
        return "checkpoint" if step is None else f"step{step:08d}"


class _Work:
    """What is measured of each checkpoint of one series."""

    def __init__(self, options: SeriesOptions, last: Checkpoint, kept: Kept) -> None:
        self.options, self.kept, self.device = options, kept, choose_device(options.device)
        problems = []
        if options.what is None:
            self.what = {What.NORMS} | ({What.TEXTS} if options.texts else set())
        else:
            self.what = set(options.what)
        if What.TEXTS in self.what and not options.texts:
            problems.append("--measures=text needs --text or --text-file")
        if What.ROUTING in self.what and last.model.moe is None:
            problems.append(f"{last.where} is a dense model: it has no routers, whose choices could be measured")
        if problems:
            raise ConfigError(problems)
        self.heldout = self._read_heldout(last)
        self._final: tuple[str, Observation] | None = None
        self.tokenizer: Tokenizer | None = load_tokenizer(last, options.tokenizer) if What.TEXTS in self.what else None

    def _read_heldout(self, last: Checkpoint) -> Heldout | None:
        if self.options.what is None:
            try:
                heldout = read_heldout(last, self.options.heldout)
            except ConfigError as error:
                if self.options.heldout != HeldoutOptions():
                    raise
                print(f"no held-out loss and no routing: {error}", file=sys.stderr)
                return None
            self.what |= {What.HELDOUT} | ({What.ROUTING} if last.model.moe is not None else set())
            return heldout
        return read_heldout(last, self.options.heldout) if self.what & {What.HELDOUT, What.ROUTING} else None

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on."""
        out: dict[str, Any] = {"what": sorted(what.value for what in self.what), "device": self.device.type, "dtype": "float32"}
        if self.heldout is not None:
            out |= {"seq_len": self.heldout.seq_len, "heldout_tokens": self.heldout.n_tokens}
        if What.ROUTING in self.what:
            out |= {"routing": asdict(self.options.routing)}
        return out

    def measure(self, subject: _Subject, before: _Subject | None, final: Observation | None, is_last: bool) -> CheckpointMeasures:
        """One checkpoint; only what is not kept already is computed."""
        checkpoint = subject.checkpoint
        seen = self.observation(subject) if self.heldout is not None else None
        routing = None
        if seen is not None and What.ROUTING in self.what:
            options = self.options.routing
            if not is_last:  # the whole matrix and the ids of every expert, for hundreds of checkpoints, would fill memory
                options = replace(options, with_matrix=False, n_tokens=0)
            routing = layer_routing(seen, final, options)
        return CheckpointMeasures(
            checkpoint.where, checkpoint.step, checkpoint.state.get("tokens"), checkpoint.state.get("loss"), subject.digest,
            self._losses(seen) if seen is not None and What.HELDOUT in self.what else None, routing,
            self._norms(subject, before) if What.NORMS in self.what else None,
            self._texts(subject) if self.tokenizer is not None else None,
        )  # fmt: skip

    def observe_final(self, subject: _Subject) -> Observation:
        """Of the checkpoint that all are compared with; stays in memory."""
        self._final = subject.digest, self.observation(subject)
        return self._final[1]

    def observation(self, subject: _Subject) -> Observation:
        """Of the held-out tokens."""
        assert self.heldout is not None
        if self._final is not None and self._final[0] == subject.digest:
            return self._final[1]
        name, key = f"{subject.label}-heldout", [subject.digest, self.heldout.digest, self.device.type]
        seen = self.kept.observation(name, key, self.heldout)
        if seen is None:
            seen = observe(subject.model(self.device), self.heldout)
            self.kept.keep_observation(name, key, seen)
        return seen

    def _losses(self, seen: Observation) -> dict[str, SourceLoss]:
        assert self.heldout is not None
        return heldout_losses(seen, self.heldout)

    def _norms(self, subject: _Subject, before: _Subject | None) -> Norms:
        name, key = f"{subject.label}-norms", [subject.digest, None if before is None else before.digest]
        norms = self.kept.norms(name, key)
        if norms is None:
            previous = None if before is None else before.checkpoint.weights
            norms = weight_norms(subject.checkpoint.weights, subject.checkpoint.model, previous)
            self.kept.keep(name, key, norms)
        return norms

    def _texts(self, subject: _Subject) -> list[TextProbability]:
        assert self.tokenizer is not None
        out = []
        for text in self.options.texts:
            seq_len = self.options.heldout.seq_len or subject.checkpoint.seq_len
            name, key = f"{subject.label}-text", [subject.digest, self.tokenizer.sha256, asdict(text), seq_len, self.device.type]
            found = self.kept.texts(name, key)
            if found is None:
                model = subject.model(self.device)
                found = [text_probability(model, self.tokenizer, text.text, seq_len, text.context)]
                self.kept.keep(name, key, found)
            out += found
        return out


def heldout_losses(seen: Observation, heldout: Heldout) -> dict[str, SourceLoss]:
    """By source, and `all`: nats per token and bits per byte of the targets, as `eval` during training."""
    sums: dict[str, tuple[float, int, int | None]] = {}
    for number, source in enumerate(heldout.sources):
        mine = (seen.source_N == number) & (seen.targets_N != IGNORE)
        table = source.token_bytes
        n_bytes = None if table is None else int(table[seen.targets_N[mine]].astype(np.int64).sum())
        sums[source.name] = -float(seen.log_probs_N[mine].astype(np.float64).sum()), int(mine.sum()), n_bytes
    if len(sums) > 1:
        known = [n_bytes for _, _, n_bytes in sums.values() if n_bytes is not None]
        all_bytes = sum(known) if len(known) == len(sums) else None
        sums["all"] = sum(nats for nats, _, _ in sums.values()), sum(tokens for _, tokens, _ in sums.values()), all_bytes
    return {
        name: SourceLoss(nats / max(1, tokens), nats / math.log(2) / n_bytes if n_bytes else None, tokens)
        for name, (nats, tokens, n_bytes) in sums.items()
    }


def _line(measured: CheckpointMeasures) -> str:
    parts = [measured.where if measured.step is None else f"step {measured.step}"]
    if measured.heldout is not None:
        parts += [f"{name} {loss.loss:.4f}" for name, loss in list(measured.heldout.items())[-1:]]
    if measured.routing is not None and measured.routing.layers[0].saturation is not None:
        shares = [layer.saturation.top_k for layer in measured.routing.layers if layer.saturation is not None]
        parts.append(f"saturation {sum(shares) / len(shares):.3f}")
    if measured.norms is not None:
        parts.append(f"norm {measured.norms.all.norm:.2f}")
    if measured.texts:
        parts.append(f"texts {', '.join(f'{text.loss:.3f}' for text in measured.texts)} nats per token")
    return "  ".join(parts)
