"""Accuracy of each class, and which classes are taken for which."""

import torch
from torch import Tensor

from drconv.report.html import Cell, details, table

MOST_CLASSES = 40  # of a confusion matrix that is shown whole


def count_confusion(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """int64 (K, K): pictures of class i that were taken for class j.

    Args:
        logits: (B, K).
        labels: (B,).
        num_classes: K.
    """
    pairs = labels.long() * num_classes + logits.argmax(1)
    return torch.bincount(pairs.cpu(), minlength=num_classes**2).view(num_classes, num_classes)


def confusion_html(counts: Tensor, names: list[str]) -> str:
    """A table of the classes, the worst first, and the matrix where it is small enough."""
    names = names or [str(index) for index in range(len(counts))]
    totals = counts.sum(1)
    shares = counts.diag() / totals.clamp(min=1)
    rows: list[list[Cell]] = []
    for index in shares.argsort(stable=True).tolist():
        others = counts[index].clone()
        others[index] = 0
        taken = int(others.argmax())
        wrong = f"{names[taken]} ({int(others[taken])})" if others[taken] else "-"
        rows.append([names[index], f"{100 * shares[index]:.1f}", str(int(totals[index])), (wrong, "text")])
    found = table(["class", "accuracy, %", "pictures", "most often taken for"], rows)
    if len(counts) > MOST_CLASSES:
        return found
    matrix = [
        [name, *[_heat(int(n), int(total)) for n in row]]
        for name, row, total in zip(names, counts.tolist(), totals.tolist(), strict=True)
    ]
    whole = table(["is, and is taken for", *names], matrix, kind="confusion")
    return found + details("Confusion matrix", whole, is_open=True)


def _heat(count: int, total: int) -> Cell:
    shade = 0.6 * count / total if total else 0.0  # at most 0.6, so that the number stays readable
    return (str(count), f"background: rgba(var(--heat), {shade:.2f})") if count else ("", "")
