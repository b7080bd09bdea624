"""Margins against their definitions, and the split head against the plain softmax, on one to three ranks."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from drconv import distributed
from drconv.config import Config, GroupConfig
from drconv.engine.state import TrainState
from drconv.engine.step import train_step
from drconv.errors import DataError
from drconv.interfaces import Facts
from drconv.tasks.identification.head import MarginHead, slice_of
from drconv.tasks.identification.margins import apply_margin, expected_first_loss, least_scale
from drconv.tasks.identification.task import Identification

KINDS = [("am_softmax", 30.0, 0.35), ("cosface", 64.0, 0.4), ("arcface", 64.0, 0.5)]


def plain_loss(embeddings: Tensor, weight: Tensor, labels: Tensor, kind: str, scale: float, margin: float) -> Tensor:
    """The whole softmax in float64, from angles."""
    unit = nn.functional.normalize
    theta = (unit(embeddings.double()) @ unit(weight.double()).T).clamp(-1, 1).acos()
    logits = scale * theta.cos()
    angle = theta[range(len(labels)), labels]
    if kind == "arcface":
        shifted = (angle + margin).cos()
        marked = torch.where(angle <= math.pi - margin, shifted, -2 - shifted)
    else:
        marked = angle.cos() - margin
    logits = logits.index_put((torch.arange(len(labels)), labels), scale * marked)
    return nn.functional.cross_entropy(logits, labels)


def drawn(num_samples: int, num_classes: int, width: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    return torch.randn(num_samples, width, generator=generator) * 3, labels


@pytest.mark.parametrize(("theta", "expected"), [(0, 0.877583), (0.5, 0.540302), (1.5, -0.416147), (2.5, -0.989992)])
def test_arcface_at_angles(theta: float, expected: float) -> None:
    assert apply_margin(torch.tensor([theta]).double().cos(), 0.5, "arcface").item() == pytest.approx(
        expected, abs=1e-3
    )


def test_arcface_falls_all_the_way_and_has_the_true_slope() -> None:
    theta = torch.linspace(0.01, math.pi - 0.01, 2001, dtype=torch.float64)
    cosine = theta.cos().requires_grad_()
    psi = apply_margin(cosine, 0.5, "arcface")
    assert (psi.diff() < 0).all()  # beyond pi - m too: theta 3.0 and 3.1 are no reward
    assert psi.diff().abs().max() < 2e-3  # no jump
    psi.sum().backward()
    numeric = psi.detach().diff() / cosine.detach().diff()
    middle = (cosine.grad[1:] + cosine.grad[:-1]) / 2
    torch.testing.assert_close(middle[100:-100], numeric[100:-100], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "scale", "margin"), KINDS)
def test_loss_and_gradients_are_those_of_the_plain_softmax(kind: str, scale: float, margin: float) -> None:
    embeddings, labels = drawn(12, 7)
    embeddings.requires_grad_()
    head = MarginHead(7, 16, kind, scale, margin, seed=1)
    loss, watched = head(embeddings, labels)
    loss.backward(retain_graph=True)
    grads = [embeddings.grad.clone(), head.weight.grad.clone()]
    twin = [embeddings.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()]
    expected = plain_loss(twin[0], twin[1], labels, kind, scale, margin)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for grad, other in zip(grads, twin, strict=True):
        torch.testing.assert_close(grad.double(), other.grad, rtol=1e-4, atol=1e-5)
    cosine = nn.functional.normalize(embeddings) @ nn.functional.normalize(head.weight).T
    assert watched["top1"].item() == pytest.approx(100 * (cosine.argmax(1) == labels).float().mean().item())
    embeddings.grad = None
    loss.backward()  # a second backward over the same graph gives the same
    torch.testing.assert_close(embeddings.grad, grads[0])


@pytest.mark.parametrize(("kind", "scale", "margin"), KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_finite_where_the_cosine_is_one(kind: str, scale: float, margin: float, sign: int) -> None:
    head = MarginHead(5, 8, kind, scale, margin, seed=0)
    embeddings = (sign * head.weight.detach()[:2]).repeat(2, 1).requires_grad_()
    loss, _ = head(embeddings, torch.tensor([0, 1, 0, 1]))
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


def test_a_bad_answer_has_no_floor() -> None:
    head = MarginHead(3, 2, "am_softmax", 80.0, 0.0, seed=0)
    head.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert head(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))[0].item() == pytest.approx(80, abs=1e-4)


@pytest.mark.parametrize("labels", [torch.tensor([10]), torch.tensor([-1]), torch.tensor([2.0])])
def test_labels_that_are_no_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match=r"label"):
        MarginHead(10, 4, "am_softmax", 30, 0.35, seed=0)(torch.randn(1, 4), labels)


def test_class_numbers_beyond_half_precision_under_autocast() -> None:
    head = MarginHead(85_742, 8, "am_softmax", 30, 0.35, seed=0)
    embeddings = torch.randn(2, 8)
    labels = torch.tensor([70_000, 85_741])
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = head(embeddings.bfloat16(), labels)
    assert loss.dtype == torch.float32
    expected = plain_loss(embeddings.bfloat16(), head.weight, labels, "am_softmax", 30, 0.35)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "scale", "margin", "kind", "expected"),
    [(85_742, 30, 0.35, "am_softmax", 21.86), (85_742, 64, 0.4, "cosface", 36.96), (85_742, 64, 0.5, "arcface", 42.04)],
)
def test_first_loss(classes: int, scale: float, margin: float, kind: str, expected: float) -> None:
    wide = expected_first_loss(classes, 10**9, scale, margin, kind)  # cosines of 0
    assert wide == pytest.approx(expected, abs=0.01)


def test_first_loss_of_random_embeddings() -> None:
    embeddings, labels = drawn(256, 20_000, width=128)
    loss, _ = MarginHead(20_000, 128, "am_softmax", 30, 0.35, seed=3)(embeddings, labels)
    assert loss.item() == pytest.approx(expected_first_loss(20_000, 128, 30, 0.35, "am_softmax"), abs=0.7)


def test_least_scale() -> None:
    assert [round(least_scale(85_742, p), 1) for p in (0.9, 0.99, 0.999)] == [13.6, 16.0, 18.3]


def test_slices_cover_the_classes() -> None:
    for classes, ranks in ((85_742, 8), (7, 3), (2, 3), (1, 1)):
        slices = [slice_of(classes, rank, ranks) for rank in range(ranks)]
        assert [j for begin, end in slices for j in range(begin, end)] == list(range(classes))
    assert {end - begin for begin, end in (slice_of(85_742, r, 8) for r in range(8))} == {10_717, 10_718}


CASES = [
    (7, "am_softmax", 30.0, 0.35),
    (7, "arcface", 64.0, 0.5),
    (2, "am_softmax", 30.0, 0.35),
    (1001, "cosface", 64.0, 0.4),
]


def _three_steps(classes: int, kind: str, scale: float, margin: float, shares: list[int]) -> dict[str, Tensor]:
    """A linear backbone under an averaging data-parallel rule, and the head, by SGD with momentum."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    embeddings, labels = drawn(sum(shares), classes)
    if classes == 7:
        labels[:] = 1  # all on one rank
    begin = sum(shares[:rank])
    own = slice(begin, begin + shares[rank])
    backbone = torch.eye(16).requires_grad_()
    head = MarginHead(classes, 16, kind, scale, margin, seed=2)
    optimizer = torch.optim.SGD([backbone, head.weight], lr=0.1, momentum=0.9)
    losses, watched = [], {}
    for _ in range(3):
        loss, watched = head(embeddings[own] @ backbone, labels[own])
        optimizer.zero_grad()
        loss.backward()
        if len(shares) > 1:
            dist.all_reduce(backbone.grad)
            backbone.grad /= len(shares)
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "backbone": backbone.detach(), "head": head.weight.detach(), **watched}


class Tiny(nn.Sequential):
    """Faces (B, 3, 112, 96) to embeddings (B, 16); no batch norm, which would see a part of the batch."""

    embedding_size = 16

    def __init__(self) -> None:
        torch.manual_seed(4)
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16))


def _engine_run(start: dict | None = None, stop: int = 6) -> dict:
    """The engine's own state after so many steps of the task on 7 identities, batches of 12; collective."""
    config = Config()
    config.task.name = "identification"
    config.data.mean, config.data.std = [127.5] * 3, [128.0] * 3
    config.recipe.optimizer.lr, config.recipe.optimizer.weight_decay = 0.1, 4e-5
    config.recipe.optimizer.groups = [GroupConfig(match="head.weight", weight_decay=4e-4)]
    config.recipe.clip_norm = 5.0
    state = TrainState(config, Identification(Tiny(), config, Facts(7, (112, 96))), torch.device("cpu"))
    if start is not None:
        state.load_state_dict(start)
    ranks, rank = distributed.world_size(), distributed.rank()
    own = slice(12 // ranks * rank, 12 // ranks * (rank + 1))
    losses = []
    while state.step < stop:
        generator = torch.Generator().manual_seed(state.step)
        images = torch.randint(256, (12, 3, 112, 96), generator=generator, dtype=torch.uint8)
        labels = torch.randint(7, (12,), generator=generator)
        batch = {"image": images[own], "label": labels[own], "index": torch.arange(12)[own]}
        losses.append(train_step(state, iter([batch]), config, 6, torch.device("cpu")).means["loss"])
    return {**state.state_dict(), "losses": torch.stack(losses)}


def _rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    shares = [5, 3, 4][:ranks]
    shares[-1] += 12 - sum(shares)
    results = [_three_steps(*case, shares) for case in CASES]
    torch.save(results, f"{folder}/{ranks}-{rank}.pt")
    halfway, whole = _engine_run(stop=3), _engine_run()
    resumed = _engine_run(torch.load(f"{folder}/halfway.pt"))
    if rank == 0:
        torch.save({"halfway": halfway, "whole": whole, "resumed": resumed}, f"{folder}/engine{ranks}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two and three ranks computed, all in one start of five processes."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(_engine_run(stop=3), folder / "halfway.pt")
    running = [  # forked, since each import of torch and the engine takes seconds
        mp.start_processes(_rank, (ranks, str(folder)), nprocs=ranks, join=False, start_method="fork")
        for ranks in (2, 3)
    ]
    for processes in running:
        while not processes.join():
            pass
    return folder


def test_one_two_and_three_ranks_learn_the_same(ranks_folder: Path) -> None:
    """Uneven batches (5, 7 and 5, 3, 4), more ranks than classes, all labels on one rank."""
    for number, case in enumerate(CASES):
        expected = _three_steps(*case, [12])
        for ranks in (2, 3):
            found = [torch.load(ranks_folder / f"{ranks}-{rank}.pt")[number] for rank in range(ranks)]
            whole = torch.cat([part["head"] for part in found])
            torch.testing.assert_close(whole, expected["head"], rtol=1e-4, atol=1e-5)
            for part in found:
                torch.testing.assert_close(part["losses"], expected["losses"], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(part["backbone"], expected["backbone"], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(part["top1"], expected["top1"])
                torch.testing.assert_close(part["other_cosine"], expected["other_cosine"], rtol=1e-4, atol=1e-5)
            assert not torch.equal(found[0]["head"], found[1]["head"])


def test_runs_go_on_on_another_number_of_ranks(ranks_folder: Path) -> None:
    """Losses, whole class weights and momentum; clipping on. From 1 to 2 and 3 ranks, and back to 1."""
    expected = _engine_run()
    assert expected["task"]["head.weight"].shape == (7, 16)
    for ranks in (2, 3):
        found = torch.load(ranks_folder / f"engine{ranks}.pt")
        found["back"] = _engine_run(found["halfway"])
        for kind in ("whole", "resumed", "back"):
            count = len(found[kind]["losses"])
            torch.testing.assert_close(found[kind]["losses"], expected["losses"][-count:], rtol=0, atol=1e-5)
            for name, tensor in expected["task"].items():
                torch.testing.assert_close(found[kind]["task"][name], tensor, rtol=0, atol=1e-5)
            for place, moments in expected["optimizer"]["state"].items():
                other = found[kind]["optimizer"]["state"][place]["momentum_buffer"]
                torch.testing.assert_close(other, moments["momentum_buffer"], rtol=0, atol=1e-5)


def test_a_head_of_other_classes_does_not_load() -> None:
    saved = _engine_run(stop=1)
    saved["task"]["head.weight"] = saved["task"]["head.weight"][:6]
    with pytest.raises(RuntimeError, match=r"head\.weight"):
        _engine_run(saved)
