"""A save by way of the node's own disk: written there at its speed, then copied to the shared folder and compared on the way."""

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path

from olmo_train import checkpoint
from olmo_train.checkpoint import Groups, Record
from olmo_train.errors import CheckpointError
from olmo_train.files import copy_hashed

log = logging.getLogger(__name__)


class StageError(RuntimeError):
    """The node's own disk cannot be used; the shared folder is not to blame."""


class Stage:
    """One rank's place on its node's disk. Nothing stays there after a save; what killed starts left is removed by the next."""

    def __init__(self, stage_dir: str, steps: Path, attempt: str, rank: int) -> None:
        """`stage_dir` may name environment variables ($SLURM_TMPDIR), which differ between nodes and jobs."""
        self.where, self.rank = stage_dir, rank
        run = hashlib.sha256(str(steps.absolute()).encode()).hexdigest()[:12]
        self._run = Path(os.path.expandvars(stage_dir)) / f"olmo-stage-{run}"
        self.folder = self._run / attempt / f"rank-{rank:05d}"

    def clear(self) -> None:
        """Remove what earlier starts of this run left on this node."""
        if self._run.is_dir():
            for leftover in self._run.iterdir():
                if leftover != self.folder.parent:
                    shutil.rmtree(leftover, ignore_errors=True)

    def write_rank(self, folder: Path, n_ranks: int, groups: Groups) -> None:
        """As `checkpoint.write_rank`, by way of the stage; straight into `folder` (with a warning) if the stage fails.

        Raises:
            CheckpointError: the shared file system refused; names the file.
        """
        try:
            record = self._copy(folder, self._write(n_ranks, groups))
        except StageError as error:
            log.warning("rank %d: %s; this save is written straight to %s", self.rank, error, folder)
            record = checkpoint.write_files(folder, self.rank, n_ranks, groups)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        checkpoint.write_record(folder, self.rank, record)

    def _write(self, n_ranks: int, groups: Groups) -> Record:
        unset = re.search(r"\$\{?\w+", str(self._run))
        if unset:
            raise StageError(f"checkpoint.stage_dir={self.where}: {unset.group()} is not set in the environment of this node")
        try:
            return checkpoint.write_files(self.folder, self.rank, n_ranks, groups)
        except CheckpointError as error:
            raise StageError(f"checkpoint.stage_dir: {str(error).split(';')[0]}") from error

    def _copy(self, folder: Path, record: Record) -> Record:
        """Copy every file and remove it here.

        Raises:
            StageError: a file cannot be read, or is not what was written.
            CheckpointError: the shared file system refused.
        """
        path = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, entry in record["files"].items():
                path = folder / name
                found = copy_hashed(self.folder / name, path)
                if found != entry["sha256"]:
                    raise StageError(
                        f"checkpoint.stage_dir: {self.folder / name} was written with SHA-256 {entry['sha256']} and read back "
                        f"with {found}: the disk of this node is failing"
                    )
                (self.folder / name).unlink()
        except OSError as error:
            if error.filename is not None and Path(error.filename).is_relative_to(self.folder):
                raise StageError(f"checkpoint.stage_dir: {error.filename}: {error.strerror}") from error
            raise checkpoint.refused(path, error) from error
        return record
