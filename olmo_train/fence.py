"""Keep a start of a run that was cut off, and does not know it, from writing into what a later start has taken over."""

from pathlib import Path

from olmo_train.errors import CheckpointError

ATTEMPT = ".attempt"
"""File of the run folder that names the start to which the folder belongs."""


class SupersededError(CheckpointError):
    """A later start of the run has taken over; this one must write nothing more."""


class Fence:
    """Whose run folder it is.

    No clock and no lock service: the later start writes its name first and only then takes leftovers out of the way (temporary
    folders lose their names, files of lines become new files), while the earlier one opens what it writes to first and only then
    asks for the name. Whichever way the two interleave, the earlier start finds another name, or writes to what nobody reads.
    """

    def __init__(self, run_dir: Path, attempt: str) -> None:
        self.path, self.attempt = run_dir / ATTEMPT, attempt

    def check(self) -> None:
        """Raises:
        SupersededError: another start has written its name.
        OSError: it cannot be read, so nobody knows.
        """
        holder = self.path.read_text()
        if holder != self.attempt:
            raise SupersededError(
                f"{self.path.parent} was taken over by a later start of the run ({holder or 'without a name'}; this one is "
                f"{self.attempt}): this one was cut off or given up, and writes nothing more; the later one continues the run"
            )
