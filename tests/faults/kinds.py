"""The faults, one function a kind: each disturbs a training, and says what its end must look like."""

import errno
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults.process import Training

FINISHED, STOPPED, REFUSED = 0, 143, 1


@dataclass
class Trial:
    """One training with one fault.

    Attributes:
        command: overrides of the run, its folder included.
        folder: of the run.
        duration: seconds that the undisturbed run took.
        random: all that is drawn comes from it.
    """

    command: list[str]
    folder: Path
    duration: float
    random: Random
    trainings: list[Training] = field(default_factory=list)

    def start(self, *more: str, prepare: Callable[[], None] = lambda: None, folder: Path | None = None) -> Training:
        place = [f"run={folder}"] if folder is not None else []
        output = self.folder.with_name(f"{self.folder.name}.{len(self.trainings)}.txt")
        self.trainings.append(Training([*self.command, *place, *more], output, prepare))
        return self.trainings[-1]

    def wait_a_while(self) -> float:
        """Up to as long as the run takes: at its start, inside a step, an evaluation, a save, or at its end."""
        seconds = self.random.uniform(0, 1.1 * self.duration)
        time.sleep(seconds)
        return seconds

    def wait_for_state(self, training: Training) -> None:
        """Until a second state has been saved, so that there is one before it; or the end."""
        while not training.has_ended() and not (self.folder / "resume.previous.pt").exists():
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, 0.5 * self.duration))

    def refused(self, training: Training, *words: str) -> None:
        """Checks that a start ended in one line with the given words.

        Raises:
            AssertionError: it did not.
        """
        code, line = training.wait(), training.last_line()
        assert code == REFUSED, code
        assert line.startswith("error: "), line
        assert "Traceback" not in training.text(), training.text()[-500:]
        assert all(word in line for word in words), line


def signalled(number: int, whole_session: bool = False) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        training = trial.start()
        trial.wait_a_while()
        (training.signal_session if whole_session else training.signal)(number)
        code = training.wait()
        if "stopped by" in training.text():
            assert code in (STOPPED, 130), code

    return inject


def stop_and_continue(trial: Trial) -> None:
    training = trial.start()
    trial.wait_a_while()
    training.signal_session(signal.SIGSTOP)
    time.sleep(trial.random.uniform(0, 1))
    training.signal_session(signal.SIGCONT)
    assert training.wait() == FINISHED, training.last_line()


def killed_child(trial: Trial) -> None:
    """A loader process or a rank: the run ends with one line, and the same command continues."""
    training = trial.start()
    trial.wait_a_while()
    if children := training.children():
        os.kill(trial.random.choice(children), signal.SIGKILL)
    code = training.wait()
    assert code in (FINISHED, REFUSED), code
    if code == REFUSED:
        assert training.last_line().startswith("error: "), training.last_line()


def file_size_limit(trial: Trial) -> None:
    """The system refuses to write beyond a size, as a full disk does."""
    training = trial.start()
    trial.wait_a_while()
    if not training.has_ended():
        resource.prlimit(training.pid, resource.RLIMIT_FSIZE, (trial.random.randint(0, 2_000_000),) * 2)
    code = training.wait()
    assert code in (FINISHED, REFUSED), code
    if code == REFUSED:
        assert training.last_line().startswith("error: "), training.last_line()


def failing_call(name: str) -> Callable[[Trial], None]:
    """A call of the system fails from the n-th time on, with an error of a bad disk."""

    def inject(trial: Trial) -> None:
        left, original = [trial.random.randint(0, 14)], getattr(os, name)

        def fail(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return original(*arguments, **options)

        training = trial.start(prepare=lambda: setattr(os, name, fail))
        code = training.wait()
        assert code in (FINISHED, REFUSED), code
        if code == REFUSED:
            assert training.last_line().startswith("error: "), training.last_line()

    return inject


def cut(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def garbage(path: Path, random: Random) -> None:
    """A line of anything in the middle."""
    lines = path.read_bytes().split(b"\n")
    bad = (b'{"step": "a"}', b'{"step": 1}', b"\xff\xfe\x00", b"[" * 100_000, random.randbytes(100), b"null", b"NaN")
    lines.insert(random.randrange(len(lines)), random.choice(bad))
    path.write_bytes(b"\n".join(lines))


def delete(path: Path, random: Random) -> None:
    path.unlink()


def damaged(name: str, *ways: Callable[[Path, Random], None]) -> Callable[[Trial], None]:
    """The process is killed and a file of its folder damaged; the same command must go on to the same end."""

    def inject(trial: Trial) -> None:
        training = trial.start()
        trial.wait_for_state(training)
        training.signal(signal.SIGKILL)
        training.wait()
        path = trial.folder / name
        if path.exists() and path.stat().st_size and not (trial.folder / "result.json").exists():
            trial.random.choice(ways)(path, trial.random)

    return inject


def deleted_folder(trial: Trial) -> None:
    training = trial.start()
    trial.wait_a_while()
    shutil.rmtree(trial.folder, ignore_errors=True)
    code = training.wait()
    assert code in (FINISHED, REFUSED), code
    if code == REFUSED:
        assert training.last_line().startswith("error: "), training.last_line()


def copied_folder(trial: Trial) -> None:
    """The copy goes on in another place; the original is what is compared."""
    training = trial.start()
    trial.wait_a_while()
    training.signal(signal.SIGKILL)
    training.wait()
    if trial.folder.exists():
        copy = trial.folder.with_name(f"{trial.folder.name}.copy")
        trial.folder.rename(copy)
        shutil.copytree(copy, trial.folder)


def two_starts(trial: Trial) -> None:
    """One trains; the other says so, or finds the run finished."""
    trainings = [trial.start()]
    time.sleep(trial.random.choice((0.0, trial.random.uniform(0, trial.duration))))
    trainings.append(trial.start())
    codes = [training.wait() for training in trainings]
    assert FINISHED in codes, codes
    for training in trainings:
        if training.code != FINISHED:
            trial.refused(training, "another process is training")


def lost_lock(trial: Trial) -> None:
    """Without its lock the first must stop before it writes beside the second."""
    first = trial.start()
    trial.wait_for_state(first)
    (trial.folder / "lock").unlink(missing_ok=True)
    second = trial.start()
    if first.wait() != FINISHED:
        trial.refused(first, "lock", "removed")
    assert second.wait() == FINISHED, second.last_line()


def changed_configuration(trial: Trial) -> None:
    """Also where the stored configuration is gone: the state knows it."""
    training = trial.start()
    trial.wait_for_state(training)
    training.signal(signal.SIGKILL)
    training.wait()
    if trial.random.random() < 0.5:
        (trial.folder / "config.yaml").unlink(missing_ok=True)
    trial.refused(trial.start("recipe.optimizer.weight_decay=0.01"), "another configuration")


@dataclass(frozen=True)
class Kind:
    """A fault, and the overrides that its trainings need."""

    inject: Callable[[Trial], None]
    needs: Sequence[str] = ()


WORKERS, RANKS = ("runtime.workers=2",), ("runtime.devices=2",)
KINDS: dict[str, Kind] = {
    "kill -9": Kind(signalled(signal.SIGKILL)),
    "kill -9 of all processes": Kind(signalled(signal.SIGKILL, True), WORKERS),
    "SIGTERM": Kind(signalled(signal.SIGTERM)),
    "SIGTERM to all processes": Kind(signalled(signal.SIGTERM, True), WORKERS),
    "SIGINT to all processes": Kind(signalled(signal.SIGINT, True), WORKERS),
    "SIGHUP to all processes": Kind(signalled(signal.SIGHUP, True), WORKERS),
    "stop and continue": Kind(stop_and_continue, WORKERS),
    "killed loader process": Kind(killed_child, WORKERS),
    "file size limit": Kind(file_size_limit),
    "failing fsync": Kind(failing_call("fsync")),
    "failing rename": Kind(failing_call("replace")),
    "failing link": Kind(failing_call("link")),
    "cut state": Kind(damaged("resume.pt", cut)),
    "flipped bit in the state": Kind(damaged("resume.pt", flip)),
    "lost state": Kind(damaged("resume.pt", delete)),
    "damaged log": Kind(damaged("metrics.jsonl", cut, flip, garbage, delete)),
    "lost configuration": Kind(damaged("config.yaml", delete)),
    "deleted folder": Kind(deleted_folder),
    "copied folder": Kind(copied_folder),
    "two starts at once": Kind(two_starts),
    "deleted lock": Kind(lost_lock),
    "changed configuration": Kind(changed_configuration),
    "killed rank": Kind(killed_child, RANKS),
    "killed parent of two ranks": Kind(signalled(signal.SIGKILL), RANKS),
    "SIGTERM to two ranks": Kind(signalled(signal.SIGTERM, True), RANKS),
}
