"""Loaders: batches for training, restartable at any step, and for evaluation, every sample exactly once."""

import atexit
import contextlib
import re
import signal
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling

from drconv.data.sampler import EvalSampler, TrainSampler
from drconv.errors import LostLoaderError, UserError
from drconv.interfaces import Batch, Dataset, SampleKey

_GRACE_S = 30  # how long a loader process outlives SIGTERM
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Loader:
    """Batches as the data set's ``collate`` makes them."""

    def __init__(self, dataset: Dataset, batches: TrainSampler | EvalSampler, **options: Any) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]  # torch asks for its own class, and uses what ours have
            batch_sampler=_AsSampler(batches),
            collate_fn=dataset.collate,
            worker_init_fn=_answer_signals,
            **options,
        )
        self._iterators: WeakSet[Any] = WeakSet()
        _LOADERS.add(self)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        # Loader processes are started with both signals held back, until they have their own answer to them.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            iterator = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        self._iterators.add(iterator)
        try:
            yield from iterator
        except UserError as error:
            # A loader process hands over its whole traceback as the message: the error's own follows its name.
            own = re.search(rf"^[\w.]*\b{type(error).__name__}: (.*)", str(error), re.DOTALL | re.MULTILINE)
            raise type(error)(" ".join((own[1] if own else str(error)).split())) from None
        except (ConnectionError, EOFError) as error:  # it was killed while it handed over a batch
            raise LostLoaderError(
                f"a loader process ended ({type(error).__name__}). Was memory short? Lower runtime.workers; the same "
                f"command continues"
            ) from None

    def close(self) -> None:
        """Ends the loader processes."""
        for iterator in list(self._iterators):
            if hasattr(iterator, "_workers"):  # one with processes
                _end_processes(iterator)


def _end_processes(iterator: Any) -> None:
    """Ends the processes of torch's iterator: by its own way, or all at once where one of them was killed.

    A killed process can have held a lock, for which torch's own way, and the other processes, would wait for ever.
    """
    if iterator._shutdown or all(process.is_alive() for process in iterator._workers):
        with contextlib.suppress(RuntimeError):  # torch tells of a killed process whenever its signal arrives
            iterator._shutdown_workers()
        return
    iterator._shutdown = True
    signal_handling._remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False
    for process in iterator._workers:
        process.kill()
        process.join()


_LOADERS: WeakSet[Loader] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Before Python's own way at the end of a process: SIGTERM, which loader processes outlive.

    Registered after torch's exit handler, so that it runs before that: once it has run, torch closes nothing.
    """
    for loader in list(_LOADERS):
        loader.close()


def train_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    start_step: int = 0,
    num_steps: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Micro-batches of the steps ``start_step`` to ``num_steps - 1``, ``accumulate`` for each step.

    Bitwise the same for any number of workers and after a restart; see ``TrainSampler`` for who gets what.

    Args:
        dataset: whose samples are taken.
        batch_size: samples of a step over all ranks and micro-batches.
        accumulate: micro-batches of a step on each rank.
        seed: decides the order of the samples and the augmentation.
        start_step: first step to produce.
        num_steps: length of the whole run.
        rank: this process.
        world_size: number of processes.
        workers: loader processes; 0 loads in this process.
        pin_memory: copy batches to page-locked memory (for CUDA).
    """
    sampler = TrainSampler(
        len(dataset),
        batch_size,
        accumulate,
        seed,
        start_step,
        num_steps,
        rank,
        world_size,
        groups=getattr(dataset, "groups", None),
        group_size=getattr(dataset, "group_size", 1),
    )
    return Loader(dataset, sampler, num_workers=workers, pin_memory=pin_memory)


def eval_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Batches of every ``world_size``-th sample, without padding; can be gone through again and again.

    The loader processes stay alive between evaluations. Ranks can have different numbers of batches. Samples
    whose ``valid`` is False stand for broken pictures and must not be counted.
    """
    sampler = EvalSampler(len(dataset), batch_size, rank, world_size)
    return Loader(dataset, sampler, num_workers=workers, pin_memory=pin_memory, persistent_workers=workers > 0)


def _answer_signals(worker: int) -> None:
    """SIGTERM of a cluster, Ctrl-C and the end of a terminal reach all processes of a job; the training one answers.

    Loader processes work on while it saves, and end with it; left alone, they end by themselves.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE_S))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


class _AsSampler(Sampler[list[SampleKey]]):
    """Gives our samplers the type that ``DataLoader`` wants."""

    def __init__(self, batches: TrainSampler | EvalSampler) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self._batches)
