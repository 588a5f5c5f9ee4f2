import copy
import math
import os
import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from superself import Batch, DeepClusterSupervisor, Tracker
from superself.algorithms.deep_cluster import choose_clusters
from superself.basics.clustering import kmeans, normalized_mutual_information, whiten
from superself.data.sampler import mix_entropy
from superself.networks.modes import evaluation_mode

from cases import TinyBackbone, tiny_images

SETTINGS = {"batch_size": 8, "name": "run", "progress": False}


def deep_cluster(images=None, cls=DeepClusterSupervisor, **arguments):
    images = tiny_images() if images is None else images
    return cls(images, **{"backbone": TinyBackbone(), "seed": 0, "clusters": 4, "augment": None, **arguments})


class Observed(DeepClusterSupervisor):
    """Keeps what each clustering started from and led to."""

    def _before_epoch(self, epoch):
        before = copy.deepcopy(self.state_dict())
        super()._before_epoch(epoch)
        if not hasattr(self, "seen"):
            self.seen = []
        self.seen.append((before, copy.deepcopy(self.state_dict()), copy.copy(self.run.optimizer.state)))


class Rows(Tracker, list):
    """A tracker that keeps the rows of the epochs."""

    def epoch(self, row):
        self.append(dict(row))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def features_in_order(state, images):
    """The features of the images as they are, in their order, in evaluation mode, of a supervisor with this state."""
    supervisor = deep_cluster(images)
    supervisor.load_state_dict(state)
    with torch.no_grad(), evaluation_mode(supervisor):
        return supervisor.model(
            supervisor.preprocessing(supervisor.images.load().batch(torch.arange(len(images))).images / 255)
        )


def test_assignments_are_the_clusters_of_the_whitened_features_of_images_without_augmentation_in_their_order():
    images = tiny_images(20)
    supervisor = deep_cluster(images, Observed, augment="resized-crop-flip")
    supervisor.supervise(epochs=2, precision="32-true", **SETTINGS)
    for epoch, (before, after, _) in enumerate(supervisor.seen):
        features = features_in_order(before, images)
        generator = torch.Generator().manual_seed(mix_entropy(0, epoch))
        assert torch.equal(after["assignments"], kmeans(whiten(features, 2), 4, generator)[0])


def test_features_are_taken_before_the_relu_and_classified_after_it():
    supervisor = deep_cluster(augment=lambda images: images)
    batch = Batch(tiny_images(), torch.arange(16))
    features = supervisor.model(supervisor.preprocessing(tiny_images() / 255))
    assert (features < 0).any() and isinstance(supervisor.model.predictor[-1], nn.Linear)
    logits = supervisor.classifier(features.clamp(min=0))
    expected = cross_entropy(logits, supervisor.assignments)
    assert supervisor._forward(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_running_averages_stay_as_they_are_and_modes_are_restored():
    supervisor = deep_cluster(cls=Observed)
    supervisor.supervise(epochs=1, **SETTINGS)
    before, after, _ = supervisor.seen[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"assignments", "times_clustered", "classifier.weight", "classifier.bias"}
    assert supervisor.training


def test_the_classifier_starts_again_after_each_clustering_with_small_weights_without_bias():
    supervisor = deep_cluster(cls=Observed)
    supervisor.supervise(lr=0.1, epochs=2, **SETTINGS)
    weights = [after["classifier.weight"] for _, after, _ in supervisor.seen]
    assert not torch.equal(*weights)
    for (_, after, _), weight in zip(supervisor.seen, weights, strict=True):
        assert weight.std().item() == pytest.approx(0.01, rel=0.1) and not after["classifier.bias"].any()


@pytest.mark.parametrize("optimizer", ["adam", "sgd with momentum"])
def test_the_optimizer_forgets_the_old_classifier_and_nothing_else(optimizer):
    made = "adam" if optimizer == "adam" else lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9)
    supervisor = deep_cluster(cls=Observed)
    supervisor.supervise(epochs=2, optimizer=made, **SETTINGS)
    state = supervisor.seen[1][2]
    assert all(p not in state for p in supervisor.classifier.parameters())
    assert all(p in state for p in supervisor.model.parameters())
    assert all(p in supervisor.run.optimizer.state for p in supervisor.classifier.parameters())


def test_images_are_clustered_every_mult_epochs():
    supervisor = deep_cluster(cls=Observed, mult=3)
    supervisor.supervise(epochs=5, **SETTINGS)
    counts = [int(after["times_clustered"]) for _, after, _ in supervisor.seen]
    assert counts == [1, 1, 1, 2, 2]
    for before, after, _ in (supervisor.seen[1], supervisor.seen[4]):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_cluster_is_drawn_equally_often():
    drawn = []

    class Counting(DeepClusterSupervisor):
        def _forward(self, data):
            drawn.append(self.assignments[data.index])
            return super()._forward(data)

    images = torch.cat([tiny_images(36) // 8, 255 - tiny_images(4, seed=3) // 8])  # 36 dark images and 4 bright ones
    given = {"clusters": 2, "mult": 40, "pca_dim": 1, "backbone": Brightness(), "projector": nn.Identity()}
    supervisor = deep_cluster(images, Counting, **given)
    supervisor.supervise(epochs=20, **SETTINGS)
    assert sorted(supervisor.assignments.bincount().tolist()) == [4, 36]
    shares = torch.cat(drawn).bincount().double() / (20 * 40)
    assert shares.tolist() == pytest.approx([0.5, 0.5], abs=0.06)


class Brightness(nn.Module):
    """Mean and deviation of the image: groups of images are easy to tell apart."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, images):
        flat = images.flatten(1)
        return torch.stack([flat.mean(1), flat.std(1)], 1) * self.scale


def test_images_that_cannot_be_read_have_no_cluster_and_are_not_drawn():
    seen = []

    class Seeing(DeepClusterSupervisor):
        def _forward(self, data):
            seen.append(data.index)
            return super()._forward(data)

    images = tiny_images(40).float() / 255
    images[7] = math.nan
    supervisor = deep_cluster(images, Seeing).supervise(epochs=3, **SETTINGS)
    assert supervisor.assignments[7] == -1 and (supervisor.assignments >= 0).sum() == 39
    assert 7 not in torch.cat(seen) and 7 not in supervisor.run.sampler.places
    assert len(supervisor.run.sampler) == math.ceil(39 / 8)


def test_an_image_without_a_cluster_does_not_count():
    supervisor = deep_cluster()
    supervisor.assignments[3:] = -1
    batch = Batch(tiny_images(), torch.arange(16))
    logits = supervisor.classifier(supervisor.model(supervisor.views(batch)[0]).relu())
    expected = cross_entropy(logits[:3], supervisor.assignments[:3])
    assert supervisor._forward(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_agreement_of_successive_clusterings_and_clusters_used_are_noted():
    rows = Rows()
    supervisor = deep_cluster(cls=Observed)
    supervisor.supervise(epochs=2, trackers=[rows], **SETTINGS)
    assert "nmi" not in rows[0]
    first, second = (after["assignments"] for _, after, _ in supervisor.seen)
    assert rows[1]["nmi"] == pytest.approx(normalized_mutual_information(first, second), abs=1e-5)
    assert [row["clusters_used"] for row in rows] == [len(first.unique()), len(second.unique())]


def test_a_run_resumed_at_any_step_equals_an_uninterrupted_one():
    images = tiny_images(20)  # three steps in an epoch
    whole = deep_cluster(images, mult=2).supervise(epochs=3, **{**SETTINGS, "name": "whole"})
    for at in (2, 4, 8):

        class Stopped(DeepClusterSupervisor):
            def _after_step(self):
                super()._after_step()
                if self.step == at - 1:  # noqa: B023
                    os.kill(os.getpid(), signal.SIGINT)

        name = f"parts{at}"
        with pytest.raises(KeyboardInterrupt):
            deep_cluster(images, Stopped, mult=2).supervise(epochs=3, **{**SETTINGS, "name": name})
        resumed = deep_cluster(images, mult=2).supervise(epochs=3, resume=True, **{**SETTINGS, "name": name})
        assert all(torch.equal(resumed.state_dict()[key], value) for key, value in whole.state_dict().items())
        assert torch.equal(resumed.run.sampler.weights, whole.run.sampler.weights)
        for mine, theirs in zip(
            *(r.run.optimizer.state_dict()["state"].values() for r in (resumed, whole)), strict=True
        ):
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_clusters_belong_to_the_images_and_are_reset_for_others():
    deep_cluster(tiny_images(20)).supervise(epochs=1, **SETTINGS)
    same, other = deep_cluster(tiny_images(20)).load("run"), deep_cluster(tiny_images(20, seed=4)).load("run")
    assert same.times_clustered == 1 and other.times_clustered == 0
    assert torch.equal(other.assignments, torch.arange(20) % 4)
    name = "model.predictor.0.weight"
    assert torch.equal(same.state_dict()[name], other.state_dict()[name])


def test_learns_the_clusters_between_two_clusterings():
    rows = Rows()
    supervisor = deep_cluster(tiny_images(40), mult=30, clusters=4)
    supervisor.supervise(lr=1e-2, epochs=12, trackers=[rows], **SETTINGS)
    assert supervisor.chance_loss == math.log(4)
    assert rows[0]["loss"] > rows[-1]["loss"] < 0.8 and rows[-1]["accuracy"] > 0.6


def test_features_that_are_all_alike_end_in_no_error():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.ones(3))

        def forward(self, images):
            return self.value.expand(len(images), 3)

    supervisor = deep_cluster(backbone=Constant(), projector=nn.Identity())
    supervisor.supervise(epochs=2, **SETTINGS)
    assert len(supervisor.assignments.unique()) == 1


def test_a_users_loader_with_positions_is_used_as_it_is():
    class Own(DeepClusterSupervisor):
        def _init_data_optimizer(self, *arguments):
            _, optimizer, schedule = super()._init_data_optimizer(*arguments)
            items = [{"image": image, "index": place} for place, image in enumerate(tiny_images())]
            return torch.utils.data.DataLoader(items, batch_size=8), optimizer, schedule

    assert deep_cluster(cls=Own).supervise(epochs=2, **SETTINGS).step == 4


@pytest.mark.parametrize(("images", "clusters"), [(16, 2), (500, 50), (2500, 100), (50_000, 390), (1_281_167, 10_009)])
def test_the_number_of_clusters_follows_that_of_the_images(images, clusters):
    assert choose_clusters(None, images) == clusters and choose_clusters(7, images) == 7


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="clusters=17 is more than the 16 images; pass fewer"):
        deep_cluster(clusters=17)
    for name, value in (("clusters", 1), ("mult", 0), ("pca_dim", 0)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least .*, got {value}"):
            deep_cluster(**{name: value})
