"""``drconv selftest``: every kernel of this machine against the reference, with speeds and versions for a report."""

from drconv.nn.selftest import main

__all__ = ["main"]
