import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from superself import Batch, NNCLRSupervisor, create

from cases import SMALL, TinyBackbone, tiny_images

HEADS = {"projector": SMALL, "predictor": {"hidden": 64}}


def nnclr(cls=NNCLRSupervisor, **arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, "queue_size": 12, **HEADS, **arguments}
    return cls(tiny_images(), **given)


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch():
    return Batch(tiny_images(), torch.arange(16))


def embeddings(supervisor):
    return [supervisor.model(supervisor.preprocessing(view / 255)) for view in two_views(tiny_images().float())]


def nearest(z, queue, places, own):
    """The row with the largest cosine that does not show the image ``own``."""
    cosines = {row: cosine_similarity(z, q, dim=0).item() for row, q in enumerate(queue) if places[row] != own}
    return max(cosines, key=cosines.get)


def test_loss_equals_the_double_loop_over_neighbours_and_predictions():
    supervisor = nnclr(temperature=0.3)
    supervisor.queue.enqueue(normalize(embeddings(supervisor)[0][:9], dim=1), torch.arange(9))
    queue, places = supervisor.queue.features.clone(), supervisor.queue.places.tolist()
    views = embeddings(supervisor)
    predictions = [supervisor.predictor(z) for z in views]
    slow = 0.0
    for z, p in ((views[0], predictions[1]), (views[1], predictions[0])):
        for i in range(16):
            neighbour = queue[nearest(z[i], queue, places, i)]
            scores = [math.exp(cosine_similarity(neighbour, p[k], dim=0).item() / 0.3) for k in range(16)]
            slow -= math.log(scores[i] / sum(scores)) / 32
    assert supervisor._forward(batch()).item() == pytest.approx(slow, rel=1e-4)


def test_an_image_that_is_in_the_queue_is_not_its_own_neighbour():
    supervisor = nnclr(queue_size=16)
    first, _ = embeddings(supervisor)
    supervisor.queue.enqueue(normalize(first, dim=1), torch.arange(16))
    itself = supervisor._neighbours(first, None)
    assert torch.allclose(itself, normalize(first, dim=1), atol=1e-5)
    other = supervisor._neighbours(first, supervisor.queue.same_image(torch.arange(16)))
    assert ((other - itself).abs().amax(1) > 1e-4).all()


def test_no_neighbour_is_the_image_itself_in_any_step_of_a_run():
    in_the_queue, chosen = [], []

    class Observed(NNCLRSupervisor):
        def _forward(self, data):
            self.index = data.index
            return super()._forward(data)

        def _neighbours(self, z, excluded):
            rows = super()._neighbours(z, excluded)
            places = self.queue.places[(rows @ self.queue.features.T).argmax(1)]
            in_the_queue.append(bool((self.index[:, None] == self.queue.places).any()))
            chosen.append(bool((places == self.index).any()))
            return rows

    nnclr(Observed, queue_size=24).supervise(epochs=3, batch_size=16, name="run", progress=False)
    assert in_the_queue == [False, False, True, True, True, True] and not any(chosen)


def test_the_queue_takes_the_first_view_after_the_step():
    class Observed(NNCLRSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            self.pending, before = self.queue.pending, self.queue.features.clone()
            super()._update(loss, optimizer, lr_scheduler)
            assert torch.equal(self.queue.features, before) and not self.queue.enqueued

    supervisor = nnclr(Observed, queue_size=32)
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
    rows, places = supervisor.pending
    assert torch.allclose(supervisor.queue.features[:16], normalize(rows.float(), dim=1), atol=1e-6)
    assert torch.equal(supervisor.queue.places[:16], places) and (supervisor.queue.places[16:] == -1).all()
    again = nnclr(queue_size=32, seed=0)
    again._forward(batch())
    assert torch.allclose(again.queue.pending[0], embeddings(again)[0], atol=1e-4)


def test_batches_without_index_are_compared_with_all_rows():
    supervisor = nnclr()
    assert torch.isfinite(supervisor._forward(Batch(tiny_images())))


def test_neighbours_are_those_of_lightly():
    bank = pytest.importorskip("lightly.models.modules").NNMemoryBankModule(size=(12, 64))
    supervisor = nnclr()
    z = embeddings(supervisor)[0].detach()
    bank(z)
    bank.bank = supervisor.queue.features.clone()
    assert torch.allclose(supervisor._neighbours(z, None), bank(z, update=False), atol=1e-6)


def test_the_gradient_flows_through_predictions_only():
    supervisor = nnclr(loss=lambda neighbours, p, everyone, own: (neighbours * p).sum() + everyone.sum() * 0)
    supervisor._forward(batch()).backward()
    assert all(p.grad is not None for p in [*supervisor.model.parameters(), *supervisor.predictor.parameters()])
    assert not supervisor._neighbours(embeddings(supervisor)[0], None).requires_grad


def test_a_custom_loss_gets_neighbours_predictions_and_which_are_the_images_own():
    seen = []
    nnclr(loss=lambda *given: seen.append(given) or given[1].sum())._forward(batch())
    neighbours, prediction, everyone, own = seen[0]
    assert neighbours.shape == prediction.shape == everyone.shape == (16, 64)
    assert torch.equal(own, torch.eye(16, dtype=torch.bool))
    assert torch.allclose(everyone, normalize(prediction, dim=1))


def test_heads_are_those_of_the_paper():
    supervisor = nnclr(projector=None, predictor=None)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in supervisor.model.predictor] == [*kinds, *kinds, *kinds[:2]]
    widths = [layer.out_features for layer in supervisor.model.predictor if isinstance(layer, nn.Linear)]
    assert widths == [2048, 2048, 256] and supervisor.model.predictor[-1].affine
    assert [type(layer) for layer in supervisor.predictor] == [*kinds, nn.Linear]
    assert (supervisor.predictor[0].out_features, supervisor.predictor[3].out_features) == (4096, 256)


def test_chance_level_is_the_logarithm_of_the_batch():
    supervisor = nnclr()
    assert supervisor.chance_loss is None
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert supervisor.chance_loss == pytest.approx(math.log(8))


def test_the_preset_has_the_queue_of_the_paper():
    assert create("nnclr-paper", backbone=TinyBackbone(), **HEADS).queue_size == 98304


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="queue_size must be an integer of at least 1, got 0 "):
        NNCLRSupervisor(queue_size=0)
    with pytest.raises(ValueError, match="temperature must be a number above 0, got 0 "):
        NNCLRSupervisor(temperature=0)
    with pytest.raises(ValueError, match="predictor=.* has the key 'widht'"):
        NNCLRSupervisor(predictor={"widht": 3})
