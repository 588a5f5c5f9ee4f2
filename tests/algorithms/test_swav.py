import math
import os
import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, SwAVSupervisor
from superself.losses import SwAVLoss, sinkhorn
from superself.training import LARS

from cases import TinyBackbone, tiny_images


def crops(images):
    """Two large views and two small ones, without randomness."""
    return [images, images.flip(2), images[..., :8, :8], images[..., 8:, 8:]]


def swav(n=16, cls=SwAVSupervisor, **arguments):
    given = {
        "backbone": TinyBackbone(),
        "seed": 0,
        "augment": crops,
        "n_prototypes": 12,
        "epsilon": 0.05,
        "projector": {"hidden": 16},
    }
    given |= arguments
    return cls(tiny_images(n), **given)


def batch(n=16):
    return Batch(tiny_images(n), torch.arange(n))


def run(supervisor, **settings):
    return supervisor.supervise(**{"batch_size": 8, "epochs": 1, "name": "run", "progress": False, **settings})


def noted(supervisor):
    found = {}
    supervisor.note = lambda name, value: found.update({name: float(value)})
    supervisor._forward(batch())
    return found


def test_loss_is_the_mean_over_both_codes_of_predictions_from_all_other_views():
    supervisor = swav(projector=nn.Linear(16, 8)).eval()
    scores = []
    for view in crops(tiny_images().float() / 255):
        z = normalize(supervisor.model(supervisor.preprocessing(view)), dim=1)
        scores.append(z @ normalize(supervisor.prototypes.weight, dim=1).T)
    slow = 0.0
    for i in range(2):
        q = sinkhorn(scores[i].detach())
        slow += sum(-(q * (scores[v] / 0.1).log_softmax(1)).sum(1).mean().item() / 3 for v in range(4) if v != i) / 2
    assert supervisor._forward(batch()).item() == pytest.approx(slow, rel=1e-4)


def test_batch_norm_sees_all_views_of_a_size_in_the_backbone_and_all_views_in_the_projector():
    supervisor, seen = swav(), []
    supervisor._forward(batch())  # the first one also looks whether the backbone takes small views
    supervisor.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    supervisor.model.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    supervisor._forward(batch())
    assert seen == [(32, 3, 16, 16), (32, 3, 8, 8), (64, 16)]


def test_codes_come_from_the_large_views_only():
    calls = []

    class Watched(SwAVSupervisor):
        def _codes(self, scores, number):
            calls.append(number)
            return super()._codes(scores, number)

    swav(cls=Watched)._forward(batch())
    assert calls == [0, 1]


def test_a_custom_loss_gets_scores_of_all_views_and_codes_of_the_large_ones():
    given = []

    def loss(scores, codes):
        given.append(([tuple(s.shape) for s in scores], [tuple(c.shape) for c in codes]))
        return scores[0].mean()

    swav(loss=loss)._forward(batch())
    assert given == [([(16, 12)] * 4, [(16, 12)] * 2)]


@pytest.mark.parametrize("optimizer", [LARS, torch.optim.AdamW])
def test_frozen_prototypes_keep_every_bit_and_move_afterwards(optimizer):
    seen = []

    class Observed(SwAVSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            super()._update(loss, optimizer, lr_scheduler)
            seen.append(self.prototypes.weight.detach().clone())

    supervisor = swav(cls=Observed, freeze_prototypes=3)
    start = supervisor.prototypes.weight.detach().clone()
    run(supervisor, epochs=3, optimizer=optimizer, weight_decay=0.1)
    assert [torch.equal(weight, start) for weight in seen] == [True, True, True, False, False, False]


def test_prototypes_start_and_stay_at_unit_length():
    supervisor = swav(freeze_prototypes=0)
    ones = torch.ones(12)
    assert torch.allclose(supervisor.prototypes.weight.norm(dim=1), ones)
    run(supervisor, lr=0.1)
    assert torch.allclose(supervisor.prototypes.weight.norm(dim=1), ones)


def test_the_length_of_prototypes_does_not_change_the_loss():
    supervisor = swav()
    before = supervisor._forward(batch()).item()
    with torch.no_grad():
        supervisor.prototypes.weight.mul_(3)
    assert supervisor._forward(batch()).item() == pytest.approx(before, rel=1e-5)


def codes_with(queue_rows, scores):
    return sinkhorn(torch.cat([queue_rows, scores]))[-len(scores) :]


def test_a_queue_is_used_only_once_it_is_full_and_only_for_the_codes():
    plain, queued = swav(), swav(queue_size=16, queue_from=0)
    queued.load_state_dict(plain.state_dict(), strict=False)
    assert queued._forward(batch()).item() == pytest.approx(plain._forward(batch()).item(), rel=1e-6)
    scores = torch.randn(8, 12).tanh()
    queue = queued.queues[1]
    queue.enqueue(torch.randn(15, 128))
    assert torch.allclose(queued._codes(scores, 1), sinkhorn(scores), atol=1e-6)
    queue.enqueue(torch.randn(1, 128))
    expected = codes_with(queued.prototypes(queue.features), scores)
    assert torch.allclose(queued._codes(scores, 1), expected, atol=1e-6)
    assert not torch.allclose(expected, sinkhorn(scores), atol=1e-3)
    assert torch.allclose(queued._codes(scores, 0), sinkhorn(scores), atol=1e-6)  # that of the other view


def test_a_queue_starts_to_fill_at_its_epoch_with_the_embeddings_of_the_large_views():
    supervisor = swav(queue_size=16, queue_from="1 epochs")
    filled = []

    class Observed(SwAVSupervisor):
        def _after_step(self):
            pending = [queue.pending[0] for queue in self.queues]
            super()._after_step()
            filled.append([int(queue.enqueued) for queue in self.queues])
            if filled[-1] == [8, 8]:
                assert all(torch.allclose(q.features[:8], rows) for q, rows in zip(self.queues, pending, strict=True))

    supervisor.__class__ = Observed
    run(supervisor, epochs=2)
    assert filled == [[0, 0], [0, 0], [8, 8], [16, 16]]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_freezes_queues_and_ends_as_the_whole_run(stop):
    class Stopped(SwAVSupervisor):
        def _after_step(self):
            super()._after_step()
            if self.step == stop:
                os.kill(os.getpid(), signal.SIGINT)

    given = {"queue_size": 12, "queue_from": 3, "freeze_prototypes": 4}
    whole = run(swav(**given), epochs=4, name="whole")
    with pytest.raises(KeyboardInterrupt):
        run(swav(cls=Stopped, **given), epochs=4)
    resumed = run(swav(**given), epochs=4, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_stuck_run_is_visible():
    alive = noted(swav())
    assert 0 < alive["code_entropy"] < math.log(12) and 1 < alive["prototypes_used"] <= 12
    same = noted(swav(projector=Constant()))  # all images at one place: Sinkhorn can only spread them evenly
    assert same["code_entropy"] == pytest.approx(math.log(12), rel=1e-3)
    assert same["prototypes_used"] < 12


class Constant(nn.Module):
    """Every image gets the same embedding."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.linspace(-1, 1, 128))

    def forward(self, features):
        return self.values.expand(len(features), -1)


def test_uniform_predictions_give_the_chance_level():
    supervisor = swav(temperature=1e4)
    assert isinstance(supervisor.loss, SwAVLoss)
    assert supervisor._forward(batch()).item() == pytest.approx(math.log(12), rel=1e-4) == supervisor.chance_loss


def test_the_papers_arguments():
    supervisor = SwAVSupervisor(tiny_images(), backbone=TinyBackbone(), **SwAVSupervisor.presets["swav-paper"])
    assert supervisor.prototypes.weight.shape == (3000, 128)
    assert [tuple(queue.features.shape) for queue in supervisor.queues] == [(3840, 128)] * 2
    assert len(supervisor.views(batch())) == 8


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"n_prototypes": 1}, "n_prototypes must be .*at least 2, got 1"),
        ({"temperature": 0}, "temperature must be .*, got 0"),
        ({"epsilon": -1}, "epsilon must be .*, got -1"),
        ({"iterations": 0}, "iterations must be .*, got 0"),
        ({"freeze_prototypes": "soon"}, "freeze_prototypes='soon' is not a duration"),
        ({"queue_size": -1}, "queue_size must be .*, got -1"),
        ({"queue_from": -1}, "queue_from=-1 is not a duration"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        swav(**arguments)


def test_a_queue_that_would_never_fill_is_reported():
    with pytest.warns(
        UserWarning,
        match="queue_from='15 epochs' is not before the end of this run of 2 steps, so the queue is not used",
    ):
        swav(queue_size=8).supervise(epochs=1, batch_size=8, name="run", progress=False)
