"""Starting the ranks of a run: in this process, in processes of our own, or under torchrun."""

import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drconv.config import Config
from drconv.engine.run_folder import RunFolder
from drconv.errors import RunFolderError, StoppedError, UserError
from drconv.messages import one_line


def launch(worker: Callable[[Config], Any], config: Config) -> Any:
    """Runs ``worker(config)`` on every rank and returns rank 0's value.

    Under torchrun (RANK is set) and for one device the worker runs in this process. Otherwise the ranks are started
    here, from a configuration that was composed once: ranks that compose for themselves can disagree.
    """
    set_threads(config)
    if "RANK" in os.environ or config.runtime.devices == 1:
        return worker(config)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("multiprocessing.api", "agent.server.api"):  # they log traces of what is told in one line here
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    # Inside other launchers' workers the start method may be one that the elastic agent does not know.
    multiprocessing.set_start_method("spawn", force=True)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.runtime.devices,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="spawn",
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        return elastic_launch(settings, _rank)(worker, config)[0]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _first_failure(rank, failure.message) from None
    except SignalException as error:
        raise StoppedError(
            f"stopped by {error.sigval.name}; {_what_is_saved(RunFolder(Path(str(config.run))))}"
        ) from None


def set_threads(config: Config) -> None:
    """Shares the cores among the ranks; must happen before torch starts its thread pools.

    Waiting threads sleep: by default they spin, and take the cores from the loader processes and other ranks.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads_per_rank(config))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def threads_per_rank(config: Config) -> int:
    """The share of this machine's cores that one rank computes with."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", config.runtime.devices))
    return config.runtime.threads or max(1, (os.cpu_count() or 1) // ranks)


def _rank(worker: Callable[[Config], Any], config: Config) -> Any:
    """A rank that raises makes the agent end the others; ``record`` hands its error on to the parent."""
    from torch.distributed.elastic.multiprocessing.errors import record

    def work(config: Config) -> Any:
        try:
            return worker(config)
        except Exception as error:
            line = one_line(error)
            if line is None or isinstance(error, UserError):
                raise
            raise UserError(line) from None  # the parent reads errors by name, and knows those of a user

    return record(work)(config)


def _what_is_saved(folder: RunFolder) -> str:
    """What the parent of stopped ranks finds: those that do not end in time are killed, and may have saved or not."""
    import torch

    from drconv.engine.checkpoint import load_resume

    if folder.result.exists():
        return f"the run in {folder.path} is finished"
    if not folder.resume.exists():
        return "no state was saved yet, the same command begins again"
    try:
        step = load_resume(folder.resume, torch.device("cpu"))["state"]["step"]
    except RunFolderError as error:
        return str(error)
    return f"the saved state is that after step {step}; the same command continues"


def _first_failure(rank: int, message: Any) -> Exception:
    """The error of the rank that failed first, as the parent should raise it.

    ``ChildFailedError`` itself does not survive pickling, which a sweeper's process pool needs.
    """
    text = str(message["message"] if isinstance(message, dict) else message)
    name, _, reason = text.partition(": ")
    if kind := _user_errors().get(name):
        return kind(reason)
    trace = message.get("extraInfo", {}).get("py_callstack", "") if isinstance(message, dict) else ""
    return RuntimeError(f"rank {rank} failed: {text}\n{trace}".rstrip())


def _user_errors() -> dict[str, type[UserError]]:
    """All kinds of errors that a user can mend, by name."""
    kinds, found = {}, [UserError]
    while found:
        kind = found.pop()
        kinds[kind.__name__] = kind
        found += kind.__subclasses__()
    return kinds
