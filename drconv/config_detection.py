"""Rules of the configuration that only detection has. Imports no torch."""

from collections.abc import Iterator

from drconv.config import Config

DATA = ("coco", "scenes")
DETECTORS = ("mask_rcnn_r50", "detnas_300m_fpn")
SECTIONS = (("model", "detector"), ("data", "coco"))  # without effect under another task
UNUSED = {"broken": "error", "holdout": 0.0, "num_classes": None}  # keys of data, as they must stay


def detection_problems(config: Config) -> Iterator[str]:
    """Task, data and network belong together; so do norms and weights."""
    data, task, is_detection = config.data, config.task.name, config.task.name == "detection"
    if is_detection != (data.name in DATA):
        yield f"data.name={data.name} does not go with task.name={task}; detection takes {' and '.join(DATA)}"
    if is_detection != (config.model.name in DETECTORS):
        yield f"model.name={config.model.name} does not go with task.name={task}; detectors are {', '.join(DETECTORS)}"
    if not is_detection:
        return
    if not data.coco.sizes:
        yield "data.coco.sizes=[] must be a list of one or more sizes in pixels"
    if config.model.detector.norm == "frozen" and config.backbone is None and config.weights is None:
        yield "model.detector.norm=frozen needs backbone= or weights=: norms frozen at their start are no norms at all"
    for key, plain in UNUSED.items():
        if getattr(data, key) != plain:
            yield f"data.{key}={getattr(data, key)} has no effect under task.name=detection"
