"""The small trainings that faults are injected into, one for each task; what they read is written once."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from drconv.tasks.identification.drawn import draw_face
from tests.coco import scenes_root

COMMON = [
    *("recipe.epochs=null", "recipe.steps=8", "recipe.schedule.warmup_steps=2", "recipe.ema_decay=0.9"),
    *("logging.every=2", "logging.eval_every=3", "logging.checkpoint_every=2", "logging.wandb=disabled"),
    *("runtime.workers=0", "runtime.threads=1", "runtime.device=cpu", "logging.region_usage=false"),
]
FACES = {"train": (0, 6, 3), "probes": (6, 3, 2), "distractors": (9, 5, 1)}  # first identity, identities, pictures each


def classification(folder: Path) -> list[str]:
    """Handwritten digits."""
    return ["model=drconv_shufflenetv2_0.25x", "recipe.batch_size=8", "data.fraction=0.1", "data.holdout=0.02"]


def identification(folder: Path) -> list[str]:
    """A few drawn faces in folders, and the head that is cut by classes."""
    for name, (first, identities, each) in FACES.items():
        for identity in range(first, first + identities):
            place = folder / name / f"{identity:03}"
            place.mkdir(parents=True)
            for number in range(each):
                Image.fromarray(draw_face(identity, number)).save(place / f"{number}.png")
    own = ["data.faces.probes=probes", "data.faces.distractors=distractors", f"data.root={folder}"]
    return ["model=mobilefacenet", "data=face_folders", *own, "recipe.batch_size=4", "recipe.optimizer.lr=0.01"]


def detection(folder: Path) -> list[str]:
    """A few of the embedded scenes, as COCO files."""
    return [
        *("model=drconv_detnas_300m_fpn_8r", "model.detector.masks=true", "model.drconv.regions=2", "model.width=0.05"),
        *("model.detector.rois=8", "recipe=scenes", "data=coco", f"data.root={scenes_root()}"),
        *("data.coco.sizes=[40,48]", "data.coco.max_size=64", "recipe.batch_size=2", "recipe.eval_batch_size=5"),
    ]


RUNS: dict[str, Callable[[Path], list[str]]] = {
    run.__name__: run for run in (classification, identification, detection)
}
