"""ResNet-50 weights from other code bases, by exact rules: every tensor is filled, and what is left over is known.

Files are recognised by the names in them. Three things do not show in the shapes, and would cost accuracy without a
word: the place of the stride (in the first 1x1 for the weights of ResNet's authors, in the 3x3 for torchvision's), the
pixels (BGR, 0 to 255), and batch norms that were fused to a scale and a shift. They follow from the kind of file.
"""

import codecs
import importlib
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drconv.config import Config
from drconv.errors import WeightsError
from drconv.weights import LoadReport, check_values, read_tensors

CLASSIFIER = ("fc.weight", "fc.bias")
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # mean and deviation of RGB, 0 to 255
_PARTS = {"a": "1", "b": "2", "c": "3"}
_NORMS = {
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "rm": "running_mean",
    "riv": "running_var",
    "s": "weight",
    "b": "bias",
}


@dataclass(frozen=True)
class Origin:
    """What a kind of file asks of network and pixels.

    Attributes:
        name: for messages.
        stride_in_1x1: where a stage's stride is.
        channel_order: rgb or bgr.
        std: whether pixels are divided by their standard deviation.
        is_fused: whether batch norms are only a scale and a shift.
    """

    name: str
    stride_in_1x1: bool = False
    channel_order: str = "rgb"
    std: bool = True
    is_fused: bool = False


OWN = Origin("a run of this project")
TORCHVISION = Origin("torchvision's or timm's")
DETECTRON2 = Origin("detectron2's, converted from torchvision")
MSRA = Origin("that of ResNet's authors", stride_in_1x1=True, channel_order="bgr", std=False)
FUSED = Origin("Detectron's, with fused batch norms", True, "bgr", False, is_fused=True)


def load_body(path: Path, network: nn.Module, config: Config) -> LoadReport:
    """Starts a detector's body from a file: our own ImageNet run, or ResNet-50 from elsewhere.

    Raises:
        WeightsError: the file cannot be read, does not fill the whole body, or does not go with the configuration.
    """
    prefix = getattr(network, "backbone_prefix", "backbone.body.")
    tensors = read_any(path)
    if config.model.name == "mask_rcnn_r50":
        tensors, origin = to_torchvision(tensors, path)
        check_origin(origin, config, path)
    else:  # our classifier, whose body has the name of the detector's
        tensors, origin = {name.removeprefix("body."): tensor for name, tensor in tensors.items()}, OWN
    own = {n.removeprefix(prefix): x for n, x in network.state_dict().items() if n.startswith(prefix)}
    check_values(own, tensors, f"backbone={path}")
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # the oldest files have none
    wrong = [n for n, x in own.items() if n not in counters and (n not in tensors or tensors[n].shape != x.shape)]
    if wrong:
        raise WeightsError(f"backbone={path} does not fill {_some(wrong)}, of {len(own)} tensors of the body")
    loaded = {prefix + name: tensors[name] for name in own if name in tensors}
    network.load_state_dict(loaded, strict=False)
    kept = {prefix + name: "not in the file" for name in own if name not in tensors}
    return LoadReport(f"{path} ({origin.name})", list(loaded), kept, [name for name in tensors if name not in own])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_any(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of one saved by torch, or of a pickle of NumPy arrays; no code is run.

    Raises:
        WeightsError: it is none of them.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path, "backbone")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        content = read_pickle(path)
    for key in ("model", "state_dict", "blobs"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise WeightsError(f"backbone={path} holds a {type(content).__name__} and not tensors by name")
    arrays = {str(name): value for name, value in content.items()}
    tensors = {name: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for name, v in arrays.items()}
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


_CORE = "_core" if int(np.__version__.partition(".")[0]) > 1 else "core"
multiarray: Any = importlib.import_module(f"numpy.{_CORE}.multiarray")
_ALLOWED: dict[str, Any] = {  # what a pickle of arrays is made of, under old and new names
    "numpy.core.multiarray._reconstruct": multiarray._reconstruct,
    "numpy._core.multiarray._reconstruct": multiarray._reconstruct,
    "numpy.core.multiarray.scalar": multiarray.scalar,
    "numpy._core.multiarray.scalar": multiarray.scalar,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": codecs.encode,
    "collections.OrderedDict": OrderedDict,
}


class _Restricted(pickle.Unpickler):
    """Makes NumPy arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (found := _ALLOWED.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found


def read_pickle(path: Path) -> Any:
    """A pickle of NumPy arrays, also one by Python 2, without running code from it.

    Raises:
        WeightsError: it is none, or asks for anything but arrays.
    """
    try:
        with open(path, "rb") as file:
            return _Restricted(file, encoding="latin1").load()
    except Exception as error:  # a pickle can fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(
            f"backbone={path} is no weights file ({reason}); safetensors, torch's files and pickles of arrays are read"
        ) from None


def to_torchvision(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Origin]:
    """ResNet-50's tensors under torchvision's names, without the classifier, and where they come from.

    Raises:
        WeightsError: a name that is none of ResNet-50's, or another ResNet.
    """
    if "res2_0_branch2a_w" in tensors:
        is_fused = "res_conv1_bn_s" in tensors
        renamed = _from_caffe2(tensors, path)
        origin = FUSED if is_fused else MSRA
    elif any(name.startswith("stem.") for name in tensors):
        renamed, origin = {_from_detectron2(name): tensor for name, tensor in tensors.items()}, DETECTRON2
    else:
        renamed, origin = dict(tensors), TORCHVISION
    for name in CLASSIFIER:
        renamed.pop(name, None)
    unknown = sorted(name for name in renamed if not _is_resnet50(name))
    if unknown:
        raise WeightsError(
            f"backbone={path} has {unknown[0]}, which ResNet-50 has not ({len(unknown)} such names): is it another "
            f"ResNet, such as resnet50d, another network, or a whole detector?"
        )
    return renamed, origin


def check_origin(origin: Origin, config: Config, path: Path) -> None:
    """Holds a kind of file against the network and the pixels that it is to be used with.

    Raises:
        WeightsError: they do not go together; the message has the keys.
    """
    detector, data = config.model.detector, config.data
    wanted: list[str] = []
    if origin.stride_in_1x1 != detector.stride_in_1x1:
        wanted.append(f"model.detector.stride_in_1x1={str(origin.stride_in_1x1).lower()}")
    if origin.channel_order != data.channel_order:
        wanted.append(f"data.channel_order={origin.channel_order}")
    is_divided = max(data.std) > 1.5
    if origin.std != is_divided:
        std = list(IMAGENET[1]) if origin.std else [1.0, 1.0, 1.0]
        wanted.append(f"data.std={std}".replace(" ", ""))
    if origin.is_fused and detector.norm != "frozen":
        wanted.append("model.detector.norm=frozen (its batch norms are fused to a scale and a shift)")
    if wanted:
        raise WeightsError(f"backbone={path} is {origin.name}; it needs {', '.join(wanted)}")


def _is_resnet50(name: str) -> bool:
    norm = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
    blocks = {"1": 3, "2": 4, "3": 6, "4": 3}
    if re.fullmatch(rf"conv1\.weight|bn1\.{norm}", name):
        return True
    found = re.fullmatch(
        rf"layer([1-4])\.(\d+)\.(conv[123]\.weight|bn[123]\.{norm}|downsample\.0\.weight|downsample\.1\.{norm})", name
    )
    return found is not None and int(found[2]) < blocks[found[1]]


def _from_detectron2(name: str) -> str:
    """``res2.0.conv1.norm.weight`` to ``layer1.0.bn1.weight``."""
    name = name.removeprefix("stem.")
    name = re.sub(r"^res(\d)\.", lambda found: f"layer{int(found[1]) - 1}.", name)
    name = re.sub(r"\bconv(\d)\.norm\.", r"bn\1.", name)
    return name.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")


def _from_caffe2(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Underscored names; a convolution's bias is taken into the batch norm's mean, momenta are dropped."""
    renamed: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_momentum") or name.startswith(("fc1000", "pred_")) or name in ("lr", "weight_order"):
            continue
        place, kind = _caffe2_place(name, path)
        if kind == "bias of a convolution":
            biases[place] = tensor
        else:
            renamed[f"{place}.{kind}"] = tensor
    for norm in [name.removesuffix(".weight") for name in renamed if re.search(r"(bn\d|downsample\.1)\.weight$", name)]:
        weight = renamed[f"{norm}.weight"]
        renamed.setdefault(f"{norm}.running_mean", torch.zeros_like(weight))
        renamed.setdefault(f"{norm}.running_var", torch.ones_like(weight))
        if norm in biases:
            renamed[f"{norm}.running_mean"] = renamed[f"{norm}.running_mean"] - biases[norm]
    return renamed


def _caffe2_place(name: str, path: Path) -> tuple[str, str]:
    """Module and tensor in torchvision's names; the bias of a convolution is given the norm behind it."""
    found = re.fullmatch(r"(?:res_)?conv1(?:_(bn))?_(\w+)", name)
    if found:
        conv, norm = "conv1", "bn1"
    else:
        found = re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])(?:_(bn))?_(\w+)", name)
        if not found:
            raise WeightsError(f"backbone={path} has {name}, which is no name of Caffe2's ResNet-50")
        block = f"layer{int(found[1]) - 1}.{found[2]}"
        part = _PARTS.get(found[3][-1])
        conv, norm = (f"conv{part}", f"bn{part}") if part else ("downsample.0", "downsample.1")
        conv, norm = f"{block}.{conv}", f"{block}.{norm}"
    is_norm, kind = found[found.re.groups - 1] == "bn", found[found.re.groups]
    if is_norm and kind in _NORMS:
        return norm, _NORMS[kind]
    if not is_norm and kind == "w":
        return conv, "weight"
    if not is_norm and kind == "b":
        return norm, "bias of a convolution"
    raise WeightsError(f"backbone={path} has {name}, which is no name of Caffe2's ResNet-50")
