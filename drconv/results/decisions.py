"""Which of the decisions in docs/deviations.md a run's configuration puts in force. Imports no torch."""

from typing import Any


def find_decisions(claimed: list[str], model: dict[str, Any]) -> list[str]:
    """The decisions that an experiment file claims, with D1, D2 and D11 as the model's options say.

    An override can leave them: with the printed form on the command line, D11 is not in force.

    Args:
        claimed: ids such as "D3".
        model: the ``model`` section of the run's configuration.
    """
    options, is_ours = model["drconv"], model["conv"] == "drconv"
    is_grouped = options["generator"] == "grouped"
    is_remedied = (
        options["guide_norm"] != "none"
        or options["generator_gradient"] != 1
        or options["init_gain"] is not None
        or (is_grouped and options["filter_sharing"] != 0)  # experts share by construction
    )
    depends = {
        "D1": is_ours and is_grouped and options["hidden"] is None,
        "D2": is_ours and options["guide"] == "block",
        "D11": is_ours and is_remedied,
    }
    found = {id for id in claimed if id not in depends} | {id for id, in_force in depends.items() if in_force}
    return sorted(found, key=lambda id: int(id[1:]))
