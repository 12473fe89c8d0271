"""What identifies the weights of a checkpoint, whatever it is called."""

import hashlib
import json

from checkpoints.opening import Checkpoint
from checkpoints.release import MANIFEST, read_release_folder
from checkpoints.weights import StepWeights, hf_tensor_files
from olmo_train.checkpoint import read_manifest
from olmo_train.errors import CheckpointError


def weights_identity(checkpoint: Checkpoint) -> str:
    """A SHA-256 that changes with any weight: of the manifest's sums for a step folder, `weights_sha256` of a release, and of the
    files themselves for another Hugging Face folder.

    It is not comparable between kinds, nor between step folders written by different numbers of ranks.

    Raises:
        CheckpointError: a manifest or a file cannot be read.
    """
    if isinstance(checkpoint.weights, StepWeights):
        manifest = read_manifest(checkpoint.folder)
        names = {shard["file"] for entry in manifest["tensors"]["model"].values() for shard in entry["shards"]}
        return _digest([[name, manifest["files"][name]["sha256"]] for name in sorted(names)])
    if (checkpoint.folder / MANIFEST).exists():
        return read_release_folder(checkpoint.folder).weights_sha256
    sums = []
    for name in sorted(set(hf_tensor_files(checkpoint.folder).values())):
        try:
            with open(checkpoint.folder / name, "rb") as file:
                sums.append([name, hashlib.file_digest(file, "sha256").hexdigest()])
        except OSError as error:
            raise CheckpointError(f"{checkpoint.folder / name}: {error.strerror}; fetch the folder again") from error
    return _digest(sums)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
