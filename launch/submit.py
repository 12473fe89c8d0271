"""Submit a training run to Slurm: `olmo launch cluster=NAME nodes=N time=T run_name=NAME experiment=... [name=value ...]`

Everything is checked here, without torch, before anything is written: the site, the request, the run for its number of ranks,
its data, its memory. Then a job folder with all that the job needs is made and given to Slurm. Words of the launch:
cluster nodes min_nodes spare_nodes time max_failures max_parallel dependency (launch/config.py), and cluster.NAME=value for a
value of the site. A word with several values (optim.lr=1e-4,3e-4) makes a job array with one run of each.
"""

import argparse
import sys

from launch.report import dry_run_text, submitted_text
from launch.request import read_request, read_site, split_words
from launch.slurm import told
from launch.sweep import launch_sweep, swept
from launch.write_job import alone, give_to_slurm, refuse_second, write_job
from olmo_train.errors import run_command


def main(argv: list[str]) -> None:
    """Check, write the job folder, submit; with --dry-run print what would be written and submitted."""
    parser = argparse.ArgumentParser(
        "olmo launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dry-run", action="store_true", help="print the job script and what is known of the run; write nothing")
    args, words = parser.parse_known_args(argv)
    with told():
        if swept(split_words(words).rest):
            launch_sweep(words, args.dry_run)
        else:
            launch_run(words, args.dry_run)


def launch_run(words: list[str], dry_run: bool) -> None:
    """One run as one job.

    Raises:
        ConfigError: everything that speaks against it.
        SlurmError: sbatch refused it.
    """
    split = split_words(words)
    request = read_request(split, read_site(split))
    if dry_run:
        refuse_second([request.run_dir])
        print(dry_run_text(request, words, split.rest))
        return
    with alone([request.run_dir]):
        folder = write_job(request, words)
        job_id = give_to_slurm(folder)
    print(submitted_text(request, folder, job_id))
    for note in request.notes:
        print(f"note: {note}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
