"""The name of an experiment: the path of its file, or that of the experiment whose run it is. Imports no torch."""

from hydra.core.hydra_config import HydraConfig

from drconv.config import Config


def name_experiment(config: Config, chosen: str | None = None) -> None:
    """Fills ``experiment.id``; a row that is ``same_as`` another becomes that one, so that it is not trained twice.

    Args:
        config: composed; changed in place.
        chosen: the choice of ``experiment=``; by default the one that Hydra's command line was given.
    """
    experiment = config.experiment
    if chosen is None and HydraConfig.initialized():
        chosen = HydraConfig.get().runtime.choices.get("experiment")
    if experiment.same_as is not None:
        print(f"note: the same run as experiment={experiment.same_as}, which is trained; its record counts for both")
        chosen = experiment.same_as
        experiment.same_as = None
    experiment.id = experiment.id or chosen
