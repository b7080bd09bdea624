"""Sweeps on a pool: order, devices, failures, stops, what is skipped; and the expansion against Hydra's own."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from drconv.arguments import prepare
from drconv.commands import sweep
from drconv.compose import compose_command
from drconv.config import Config, TaskConfig
from drconv.errors import ConfigError, InterruptedRunError, StoppedError
from drconv.outcomes import Outcome
from drconv.paths import CONFIGS
from drconv.pool import Job, Pool
from drconv.tasks.registry import find_entry
from tests.conftest import ROOT, TINY

Make = Callable[..., Config]
WAIT = "import os, sys, time; t = time.time(); print(os.environ.get('DEVICES')); time.sleep({})"


def script(number: int, code: str, needs: int, folder: Path) -> Job:
    return Job(number, [sys.executable, "-S", "-c", code], needs, folder / f"{number}.log")


def run_pool(jobs: list[Job], devices: list[str]) -> tuple[list[tuple[int, list[str]]], dict[int, int], list[int]]:
    """Devices of each job in the order of their starts, exit codes, and how many devices were used at each start."""
    started, codes, load, used = [], {}, [], {}

    def start(job: Job, own: list[str]) -> None:
        started.append((job.number, own))
        used[job.number] = own
        taken = [device for number in used for device in used[number] if number not in codes]
        assert len(taken) == len(set(taken))
        load.append(len(taken))

    with Pool(devices, "DEVICES", start, lambda job, code, seconds: codes.__setitem__(job.number, code)) as pool:
        pool.run(jobs)
    return started, codes, load


def test_jobs_start_in_order_on_devices_of_their_own(tmp_path: Path) -> None:
    needs = [1, 2, 1, 1, 2, 1]
    jobs = [script(number, WAIT.format(0.05), need, tmp_path) for number, need in enumerate(needs)]
    started, codes, load = run_pool(jobs, ["0", "1", "2"])
    assert [number for number, _ in started] == list(range(6))
    assert [len(own) for _, own in started] == needs
    assert codes == dict.fromkeys(range(6), 0)
    assert max(load) == 3
    for number, own in started:
        assert (tmp_path / f"{number}.log").read_text().strip() == ",".join(own)


def test_a_failed_and_a_killed_job_do_not_end_the_others(tmp_path: Path) -> None:
    kill = "import os; print('last words', flush=True); os.kill(os.getpid(), 9)"
    jobs = [script(0, "raise SystemExit(3)", 1, tmp_path), script(1, kill, 1, tmp_path), script(2, "", 1, tmp_path)]
    _, codes, _ = run_pool(jobs, ["0"])
    assert codes == {0: 3, 1: -9, 2: 0}
    jobs[1].environment[sweep.FOLDER] = str(tmp_path / "nothing")
    lost = sweep.found_outcome(jobs[1], -9, 1.0, Outcome(1, ["a=1"]))
    assert (lost.state, lost.text) == ("failed", "killed by SIGKILL; last words")


def test_a_signal_stops_the_jobs_and_starts_no_more(tmp_path: Path) -> None:
    handler = "signal.signal(15, lambda *_: (print('saved'), sys.exit(143)))"
    code = f"import signal, sys, time; {handler}; open({str(tmp_path / 'up')!r}, 'w'); time.sleep(60)"
    jobs = [script(0, code, 1, tmp_path), script(1, "", 1, tmp_path)]

    def interrupt() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    codes = {}
    with Pool(["0"], None, lambda *_: None, lambda job, code, seconds: codes.__setitem__(job.number, code)) as pool:
        pool.run(jobs)
    assert codes == {0: 143}
    assert pool.received == signal.SIGINT
    assert (tmp_path / "0.log").read_text() == "saved\n"


@pytest.mark.parametrize(
    "typed",
    [
        ["model=a,b", "seed=0,1,2", "recipe.optimizer.lr=0.1"],
        ["experiment=glob(table1/*)", "seed=range(0,3)", "model.layers=[a,b],[c]", "data.root='/a=b'"],
        ["recipe.schedule.milestones=[1,2]", "seed=choice(3,4)"],
    ],
)
def test_jobs_are_those_of_hydra_s_own_sweeper(typed: list[str]) -> None:
    typed = prepare(typed, CONFIGS)
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), None)
    assert sweep.expand(typed) == [list(job) for job in batch]


def test_devices_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sweep, "_list_gpus", lambda: iter(["0", "1"]))
    assert sweep.choose_devices({}) == (["0", "1"], "CUDA_VISIBLE_DEVICES")
    assert sweep.choose_devices({"slots": "2"}) == (["0", "1"], None)
    assert sweep.choose_devices({"gpus": "4,6"}) == (["4", "6"], "CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(sweep, "_list_gpus", lambda: iter([]))
    assert sweep.choose_devices({}) == (["0"], None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert sweep.choose_devices({}) == (["3"], "CUDA_VISIBLE_DEVICES")
    for wrong in ({"slots": "0"}, {"slots": "x"}, {"gpus": "0,0"}, {"gpus": ""}, {"gpus": "0", "slots": "1"}):
        with pytest.raises(ConfigError):
            sweep.choose_devices(wrong)


def test_jobs_share_the_cores_and_know_their_gpus(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    config = make_config("runtime.devices=2")
    place = Path(str(config.run)).parent
    job = sweep.make_job(0, ["seed=1"], config, place=place, devices=list("01234567"), has_gpus=True)
    assert (job.needs, job.command[-2:]) == (2, ["seed=1", "runtime.threads=4"])
    assert job.output == Path(str(config.run)) / "output.log"
    with pytest.raises(ConfigError, match=r"runtime\.devices=2 and the pool has 1"):
        sweep.make_job(1, [], config, place=place, devices=["0"], has_gpus=True)
    assert sweep.make_job(2, [], config, place=place, devices=["0"], has_gpus=False).needs == 1


def test_a_mistake_in_any_job_is_found_before_the_first_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"seed=1.*seed=-1: |seed=-1: .*seed=-1 must be at least 0"):
        sweep.sweep([*TINY, "seed=1,-1", "slots=1"])
    assert not list(tmp_path.iterdir())


def test_rows_that_are_one_run_are_run_once() -> None:
    same = ["experiment=fig4/shufflenetv2_0.5x,table1/shufflenetv2_0.5x", "data=generated"]
    assert len(sweep.compose_jobs(sweep.expand(same))) == 1


def test_a_sweep_skips_what_is_finished_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The jobs are real processes of a stand-in for training, which keeps the test to seconds."""
    monkeypatch.chdir(tmp_path)
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        "import sys\n"
        "from drconv.outcomes import describe_job\n"
        "with describe_job(0, sys.argv) as outcome:\n"
        "    if 'seed=2' in sys.argv: raise ValueError('no luck')\n"
        "    outcome.text = 'done'\n"
    )
    original = sweep.make_job

    def make_job(*arguments: object, **named: object) -> Job:
        job = original(*arguments, **named)
        job.command[1:4] = [str(stand_in)]
        return job

    monkeypatch.setattr(sweep, "make_job", make_job)
    finished = Path(str(compose_command([*TINY, "seed=1"], CONFIGS).run))
    finished.mkdir(parents=True)
    (finished / "result.json").write_text('{"metrics": {"val/top1": 61.25}}')
    assert sweep.sweep([*TINY, "seed=1,2,3", "slots=2"])
    lines = capsys.readouterr().out.partition("jobs: ")[2].splitlines()
    assert lines[0] == "1 finished, 1 was finished, 1 failed"
    assert [line.split()[1:3] for line in lines[1:]] == [
        ["seed=1", "was"],
        ["seed=2", "failed"],
        ["seed=3", "finished"],
    ]
    assert lines[1].endswith("val/top1 61.25")
    assert lines[2].endswith("ValueError: no luck")


def test_a_stopped_sweep_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(pool: Pool, jobs: list[Job]) -> None:
        pool.received = signal.SIGINT

    monkeypatch.setattr(Pool, "run", stop)
    with pytest.raises(InterruptedRunError) as stopped:
        sweep.sweep([*TINY, "seed=1,2", "slots=1"])
    assert isinstance(stopped.value, StoppedError)
    assert stopped.value.exit_code == 130


def test_help_and_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['sweep', '-h']; from drconv.commands.sweep import main; main(); "
        "sys.exit('torch' in sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0
    assert "slots=N" in outcome.stdout


def test_the_slurm_launcher_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        overrides = [*TINY, "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "runtime.devices=4"]
        launcher = compose("train", overrides, return_hydra_config=True).hydra.launcher
    assert (launcher.gpus_per_node, launcher.nodes, launcher.partition) == (4, 1, "gpu")
    assert launcher._target_.endswith("SlurmLauncher")


def test_a_sweep_through_submitit_s_local_executor(command: Callable, tmp_path: Path) -> None:
    """Its jobs are processes of their own, and their outcomes reach the table all the same."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    tiny = [part for part in TINY if not part.startswith("recipe.steps")]
    outcome = command("train.py", "-m", "hydra/launcher=local", *tiny, "recipe.steps=3,2", timeout=300)
    lines = outcome.stdout.partition("jobs: ")[2].splitlines()
    assert lines[0] == "1 finished, 1 failed", outcome.stderr
    assert "val/top1" in lines[1]
    assert "must be below recipe.steps=2" in lines[2]
    assert outcome.returncode == 1
    assert len(list((tmp_path / "outputs").rglob("result.json"))) == 1


def test_the_wandb_sweep_composes() -> None:
    content = yaml.safe_load((ROOT / "examples" / "wandb_sweep.yaml").read_text())
    choices = [
        [f"{key}={value}" for value in entry.get("values", [entry.get("value")])]
        for key, entry in content["parameters"].items()
    ]
    jobs = list(itertools.product(*choices))
    assert len(jobs) == 6
    names = {str(compose_command(prepare(job, CONFIGS), CONFIGS).run) for job in jobs}
    assert len(names) == 6
    assert content["metric"]["name"] == find_entry(TaskConfig()).headline.metric


def test_a_job_is_asked_to_stop_once_its_pool_is_gone(tmp_path: Path) -> None:
    """The pool is killed with SIGKILL; the job, which has looked at its parent since, gets SIGTERM and can save."""
    job = (
        "import pathlib, signal, sys, time; from drconv.pool import stop_with_parent; "
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(143))); "
        "stop_with_parent(); pathlib.Path('runs').touch(); time.sleep(60)"
    )
    pool = (
        "import pathlib, sys; from drconv.pool import Job, Pool; pool = Pool(['0'], None, print, print); "
        f"pool.run([Job(0, [sys.executable, '-c', {job!r}], 1, pathlib.Path('log'))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", pool], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    wait_for(tmp_path / "runs")
    parent.kill()
    parent.wait()
    wait_for(tmp_path / "saved")


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.1)
