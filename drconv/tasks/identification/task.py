"""The task of Table 2: a margin softmax over the training identities, rank-1 and verification on others."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drconv import distributed
from drconv.config import Config
from drconv.data import prepare
from drconv.errors import ConfigError, DataError
from drconv.interfaces import Batch, Dataset, Facts, Outputs, Task
from drconv.tasks.identification.data import Gallery, Pairs, evaluation_faces, train_faces
from drconv.tasks.identification.head import MarginHead
from drconv.tasks.identification.margins import expected_first_loss, least_scale
from drconv.tasks.identification.rank import normalise, rank1
from drconv.tasks.identification.verification import drawn_pairs, verify

logger = logging.getLogger(__name__)

DRAWN_PAIRS = 6000


class Embeddings:
    """Embeddings of this rank's samples, plain and of the mirrored picture."""

    def __init__(self, dataset: Dataset, flip_test: bool) -> None:
        self.dataset = dataset
        self.flip_test = flip_test
        self._indices: list[Tensor] = []
        self._plain: list[Tensor] = []
        self._mirrored: list[Tensor] = []

    def update(self, indices: Tensor, plain: Tensor, mirrored: Tensor | None) -> None:
        self._indices.append(indices.cpu())
        self._plain.append(plain.float().cpu())
        if mirrored is not None:
            self._mirrored.append(mirrored.float().cpu())

    def compute(self) -> dict[str, float]:
        """The numbers; none where samples are missing, as in a dry run."""
        found = distributed.all_reduce(torch.tensor(sum(map(len, self._indices))))
        if found < len(self.dataset):
            return {}
        return self._gallery(self.dataset) if isinstance(self.dataset, Gallery) else self._pairs()

    def _gallery(self, gallery: Gallery) -> dict[str, float]:
        """Only the probes travel between the ranks."""
        indices, features = torch.cat(self._indices), self._summed()
        is_probe = indices < gallery.num_probes
        probes = normalise(self._everywhere(indices[is_probe], features[is_probe]), "probes")
        distractors = normalise(features[~is_probe].numpy(), "distractors")
        places = (indices[~is_probe] - gallery.num_probes).numpy()
        total = len(gallery) - gallery.num_probes
        sizes = [size for size in (10**k for k in range(1, 7)) if size < total] + [total]
        result = rank1(probes, gallery.identities, distractors, sizes, places)
        positions, same = drawn_pairs(gallery.identities, DRAWN_PAIRS)
        verified: dict[str, float] = {}
        if len(same) >= 2:  # probes of one identity make no pair of two
            verified["accuracy"] = verify(probes[positions[:, 0]], probes[positions[:, 1]], same).accuracy
        growing = {f"rank1_at_{size}": value for size, value in result.by_size().items() if size != total}
        return {"rank1": result.rank1, **growing, **verified, "trials": result.trials, "distractors": total}

    def _pairs(self) -> dict[str, float]:
        assert isinstance(self.dataset, Pairs)
        indices = torch.cat(self._indices)
        plain = self._everywhere(indices, torch.cat(self._plain))
        summed = plain + self._everywhere(indices, torch.cat(self._mirrored))
        both, single = (verify(rows[0::2], rows[1::2], self.dataset.same) for rows in (summed, plain))
        found = {
            "accuracy": both.accuracy,
            "std": both.std,
            "worst_fold": min(both.folds),
            "accuracy_plain": single.accuracy,
            "threshold_distance": both.threshold,
            "threshold_cosine": both.cosine,
            "pairs": len(self.dataset.same),
        }
        return found if both.rate is None else {**found, "tar_at_far_0.001": both.rate}

    def _summed(self) -> Tensor:
        plain = torch.cat(self._plain)
        return plain + torch.cat(self._mirrored) if self.flip_test else plain

    def _everywhere(self, indices: Tensor, rows: Tensor) -> NDArray[np.float32]:
        """The rows of all ranks in the order of their indices."""
        order = torch.cat(distributed.all_gather_tensors(indices)).argsort()
        return torch.cat(distributed.all_gather_tensors(rows))[order].numpy()


def _check_scale(scale: float, num_classes: int) -> None:
    needed = least_scale(num_classes) if num_classes > 1 else 0.0
    if scale < needed:
        logger.warning(
            "task.identification.scale=%g is too small for %d classes: the true class cannot reach a probability of "
            "0.9 below %.1f",
            *(scale, num_classes, needed),
        )


class Identification(Task[Embeddings]):
    """Batches hold ``image`` (B, 3, 112, 96) uint8 RGB, ``label`` (B) and ``index`` (B)."""

    def __init__(self, network: nn.Module, config: Config, facts: Facts) -> None:
        super().__init__(network, config, facts)
        options = config.task.identification
        width = getattr(network, "embedding_size", None)
        if width is None:
            raise ConfigError(f"model={config.model.name} gives no embeddings; task.name=identification needs one")
        self.options, self.width = options, width
        self.data, self.channels_last = config.data, config.runtime.channels_last
        self.head: MarginHead | None = None
        if facts.num_outputs is not None:  # in eval.py there are no classes
            _check_scale(options.scale, facts.num_outputs)
            self.head = MarginHead(
                facts.num_outputs, width, options.margin_loss, options.scale, options.margin, config.seed
            )

    @staticmethod
    def train_set(config: Config) -> Dataset:
        return train_faces(config.data)

    @staticmethod
    def evaluation_sets(config: Config) -> dict[str, Dataset]:
        return dict(evaluation_faces(config.data))

    def forward(self, batch: Batch) -> Outputs:
        if self.head is None:
            raise DataError("a task built without a training set has no margin head")
        embeddings = self.network(self._images(batch))
        loss, watched = self.head(embeddings, batch["label"])
        return Outputs({self.options.margin_loss: loss}, watched)

    def new_metric(self, device: torch.device, dataset: Dataset) -> Embeddings:
        return Embeddings(dataset, self.data.faces.flip_test)

    def evaluate(self, batch: Batch, metric: Embeddings) -> None:
        images = self._images(batch)
        mirrors = isinstance(metric.dataset, Pairs) or metric.flip_test
        mirrored = self.network(images.flip(-1)) if mirrors else None
        metric.update(batch["index"], self.network(images), mirrored)

    def sharded_parameters(self) -> set[str]:
        return set() if self.head is None else {"head.weight"}

    def expected_first_loss(self) -> float | None:
        if self.head is None:
            return None
        options = self.options
        return expected_first_loss(
            self.head.num_classes, self.width, options.scale, options.margin, options.margin_loss
        )

    def _images(self, batch: Batch) -> Tensor:
        device = next(self.network.parameters()).device
        return prepare({"image": batch["image"]}, self.data, device, self.channels_last)["image"]
