"""Evaluates saved weights: ``drconv eval run=outputs/...`` or ``drconv eval model=... weights=FILE``.

In a checkout ``python eval.py`` is the same.
"""

from drconv.cli import command
from drconv.compose import config_of_run
from drconv.config import Config
from drconv.paths import CONFIGS


def evaluate(config: Config) -> float:
    """Starts the ranks of an evaluation and returns its headline metric."""
    from drconv.engine.launch import launch

    return launch(worker, config)


def worker(config: Config) -> float:
    """One rank of an evaluation, from data to record."""
    from drconv.commands.networks import create_model
    from drconv.engine.eval_run import EvalRun
    from drconv.tasks import find_task

    with EvalRun(config) as run:
        data = run.load_data()
        facts = run.facts(data)
        network = create_model(config.model, facts.num_outputs, facts.input_size)
        task = find_task(config.task)(network, config, facts)
        metrics = run.evaluate(task, data)
        return run.record(metrics)


def main() -> None:
    """The command line."""
    command(evaluate, CONFIGS, from_run=config_of_run)()
