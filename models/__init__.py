"""The networks: ``create_model(config.model, num_classes, image_size)``.

They are registered with timm by ``import models`` after ``import timm``, or by ``import models.timm_registry``.
"""

import sys

from models.factory import available, create_model

__all__ = ["available", "create_model"]

if "timm" in sys.modules:
    import models.timm_registry  # noqa: F401
