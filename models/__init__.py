"""The networks: ``create_model(config.model, num_classes, image_size)``; trained ones: ``load_model(folder)``.

``models`` in a checkout, ``drconv_models`` where the package is installed. They are registered with timm by importing
``timm_registry`` of this package, or this package after ``import timm``.
"""

import sys

from .factory import available, create_model
from .published import load_model

__all__ = ["available", "create_model", "load_model"]

if "timm" in sys.modules:
    from . import timm_registry  # noqa: F401
