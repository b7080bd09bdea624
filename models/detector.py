"""The two-stage detector: torchvision's proposals and heads on a pyramid of maps, made repeatable.

What torchvision infers from a batch is fixed here, because a picture's result must not depend on its neighbours: the
strides of the anchors (torchvision divides the padded size by the map's: 61 where the stride is 64), the scales of
RoIAlign (taken from the first batch ever seen), and the place among the best proposals (which anchors in the padding
compete for). Evaluation takes one picture at a time, padded as if it were alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from drconv.nn import pool_inside

STRIDES = (4, 8, 16, 32, 64)  # of the pyramid's maps P2 to P6
ANCHORS = (32, 64, 128, 256, 512)  # side in pixels, one a map
RATIOS = (0.5, 1.0, 2.0)  # height / width
PADDING = 32  # pictures are padded to multiples of it
POOLED = ("0", "1", "2", "3")  # the maps that RoIAlign reads, P2 to P5

Size = tuple[int, int]
Target = dict[str, Tensor]
Detections = dict[str, Tensor]
Norm = Callable[[int], nn.Module] | None


class Detector(nn.Module):
    """Faster R-CNN, or Mask R-CNN, on a network that gives maps "0" to "3" and "pool" at strides 4 to 64.

    The box head is 4conv1fc. Everything from the heads' outputs on (decoding, NMS, losses) is fp32, under autocast too.

    Args:
        backbone: pictures (B, 3, H, W) to the maps, each with ``channels`` channels.
        channels: C.
        num_classes: K, without background.
        rois: sampled regions a picture in training.
        with_masks: whether there is a mask head.
        norm: makes the norms of the heads from a number of channels; None for none.
        representation: width of the box head's last layer.
    """

    backbone_prefix = "backbone.body."  # of the part that backbone= fills
    replaceable_layers: list[str]

    def __init__(
        self,
        backbone: Any,
        channels: int,
        num_classes: int,
        *,
        rois: int = 512,
        with_masks: bool = True,
        norm: Norm = None,
        representation: int = 1024,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.with_masks = with_masks
        self.rpn = Proposals(FixedAnchors(), PreciseRPNHead(channels, len(RATIOS)))
        heads = {}
        if with_masks:
            heads = {
                "mask_roi_pool": fixed_roi_align(14),
                "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1, norm_layer=norm),
                "mask_predictor": PreciseMaskPredictor(channels, channels, num_classes + 1),
            }
        self.roi_heads = RoIHeads(
            fixed_roi_align(7),
            FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [representation], norm_layer=norm),
            PreciseBoxPredictor(representation, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=rois,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            **heads,
        )

    def freeze_stages(self, stages: int) -> None:
        """See ``Pyramid.freeze_stages``."""
        self.backbone.freeze_stages(stages)

    def forward(
        self, images: Tensor, sizes: list[Size] | None = None, targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, detections in evaluation.

        Args:
            images: normalised (B, 3, H, W), zero in the padding to the right and below.
            sizes: rows and columns of each picture; None where nothing is padded.
            targets: in training, for each picture boxes (n, 4) as x1, y1, x2, y2 in pixels, labels (n,) from 1, and
                with a mask head masks uint8 (n, H', W') of the picture's size or larger.

        Returns:
            In training the losses by name. In evaluation for each picture boxes (n, 4) and scores (n,), labels (n,),
            and with a mask head masks (n, 1, 28, 28), probabilities within the boxes.
        """
        sizes = [(images.shape[2], images.shape[3])] * len(images) if sizes is None else sizes
        if self.training:
            if targets is None:
                raise ValueError("a detector in training needs targets")
            return self._run(images, sizes, targets)[1]
        alone = (self._run(pad_alone(x, size), [size], None)[0] for x, size in zip(images, sizes, strict=True))
        return [detections[0] for detections in alone]

    def _run(
        self, images: Tensor, sizes: list[Size], targets: list[Target] | None
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        with pool_inside(self.backbone, sizes, (images.shape[2], images.shape[3])):
            maps = self.backbone(images)
        proposals, losses = self.rpn(ImageList(images, sizes), maps, targets)
        detections, head_losses = self.roi_heads(maps, proposals, sizes, targets)
        return detections, {**losses, **head_losses}


def pad_alone(image: Tensor, size: Size) -> Tensor:
    """A picture (3, H, W) of a padded batch as a batch of its own (1, 3, H', W'), in multiples of ``PADDING``."""
    rows, columns = (-(-side // PADDING) * PADDING for side in size)
    image = image[None, :, :rows, :columns]
    missing = rows - image.shape[2], columns - image.shape[3]
    return nn.functional.pad(image, (0, missing[1], 0, missing[0])) if any(missing) else image


class FixedAnchors(AnchorGenerator):
    """Anchors in fp32 at the pyramid's own strides, whatever the padded size and the maps' type."""

    def __init__(self) -> None:
        super().__init__(tuple((size,) for size in ANCHORS), (RATIOS,) * len(ANCHORS))

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [list(x.shape[-2:]) for x in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in STRIDES]))  # type: ignore[list-item]
        return [anchors] * len(image_list.image_sizes)


class Proposals(RegionProposalNetwork):
    """torchvision's RPN, in which anchors outside the picture, in its padding, take no part.

    An anchor belongs to the padding if its centre does. It is never proposed, and in training neither a background
    sample nor, unless it fits a box best, an object.
    """

    def __init__(self, anchors: AnchorGenerator, head: nn.Module) -> None:
        super().__init__(
            anchors,
            head,
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
            score_thresh=torch.finfo(torch.float32).tiny,  # all but those whose score was set to 0
        )

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        maps = list(features.values())
        level_scores, level_deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        counts = [x[0].numel() for x in level_scores]
        scores, deltas = concat_box_prediction_layers(level_scores, level_deltas)
        inside = torch.stack([contains(size, box) for size, box in zip(images.image_sizes, anchors, strict=True)])
        decoded = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        ranked = scores.detach().view_as(inside).masked_fill(~inside, -torch.inf)
        boxes, _ = self.filter_proposals(decoded, ranked, images.image_sizes, counts)
        if targets is None:
            return boxes, {}
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        labels = [x.masked_fill((x == 0) & ~is_inside, -1.0) for x, is_inside in zip(labels, inside, strict=True)]
        objectness, regression = self.compute_loss(scores, deltas, labels, self.box_coder.encode(matched, anchors))
        return boxes, {"loss_objectness": objectness, "loss_rpn_box_reg": regression}


def contains(size: Size, boxes: Tensor) -> Tensor:
    """Whether the centres of boxes (n, 4) lie in a picture."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (centres[:, 0] < size[1]) & (centres[:, 1] < size[0])


def fixed_roi_align(side: int) -> MultiScaleRoIAlign:
    """RoIAlign to side x side that reads P2 to P5 at their own scales."""
    pool = MultiScaleRoIAlign(list(POOLED), side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES[:4]]
    pool.map_levels = initLevelMapper(2, 5, canonical_scale=224, canonical_level=4)
    return pool


class PreciseRPNHead(RPNHead):
    """torchvision's head; its outputs are fp32, because boxes are decoded from them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(x)
        return [y.float() for y in scores], [y.float() for y in deltas]


class PreciseBoxPredictor(FastRCNNPredictor):
    """torchvision's predictor with outputs in fp32, and the start of the R-CNN authors: N(0, 0.01) for the classes,
    N(0, 0.001) for the boxes, zero biases."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


class PreciseMaskPredictor(MaskRCNNPredictor):
    """torchvision's predictor with outputs in fp32."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()
