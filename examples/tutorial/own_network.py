"""The tutorial's own network: DRConv in it, trained on the embedded digits, its regions drawn, and exported.

    python examples/tutorial/own_network.py FOLDER

docs/tutorial.md goes through it. The last part needs ``pip install 'drconv[export]'``.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torchvision.utils import save_image

from drconv import DRConv2d, region_statistics, substitute
from drconv.config import DataConfig
from drconv.export import export_onnx
from drconv.tasks.classification.memory import load_digits

EPOCHS, BATCH = 4, 64


def own_network() -> nn.Sequential:
    """Three convolutions and a classifier, as anybody would write them."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, 16, 16) from 0 to 1, and labels (N)."""
    source = load_digits(split, DataConfig(name="digits", image_size=16, eval_resize=16))
    pictures = torch.stack([source.read(index) for index in range(len(source.labels))])
    return pictures / 255, source.labels


def train(network: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(EPOCHS):
        for part in torch.randperm(len(labels)).split(BATCH):
            loss = nn.functional.cross_entropy(network(pictures[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")


def draw_regions(network: nn.Sequential, layer: str, pictures: torch.Tensor, path: Path) -> None:
    """The pictures, and below each the region of every position of a layer as a grey level."""
    conv = network.get_submodule(layer)
    assert isinstance(conv, DRConv2d)
    chosen: list[torch.Tensor] = []
    hook = conv.guide.register_forward_hook(
        lambda module, inputs, logits: chosen.append(logits.argmax(1, keepdim=True))
    )
    with torch.no_grad():
        network(pictures)
    hook.remove()
    regions = nn.functional.interpolate(chosen[0].float() / 7, size=pictures.shape[2:])
    save_image(torch.cat([pictures, regions.expand(-1, 3, -1, -1)]), path, nrow=len(pictures))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = own_network()
    print(substitute(network, "drconv", layers=["4", "7"], input_size=(3, 16, 16), regions=8))
    train(network, *digits("train"))
    network.eval()
    pictures, labels = digits("val")
    with torch.no_grad(), region_statistics(network) as statistics:
        right = (network(pictures).argmax(1) == labels).float().mean()
    print(f"{100 * right:.1f} % of {len(labels)} pictures right")
    for layer, found in statistics.items():
        print(f"{layer}: entropy {found['entropy']:.2f}, 1 where all regions are used alike")
    draw_regions(network, "7", pictures[:8], folder / "regions.png")
    export_onnx(network, folder / "own.onnx", pictures[:2])
    print(f"written: {folder}/regions.png, {folder}/own.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
