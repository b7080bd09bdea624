"""The detectors of Table 3: sizes, independence of a picture from its neighbours, precision, freezing."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.misc import FrozenBatchNorm2d

import models
from drconv.config import DetectorConfig, DRConvConfig, ModelConfig
from drconv.errors import ConfigError
from drconv.nn import DRConv2d, pool_inside
from drconv.nn.generators import PooledGate
from models.detector import STRIDES, Detector, FixedAnchors, fixed_roi_align


def build(name: str = "mask_rcnn_r50", conv: str = "standard", **options: object) -> Detector:
    torch.manual_seed(0)
    detector = DetectorConfig(**{"rois": 16, "masks": "mask" in name, **options})  # type: ignore[arg-type]
    config = ModelConfig(name, 0.125, conv=conv, drconv=DRConvConfig(regions=4), detector=detector)
    network = models.create_model(config, 3, None)
    assert isinstance(network, Detector)
    return network


def objects(rows: int, columns: int) -> dict[str, Tensor]:
    masks = torch.zeros(1, rows, columns, dtype=torch.uint8)
    masks[:, 8:40, 8:40] = 1
    return {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([2]), "masks": masks}


def nothing(rows: int, columns: int) -> dict[str, Tensor]:
    masks = torch.zeros(0, rows, columns, dtype=torch.uint8)
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": masks}


@pytest.fixture(scope="module")
def drconv() -> Detector:
    network = build(conv="drconv").eval()
    network.roi_heads.score_thresh = 0.0
    gates = [module for module in network.modules() if isinstance(module, PooledGate)]
    for gate in gates:  # a generator that has learned to look at the picture
        nn.init.normal_(gate.weight, std=0.5)
    return network


def test_drconv_stands_in_the_laterals_of_c4_and_c5(drconv: Detector) -> None:
    replaced = {name: module for name, module in drconv.named_modules() if isinstance(module, DRConv2d)}
    assert list(replaced) == ["backbone.fpn.inner_blocks.2.0", "backbone.fpn.inner_blocks.3.0"]
    assert [module.in_channels for module in replaced.values()] == [1024, 2048]


def test_a_picture_does_not_depend_on_its_neighbours(drconv: Detector) -> None:
    small, large = torch.randn(3, 70, 90), torch.randn(3, 96, 160)
    batch = torch.zeros(2, 3, 96, 160)
    batch[0, :, :70, :90], batch[1] = small, large
    with torch.no_grad():
        together = drconv(batch, [(70, 90), (96, 160)])
        padded = torch.zeros(1, 3, 96, 96)
        padded[0, :, :70, :90] = small
        alone = drconv(padded, [(70, 90)])
    assert len(alone[0]["scores"]) > 0
    for name, value in alone[0].items():
        torch.testing.assert_close(together[0][name], value, rtol=0, atol=0)


def test_generators_pool_the_picture_and_not_its_padding() -> None:
    """In training pictures are padded to one size: the filters of a picture must not change with it."""
    gate = PooledGate(5, 6, (1, 1), 1.0)
    taps = PooledGate(5, 2, (3, 3), 1.0)
    picture = torch.randn(1, 5, 7, 9)
    for module in (gate, taps):
        nn.init.normal_(module.weight)
        alone = module(picture)
        padded = torch.full((2, 5, 12, 16), 3.0)
        padded[:1, :, :7, :9] = picture
        with pool_inside(module, [(7 * 4 - 2, 9 * 4), (48, 64)], (48, 64)):
            together = module(padded)
        torch.testing.assert_close(together[:1], alone)
        torch.testing.assert_close(together[1:], module(padded[1:]))
        assert module.extents is None


def test_anchors_have_the_strides_of_the_maps() -> None:
    """torchvision's P6 of a map of 13 rows for 800 pixels has a stride of 61."""
    maps = [torch.zeros(1, 1, -(-800 // s), -(-1344 // s)) for s in STRIDES]
    images = ImageList(torch.zeros(1, 3, 800, 1344), [(800, 1344)])
    (ours,) = FixedAnchors()(images, maps)
    reference = AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    (theirs,) = reference(images, maps)
    count = maps[4][0].numel() * 3
    torch.testing.assert_close(ours[:-count], theirs[:-count])
    rows = (ours[-count:, 1] + ours[-count:, 3]) / 2
    assert rows.max() == 64 * 12
    assert (theirs[-count:, 1] + theirs[-count:, 3]).max() / 2 == 61 * 12


def test_anchors_and_outputs_are_fp32_under_autocast(drconv: Detector) -> None:
    maps = [torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)] * 5
    (anchors,) = FixedAnchors()(ImageList(torch.zeros(1, 3, 8, 8), [(8, 8)]), maps)
    assert anchors.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        (found,) = drconv(torch.randn(1, 3, 64, 64))
        outputs = drconv.roi_heads.box_predictor(torch.randn(2, 128))
    assert {x.dtype for name, x in found.items() if name != "labels"} == {torch.float32}
    assert {x.dtype for x in outputs} == {torch.float32}


def test_suppression_works_for_late_classes_under_autocast() -> None:
    """In half precision the offset of class 60, 60 x 1,334, is infinite, and nothing would be suppressed."""
    network = build()
    heads = network.roi_heads
    proposals = [torch.tensor([[100.0, 100, 300, 300], [101, 100, 300, 300]])]
    logits = torch.full((2, 91), -10.0)
    logits[:, 60] = 10
    with torch.autocast("cpu", torch.bfloat16):
        boxes, _, labels = heads.postprocess_detections(logits, torch.zeros(2, 91 * 4), proposals, [(800, 1334)])
    assert labels[0].tolist() == [60]
    assert boxes[0].dtype == torch.float32


def test_roi_align_reads_maps_at_their_own_scale() -> None:
    """torchvision takes the scales of the first batch: 1/2 for a first picture of 40 rows padded to 64."""
    pool = fixed_roi_align(7)
    maps = {str(i): torch.zeros(1, 1, 64 // s, 64 // s) for i, s in enumerate(STRIDES[:4])}
    pool(maps, [torch.tensor([[0.0, 0, 30, 30]])], [(40, 40)])
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@pytest.mark.parametrize("name", ["mask_rcnn_r50", "detnas_300m_fpn"])
def test_every_parameter_learns_with_and_without_objects(name: str) -> None:
    """A batch of empty pictures keeps all losses in the graph; crowds alone are such pictures."""
    network = build(name, "drconv")
    images = torch.randn(2, 3, 64, 64)
    for targets in ([objects(64, 64), nothing(64, 64)], [nothing(64, 64), nothing(64, 64)]):
        losses = network(images, [(64, 64), (48, 64)], targets)
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        assert not [key for key, p in network.named_parameters() if p.grad is None]
        network.zero_grad()


def test_anchors_in_the_padding_are_not_sampled() -> None:
    """The losses of the proposals do not see what lies beside the picture."""
    network = build()
    proposals = network.rpn
    images = ImageList(torch.zeros(1, 3, 64, 128), [(64, 64)])
    maps = {str(i): torch.randn(1, 32, -(-64 // s), -(-128 // s)) for i, s in enumerate(STRIDES)}
    seen: list[Tensor] = []
    original = proposals.compute_loss
    proposals.compute_loss = lambda s, d, labels, t: (seen.extend(labels), original(s, d, labels, t))[1]  # type: ignore[method-assign]
    boxes, _ = proposals(images, maps, [{"boxes": torch.tensor([[8.0, 8, 40, 40]])}])
    (anchors,) = proposals.anchor_generator(images, list(maps.values()))
    outside = (anchors[:, 0] + anchors[:, 2]) / 2 >= 64
    assert outside.any()
    assert set(seen[0][outside].tolist()) == {-1.0}
    assert boxes[0][:, 2].max() <= 64


def test_frozen_stages_do_not_change(drconv: Detector) -> None:
    network = build()
    names = list(network.state_dict())
    network.freeze_stages(2)
    body = network.backbone.body
    assert isinstance(body["layer1"][0].bn1, FrozenBatchNorm2d)
    assert isinstance(body["layer2"][0].bn1, nn.BatchNorm2d)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    sum(network(torch.randn(1, 3, 64, 64), None, [objects(64, 64)]).values()).backward()
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not value.equal(before[key])}
    frozen = {
        key for key in before if key.startswith(("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"))
    }
    assert not changed & frozen
    assert "backbone.body.layer2.0.conv1.weight" in changed
    assert names == list(before)
    with pytest.raises(ConfigError, match="only ResNet has such stages"):
        build("detnas_300m_fpn").freeze_stages(1)


def test_a_frozen_norm_is_the_norm_in_evaluation() -> None:
    """With the epsilon of batch norm: without it, a variance near 0 would give another function, or infinity."""
    network, x = build().eval(), torch.randn(1, 3, 32, 32)
    body = network.backbone.body
    for norm in (module for module in body.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_var.fill_(1e-5)
    torch.nn.init.constant_(body["conv1"].weight, 1e-4)
    expected = body["bn1"](body["conv1"](x))
    network.freeze_stages(1)
    torch.testing.assert_close(body["bn1"].train()(body["conv1"](x)), expected)


def test_heads_start_small() -> None:
    """As in the authors' code; torchvision's start of the boxes is 18 times as large."""
    predictor = build().roi_heads.box_predictor
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.2)
        assert layer.bias.eq(0).all()


def test_a_frozen_body_has_no_other_norms() -> None:
    """A norm frozen at its random start would be none: FPN and heads go without."""
    network = build(norm="frozen")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert network.backbone.fpn.inner_blocks[0][0].bias is not None


def test_the_body_is_torchvisions() -> None:
    """The same tensors by the same names as in torchvision's Mask R-CNN, and with width 1 the same FPN."""
    detector = DetectorConfig(norm="frozen")
    with torch.device("meta"):
        ours = models.create_model(ModelConfig("mask_rcnn_r50", detector=detector), 90, None).state_dict()
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, trainable_backbone_layers=5).state_dict()
    parts = ("backbone.", "rpn.", "roi_heads.mask_head", "roi_heads.box_predictor")
    expected = {key: x.shape for key, x in theirs.items() if key.startswith(parts) and "num_batches" not in key}
    found = {key: x.shape for key, x in ours.items() if key.startswith(parts) and "num_batches" not in key}
    assert found == expected


def test_the_stride_can_stand_in_the_first_1x1() -> None:
    for first in (False, True):
        block = build(stride_in_1x1=first).backbone.body["layer2"][0]
        assert (block.conv1.stride == (2, 2)) is first
        assert (block.conv2.stride == (2, 2)) is not first
