"""What a user may give by mistake and the program must not use in silence: folders, files, names, values."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from drconv.compose import as_yaml, compose_command
from drconv.config import Config
from drconv.config_check import validate
from drconv.engine.run_folder import REPLACED, RunFolder, check_folder
from drconv.errors import ConfigError, RunFolderError, WeightsError
from drconv.messages import one_line
from drconv.paths import CONFIGS
from drconv.weights import load_backbone, load_weights

Make = Callable[..., Config]


@pytest.mark.parametrize("name", REPLACED)
def test_a_folder_that_no_run_made_is_left_as_it_is(make_config: Make, name: str) -> None:
    config = make_config()
    folder = Path(str(config.run))
    folder.mkdir()
    (folder / name).write_text("learning_rate: 3\n")
    for overwrite in (False, True):
        config.overwrite = overwrite
        for take in (check_folder, RunFolder(folder).open):
            with pytest.raises(RunFolderError, match=rf"run holds {name}, and neither lock nor configuration of a run"):
                take(config)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: "learning_rate: 3\n"}


def test_folders_of_runs_and_other_folders_are_taken(make_config: Make) -> None:
    """A copied one without its lock, one with the lock alone, and one with files that no run writes."""
    config = make_config()
    for name, content in {"config.yaml": as_yaml(config), "lock": "", "notes.txt": "mine"}.items():
        folder = RunFolder(Path(f"{config.run}-{name}"))
        folder.path.mkdir()
        (folder.path / name).write_text(content)
        assert folder.open(config) is None
        folder.close()


@pytest.mark.parametrize("id", ["../x", "/tmp/x", "a/../../x", "a//b", ".", "", "a\\b", "a\nb"])
def test_an_id_stays_below_outputs(make_config: Make, id: str) -> None:
    config = make_config("experiment.id=table1/own_network")
    config.experiment.id = id
    with pytest.raises(ConfigError, match=r"experiment\.id="):
        validate(config)


@pytest.mark.parametrize(
    ("override", "finding"),
    [
        ("experiment.same_as=nope", "experiment.same_as=nope is no experiment"),
        ("experiment.metric=val/skipped", "val/skipped is no metric of task.name=classification"),
        ("model.layers=[]", "model.layers=[] replaces no layer"),
        ("recipe.optimizer.groups=[{mtach: a}]", "recipe.optimizer.groups: mtach is not known; near: match; there are"),
        ("seed=1,2", "seed=1,2: several values are a sweep, which needs -m"),
        ("+experiment=small/inside/printed", "write experiment=small/inside/printed"),
        ("modle.conv=drconv", "near: model.conv"),
    ],
)
def test_one_line_that_shows_a_way_out(make_config: Make, override: str, finding: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        make_config(override)
    line = one_line(caught.value)
    assert line is not None
    assert finding in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=drconv_shufflenetv2_1x", "experiment.same_as=table1/shufflenetv2_1x"],
        ["experiment=fig4/drconv_shufflenetv2_1x", "model=shufflenetv2_1x", "data.root=."],
    ],
)
def test_another_network_does_not_become_a_row(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="would give that row the result of another run"):
        compose_command(arguments, CONFIGS)


def test_layers_of_a_plain_network_are_refused(make_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"model\.layers=\['stage4\.\*'\] has no effect under model\.conv=standard"):
        make_config("model=shufflenetv2_0.25x", "model.layers=[stage4.*]")


@pytest.mark.parametrize(("key", "load"), [("weights", load_weights), ("backbone", load_backbone)])
def test_numbers_that_no_network_has_are_refused(tmp_path: Path, key: str, load: Callable) -> None:
    """In a weight, in a batch norm's average; the count of a batch norm is a whole number and stays one."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    path, good = tmp_path / "own.safetensors", network.state_dict()
    save_file(good, path)
    load(path, network)
    for name, bad, finding in (
        ("0.weight", torch.ones(2, 3, dtype=torch.int64), "0.weight is of int64, and that of the network of float32"),
        ("0.weight", torch.ones(2, 3, dtype=torch.bool), "0.weight is of bool"),
        ("0.bias", torch.tensor([1.0, float("nan")]), "0.bias has values that are infinite or not a number"),
        ("1.running_var", torch.tensor([1.0, float("inf")]), "1.running_var has values that are infinite"),
    ):
        save_file(good | {name: bad}, path)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(WeightsError) as caught:
            load(path, network)
        assert str(caught.value).startswith(f"{key}={path}: {finding}")
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    path.write_bytes(b"cut")
    with pytest.raises(WeightsError, match=f"^{key}=.* cannot be read"):
        load(path, network)
