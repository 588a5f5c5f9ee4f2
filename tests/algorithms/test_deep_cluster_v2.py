import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from superself import Batch, DeepClusterV2Supervisor, create
from superself.augment import RandomHorizontalFlip, Views
from superself.basics.clustering import kmeans
from superself.data.sampler import mix_entropy

from cases import TinyBackbone, tiny_images

SETTINGS = {"batch_size": 8, "name": "run", "progress": False, "precision": "32-true"}
SMALL = {"out_features": 8, "hidden": 16}


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def v2(images=None, cls=DeepClusterV2Supervisor, **arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "clusters": 4, "augment": two_views, "projector": SMALL}
    return cls(tiny_images() if images is None else images, **{**given, **arguments})


class Observed(DeepClusterV2Supervisor):
    """Keeps the state before and after each clustering, and the embeddings of each step."""

    def _before_epoch(self, epoch):
        before = copy.deepcopy(self.state_dict())
        super()._before_epoch(epoch)
        self.seen = [*getattr(self, "seen", []), (before, copy.deepcopy(self.state_dict()))]

    def _forward(self, data):
        loss = super()._forward(data)
        self.passed = [*getattr(self, "passed", []), (data.index, [memory.pending[0] for memory in self.memories])]
        return loss


def test_loss_is_the_mean_cross_entropy_over_clusterings_views_and_images():
    supervisor = v2(clusterings=2, temperature=0.2)
    supervisor.assignments[0], supervisor.assignments[1] = torch.arange(16) % 3, torch.arange(16) // 5
    slow = []
    for view in two_views(tiny_images().float()):
        z = normalize(supervisor.model(supervisor.preprocessing(view / 255)), dim=1)
        for head in range(2):
            for i in range(16):
                logits = torch.stack([z[i] @ c / 0.2 for c in supervisor.prototypes[head]])
                slow.append(cross_entropy(logits, supervisor.assignments[head, i]).item())
    loss = supervisor._forward(Batch(tiny_images(), torch.arange(16)))
    assert loss.item() == pytest.approx(sum(slow) / len(slow), rel=1e-4) and len(slow) == 64


def test_clusters_are_those_of_the_embeddings_that_passed_by_in_the_epoch_before():
    supervisor = v2(cls=Observed, clusterings=3)
    supervisor.supervise(epochs=2, **SETTINGS)
    before, after = supervisor.seen[1]
    for index, embeddings in supervisor.passed[:2]:  # the two steps of the first epoch
        for number, embedding in enumerate(embeddings):
            assert torch.allclose(before[f"memories.{number}.features"][index], embedding, atol=1e-6)
    generator = torch.Generator().manual_seed(mix_entropy(0, 1))
    for head in range(3):  # the clusterings take turns with the two memories
        rows = before[f"memories.{head % 2}.features"]
        found, centroids = kmeans(rows, 4, generator, 10, spherical=True)
        assert torch.equal(after["assignments"][head], found) and torch.equal(after["prototypes"][head], centroids)


def test_prototypes_are_centroids_of_unit_length_that_no_step_changes():
    supervisor = v2(cls=Observed)
    supervisor.supervise(lr=0.1, epochs=1, **SETTINGS)
    assert torch.equal(supervisor.prototypes, supervisor.seen[0][1]["prototypes"])
    assert torch.allclose(supervisor.prototypes.norm(dim=2), torch.ones(3, 4), atol=1e-5)
    assert not any("prototypes" in name for name, _ in supervisor.named_parameters())


def test_a_memory_changes_after_the_step_only():
    supervisor = v2()
    before = supervisor.memories[0].features.clone()
    supervisor._forward(Batch(tiny_images(), torch.arange(16)))
    assert torch.equal(supervisor.memories[0].features, before)
    supervisor._after_step()
    assert not torch.equal(supervisor.memories[0].features, before)


def test_images_that_cannot_be_read_have_no_cluster_and_do_not_count():
    images = tiny_images(40).float() / 255
    images[7] = math.nan
    supervisor = v2(images).supervise(epochs=2, **SETTINGS)
    assert (supervisor.assignments[:, 7] == -1).all() and (supervisor.assignments >= 0).sum() == 3 * 39
    batch = Batch(tiny_images(), torch.arange(16))
    supervisor.assignments[:, :8] = -1
    half = supervisor.eval()._forward(batch).item()
    rest = supervisor._forward(Batch(tiny_images()[8:], torch.arange(8, 16))).item()
    assert half == pytest.approx(rest, rel=1e-5)


def test_small_views_are_classified_too_and_only_the_first_two_are_remembered():
    supervisor = v2(augment={"name": "swav", "small_count": 3})
    assert supervisor.n_views == 5
    noted = {}
    supervisor.note = lambda name, value: noted.update({name: value})
    supervisor._forward(Batch(tiny_images(), torch.arange(16)))
    assert noted["accuracy"].shape == (3, 5 * 16)
    assert len(supervisor.memories) == 2 and supervisor.memories[1].pending[0].shape == (16, 8)
    supervisor.supervise(epochs=1, **SETTINGS)
    assert DeepClusterV2Supervisor(backbone=TinyBackbone()).load("run").augment == {"name": "swav", "small_count": 3}


def test_the_preset_has_the_settings_of_the_authors():
    supervisor = create("deep-cluster-v2", tiny_images(), backbone=TinyBackbone())
    assert type(supervisor) is DeepClusterV2Supervisor
    assert (supervisor.temperature, supervisor.clusterings, supervisor.embedding_width) == (0.1, 3, 128)
    assert supervisor.clusters is None and supervisor.chance_loss == math.log(2)


def test_memories_and_clusters_belong_to_the_images():
    v2(tiny_images(20)).supervise(epochs=1, **SETTINGS)
    same, other = v2(tiny_images(20)).load("run"), v2(tiny_images(20, seed=4)).load("run")
    assert same.times_clustered == 1 and other.times_clustered == 0
    assert same.memories[0].filled and not other.memories[0].filled


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="clusters=17 is more than the 16 images"):
        v2(clusters=17)
    with pytest.raises(ValueError, match="temperature must be"):
        v2(temperature=0)
    with pytest.raises(ValueError, match="clusterings must be an integer of at least 1, got 0"):
        v2(clusterings=0)
    with pytest.raises(
        ValueError, match="augment makes 1 view of each image, and DeepClusterV2Supervisor needs at least two"
    ):
        v2(augment=Views([RandomHorizontalFlip()]))
