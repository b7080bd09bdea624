"""Packs a finished run into a folder to give away: weights, configuration, record and a model card.

    drconv publish run=outputs/... output=FOLDER

One line of Python opens it again, without the data and without a connection:

    network = drconv_models.load_model("FOLDER")

`drconv eval run=FOLDER`, `drconv predict run=FOLDER` and `drconv masks run=FOLDER` take it like the run itself. Paths
of this machine are cut to their last part. A folder that is there is never written to.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from drconv.commands.networks import load_model
from drconv.compose import as_yaml
from drconv.config import Config
from drconv.errors import ConfigError
from drconv.files import read_json
from drconv.messages import exit_with
from drconv.migrations import migrate_record
from drconv.results.collect import without_local_paths
from drconv.results.model_card import model_card
from drconv.results.read_records import Record

KEYS = ("run", "output")


def main() -> None:
    """The command line."""
    try:
        publish(*parse())
    except Exception as error:
        exit_with(error)


def parse() -> tuple[Path, Path]:
    """The run and the folder to write.

    Raises:
        ConfigError: a key is missing or unknown.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="run=<finished run> output=<new folder>")
    given = dict(word.partition("=")[::2] for word in parser.parse_args().settings)
    if unknown := given.keys() - set(KEYS):
        raise ConfigError(f"{min(unknown)}= is not known here; publish takes run= and output=")
    if missing := [key for key in KEYS if not given.get(key)]:
        raise ConfigError(f"{missing[0]}= is missing; for example run=outputs/.../seed0 output=published")
    return Path(given["run"]).expanduser(), Path(given["output"]).expanduser()


def publish(run: Path, output: Path) -> None:
    """Writes the folder whole or not at all.

    Raises:
        ConfigError: the folder is there already.
        RunFolderError: no finished run.
        WeightsError: the weights are not those that the record counts.
    """
    if os.path.lexists(output):
        raise ConfigError(f"output={output} is there already, and nothing is overwritten; choose another folder")
    network: Any = load_model(run)  # what cannot be opened here is not published
    stored = read_json(run / "result.json")
    record = Record(run / "result.json", migrate_record(stored), stored)
    kind = record.content["weights"]
    weights = "model.safetensors" if kind == "last" else f"model_{kind}.safetensors"
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".publish-") as temporary:
        folder = Path(temporary) / "folder"
        folder.mkdir()
        shutil.copyfile(run / weights, folder / weights)
        (folder / "config.yaml").write_text(as_yaml(_without_places(network.config)))
        (folder / "result.json").write_text(json.dumps(without_local_paths(stored), indent=2) + "\n")
        (folder / "README.md").write_text(model_card(record, network.output_names, output.name))
        load_model(folder)
        os.rename(folder, output)
    print(f"{output}: {weights}, config.yaml, result.json, README.md")
    print(f"open it with drconv_models.load_model({str(output)!r})")


def _without_places(config: Config) -> Config:
    """The configuration without this machine's places; they decide nothing that the network computes."""
    config.data.root = config.run = config.weights = config.backbone = None
    config.outputs, config.overwrite = "outputs", False
    return config
