"""A key pair to sign releases with: `olmo keys new FILE` writes FILE (private, for you alone) and FILE.pub (to give away)."""

import argparse
from pathlib import Path

from checkpoints.publish.signature import read_public_key, write_key_pair
from olmo_train.errors import run_command


def main(argv: list[str]) -> None:
    """Write the pair and say which key it is."""
    parser = argparse.ArgumentParser("olmo keys new", description=__doc__)
    parser.add_argument("file", type=Path, help="of the private key; must not exist")
    args = parser.parse_args(argv)
    public_file = write_key_pair(args.file)
    print(f"{args.file}: private key, keep it to yourself\n{public_file}: public key {read_public_key(public_file)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
