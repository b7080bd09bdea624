"""The task in the engine: training that goes on bitwise, evaluation that does not see its batches, predictions."""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

import eval as evaluation
import train
from drconv.commands.predict import load_detector
from drconv.config import Config
from drconv.engine.trainer import Trainer
from drconv.errors import DataError
from drconv.nn import substitute
from drconv.tasks.detection import Detection, task
from drconv.tasks.detection.dataset import CocoFacts
from drconv.tasks.detection.predict import pictures_in, predict
from models import create_model
from models.detector import Detector
from models.mask_rcnn import Pyramid
from tests.coco import scenes_root

Make = Callable[..., Config]
SMALL = [
    "model=drconv_detnas_300m_fpn_8r",  # a lighter body than ResNet-50, with a mask head
    "model.detector.masks=true",
    "model.drconv.regions=2",
    "model.width=0.05",
    "model.detector.rois=8",
    "data.coco.sizes=[40,48]",
    "data.coco.max_size=64",
    "recipe.steps=4",
    "recipe.batch_size=2",
    "recipe.eval_batch_size=5",
    "recipe.schedule.warmup_steps=2",
    "logging.every=1",
    "logging.checkpoint_every=2",
    "logging.wandb=disabled",
    "runtime.workers=0",
    "runtime.device=cpu",
]


@pytest.fixture
def make(make_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    monkeypatch.setattr(task, "scenes_folder", scenes_root)
    monkeypatch.setenv("DRCONV_CACHE", str(tmp_path / "cache"))
    return lambda *overrides, **options: make_config(*overrides, base=SMALL, **options)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_run_goes_on_bitwise_and_is_evaluated_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Sampled anchors and regions, drawn sizes and the order of the pictures are functions of seed and step."""
    whole, parts = make(run="whole"), make(run="parts")
    headline = train.train(whole)
    step = Trainer._step

    def step_or_die(self: Trainer, batches: object) -> None:
        if self.state.step == 3:
            raise Killed
        step(self, batches)

    monkeypatch.setattr(Trainer, "_step", step_or_die)
    with pytest.raises(Killed):
        train.train(parts)
    monkeypatch.undo()
    monkeypatch.setattr(task, "scenes_folder", scenes_root)
    assert train.train(parts) == headline
    one, other = (load_file(Path(str(config.run), "model.safetensors")) for config in (whole, parts))
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
    result = json.loads(Path(str(whole.run), "result.json").read_text())
    assert result["metrics"]["val/pictures"] == 12
    assert {"val/box_ap", "val/box_ap50", "val/mask_ap", "val/mask_ap_small"} <= set(result["metrics"])
    network, names = load_detector(whole)
    assert names == [str(digit) for digit in range(10)]
    assert network.category_ids.tolist() == list(range(1, 11))
    _evaluates_the_same_in_other_batches(whole, capsys)


def _evaluates_the_same_in_other_batches(config: Config, capsys: pytest.CaptureFixture) -> None:
    folder = Path(str(config.run), "detections")
    before = [json.loads((folder / f"val.{kind}.json").read_text()) for kind in ("bbox", "segm")]
    assert before[0]
    capsys.readouterr()
    evaluation.evaluate(replace(config, recipe=replace(config.recipe, eval_batch_size=1)))
    after = [json.loads((folder / f"val.{kind}.json").read_text()) for kind in ("bbox", "segm")]
    assert after == before
    assert "equal to the training's record" in capsys.readouterr().out


def test_a_step_does_not_see_how_pictures_are_divided(make: Make) -> None:
    """The pieces of a step are equal for one rank with two micro-batches and for two ranks."""
    config = make()
    dataset = Detection.train_set(config)
    samples = [dataset[(index, 5)] for index in range(2)]
    torch.manual_seed(0)
    network = create_model(config.model, 10, None)
    module = Detection(network, config, dataset.facts).train()
    outputs = module(dataset.collate(samples))
    assert set(outputs.losses) == {
        "loss_objectness",
        "loss_rpn_box_reg",
        "loss_classifier",
        "loss_box_reg",
        "loss_mask",
    }
    assert torch.isfinite(outputs.loss)
    assert module.cost().parameters == sum(p.numel() for p in network.parameters())


def test_training_pictures_are_evaluated_where_asked_for(make: Make) -> None:
    assert set(Detection.evaluation_sets(make())) == {"val"}
    config = make("data.coco.seen=true", "data.fraction=0.5")
    sets = Detection.evaluation_sets(config)
    assert {name: len(one) for name, one in sets.items()} == {"val": 12, "seen": 6}
    metric = Detection(create_model(config.model, 10, None), config, sets["seen"].facts).new_metric(
        torch.device("cpu"), sets["seen"]
    )
    assert metric.name == "seen"


def test_the_padding_is_zero_after_normalising(make: Make) -> None:
    config = make()
    dataset = Detection.train_set(config)
    module = Detection(create_model(config.model, 10, None), config, dataset.facts)
    batch = {"image": torch.full((2, 3, 64, 64), 200, dtype=torch.uint8), "sizes": [(64, 40), (50, 64)]}
    images = module._images(batch)
    assert images[0, :, :, 40:].abs().sum() == images[1, :, 50:].abs().sum() == 0
    assert images[0, :, :, :40].abs().min() > 0


def test_another_order_of_the_classes_is_refused(make: Make) -> None:
    config = make()
    dataset = Detection.evaluation_sets(config)["val"]
    facts = CocoFacts(10, None, [], list(range(11, 21)))
    module = Detection(create_model(config.model, 10, None), config, facts)
    with pytest.raises(DataError, match=r"trained on the categories \[11, .* has \[1, 2"):
        module.new_metric(torch.device("cpu"), dataset)


def test_body_and_pyramid_alone_are_compiled(make: Make) -> None:
    """For all sizes at once; heads and proposals have another number of boxes at every call."""
    config, counter = make(), CompileCounter()
    network = Detector(Pyramid(_Body(), (4,) * 4, 8, None), 8, 10, rois=8, with_masks=False)
    substitute(network, "drconv", ["backbone.fpn.inner_blocks.[23].0"], regions=2, input_size=64)
    module = Detection(network, config, CocoFacts(10, None, [], list(range(1, 11))))
    x, y = torch.randn(1, 3, 64, 96), torch.randn(2, 3, 96, 64)
    expected = network.backbone(x)["0"], network.backbone(y)["0"]
    torch._dynamo.reset()
    module.compile(backend=counter)
    for image, before in zip((x, y), expected, strict=True):
        torch.testing.assert_close(network.backbone(image)["0"], before)
    assert 1 <= counter.frame_count <= 2
    network.eval()(x)
    assert counter.frame_count <= 2


class _Body(torch.nn.Module):
    """Maps "0" to "3" at strides 4 to 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return OrderedDict((str(i), torch.nn.functional.avg_pool2d(self.conv(x), 2 ** (i + 2))) for i in range(4))


def test_predictions_of_a_folder(make: Make, tmp_path: Path) -> None:
    config = make()
    dataset = Detection.evaluation_sets(config)["val"]
    network = create_model(config.model, 10, None)
    Detection(network, config, dataset.facts)
    pictures = sorted((scenes_root() / "val2017").glob("*.jpg"))[:2]
    network.roi_heads.score_thresh = 0.0
    written, _ = predict(network, config, dataset.facts.output_names, pictures, tmp_path / "out", score=0.0)
    assert [path.name for path in written] == ["000001.png", "000002.png"]
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {record["image_id"] for record in records} == {"000001.jpg", "000002.jpg"}
    assert all(np.isfinite(record["bbox"]).all() and "segmentation" in record for record in records)
    assert pictures_in(pictures[0]) == pictures[:1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no picture"):
        pictures_in(tmp_path / "empty")
