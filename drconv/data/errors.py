"""The exception of the data pipeline."""

from drconv.errors import UserError


class DataError(UserError):
    """The data cannot be used as it is: a broken picture, or folders that contradict each other."""
