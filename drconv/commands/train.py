"""Trains one network: ``drconv train model=drconv_shufflenetv2_0.5x``; in a checkout ``python train.py``."""

from pathlib import Path

from drconv.cli import command
from drconv.config import Config
from drconv.paths import CONFIGS


def train(config: Config) -> float:
    """Starts the ranks of a run and returns its headline metric."""
    from drconv.engine.launch import launch
    from drconv.engine.run_folder import check_folder

    check_folder(config)  # before the seconds that torch takes to import
    return launch(worker, config)


def worker(config: Config) -> float:
    """One rank of a run, from data to record."""
    from drconv.commands.networks import create_model
    from drconv.engine.checkpoint import load_weights
    from drconv.engine.data import Data
    from drconv.engine.dry_run import dry_run
    from drconv.engine.run import Run
    from drconv.engine.trainer import Trainer
    from drconv.tasks import build_task

    with Run(config) as run:
        if run.finished is not None:
            return run.finished
        data = Data(config)
        run.announce(data)
        network = create_model(config.model, data.num_classes, config.data.image_size)
        if config.weights is not None:
            load_weights(Path(config.weights), network)
        task = build_task(config, network)
        if config.runtime.dry_run:
            return dry_run(config, task, data, run.device)
        trainer = Trainer(config, task, data, run.folder, run.device)
        metrics = trainer.fit()
        return run.record(trainer, metrics)


def main() -> None:
    """The command line."""
    command(train, CONFIGS)()
