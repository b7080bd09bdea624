"""Errors a user can mend: shown as one line, without a trace, with exit code 1."""


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


class ExportError(UserError):
    """What was exported computes something else than the network, or cannot be built."""


class NonFiniteLossError(UserError):
    """The loss became infinite or not a number."""


class StoppedError(UserError):
    """The run was asked to stop and saved its state."""
