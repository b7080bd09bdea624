"""Writes a trained network as a file that runs without Python: ONNX, or a package of AOTInductor.

    drconv export run=outputs/... format=onnx out=network.onnx
    drconv export run=outputs/... format=onnx out=network.onnx masks='stage4.*'
    drconv export run=outputs/... format=pt2 out=network.pt2

Every file is checked against PyTorch on drawn pictures before it appears. docs/export.md says what it holds and costs.
"""

import argparse
from pathlib import Path

import torch

from drconv.commands.run_pictures import load_network
from drconv.compose import config_of_run
from drconv.errors import ConfigError
from drconv.export import export_onnx, export_package
from drconv.messages import exit_with

FORMATS = ("onnx", "pt2")
OWN = ("format", "out", "masks", "custom_operator")


def main() -> None:
    """The command line."""
    try:
        export(*parse())
    except Exception as error:
        exit_with(error)


def export(own: dict[str, str], settings: list[str]) -> None:
    """Writes the file that ``own`` asks for."""
    config = config_of_run(settings)
    if config is None:
        raise ConfigError("give run=<folder> of a finished run; its network is exported")
    network = load_network(config).eval()
    rows, columns = getattr(network, "input_size", (config.data.image_size,) * 2)
    example = torch.zeros(2, 3, rows, columns)
    path = Path(own.get("out", f"network.{own['format']}"))
    if own["format"] == "pt2":
        package = export_package(network, path, example)
        print(f"{package.path}: differs from PyTorch by {package.error:.1e}; {package.library} holds its operators")
        return
    masks = [pattern for pattern in own.get("masks", "").split(",") if pattern]
    report = export_onnx(network, path, example, masks=masks, custom_operator=own.get("custom_operator") == "true")
    print(f"{path}: {report.layers} DRConvs, outputs {', '.join(report.outputs)}; differs by {max(report.errors):.1e}")


def parse() -> tuple[dict[str, str], list[str]]:
    """The script's own keys, and those of the run.

    Raises:
        ConfigError: a value is not allowed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="run=, format=, out=, masks=, ...")
    words = parser.parse_args().settings
    given = dict(word.partition("=")[::2] for word in words)
    own = {key: value for key, value in given.items() if key in OWN}
    if own.setdefault("format", "onnx") not in FORMATS:
        raise ConfigError(f"format={own['format']} is unknown; use one of {', '.join(FORMATS)}")
    if own.get("custom_operator", "false") not in ("true", "false"):
        raise ConfigError(f"custom_operator={own['custom_operator']} must be true or false")
    if own["format"] == "pt2" and own.keys() & {"masks", "custom_operator"}:
        raise ConfigError("masks= and custom_operator= belong to format=onnx; leave them out with format=pt2")
    return own, [word for word in words if word.partition("=")[0] not in OWN]
