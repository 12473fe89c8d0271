"""What the user sees: text as it is made, labelled texts, or a JSON object per line."""

import json
import sys

from checkpoints.generate.engine import Sample
from checkpoints.generate.streaming import TextStream


class Printer:
    """Samples in the order of their prompts, each as soon as it and those before it are done; a single one while it is made."""

    def __init__(self, prompts: list[str], n_samples: int, seed: int, as_json: bool, stream: bool) -> None:
        self._prompts, self._n_samples, self._seed, self._as_json = prompts, n_samples, seed, as_json
        self._is_single = len(prompts) * n_samples == 1 and not as_json
        self._streams = stream and self._is_single

    def begin(self) -> None:
        """The prompt of a single sample that is shown while it is made."""
        if self._streams:
            self._write(self._prompts[0])

    def piece(self, text: str) -> None:
        """More of a single sample."""
        if self._streams and text:
            self._write(text)

    def done(self, sample: Sample, stream: TextStream) -> None:
        """A whole sample."""
        prompt = self._prompts[sample.prompt]
        if self._streams:
            self._write("\n")
        elif self._as_json:
            line = {
                "prompt": prompt, "sample": sample.sample, "text": stream.text, "tokens": sample.tokens,
                "logprobs": sample.logprob, "finish_reason": sample.finish, "seed": self._seed,
            }  # fmt: skip
            self._write(json.dumps(line) + "\n")
        elif self._is_single:
            self._write(f"{prompt}{stream.text}\n")
        else:
            of = f", sample {sample.sample + 1}" if self._n_samples > 1 else ""
            self._write(f"== prompt {sample.prompt + 1}{of}\n{prompt}{stream.text}\n\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
