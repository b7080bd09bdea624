"""The files of ``configs/model``: every network that has a name. Imports no torch."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from drconv.config import ModelConfig
from drconv.paths import CONFIGS


def model_files() -> dict[str, Path]:
    """The files by name, such as ``drconv_shufflenetv2_0.5x``."""
    return {path.stem: path for path in sorted((CONFIGS / "model").glob("*.yaml"))}


def load_model_config(name: str) -> ModelConfig:
    """A file under its schema.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = model_files().get(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not a model; choose one of the files in configs/model")
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    section = content.get("model", content)  # files of networks for other tasks choose a recipe too
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), section))
    assert isinstance(config, ModelConfig)
    return config
