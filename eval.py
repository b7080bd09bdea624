"""Evaluates saved weights: ``python eval.py run=outputs/...`` or ``python eval.py model=... weights=FILE``."""

from pathlib import Path

from drconv.cli import command
from drconv.compose import config_of_run
from drconv.config import Config

CONFIGS = Path(__file__).parent / "configs"


def evaluate(config: Config) -> float:
    """Starts the ranks of an evaluation and returns its headline metric."""
    from drconv.engine.launch import launch

    return launch(worker, config)


def worker(config: Config) -> float:
    """One rank of an evaluation, from data to record."""
    from drconv.engine.eval_run import EvalRun
    from drconv.tasks import find_task
    from models import create_model

    with EvalRun(config) as run:
        data = run.load_data()
        facts = data.evaluation_facts
        network = create_model(config.model, facts.num_outputs, facts.input_size)
        task = find_task(config.task)(network, config, facts)
        metrics = run.evaluate(task, data)
        return run.record(metrics)


if __name__ == "__main__":
    command(evaluate, CONFIGS, from_run=config_of_run)()
