"""FeatureMonitor: measures features and embeddings after every epoch, and says when they collapse or diverge."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from superself.augment import recipe
from superself.basics.random import preserve_random_state
from superself.data import Preprocessing
from superself.evaluation.collapse import effective_rank, feature_rms, feature_std, mean_cosine
from superself.networks import pool_features
from superself.networks.modes import batch_statistics, device_of, evaluation_mode
from superself.training.trackers import Tracker

Embed = Callable[[Tensor], Tensor | None]

# Limits were chosen on CIFAR-10, where collapsed embeddings have 0.2 to 8 % of the uniform std and healthy ones 23 to 85 %.
# Features of networks without batch norm share a large mean that the heads remove: 5 % can be healthy.
COLLAPSED = {"feature": 0.03, "embedding": 0.1}  # shares of the uniform std
FALLEN = 0.25  # share of the initial std, as networks without norm layers start at a few percent of the uniform one
EXTREME = 0.25  # of these limits: low enough to report after the last epoch alone
RECOVERY = 0.1  # share of its value by which a std must rise within an epoch to count as recovery
EXPLODED = 1000.0  # times the initial root mean square, or times 1 where that was smaller
SETTLED = 0.35  # share of the run after which a loss at chance level is reported
FEWEST_STEPS = 50  # of a run before its loss is judged
AT_CHANCE = 0.02  # a loss within this share of the chance level, or above it, counts as at chance

MEANING = {
    "feature": "the backbone gives nearly the same features for every image",
    "embedding": "the loss compares nearly identical vectors and can look good although the backbone learns nothing",
}


class FeatureMonitor:
    """Measures features and embeddings on a fixed batch.

    Each of "feature" (output of the exported backbone) and "embedding" (what the loss compares) has these values:

    * ``_std``: standard deviation over the images of the L2-normalised vectors, averaged over the dimensions;
    * ``_std_uniform``: 1 / sqrt(D), its value for vectors that are uniform on the sphere. ``spread(row)`` is the ratio of
      the two: 100% is uniform, 0% means that all images have the same vector. Healthy embeddings stay above 20%;
    * ``_rank``: how many directions the vectors use, from 1 to D (``effective_rank``);
    * ``_cosine`` (features only): mean cosine between two images; about 1 - spread^2;
    * ``_rms``: root mean square of the raw values, which grows by orders of magnitude when training diverges.

    Measuring changes nothing: no weight, running average, module mode or random state. Batch norms use the statistics of
    the fixed batch, because running averages lag behind the weights early in a run.

    Args:
        images: the fixed batch (B, C, H, W), as stored.
        autocast: entered for the fixed batch, so that it runs at the precision of training.
    """

    def __init__(
        self,
        images: Tensor,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self.images, self.autocast = images, autocast
        self._initial: dict[str, float] = {}
        self._suspects: dict[str, float] = {}  # problem of the last epoch -> how bad it was
        self._reported: set[str] = set()

    def baseline(
        self, network: nn.Module, preprocessing: Preprocessing, embed: Embed | None = None
    ) -> dict[str, float]:
        """Measures before the first step and keeps the values, which ``verdicts`` compares later ones with."""
        self._initial = self.measure(network, preprocessing, embed)
        return dict(self._initial)

    def measure(self, network: nn.Module, preprocessing: Preprocessing, embed: Embed | None = None) -> dict[str, float]:
        """The values listed above; NaN where vectors are not finite.

        Args:
            network: the exported backbone.
            preprocessing: what it expects.
            embed: from preprocessed images (B, C, H, W) to embeddings (B, E) or None: a module, or a method of one.
        Raises:
            TypeError: if ``embed`` is neither, because its modules could not be put into evaluation mode.
        """
        with preserve_random_state(), torch.no_grad(), _measuring(network, embed), self.autocast():
            images = preprocessing(self.images.to(device_of(network)))  # (B, C, H, W)
            vectors = {"feature": pool_features(network(images)), "embedding": embed(images) if embed else None}
        row = {}
        for kind, values in vectors.items():
            if values is not None:
                row |= _described(kind, values.float().cpu())
        return row

    def verdicts(self, row: dict[str, Any], share_done: float, likely_causes: tuple[str, ...]) -> list[str]:
        """Sentences about what looks wrong; each problem is reported once per run.

        A collapse, or a loss at chance level or above it, is reported after two such epochs in a row, unless the second is
        better than the first. After the last epoch one is enough, if the collapse is extreme. Vectors that are not finite or
        have exploded are reported at once.

        Args:
            row: what ``measure`` returned, with "loss" and "chance_loss" (None where there is none). Call once per epoch.
            share_done: finished share of the run; 1 after the last epoch.
            likely_causes: the algorithm's, the most likely first.
        """
        last = share_done >= 1
        found = {}
        for kind in ("feature", "embedding"):
            if f"{kind}_std" not in row:
                continue
            if not math.isfinite(row[f"{kind}_std"]):
                found[f"{kind} not finite"] = f"The {kind}s contain NaN or infinity: training has diverged."
            elif self._exploded(row, kind):
                found[f"{kind} explosion"] = self._explosion(row, kind)
            std = row[f"{kind}_std"]
            confirmed = self._confirmed(f"{kind} collapse", self._collapsed(row, kind), -std, RECOVERY * std)
            if confirmed or (last and self._collapsed(row, kind, EXTREME)):
                found[f"{kind} collapse"] = self._collapse(row, kind)
        loss, chance = row.get("loss"), row.get("chance_loss")
        margin = AT_CHANCE * abs(chance or 0)
        at_chance = None not in (loss, chance) and loss > chance - margin
        if (self._confirmed("chance", at_chance, loss, margin) or (last and at_chance)) and share_done >= SETTLED:
            when = "At the end of the run" if last else f"After {share_done:.0%} of the run"
            found["chance"] = (
                f"{when} the loss is {loss:.4g}, no better than chance level ({chance:.4g}): "
                "the network has not learned its task yet."
            )
        causes = f" Likely causes: {'; '.join(likely_causes)}." if likely_causes else ""
        new = [sentence + causes for problem, sentence in found.items() if problem not in self._reported]
        self._reported.update(found)
        return new

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the initial measurements, what waits to be confirmed, and what has been reported."""
        return {"initial": dict(self._initial), "suspects": dict(self._suspects), "reported": sorted(self._reported)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``; ``baseline`` is not called again in a resumed run."""
        self._initial, self._suspects = dict(state["initial"]), dict(state["suspects"])
        self._reported = set(state["reported"])

    def _confirmed(self, problem: str, present: bool, badness: float, tolerance: float = 0.0) -> bool:
        """Whether the last epoch had the problem too, and it has not become better since by more than ``tolerance``."""
        before = self._suspects.pop(problem, None)
        if present:
            self._suspects[problem] = badness
        return present and before is not None and badness >= before - tolerance

    def _before(self, key: str, default: float) -> float:
        """The value before the first step, or ``default`` where it was not measured or was not finite."""
        value = self._initial.get(key, default)
        return value if math.isfinite(value) else default

    def _collapsed(self, row: dict[str, Any], kind: str, factor: float = 1.0) -> bool:
        std, uniform = row[f"{kind}_std"], row[f"{kind}_std_uniform"]
        initial = self._before(f"{kind}_std", uniform)
        return std < factor * min(COLLAPSED[kind] * uniform, FALLEN * initial)

    def _exploded(self, row: dict[str, Any], kind: str) -> bool:
        return row.get(f"{kind}_rms", 0.0) > EXPLODED * max(1.0, self._before(f"{kind}_rms", 1.0))

    def _collapse(self, row: dict[str, Any], kind: str) -> str:
        before = f", {self._initial[f'{kind}_std']:.2g} before the first step" if f"{kind}_std" in self._initial else ""
        return (
            f"The {kind}s have collapsed: their standard deviation over a fixed batch is {row[f'{kind}_std']:.2g} "
            f"({row[f'{kind}_std_uniform']:.2g} if spread uniformly{before}): {MEANING[kind]}."
        )

    def _explosion(self, row: dict[str, Any], kind: str) -> str:
        key = f"{kind}_rms"
        before = f", {self._initial[key]:.2g} before the first step" if key in self._initial else ""
        return f"The {kind}s have exploded: their root mean square is {row[key]:.2g}{before}. Training has diverged."


def spread(row: dict[str, Any]) -> dict[str, float]:
    """How widely the features, and embeddings if measured, spread over the sphere: std / uniform std.

    Returns:
        {"features": 0.71, "embeddings": 0.64}: 1 is uniform, 0 means that all images have the same vector.
    """
    return {f"{kind}s": row[f"{kind}_std"] / row[f"{kind}_std_uniform"] for kind in MEANING if f"{kind}_std" in row}


def _described(kind: str, vectors: Tensor) -> dict[str, float]:
    """The row of features or embeddings (B, D)."""
    row = {
        f"{kind}_std": feature_std(vectors),
        f"{kind}_std_uniform": 1 / math.sqrt(vectors.shape[1]),
        f"{kind}_rank": effective_rank(vectors),
        f"{kind}_rms": feature_rms(vectors),
    }
    return row | {"feature_cosine": mean_cosine(vectors)} if kind == "feature" else row


@contextlib.contextmanager
def _measuring(network: nn.Module, embed: Embed | None) -> Iterator[None]:
    """Evaluation mode with batch statistics, for the network and for the module that ``embed`` belongs to."""
    with contextlib.ExitStack() as stack:
        modules = [network] if embed is None else [network, _owner(embed)]
        for switch in (
            evaluation_mode,
            batch_statistics,
        ):  # for both modules before the next, as one may contain the other
            for module in modules:
                stack.enter_context(switch(module))
        yield


def _owner(embed: Embed) -> nn.Module:
    function = embed.func if isinstance(embed, functools.partial) else embed
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise TypeError(
            f"embed={embed!r} must be a module or a method of one, so that it can be put into evaluation mode; "
            "pass for example supervisor.embed."
        )
    return owner


class MonitorTracker(Tracker):
    """Runs a FeatureMonitor at the end of every epoch, and reports its verdicts through the run.

    Args:
        supervisor: whose exported backbone and embeddings are measured.
    """

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor
        self._state: dict[str, Any] = {}
        self.monitor: FeatureMonitor | None = None

    def start(self, facts: dict[str, Any]) -> None:
        """Measures the networks before the first step, or takes up a resumed run."""
        self.run = facts["run"]
        supervisor = self.supervisor
        images = supervisor.images.sample(256)
        if images.shape[1:] != supervisor.view_shape:
            images = recipe(None, supervisor.view_shape[1:])(images)
        self.monitor = FeatureMonitor(images, self.run.autocast)
        if self._state:
            self.monitor.load_state_dict(self._state)
        else:
            network, preprocessing = supervisor.exported_backbone, supervisor.preprocessing
            self.run.initial_features = self.monitor.baseline(network, preprocessing, self._embed)

    def measure(self, row: dict[str, Any]) -> dict[str, float]:
        """The values of ``FeatureMonitor`` after this epoch, and its verdicts, which become part of the stored state."""
        supervisor = self.supervisor
        values = self.monitor.measure(supervisor.exported_backbone, supervisor.preprocessing, self._embed)
        judged = {**row, **values}
        if self.run.step < FEWEST_STEPS:
            judged["chance_loss"] = None  # too early to expect anything of the loss
        self._verdicts = self.monitor.verdicts(judged, self.run.progress, supervisor.likely_causes)
        return values

    def epoch(self, row: dict[str, Any]) -> None:
        """Reports what looks wrong."""
        for sentence in self._verdicts:
            self.run.warn(sentence)

    def state_dict(self) -> dict[str, Any]:
        """The state of the FeatureMonitor."""
        return self._state if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps the state until ``start``."""
        self._state = state

    @property
    def _embed(self) -> Callable[[Tensor], Tensor | None]:
        return self.supervisor.embed
