"""One optimiser step: parameter groups, accumulation, clipping, averaging, batch-norm re-estimation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from drconv.config import Config, OptimizerConfig
from drconv.engine.batchnorm import reestimate_batchnorm
from drconv.engine.optimizer import build_optimizer, parameter_groups
from drconv.engine.state import TrainState
from drconv.engine.step import StepLog, train_step
from drconv.engine.training_log import TrainingLog
from drconv.interfaces import Batch, Facts, Outputs, Task
from models import create_model

CPU = torch.device("cpu")


class Regression(Task):
    """A task small enough to follow by hand: batches of x and y, mean squared error."""

    train_set = evaluation_sets = new_metric = evaluate = None  # type: ignore[assignment]  # nothing here uses them

    def forward(self, batch: Batch) -> Outputs:
        error = nn.functional.mse_loss(self.network(batch["x"]), batch["y"])
        return Outputs({"error": error}, counts={"samples": torch.tensor(len(batch["x"]))})


def make_task(config: Config, network: nn.Module) -> Regression:
    return Regression(network, config, Facts(2, None))


def make_state(config: Config, network: nn.Module) -> TrainState:
    config.runtime.channels_last = False
    return TrainState(config, make_task(config, network), CPU)


def batches(num: int, size: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(size, 3, generator=generator), "y": torch.randn(size, 2, generator=generator)}
        for _ in range(num)
    ]


def test_weight_decay_follows_the_original_s_rule(make_config: Callable[..., Config]) -> None:
    """Their rule, from its description: only parameters called weight with more than one dimension are decayed."""
    network = create_model(make_config().model, 10, 32)
    groups = parameter_groups(network, OptimizerConfig(lr=1, weight_decay=0.25, guide_lr=0.5))
    found = {id(p): (g["weight_decay"], g["lr_factor"]) for g in groups for p in g["params"]}
    for name, parameter in network.named_parameters():
        decays = name.endswith("weight") and parameter.ndim > 1
        assert found.pop(id(parameter)) == (0.25 if decays else 0.0, 0.5 if ".guide." in name else 1.0), name
    assert not found


def test_plain_momentum_not_nesterov() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    module = nn.Module()
    module.weight = weight
    optimizer = build_optimizer(module, OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.5))
    value, velocity = torch.ones(2, 2), torch.zeros(2, 2)
    for _ in range(3):
        weight.grad = torch.full((2, 2), 0.3)
        optimizer.step()
        velocity = 0.9 * velocity + 0.3 + 0.5 * value
        value = value - 0.1 * velocity
    torch.testing.assert_close(weight.data, value)


def test_accumulated_micro_batches_equal_one_batch(make_config: Callable[..., Config]) -> None:
    parts = batches(4, 4)
    whole = {key: torch.cat([part[key] for part in parts]) for key in ("x", "y")}
    updated = []
    for accumulate, content in ((4, parts), (1, [whole])):
        torch.manual_seed(0)
        state = make_state(make_config(f"runtime.accumulate={accumulate}"), nn.Linear(3, 2))
        config = make_config(f"runtime.accumulate={accumulate}", "recipe.clip_norm=0.1")
        logged = train_step(state, iter(content), config, 6, CPU)
        updated.append((state.task.network.weight.detach(), logged.means["loss"], logged.means["grad_norm"]))
        assert logged.counts["samples"] == 16
    for one, other in zip(*updated, strict=True):
        torch.testing.assert_close(one, other)


def test_clipping_bounds_the_update(make_config: Callable[..., Config]) -> None:
    state = make_state(make_config(), network := nn.Linear(3, 2))
    before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
    config = make_config(
        "recipe.clip_norm=0.01", "recipe.optimizer.weight_decay=0", "recipe.schedule={name: constant, warmup_steps: 0}"
    )
    logged = train_step(state, iter(batches(1, 8)), config, 6, CPU)
    moved = torch.cat([p.detach().flatten() for p in network.parameters()]) - before
    assert logged.means["grad_norm"] > 0.01
    assert moved.norm().item() == pytest.approx(0.01 * config.recipe.optimizer.lr, rel=5e-3)


def test_averaged_weights_follow_the_recurrence(make_config: Callable[..., Config]) -> None:
    config = make_config("recipe.ema_decay=0.9")
    network = nn.Linear(3, 2)
    network.register_buffer("ids", ids := torch.arange(1, 10))  # detectors have the numbers of their classes in one
    state = make_state(config, network)
    average = None
    for batch in batches(4, 8):
        train_step(state, iter([batch]), config, 6, CPU)
        weight = network.weight.detach().clone()
        average = weight if average is None else 0.9 * average + 0.1 * weight
    assert state.ema is not None
    torch.testing.assert_close(state.ema.module.network.weight, average)
    assert torch.equal(state.ema.module.network.ids, ids)


def test_reestimated_statistics_are_plain_averages(make_config: Callable[..., Config]) -> None:
    task = make_task(make_config(), nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.Linear(3, 2)))
    content = batches(5, 16)
    task(content[0])
    reestimate_batchnorm(task, content, make_config(), CPU)
    norm = task.network[0]
    torch.testing.assert_close(norm.running_mean, torch.stack([b["x"].mean(0) for b in content]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b["x"].var(0) for b in content]).mean(0))
    assert norm.momentum == 0.3


def test_bf16_keeps_parameters_in_fp32(make_config: Callable[..., Config]) -> None:
    config = make_config("runtime.precision=bf16")
    state = make_state(config, network := nn.Linear(3, 2))
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    train_step(state, iter(batches(1, 8)), config, 6, CPU)
    assert seen == [torch.bfloat16]
    assert network.weight.dtype == torch.float32


def test_losses_add_up_without_rounding(make_config: Callable[..., Config]) -> None:
    """Whatever the order: after a stop within an interval two ranks go on from one common sum."""
    log = TrainingLog(make_config(), 4, CPU)
    for step, loss in enumerate((1.0, 2.0**-30), 1):
        log.add(step, StepLog({"loss": torch.tensor(loss)}))
    assert log.state_dict()["sums"]["loss"].item() == 1 + 2.0**-30
