"""Golden numbers: a refactoring must not move them. ``python tests/test_golden.py`` writes tests/golden.json again.

Losses of twenty steps of each task, and outputs of every network, on a CPU in fp32. Another processor rounds otherwise,
and from the third step on a position that chooses another region for it, or another proposal that is kept, moves a loss
by up to a tenth: the first steps are held closely, the others in their sum.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from drconv.compose import typed  # noqa: E402
from drconv.config import Config  # noqa: E402
from drconv.engine.data import Data  # noqa: E402
from drconv.engine.state import TrainState  # noqa: E402
from drconv.engine.step import train_step  # noqa: E402
from drconv.tasks import find_task  # noqa: E402
from models import create_model  # noqa: E402

CPU = torch.device("cpu")
STEPS, EXACT = 20, 2
GOLDEN = ROOT / "tests" / "golden.json"
COMMON = ["runtime.device=cpu", "runtime.workers=0", "runtime.threads=1", "logging.wandb=disabled"]
SHORT = ["recipe.epochs=null", f"recipe.steps={STEPS}", "recipe.schedule.warmup_steps=5"]
TASKS = {  # by task, a small run of it
    "classification": ["model=drconv_shufflenetv2_0.25x", "recipe.batch_size=16", "recipe.optimizer.lr=0.02", *SHORT],
    "identification": ["model=drconv_mobilefacenet", "recipe.batch_size=8", "recipe.optimizer.lr=0.02", *SHORT],
    "detection": ["model=drconv_detnas_300m_fpn_8r", "recipe.batch_size=2", "recipe.optimizer.lr=0.002", *SHORT],
}
NETWORKS = {  # files of configs/model: rows and columns of the input
    **{f"{conv}{name}": (64, 64) for name in ("shufflenetv2_0.5x", "mobilenetv1_0.25x", "mobilenetv2_0.25x")
       for conv in ("", "drconv_", "drconv_lite_", "condconv_")},
    "dk_mobilenetv2_1.0x": (64, 64),
    **{f"{conv}mobilefacenet": (112, 96) for conv in ("", "drconv_", "condconv_", "local_")},
}  # fmt: skip


def compose_config(overrides: list[str]) -> Config:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return typed(compose("train", [*overrides, *COMMON, "run=unused"]))


def losses_of(task: str) -> list[float]:
    """The loss of each step of a small run."""
    config = compose_config(TASKS[task])
    torch.manual_seed(0)
    kind = find_task(config.task)
    data = Data(config, kind)
    facts = data.train.facts
    network = create_model(config.model, facts.num_outputs, facts.input_size)
    state = TrainState(config, kind(network, config, facts), CPU)
    batches = data.train_batches(0, STEPS)
    return [float(train_step(state, batches, config, STEPS, CPU).means["loss"]) for _ in range(STEPS)]


def outputs_of(model: str) -> list[float]:
    """Mean, deviation and the first four outputs of a network in evaluation mode."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = OmegaConf.to_object(compose("train", [f"model={model}"]).model)
    torch.manual_seed(0)
    size = NETWORKS[model]
    network = create_model(config, 10, size).eval()
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = network(image)
    return [float(y.mean()), float(y.std()), *y[1, :4].tolist()]


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, list[float]]]:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("task", TASKS)
def test_losses_of_each_task(task: str, golden: dict[str, dict[str, list[float]]]) -> None:
    found, expected = losses_of(task), golden["losses"][task]
    assert found[:EXACT] == pytest.approx(expected[:EXACT], rel=5e-3)
    assert sum(found) == pytest.approx(sum(expected), rel=5e-2)


@pytest.mark.parametrize("model", NETWORKS)
def test_outputs_of_each_network(model: str, golden: dict[str, dict[str, list[float]]]) -> None:
    found, expected = outputs_of(model), golden["outputs"][model]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3 * expected[1])


def test_nothing_is_left_out(golden: dict[str, dict[str, list[float]]]) -> None:
    assert golden["losses"].keys() == TASKS.keys()
    assert golden["outputs"].keys() == NETWORKS.keys()


if __name__ == "__main__":
    numbers = {
        "losses": {task: losses_of(task) for task in TASKS},
        "outputs": {model: outputs_of(model) for model in NETWORKS},
    }
    GOLDEN.write_text(json.dumps(numbers, indent=1) + "\n")
