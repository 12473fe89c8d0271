"""Every byte of step folders against their manifests: `olmo checkpoints verify runs/first` (or one step folder)."""

import argparse
from pathlib import Path
from typing import Any

from checkpoints.catalog import find_folders
from olmo_train.checkpoint import read_manifest, verify_files
from olmo_train.errors import CheckpointError, run_command


def main(argv: list[str]) -> None:
    """Verify, print a line per folder; a damaged one gives exit status 1."""
    parser = argparse.ArgumentParser("olmo checkpoints verify", description=__doc__)
    parser.add_argument("path", type=Path, help="folder of a run, or of one step")
    args = parser.parse_args(argv)
    folders = [args.path] if (args.path / "manifest.json").exists() else [folder for _, folder in find_folders(args.path)]
    problems: list[str] = []
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            problems.append(str(error))
            print(f"{folder}: DAMAGED, its manifest cannot be used")
            continue
        found = verify_files(folder, manifest) + missing_rows(folder, manifest)
        problems += found
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        print(f"{folder}: {'DAMAGED' if found else 'whole'}, {len(manifest['files'])} files, {size / 2**20:,.1f} MiB")
    if problems:
        raise CheckpointError("\n".join(problems))


def missing_rows(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Tensors whose shards do not cover them from the first row to the last."""
    problems = []
    for group, tensors in manifest["tensors"].items():
        for name, entry in tensors.items():
            at = 0
            for shard in sorted(entry["shards"], key=lambda s: int(s["start"])):
                at = shard["stop"] if shard["start"] == at else at
            if entry["shape"] and at != entry["shape"][0]:
                problems.append(f"{folder}: {group} tensor {name!r} has rows up to {at} of {entry['shape'][0]}")
    return problems


if __name__ == "__main__":
    raise SystemExit(run_command(main))
