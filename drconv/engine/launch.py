"""Starting the ranks of a run: in this process, in processes of our own, or under torchrun."""

import contextlib
import json
import logging
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from drconv.config import Config
from drconv.console import outlast_readers
from drconv.engine.run_folder import RunFolder
from drconv.errors import RankError, RunFolderError, UserError, stopped_by
from drconv.files import replace_file
from drconv.messages import one_line
from drconv.run_status import FAILED, is_owned, note_end, read_status
from drconv.world import STORE, is_started_elsewhere, num_ranks

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # those that torch's launcher handles
POLL_S = 0.25
SAVING_S = 30  # what ranks get to save, as from schedulers
ORPHAN_S = 1.0  # how often a rank looks for its parent
REASON = "reason.{}"  # of a rank that failed, a file in the private folder


def launch(worker: Callable[[Config], Any], config: Config) -> Any:
    """Runs ``worker(config)`` on every rank and returns rank 0's value.

    Under torchrun and for one device the worker runs in this process. Otherwise the ranks are started here, from a
    configuration that was composed once: ranks that compose for themselves can disagree.
    """
    set_threads(config)
    outlast_readers()
    if is_started_elsewhere(config) or config.runtime.devices == 1:
        return _alone(worker, config)
    from torch.distributed.elastic.multiprocessing import SignalException

    try:
        # A folder that its owner alone can read.
        with _own_handlers(), TemporaryDirectory(prefix="drconv-") as private:
            return _start_and_wait(worker, config, Path(private))
    except SignalException as error:
        saved = _what_is_saved(RunFolder(Path(str(config.run))))
        raise stopped_by(error.sigval.name, f"; {saved}") from None


def _alone(worker: Callable[[Config], Any], config: Config) -> Any:
    """Ctrl-C before the first step and after the last is no request to the trainer, and ends with what is saved too."""
    try:
        return worker(config)
    except KeyboardInterrupt:
        raise stopped_by("SIGINT", f"; {_what_is_saved(RunFolder(Path(str(config.run))))}") from None


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """torch's launcher answers signals for as long as the ranks run: a sweep runs its jobs in one process."""
    in_main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    former = {number: signal.getsignal(number) for number in HANDLED} if in_main else {}
    try:
        yield
    finally:
        for number, handler in former.items():
            if handler is not None:
                signal.signal(number, handler)


def _start_and_wait(worker: Callable[[Config], Any], config: Config, private: Path) -> Any:
    """The ranks of one machine need no rendezvous: their numbers are known.

    They meet through a file in a private folder. torch's rendezvous would listen on all interfaces, and unpickle what
    anybody writes there.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

    for name in ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # told in one line
    # The process that looks after semaphores warns of those of a rank that was killed, below the reason.
    own = [filters] if (filters := os.environ.get("PYTHONWARNINGS")) else []
    os.environ["PYTHONWARNINGS"] = ",".join([*own, "ignore:resource_tracker:UserWarning"])
    # Inside other launchers' workers the start method may be one that a rank does not know.
    multiprocessing.set_start_method("spawn", force=True)
    ranks = config.runtime.devices
    former, tempfile.tempdir = tempfile.tempdir, str(private)  # where torch hands over traces, as pickles
    try:
        context = start_processes(
            "ranks",
            _rank,
            {rank: (worker, config, os.getpid(), rank) for rank in range(ranks)},
            {rank: _environment(rank, ranks, private) for rank in range(ranks)},
            DefaultLogsSpecs(str(private / "errors")),
        )
    finally:
        tempfile.tempdir = former
    try:
        outcome = context.wait(period=POLL_S)
    except SignalException as error:
        _hand_on_signals(context)
        context.close(error.sigval, SAVING_S)
        raise
    except BaseException:
        context.close()
        raise
    if outcome is not None and not outcome.is_failed():
        return outcome.return_values[0]
    failed = {} if outcome is None else {rank: failure.exitcode for rank, failure in outcome.failures.items()}
    failure = _first_failure(private, failed)
    _note_failure(Path(str(config.run)), failure)
    raise failure


def _environment(rank: int, ranks: int, private: Path) -> dict[str, str]:
    """What torchrun would set, the file that the ranks meet through, and the interface that stays on this machine."""
    loopback = {"linux": "lo"}.get(sys.platform, "lo0")
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {
        **{name: str(number) for name, number in numbers.items()},
        STORE: str(private / "store"),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


def _hand_on_signals(context: Any) -> None:
    """While ranks save, a further signal is theirs to answer."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        for pid in context.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in HANDLED:
        signal.signal(number, hand_on)


def set_threads(config: Config) -> None:
    """Shares the cores among the ranks; must happen before torch starts its thread pools.

    Waiting threads sleep: by default they spin, and take the cores from the loader processes and other ranks.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads_per_rank(config))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def threads_per_rank(config: Config) -> int:
    """The share of this machine's cores that one rank computes with."""
    ranks = config.runtime.devices
    if is_started_elsewhere(config):
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks(config)))
    return config.runtime.threads or max(1, (os.cpu_count() or 1) // ranks)


def _rank(worker: Callable[[Config], Any], config: Config, parent: int, rank: int) -> Any:
    """A rank that raises leaves its reason and ends at once, by which the others and the parent learn of it.

    The way through Python's end could wait for collectives that the others never join.
    """
    private = Path(os.environ[STORE]).parent
    outlast_readers()
    threading.Thread(target=_end_with_parent, args=(parent, private), daemon=True).start()
    try:
        return worker(config)
    except Exception as error:
        _leave_reason(private / REASON.format(rank), error)
        # Of the loaders' semaphores, of which Python would warn behind the reason.
        multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)
    finally:
        _clear_up_after(parent, private)


def _end_with_parent(parent: int, private: Path) -> None:
    """Ends this process when its parent was killed: nobody else ends the ranks, or clears up.

    torch asks the system for SIGINT then. That is not enough: a rank can be waiting for the parent where it has
    answered the signal already, and one that was started in the background ignores it.
    """
    while os.getppid() == parent:
        time.sleep(ORPHAN_S)
    _clear_up_after(parent, private)
    os._exit(1)


def _clear_up_after(parent: int, private: Path) -> None:
    if os.getppid() != parent:
        shutil.rmtree(private, ignore_errors=True)


def _leave_reason(path: Path, error: Exception) -> None:
    line = one_line(error)
    reason = {
        "at": time.monotonic(),  # one clock for all processes of a machine
        "kind": type(error).__name__ if isinstance(error, UserError) else UserError.__name__,
        "line": line,
        "error": " ".join(f"{type(error).__name__}: {error}".split())[:300],
        "trace": "" if line else traceback.format_exc(),
    }
    with contextlib.suppress(OSError):
        replace_file(path, json.dumps(reason))


def _what_is_saved(folder: RunFolder) -> str:
    """What the parent of stopped ranks finds: those that do not end in time are killed, and may have saved or not."""
    if folder.result.exists():
        return f"the run in {folder.path} is finished"
    if not folder.has_state:
        return "no state was saved yet, the same command begins again"
    import torch

    from drconv.engine.checkpoint import load_resume

    try:
        step = load_resume(folder.resume, torch.device("cpu"))[0]["state"]["step"]
    except RunFolderError as error:
        return str(error)
    return f"the saved state is that after step {step}; the same command continues"


def _first_failure(private: Path, failed: dict[int, int]) -> UserError:
    """The error of the rank that failed first, as the parent should raise it; the trace of a defect is printed.

    Args:
        private: where the ranks left their reasons.
        failed: exit codes of ranks that ended, negative for the number of a signal.
    """
    reasons = {path: json.loads(path.read_text()) for path in private.glob(REASON.format("*"))}
    for rank, code in failed.items():
        if code < 0 or not reasons:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            return RankError(
                f"rank {rank} {how}, and the others were stopped; was memory short? The same command continues"
            )
    path, reason = min(reasons.items(), key=lambda item: item[1]["at"])
    if reason["line"] is not None:
        return _user_errors()[reason["kind"]](reason["line"])
    print(reason["trace"], file=sys.stderr, end="", flush=True)
    return RankError(
        f"rank {path.suffix[1:]} failed: {reason['error']}; its trace stands above, the others were stopped"
    )


def _note_failure(folder: Path, failure: UserError) -> None:
    """Rank 0 notes why it ended itself, which may be that another rank had failed; here the first reason is known."""
    if not is_owned(folder) and read_status(folder).state == FAILED:
        note_end(folder, FAILED, str(failure))


def _user_errors() -> dict[str, type[UserError]]:
    """All kinds of errors that a user can mend, by name."""
    kinds, found = {}, [UserError]
    while found:
        kind = found.pop()
        kinds[kind.__name__] = kind
        found += kind.__subclasses__()
    return kinds
