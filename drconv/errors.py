"""Errors a user can mend: shown as one line, without a trace, with exit code 1."""

import re

# Characters that would reach a terminal as commands or turn the order of its text around, and halves of characters,
# which stand for bytes of file names and cannot be written. A list of problems keeps its lines.
_UNPRINTABLE = re.compile(r"(?!\n  - )[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Foreign text (names of files and classes, contents of files) with its control characters escaped."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Something in the command, the data or the run folder; the message names the key to change."""


class ConfigError(UserError):
    """The configuration does not fit together."""


class DataError(UserError):
    """The data cannot be used as it is: a broken picture, or folders that contradict each other."""


class RunFolderError(UserError):
    """The run folder belongs to another run, another process, or is damaged."""


class WeightsError(UserError):
    """A weights file is damaged or belongs to another network."""


class TaskError(UserError):
    """A task, mostly one from outside, gives something else than ``drconv.interfaces`` says."""


class ExportError(UserError):
    """What was exported computes something else than the network, or cannot be built."""


class LostLoaderError(DataError):
    """A loader process ended while a batch came from it."""


def of_lost_loader(error: BaseException) -> DataError | None:
    """The error of a user for a loader process that was killed: torch raises its own wherever the run happens to be."""
    if isinstance(error, LostLoaderError):
        return error
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    reason = " ".join(str(error).splitlines()[0].split())
    return DataError(f"{reason} Was memory short? Lower runtime.workers; the same command continues")


class RankError(UserError):
    """One of several ranks failed or was killed, and the others were stopped."""


class NonFiniteLossError(UserError):
    """The loss became infinite or not a number."""


class StoppedError(UserError):
    """The run was asked to stop and saved its state."""

    exit_code = 143  # as of a process that SIGTERM ends, which schedulers look for


class InterruptedRunError(StoppedError):
    """The same by Ctrl-C."""

    exit_code = 130  # as of a process that SIGINT ends, which shells look for


def stopped_by(name: str, text: str) -> StoppedError:
    """The error of a run that a signal stopped: ``stopped by SIGINT`` and the text."""
    return (InterruptedRunError if name == "SIGINT" else StoppedError)(f"stopped by {name}{text}")
