"""Top-k against a count by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from drconv.tasks.classification.topk import TopK


@given(st.integers(1, 30), st.integers(2, 12), st.integers(1, 7), st.integers(0, 10_000))
def test_counts_each_sample_once(num_samples: int, num_classes: int, batch_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_samples, num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    metric = TopK(torch.device("cpu"))
    for begin in range(0, num_samples, batch_size):
        metric.update(logits[begin : begin + batch_size], labels[begin : begin + batch_size])
    found = metric.compute()

    top1 = top5 = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        better = sum(value > row[label] for value in row)
        top1 += better < 1
        top5 += better < 5
    assert found["samples"] == num_samples
    assert found["top1"] == 100 * top1 / num_samples
    assert found["top5"] == 100 * top5 / num_samples
    assert abs(found["loss"] - nn.functional.cross_entropy(logits.double(), labels).item()) < 1e-5


def test_nothing_seen() -> None:
    assert TopK(torch.device("cpu")).compute() == {"samples": 0}
