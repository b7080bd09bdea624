"""The guide, its gradient factors, the sequence that shares it, statistics and auxiliary losses."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from drconv.nn import DRConv2d, Guide, GuidedSequential, auxiliary_loss, gradient_norms, keep_logits, region_statistics
from drconv.nn.diagnostics import balance_loss, region_coherence, region_usage, usage_entropy, z_loss


def test_guide_is_a_convolution() -> None:
    guide = Guide(4, 8, [3, 3], 2, 1, norm="none")
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(guide(x), F.conv2d(x, guide.weight, stride=2, padding=1))
    normalised = Guide(4, 8, norm="batch")
    logits = normalised(x)
    torch.testing.assert_close(logits.mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.std((0, 2, 3), correction=0), torch.ones(8), atol=1e-3, rtol=0)
    assert not list(normalised.norm.parameters())


def test_a_single_position_is_normalised_by_the_running_statistics() -> None:
    """As behind a global pooling, with one image: a batch norm cannot be trained on one value."""
    guide = Guide(4, 8, norm="batch")
    guide(torch.randn(8, 4, 5, 5))
    before = guide.norm.running_mean.clone()
    x = torch.randn(1, 4, 1, 1)
    expected = (F.conv2d(x, guide.weight) - before[:, None, None]) / (
        guide.norm.running_var[:, None, None] + 1e-5
    ).sqrt()
    torch.testing.assert_close(guide(x), expected)
    assert torch.equal(guide.norm.running_mean, before)
    assert DRConv2d(4, 6, 1)(x).shape == (1, 6, 1, 1)
    assert DRConv2d(4, 6, 1)(torch.randn(0, 4, 5, 5)).shape == (0, 6, 5, 5)


def test_one_scale_for_all_logits() -> None:
    """Over batch, positions and regions the distance from the mean of a position has size 1, as a float64 loop says."""
    guide = Guide(4, 8, norm="scale")
    x = torch.randn(3, 4, 5, 6)
    raw = F.conv2d(x, guide.weight).double().detach()
    centred = raw - raw.mean(1, keepdim=True)
    square = sum(float(value) ** 2 for value in centred.flatten()) / centred.numel()
    torch.testing.assert_close(guide(x).double(), centred / (square + 1e-5) ** 0.5, rtol=1e-4, atol=1e-5)
    assert guide.norm.running_square == pytest.approx(0.9 + 0.1 * square)
    guide.eval()
    torch.testing.assert_close(guide(x).double(), centred / (0.9 + 0.1 * square + 1e-5) ** 0.5, rtol=1e-4, atol=1e-5)
    assert torch.equal(guide(x).argmax(1), raw.argmax(1))
    assert guide.half().norm.running_square.dtype == torch.float32
    assert DRConv2d(4, 6, 1, guide_norm="scale")(torch.randn(0, 4, 5, 5)).shape == (0, 6, 5, 5)


def test_coherence_tells_pieces_from_salt_and_pepper() -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, (2, 6, 7))
    labels[1, :, :4] = 2
    equal, neighbours, chance = 0, 0, 0.0
    for picture in labels.tolist():
        for h in range(6):
            for w in range(7):
                for y, x in ((h + 1, w), (h, w + 1)):
                    if y < 6 and x < 7:
                        equal, neighbours = equal + (picture[h][w] == picture[y][x]), neighbours + 1
        flat = [label for row in picture for label in row]
        agreeing = sum(flat[i] == flat[j] for i in range(42) for j in range(42) if i != j)
        chance += agreeing / (42 * 41) / 2
    expected = (equal / neighbours - chance) / (1 - chance)
    logits = F.one_hot(labels, 3).movedim(-1, 1).float()
    assert float(region_coherence(logits)) == pytest.approx(expected, abs=1e-5)
    assert float(region_coherence(torch.zeros(2, 3, 6, 7))) == 0
    assert float(region_coherence(torch.zeros(0, 3, 6, 7))) == 0
    halves = torch.zeros(1, 2, 40, 40)
    halves[:, 1, :, 20:] = 1
    assert float(region_coherence(halves)) > 0.95


@pytest.mark.parametrize(("gradient", "feature"), [(1.0, 1.0), (0.25, 1.0), (1.0, 0.5), (0.5, 0.0), (0.0, 1.0)])
def test_gradient_factors(gradient: float, feature: float) -> None:
    """``gradient`` acts on all that comes back through the logits, ``feature`` on what leaves to the input."""
    plain = Guide(4, 8, norm="none")
    factored = Guide(4, 8, norm="none", gradient=gradient, feature_gradient=feature)
    factored.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    grad = torch.randn(2, 8, 5, 5)
    expected = torch.autograd.grad(plain(x), [plain.weight, x], grad)
    actual = torch.autograd.grad(factored(x), [factored.weight, x], grad, allow_unused=True)
    assert torch.equal(plain(x), factored(x))
    torch.testing.assert_close(actual[0], gradient * expected[0])
    if feature == 0:
        assert actual[1] is None
    else:
        torch.testing.assert_close(actual[1], gradient * feature * expected[1])


def test_frozen_guide_keeps_its_weights() -> None:
    conv = DRConv2d(4, 6, 1, guide_frozen=True, feature_gradient=0.0)
    conv(torch.randn(2, 4, 5, 5)).sum().backward()
    assert conv.guide.weight.grad is None
    assert conv.weight.grad is not None


def test_own_guide_at_lower_resolution() -> None:
    conv = DRConv2d(4, 6, 3, stride=2, padding=1, guide_stride=2)
    x = torch.randn(2, 4, 16, 12)
    assert conv.guide(x).shape == (2, 8, 4, 3)
    assert conv(x).shape == (2, 6, 8, 6)


def _block() -> GuidedSequential:
    """The main branch of a stride-2 block, one DRConv nested."""
    inner = nn.Sequential(DRConv2d(6, 8, 1, guide="shared"), nn.BatchNorm2d(8))
    branch = nn.Sequential(DRConv2d(4, 6, 1, guide="shared"), nn.Conv2d(6, 6, 3, 2, 1, groups=6), inner)
    return GuidedSequential(branch, Guide(4, 8))


def test_sequence_shares_one_guide() -> None:
    block = _block()
    x = torch.randn(2, 4, 8, 8)
    logits = block.guide(x)
    first, middle, (last, norm) = block[0], block[1], block[2]
    assert torch.equal(block(x), norm(last(middle(first(x, logits)), logits)))
    assert len(block) == len(list(block)) == 3
    assert isinstance(block[-1], nn.Sequential)


def test_sequence_is_indexed_and_extended_like_the_one_it_wraps() -> None:
    layers = [DRConv2d(4, 4, 1, guide="shared"), nn.ReLU()]
    block = GuidedSequential(nn.Sequential(*layers), Guide(4, 8))
    block.append(nn.Conv2d(4, 3, 1))
    assert [type(module) for module in block] == [DRConv2d, nn.ReLU, nn.Conv2d]
    assert block[-1].out_channels == 3
    assert [type(module) for module in block[:2]] == [DRConv2d, nn.ReLU]
    assert block(torch.randn(1, 4, 5, 5)).shape == (1, 3, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["built", "moved"])
def test_normalised_guide_in_any_precision(how: str, dtype: torch.dtype) -> None:
    guide = Guide(4, 8, norm="batch", dtype=dtype if how == "built" else None).to(dtype)
    logits = guide(torch.randn(2, 4, 5, 5, dtype=dtype))
    assert logits.dtype == guide.norm.running_mean.dtype == torch.promote_types(dtype, torch.float32)


def test_sequence_keeps_the_names_of_its_state() -> None:
    block = _block()
    keys = set(nn.Sequential(*block).state_dict())
    assert set(block.state_dict()) == keys | {f"guide.{key}" for key in block.guide.state_dict()}


def test_usage_and_entropy() -> None:
    logits = torch.zeros(2, 4, 3, 3)
    logits[0, 1] = 1.0
    usage = region_usage(logits)
    assert usage.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert usage_entropy(usage).item() == pytest.approx(0.5)
    assert usage_entropy(torch.full((4,), 0.25)).item() == pytest.approx(1.0)
    assert usage_entropy(torch.tensor([0.0, 1.0])).item() == 0.0
    assert region_usage(torch.zeros(0, 4, 3, 3)).tolist() == [0.0] * 4


def test_balance_loss_by_hand() -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    shares = [(logits.argmax(1) == r).double().mean().item() for r in range(3)]
    means = [torch.softmax(logits, 1)[:, r].mean() for r in range(3)]
    torch.testing.assert_close(
        balance_loss(logits).item(), 3 * sum(s * p.item() for s, p in zip(shares, means, strict=True))
    )
    collapsed = torch.zeros(1, 8, 4, 4)
    collapsed[:, 5] = 100.0
    assert balance_loss(collapsed).item() == pytest.approx(8.0)
    (gradient,) = torch.autograd.grad(balance_loss(logits), logits)
    busiest = max(range(3), key=shares.__getitem__)
    assert gradient[:, busiest].sum() > 0


def test_z_loss_by_hand() -> None:
    assert z_loss(torch.zeros(2, 8, 3, 3)).item() == pytest.approx(math.log(8) ** 2)


def test_auxiliary_loss_reaches_every_guide_and_lets_go() -> None:
    network = nn.Sequential(_block(), DRConv2d(8, 8, 1, guide_gradient=0.0))
    keep_logits(network)
    x = torch.randn(2, 4, 8, 8)
    network(x)
    copy.deepcopy(network)
    guides = [network[0].guide, network[1].guide]
    kept = [guide.logits for guide in guides]
    expected = sum(0.5 * balance_loss(k) + 0.1 * z_loss(k) for k in kept) / 2
    loss = auxiliary_loss(network, balance=0.5, z=0.1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(guide.weight.grad.abs().sum() > 0 for guide in guides)
    assert all(guide.logits is None for guide in guides)
    with pytest.raises(RuntimeError, match="keep_logits"):
        auxiliary_loss(network, balance=0.5, z=0.1)


def test_filter_spread_is_0_for_equal_filters_and_large_for_independent_ones() -> None:
    equal, independent = DRConv2d(64, 64, 1, init_noise=0.0), DRConv2d(64, 64, 1, init_noise=1e6)
    mixed = DRConv2d(64, 64, 1, generator="experts")
    network = nn.Sequential(equal, independent, mixed)
    with torch.no_grad():
        mixed.generator.weight.zero_()  # every region mixes the experts alike
        with region_statistics(network) as statistics:
            network(torch.randn(2, 64, 8, 8))
    spreads = [entry["filter_spread"] for entry in statistics.values()]
    assert spreads == pytest.approx([0, (7 / 8) ** 0.5, 0], abs=0.02)


def test_statistics_of_a_trained_layer() -> None:
    network = nn.Sequential(_block(), DRConv2d(8, 8, 1, scale=False), DRConv2d(8, 8, 1))
    x = torch.randn(2, 4, 8, 8)
    with region_statistics(network) as statistics:
        network(x)
    assert set(statistics) == {"0.guide", "1.guide", "2.guide"}
    logits = network[0].guide(x)
    entry = statistics["0.guide"]
    assert entry["usage"] == region_usage(logits).tolist()
    assert sum(entry["usage"]) == pytest.approx(1)
    assert 0 < entry["entropy"] <= 1
    assert entry["logit_std"] == pytest.approx(logits.std(1, correction=0).mean().item(), rel=1e-5)
    assert entry["logit_range"] == pytest.approx((logits.amax(1) - logits.amin(1)).mean().item(), rel=1e-5)
    assert 0.4 < entry["scale_min"] <= entry["scale_max"] < 0.6
    assert statistics["1.guide"]["scale_min"] is None
    scale = network[2].generator(network[:2](x))[0, :, None, None, None, None]
    for name, filters in ("1.guide", network[1].weight), ("2.guide", scale * network[2].weight):
        difference = filters - filters.mean(0)
        expected = (difference.square().mean() / filters.square().mean()).sqrt().item()
        assert statistics[name]["filter_spread"] == pytest.approx(expected, rel=1e-5)
    assert not any(module._forward_hooks for module in network.modules())


def test_gradient_norms_of_the_parts() -> None:
    """Of the gradients that the optimiser took: clipped, and sorted by the parameters' names."""
    network = nn.Sequential(
        _block(), nn.BatchNorm2d(8), DRConv2d(8, 8, 1, generator_bias=True), DRConv2d(8, 4, 1, scale=False)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with gradient_norms(network, optimizer) as norms:
        network(torch.randn(2, 4, 8, 8)).square().sum().backward()
        assert torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0) > 2
        optimizer.step()
    filters = {f"{name}.{part}" for name, layer in network.named_modules() if isinstance(layer, DRConv2d)
               for part in ("weight", "filter_bias")}  # fmt: skip
    expected = dict.fromkeys(("guide", "generator", "filters", "rest"), 0.0)
    for name, parameter in network.named_parameters():
        part = next((part for part in ("guide", "generator") if f".{part}." in f".{name}"), None)
        part = part or ("filters" if name in filters else "rest")
        expected[part] += parameter.grad.double().square().sum().item()
    assert all(value > 0 for value in expected.values())
    assert norms == pytest.approx({part: value**0.5 for part, value in expected.items()}, rel=1e-5)
    assert sum(value**2 for value in norms.values()) == pytest.approx(4, rel=1e-4)
    assert not optimizer._optimizer_step_pre_hooks


def test_gradient_norms_are_empty_without_a_drconv() -> None:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with gradient_norms(network, optimizer) as norms:
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert norms == {}
