"""What is printed must not end a run: a reader that is gone (``| head -1``, a closed terminal) is no error."""

import errno
import os
import sys
from typing import TextIO

_GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a terminal that was closed


class LastingOutput:
    """A text stream that goes on in silence once its reader is gone; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())  # what is still buffered goes there too, at the latest at the end
        os.close(null)


def outlast_readers() -> None:
    """Makes the output of this process go on without its reader; output that a caller redirected is left alone."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, LastingOutput(stream))
