"""The configuration schema: every key a run can have, with its type, default and meaning.

This module never imports torch, so that a mistyped key fails in half a second and not after seconds of imports.
Hydra composes the files of ``configs/`` under this schema; ``drconv.config_check`` holds the rules across keys.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DRConvConfig:
    """Options of ``DRConv2d`` and of its guide; used where ``model.conv=drconv``.

    The defaults are the form that trains (D11); ``experiment=small/inside/printed`` lists what the printed form sets.
    """

    regions: int = 8  # m, the number of filters per image
    generator: str = "grouped"  # grouped: the paper's two layers; experts: the authors' released code (D1)
    hidden: int | None = None  # grouped: hidden width of the generator, null for m (D1)
    experts: int = 8  # experts: number of shared filters that are mixed
    generator_bias: bool = False  # grouped: bias in the generator's second layer, W = s V + U (D1, D11)
    scale: bool = True  # grouped: false drops the generator's sigmoid, so that W = V for every image
    init_noise: float = (
        0.1  # spread of the filters over the regions at the start, as a share of the filter's own spread
    )
    init_gain: float | None = None  # standard deviation of a filter over the usual one; null for 1/sqrt(m)
    filter_sharing: float = 0.9  # share of all regions' filter gradients in a region's own; 0 as printed (D11)
    filter_sharing_end: float | None = None  # the share that it reaches linearly at the end; null for a constant one
    generator_gradient: float = 0.1  # factor on the gradient of the generator's first layer; 1 as printed (D11)
    guide: str = "block"  # block: one 1x1 guide for all DRConvs of a block; own: one k x k guide per DRConv (D2)
    guide_stride: int = 1  # the guide is computed at 1/guide_stride of the resolution, then resized (nearest)
    guide_norm: str = "none"  # none: as printed; scale: one scale for all logits; batch: batch norm without affine
    guide_gradient: float = 1.0  # factor on the gradient that reaches the guide (the released code's beta)
    feature_gradient: float = 1.0  # factor on the part of that gradient which flows on into the features
    guide_frozen: bool = False  # true: the guide stays at its random start
    balance_loss: float = 0.0  # weight of the auxiliary loss that spreads the pixels over the regions
    z_loss: float = 0.0  # weight of the auxiliary loss on the squared log-partition of the guide's logits
    soft_until: float = 0.0  # share of the training in which outputs mix all regions by the softmax (m convolutions)
    error_loss: float = 0.0  # weight of the routing loss that judges a choice by the error (Spatial Mixture-of-Experts)
    error_damping: float = 1.0  # factor on the gradient of positions that it judges badly routed
    groups: int = 1  # channel groups of the 1x1 convolutions (2 in the rows marked *, decision D4)


@dataclass
class CondConvConfig:
    """Options of ``CondConv2d``; used where ``model.conv=condconv``."""

    experts: int = 8  # number of filters that are mixed for each image
    routing: str = "block"  # block: the convolutions of a block share one routing; own: one routing each


@dataclass
class DetectorConfig:
    """Options of the detectors; used where ``task.name=detection``."""

    masks: bool = True  # a mask head beside the box head
    norm: str = "batch"  # batch: in body, FPN and heads (runtime.sync_bn: of all devices); frozen: a constant body
    frozen_stages: int = 2  # first stages of ResNet that do not learn, where backbone= or weights= is given
    rois: int = 512  # sampled regions a picture in training
    stride_in_1x1: bool = False  # ResNet's stride in the first 1x1, as the weights of its authors need it


@dataclass
class ModelConfig:
    """The network, and the convolution that replaces some of its own."""

    name: str = MISSING  # the plain network: shufflenetv2, mobilenetv1, mobilenetv2, ...
    width: float = 1.0  # factor on the channels
    stem: str = "auto"  # imagenet: as published; small: stride 1, no pooling; auto: small up to 64 pixels
    dropout: float | None = None  # before the classifier; null for the network's own rate
    conv: str = "standard"  # standard, drconv, condconv, local, deformable
    layers: list[str] | None = None  # patterns of the layers to replace; null for the paper's (D3)
    drconv: DRConvConfig = field(default_factory=DRConvConfig)
    condconv: CondConvConfig = field(default_factory=CondConvConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)


@dataclass
class AugmentConfig:
    """Training augmentation. Evaluation resizes the shorter side to ``data.eval_resize`` and crops the centre."""

    crop: str = "random_resized"  # random_resized; pad: pad by crop_padding and crop; none: resize and centre crop
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # share of the picture's area
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # its width over its height
    crop_padding: int = 4  # crop=pad: pixels on each side
    flip: float = 0.5  # probability of a horizontal flip
    jitter: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # brightness, contrast, saturation
    rotate: float = 0.0  # degrees, either way
    autoaugment: bool = False  # classification: a policy of AutoAugment for ImageNet, drawn for each picture


@dataclass
class FacesConfig:
    """Data of task.name=identification; folders are below ``data.root`` and hold one folder for each identity."""

    probes: str | None = None  # folder of the probes
    distractors: str | None = None  # folder of the distractors
    held_out: float = 0.0  # share of the training folder's identities that are not trained on and are the probes
    verification: list[str] = field(default_factory=list)  # names of .bin files below root: lfw, cfp_fp, agedb_30
    window: list[int] | None = None  # rows, columns around the centre that show the face; null for aligned pictures
    flip_test: bool = False  # rank-1 from the sum of a picture's embedding and its mirror's
    identities: int = 100  # generated_faces: to train on; a quarter as many to test with, 5 times as many distractors
    each: int = 20  # generated_faces: training pictures of an identity


@dataclass
class CocoConfig:
    """What only detection needs of its data; used where ``task.name=detection``."""

    layout: str = "2017"  # train2017/, val2017/; 2014: the paper's trainval35k and minival on train2014/, val2014/
    sizes: list[int] = field(default_factory=lambda: [800])  # pixels of the shorter side; training draws one of them
    max_size: int = 1333  # pixels that the longer side may have
    keep_empty: bool = False  # train on pictures without a box, too
    exif: bool = False  # turn pictures as their EXIF tag says; COCO's boxes refer to the stored pixels
    seen: bool = (
        False  # evaluate on the training pictures too, as the set "seen": how much a small set is learned by heart
    )


@dataclass
class DataConfig:
    """Pictures: where they are and how the network sees them."""

    name: str = MISSING  # of pictures: digits, imagefolder, imagenet, generated; of faces: generated_faces,
    # face_folders, ms1mv2; of objects: coco, scenes
    root: str | None = None  # folder of the data, for all but embedded and generated ones
    train_split: str = "train"  # folder of the training pictures below root
    val_split: str = "val"  # folder of the pictures to evaluate on
    num_classes: int | None = None  # null: counted in the data; a number is checked against the data
    image_size: int = 224  # pixels, the side of the square the network sees
    eval_resize: int = 256  # pixels of the shorter side before the centre crop
    interpolation: str = "bilinear"  # bilinear, bicubic
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    channel_order: str = "rgb"  # rgb, bgr
    mean: list[float] = field(
        default_factory=lambda: [123.675, 116.28, 103.53]
    )  # of pixels in 0..255, in channel_order
    std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])  # as mean; pixels become (x - mean) / std
    in_memory: bool = False  # pictures of one size are decoded once and kept, for sets such as CIFAR-10
    holdout: float = 0.0  # share of the training set that is cut off and evaluated on instead of val (for choosing)
    max_pixels: int = 67_108_864  # a picture with more is broken; 200 MB once decoded
    broken: str = "error"  # a picture that does not decode: error, or skip (counted and logged)
    fraction: float = 1.0  # share of the training pictures that is used
    num_generated: int = 512  # generated: pictures per split
    faces: FacesConfig = field(default_factory=FacesConfig)
    coco: CocoConfig = field(default_factory=CocoConfig)


@dataclass
class GroupConfig:
    """Parameters with a learning rate or weight decay of their own; the first group that a name matches counts."""

    match: str = MISSING  # pattern of parameter names, such as "network.embedding.*"; * stands for any text
    lr: float = 1.0  # factor on the learning rate
    weight_decay: float | None = None  # null for what optimizer.decay says


@dataclass
class OptimizerConfig:
    """SGD, or TensorFlow's form of RMSprop."""

    name: str = "sgd"  # sgd, rmsprop
    lr: float = MISSING  # at the recipe's batch size; never rescaled behind the user's back
    momentum: float = 0.9  # share of the last step that is taken again
    nesterov: bool = False  # sgd: true takes the gradient after the momentum's step
    eps: float = 1.0  # rmsprop: added to the mean square below the root
    weight_decay: float = 4e-5  # pull of the weights towards 0, added to the gradient
    decay: str = "matrices"  # matrices: weights with more than one dimension (the original's rule); all: everything
    guide_lr: float = 1.0  # factor on the learning rate of the guides
    guide_weight_decay: float | None = None  # null for weight_decay
    groups: list[GroupConfig] = field(default_factory=list)  # parameters with a rate or decay of their own


@dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    name: str = "linear"  # linear (to 0), cosine (to 0), multistep, exponential, constant
    milestones: list[int] = field(default_factory=list)  # multistep: steps at which the rate is multiplied by gamma
    gamma: float = 0.1  # multistep: factor at each milestone; exponential: after each interval
    interval: int | None = None  # exponential: steps after which the rate is multiplied by gamma
    warmup_steps: int = 0  # steps at the start in which the rate grows
    warmup_factor: float = 0.0  # the rate's factor at step 0, linear to 1 at warmup_steps


@dataclass
class ClassificationConfig:
    """Options of task.name=classification."""

    label_smoothing: float = 0.0  # share of each label that is spread over all classes
    mixup: float = 0.0  # alpha of the Beta distribution by which pictures of a batch are mixed in pairs; 0: not mixed


@dataclass
class IdentificationConfig:
    """Options of task.name=identification."""

    margin_loss: str = "am_softmax"  # am_softmax, cosface, arcface
    scale: float = 30.0  # on the cosines (D6)
    margin: float = 0.35  # of the cosine; for arcface of the angle, in radians (D6)


@dataclass
class TaskConfig:
    """What is learned and how it is measured; a task's options lie in the section of its name."""

    name: str = "classification"  # classification, identification (faces), detection, or one of task.module
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)
    identification: IdentificationConfig = field(default_factory=IdentificationConfig)
    module: str | None = None  # Python module that registers a task from outside the package
    options: Any = None  # a dictionary, of a task from outside, which checks them itself


@dataclass
class RecipeConfig:
    """Length, batch, optimiser and schedule."""

    name: str = MISSING  # as the run's first lines call it
    note: str | None = None  # one line printed when the run starts
    steps: int | None = None  # length of the run; give steps or epochs
    epochs: float | None = None  # passes over the training pictures, instead of steps
    batch_size: int = MISSING  # of one step over all devices, accumulation included
    eval_batch_size: int = 200  # per device
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    freeze: list[str] = field(default_factory=list)  # patterns of parameters that do not learn, as network.stage2.*
    clip_norm: float | None = None  # longest gradient; null: not cut
    ema_decay: float | None = None  # averaged weights with this decay a step are kept and reported; null: none
    bn_reestimation_steps: int = 0  # training batches over which BN statistics are averaged again at the end


@dataclass
class RuntimeConfig:
    """Where and how fast a run computes."""

    device: str = "auto"  # auto, cpu, cuda
    devices: int = 1  # ranks on this machine
    accumulate: int = 1  # micro-batches per step; the global batch stays the same
    precision: str = "fp32"  # fp32, bf16, fp16
    channels_last: bool = True  # memory format of pictures and filters; the faster one
    compile: bool = False  # torch.compile; needs logging.region_usage=false with DRConv
    sync_bn: bool = False  # batch norms over all devices
    deterministic: bool = False  # the same bits again on a GPU, slower
    workers: int = 2  # loader processes per device
    threads: int | None = None  # CPU threads per rank; null: cores / devices
    kernel: str | None = None  # reference, torch, cpu, triton; null: chosen for the device
    timeout: int = 600  # seconds a rank waits for the others
    dry_run: bool = False  # build everything, three steps, one evaluation batch, projected time; saves nothing


@dataclass
class LoggingConfig:
    """What a run says and keeps."""

    every: int = 50  # steps between progress lines and metrics.jsonl entries
    eval_every: int | None = None  # steps; null: at the end only
    checkpoint_every: int = 1000  # steps between resume states
    region_usage: bool = True  # log what guides and generators do: usage, spreads, scale range, gradient norms by part
    wandb: str = "auto"  # auto: online with a key, offline without; online, offline, disabled
    project: str = "drconv"  # of W&B
    tensorboard: bool = False  # the same numbers below the run's tensorboard/; pip install 'drconv[tensorboard]'


@dataclass
class ExperimentConfig:
    """What a row of a table claims; filled by the files of ``configs/experiment/``, whose path is the id.

    The printed number is in ``results/paper.yaml`` alone.
    """

    id: str | None = None  # table1/drconv_shufflenetv2_0.5x; filled from the choice
    same_as: str | None = None  # the experiment whose run this row shows: that one is trained in its place
    metric: str | None = None  # null for the task's headline; another one as <evaluation set>/<name>
    tolerance: float | None = None  # of the difference to the printed number, in the metric's unit
    decisions: list[str] = field(default_factory=list)  # ids of docs/deviations.md in force
    note: str | None = None  # one line


@dataclass
class Config:
    """A run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    seed: int = 0  # of first weights, order, augmentation and dropout
    overwrite: bool = False  # redo a finished run, or one that does not fit; one that was stopped continues
    weights: str | None = None  # safetensors file: training starts from it, eval.py evaluates it
    backbone: str | None = None  # weights file: training starts from those tensors that fit, and lists the others
    outputs: str = "outputs"  # folder of the run folders
    run: str | None = None  # the run's folder; null for a name made of the choices and overrides, below outputs
