"""The networks, under the name they have here: ``models`` in a checkout, ``drconv_models`` where they are installed.

The commands are the only part of ``drconv`` that knows the networks, and this is the only place that imports them.
"""

import importlib
from collections.abc import Callable
from importlib.util import find_spec

from torch import nn

from drconv.paths import CHECKOUT


def find_package() -> str:
    """The importable name; somebody else's package ``models`` is never taken for ours."""
    if CHECKOUT is not None:
        found = find_spec("models")
        if found is not None and found.origin == str(CHECKOUT / "models" / "__init__.py"):
            return "models"
    return "drconv_models"


_networks = importlib.import_module(find_package())
create_model: Callable[..., nn.Module] = _networks.create_model
load_model: Callable[..., nn.Module] = _networks.load_model
