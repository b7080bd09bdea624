"""ResNet-50 files of other code bases: the same network from each, and refusals of what would fit without a word."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet50

from drconv.config import Config, DataConfig, DetectorConfig, ModelConfig
from drconv.errors import WeightsError
from drconv.tasks.detection.weights import load_body
from models import create_model
from models.detector import Detector

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Of torchvision's ResNet-50, with statistics as after a training."""
    torch.manual_seed(0)
    tensors = resnet50(num_classes=10).state_dict()
    for name, tensor in tensors.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean") or re.search(r"(bn\d|downsample\.1)\.", name):
            tensor.copy_(torch.rand_like(tensor.float()) * 0.5 + 0.1)
    return tensors


def build(**detector: Any) -> tuple[Detector, Config]:
    model = ModelConfig("mask_rcnn_r50", 0.125, detector=DetectorConfig(**detector))
    network = create_model(model, 3, None)
    assert isinstance(network, Detector)
    return network.eval(), Config(model=model, data=DataConfig(name="coco"))


@pytest.fixture(scope="module")
def plain() -> tuple[Detector, Config]:
    return build()


def bgr(config: Config) -> Config:
    config.data.channel_order, config.data.std = "bgr", [1.0, 1.0, 1.0]
    return config


def features(state: State, x: Tensor, stride_in_1x1: bool = False) -> Tensor:
    """The last map of torchvision's network with these weights."""
    network = resnet50(num_classes=10).eval()
    network.load_state_dict(state, strict=False)
    if stride_in_1x1:
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


def detectron2_names(state: State) -> State:
    """As detectron2's own converter writes them."""
    renamed = {}
    for name, tensor in state.items():
        key = name if "layer" in name else f"stem.{name}"
        for stage in (1, 2, 3, 4):
            key = key.replace(f"layer{stage}", f"res{stage + 1}")
        for conv in (1, 2, 3):
            key = key.replace(f"bn{conv}", f"conv{conv}.norm")
        renamed[key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = tensor
    return renamed


def caffe2_names(state: State, is_fused: bool) -> State:
    """As in R-50.pkl of ResNet's authors; fused, as Detectron has it, with the scale over the deviation."""
    renamed: State = {"fc1000_w": torch.zeros(2, 2), "fc1000_b": torch.zeros(2), "conv1_b": torch.full((64,), 0.25)}
    letters = {"1": "a", "2": "b", "3": "c"}
    for name in state:
        if not name.endswith(("conv1.weight", "conv2.weight", "conv3.weight", "downsample.0.weight")):
            continue
        norm = name.removesuffix(".weight").replace("conv", "bn").replace("downsample.0", "downsample.1")
        found = re.match(r"layer(\d)\.(\d+)\.(?:conv(\d)|downsample)", name)
        if found:
            branch = f"2{letters[found[3]]}" if found[3] else "1"
            key = f"res{int(found[1]) + 1}_{found[2]}_branch{branch}"
        else:
            key = "conv1"
        renamed[f"{key}_w"] = state[name]
        prefix = "res_conv1_bn" if key == "conv1" else f"{key}_bn"
        weight, bias, mean, var = (state[f"{norm}.{x}"] for x in ("weight", "bias", "running_mean", "running_var"))
        if is_fused:
            scale = weight / (var + 1e-5).sqrt()
            renamed |= {f"{prefix}_s": scale, f"{prefix}_b": bias - mean * scale}
        else:
            names = ("gamma", "beta", "running_mean", "running_var")
            renamed |= {f"{prefix}_{n}": x for n, x in zip(names, (weight, bias, mean, var), strict=True)}
    return renamed


def write_pickle(path: Path, tensors: State, **outer: Any) -> Path:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    path.write_bytes(pickle.dumps({"model": arrays, **outer} if outer else arrays, protocol=2))
    return path


def write_each(folder: Path, state: State) -> list[Path]:
    """torchvision's file, an old one of it, timm's, detectron2's."""
    torch.save(state, folder / "resnet50.pth")
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    torch.save({"state_dict": old}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "model.safetensors")
    write_pickle(folder / "R-50.pkl", detectron2_names(state), __author__="torchvision", matching_heuristics=True)
    return [folder / name for name in ("resnet50.pth", "old.pth", "model.safetensors", "R-50.pkl")]


def test_every_kind_of_file_gives_the_same_body(tmp_path: Path, state: State, plain: tuple[Detector, Config]) -> None:
    network, config = plain
    x = torch.randn(1, 3, 32, 32)
    for path in write_each(tmp_path, state):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        report = load_body(path, network, config)
        body = network.backbone.body.state_dict()
        assert all(tensor.equal(state[name]) for name, tensor in body.items() if "num_batches" not in name)
        assert len(report.loaded) >= 265
        assert all("num_batches_tracked" in name for name in report.kept)
        assert not report.unused
    with torch.no_grad():
        torch.testing.assert_close(network.backbone.body(x)["3"], features(state, x), rtol=1e-4, atol=1e-4)


def test_files_of_resnets_authors_need_their_stride_and_pixels(tmp_path: Path, state: State) -> None:
    path = write_pickle(tmp_path / "R-50.pkl", caffe2_names(state, is_fused=False))
    network, config = build()
    with pytest.raises(WeightsError, match=r"stride_in_1x1=true, data.channel_order=bgr, data.std=\[1.0,1.0,1.0\]"):
        load_body(path, network, config)
    network, config = build(stride_in_1x1=True)
    load_body(path, network, bgr(config))
    shifted = state | {"bn1.running_mean": state["bn1.running_mean"] - 0.25}  # the bias of the first convolution
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = features(shifted, x, stride_in_1x1=True)
        torch.testing.assert_close(network.backbone.body(x)["3"], expected, rtol=1e-4, atol=1e-4)


def test_fused_norms_need_a_frozen_body(tmp_path: Path, state: State) -> None:
    """Batch statistics on top of a scale that was divided by the deviation are another network."""
    path = write_pickle(tmp_path / "R-50.pkl", {**caffe2_names(state, is_fused=True), "conv1_b": torch.zeros(64)})
    network, config = build(stride_in_1x1=True)
    with pytest.raises(WeightsError, match=r"model\.detector\.norm=frozen"):
        load_body(path, network, bgr(config))
    network, config = build(stride_in_1x1=True, norm="frozen")
    load_body(path, network, bgr(config))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = features(state, x, stride_in_1x1=True)
        torch.testing.assert_close(network.backbone.body(x)["3"], expected, rtol=1e-3, atol=1e-3)


def test_torchvisions_file_is_refused_by_a_network_of_the_other_stride(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "resnet50.pth")
    network, config = build(stride_in_1x1=True)
    with pytest.raises(WeightsError, match=r"torchvision's or timm's; it needs model.detector.stride_in_1x1=false"):
        load_body(tmp_path / "resnet50.pth", network, config)


def test_other_networks_and_incomplete_files_are_refused(
    tmp_path: Path, state: State, plain: tuple[Detector, Config]
) -> None:
    network, config = plain
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cases = {
        "deep_stem": (state | {"conv1.0.weight": torch.zeros(1)}, r"has conv1\.0\.weight, which ResNet-50 has not"),
        "resnet101": (state | {"layer3.6.conv1.weight": torch.zeros(1)}, r"has layer3\.6\.conv1"),
        "cut": ({n: x for n, x in state.items() if "layer4" not in n}, r"does not fill layer4\.0\.conv1\.weight"),
        "shape": (state | {"conv1.weight": torch.zeros(32, 3, 7, 7)}, r"does not fill conv1\.weight"),
    }
    for name, (tensors, message) in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightsError, match=message):
            load_body(tmp_path / f"{name}.safetensors", network, config)
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_a_pickle_cannot_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: tuple[Detector, Config]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": Evil()}))
    network, config = plain
    with pytest.raises(WeightsError, match=r"it asks for posix\.mkdir"):
        load_body(path, network, config)
    assert not (tmp_path / "evil").exists()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="is no weights file"):
        load_body(path, network, config)


def test_our_classifier_starts_a_detector(tmp_path: Path) -> None:
    classifier = create_model(ModelConfig("detnas_300m"), 10, 224)
    save_file(
        {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, tmp_path / "a.safetensors"
    )
    model = ModelConfig("detnas_300m_fpn", 0.125, detector=DetectorConfig(masks=False))
    network = create_model(model, 3, None)
    report = load_body(tmp_path / "a.safetensors", network, Config(model=model))
    assert len(report.unused) == 9  # head and classifier
    for name, tensor in network.backbone.body.state_dict().items():
        assert tensor.equal(classifier.state_dict()[f"body.{name}"])
