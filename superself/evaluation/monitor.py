"""What is measured at the end of every epoch: are the features alive, and do they help? It only watches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from superself.basics.random import preserve_random_state
from superself.data import Preprocessing, open_images
from superself.evaluation.collapse import effective_rank, feature_std
from superself.evaluation.extraction import features
from superself.evaluation.knn import knn_accuracy
from superself.networks import CombinedNet
from superself.networks.modes import batch_statistics, device_of, evaluation_mode

COLLAPSED = 0.02  # share of the evenly spread standard deviation below which features count as constant
SETTLED = 0.35  # share of the run after which a loss at chance is worth a sentence
AT_CHANCE = 0.02  # how near to the chance loss, as a share of it, counts as being there


class FeatureMonitor:
    """Measures features on a fixed batch, and kNN accuracy on a labelled pair; changes no weight and no random state.

    Args:
        images: the fixed batch (B, C, H, W), as stored.
        probe: (labelled_train, labelled_test) or None.
        probe_every: epochs from one probe to the next.
        autocast: entered while the fixed batch runs through the backbone, so that it costs what a step costs.
    """

    def __init__(
        self,
        images: Tensor,
        probe: tuple[Any, Any] | None = None,
        probe_every: int = 1,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self.images, self.probe_every, self.autocast = images, probe_every, autocast
        self.probe = None if probe is None else tuple(open_images(dataset) for dataset in probe)
        self._said: set[str] = set()

    def measure(self, model: CombinedNet, preprocessing: Preprocessing, epoch: int) -> dict[str, float]:
        """Feature std (beside 1/sqrt(D)), effective rank, and after every ``probe_every`` epochs the kNN accuracy."""
        with preserve_random_state():
            y = self._features(model, preprocessing)  # (B, D)
            row = {
                "feature_std": feature_std(y),
                "even_std": 1 / math.sqrt(y.shape[1]),
                "effective_rank": effective_rank(y),
            }
            if self.probe is not None and epoch % self.probe_every == 0:
                train, test = (features(model.backbone, part, preprocessing=preprocessing) for part in self.probe)
                row["knn"] = knn_accuracy(train, test)
        return row

    @torch.no_grad()
    def _features(self, model: CombinedNet, preprocessing: Preprocessing) -> Tensor:
        with evaluation_mode(model.backbone), batch_statistics(model.backbone), self.autocast():
            return model.features(preprocessing(self.images.to(device_of(model.backbone)))).float().cpu()

    def verdicts(self, row: dict[str, Any], share_done: float, likely_causes: tuple[str, ...]) -> list[str]:
        """Sentences on what looks wrong after this epoch, each said once a run."""
        causes = "; ".join(likely_causes)
        found = {}
        if row["feature_std"] < COLLAPSED * row["even_std"]:
            found["collapse"] = (
                f"The features collapse: on a fixed batch their standard deviation is {row['feature_std']:.5f}, spread evenly "
                f"it would be {row['even_std']:.3f}, so all images look alike to the backbone. Likely causes: {causes}."
            )
        chance = row["chance_loss"]
        if chance is not None and share_done >= SETTLED and row["loss"] > chance - AT_CHANCE * abs(chance):
            found["chance"] = (
                f"After {share_done:.0%} of the run the loss is {row['loss']:.3f}, where knowing nothing gives {chance:.3f}: "
                f"nothing has been learnt yet. Likely causes: {causes}."
            )
        new = [sentence for kind, sentence in found.items() if kind not in self._said]
        self._said.update(found)
        return new
