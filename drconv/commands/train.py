"""Trains one network: ``drconv train model=drconv_shufflenetv2_0.5x``; in a checkout ``python train.py``."""

from drconv.cli import command
from drconv.config import Config
from drconv.paths import CONFIGS
from drconv.pool import stop_with_parent


def train(config: Config) -> float:
    """Starts the ranks of a run and returns its headline metric."""
    from drconv.engine.launch import launch
    from drconv.engine.run_folder import check_folder

    stop_with_parent()
    check_folder(config)  # before the seconds that torch takes to import
    print(f"{config.run}: loading torch and the data", flush=True)
    return launch(worker, config)


def worker(config: Config) -> float:
    """One rank of a run, from data to record."""
    from drconv.commands.examples import example_pictures
    from drconv.commands.networks import create_model
    from drconv.engine.dry_run import dry_run
    from drconv.engine.run import Run
    from drconv.engine.trainer import Trainer
    from drconv.tasks import find_task

    with Run(config) as run:
        if run.finished is not None:
            return run.finished
        data = run.load_data()
        run.announce(data)
        facts = data.train.facts
        network = create_model(config.model, facts.num_outputs, facts.input_size)
        task = find_task(config.task)(network, config, facts)
        run.announce_network(task)
        run.start_from(task)
        if config.runtime.dry_run:
            return dry_run(config, task, data, run.device)
        trainer = Trainer(config, task, data, run.folder, run.device)
        metrics = trainer.fit()
        trainer.log.show(lambda: example_pictures(config, network, next(iter(data.evaluations.values())).dataset))
        return run.record(trainer, metrics)


def main() -> None:
    """The command line."""
    command(train, CONFIGS)()
