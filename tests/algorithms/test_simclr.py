import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, SimCLRSupervisor, create
from superself.augment import recipe
from superself.losses import DCL, DCLW, HCL, InfoNCE, NTXent

from cases import TinyBackbone, tiny_images

SHORT = {"epochs": 1, "batch_size": 8, "name": "run", "progress": False}


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def simclr(n=16, kind=SimCLRSupervisor, **arguments):
    return kind(tiny_images(n), **{"backbone": TinyBackbone(), "seed": 0, "augment": two_views, **arguments})


def batch(n=16, index=True):
    return Batch(tiny_images(n), torch.arange(n) if index else None)


def embeddings(supervisor, n=16):
    """Of both views of the first images, each (n, E), as the loss gets them in train mode."""
    views = [supervisor.preprocessing(v / 255) for v in two_views(tiny_images(n).float())]
    with torch.no_grad():
        return [z.detach() for z in supervisor.model(torch.cat(views)).chunk(2)]


class Noting(SimCLRSupervisor):
    def note(self, name, value):
        self.noted = {**getattr(self, "noted", {}), name: torch.as_tensor(value).float().mean().item()}


class Given(nn.Module):
    """A projector that returns these embeddings, whatever it sees."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x):
        return self.values[: len(x)]


# ---- the loss ----------------------------------------------------------------------------------------------------------


def test_each_of_the_2n_views_finds_its_partner_among_2n_minus_1_candidates():
    supervisor = simclr(temperature=0.3)
    first, second = embeddings(supervisor)
    everyone, slow = normalize(torch.cat([first, second]), dim=1), 0.0
    for i in range(32):
        scores = {k: math.exp((everyone[i] @ everyone[k]).item() / 0.3) for k in range(32) if k != i}
        assert len(scores) == 31
        slow -= math.log(scores[(i + 16) % 32] / sum(scores.values())) / 32
    assert supervisor._forward(batch()).item() == pytest.approx(slow, rel=1e-4)


def test_batch_norm_sees_both_views_together():
    supervisor = simclr()
    norm = supervisor.model.backbone.layers[1]
    before = norm.num_batches_tracked.item()
    supervisor._forward(batch())
    assert norm.num_batches_tracked.item() == before + 1


@pytest.mark.parametrize(
    ("arguments", "loss"),
    [
        ({"temperature": 0.3}, NTXent(0.3)),
        ({"objective": "dcl", "temperature": 0.3}, DCL(0.3)),
        ({"objective": "dclw", "temperature": 0.3, "sigma": 0.2}, DCLW(0.3, 0.2)),
        ({"objective": "hcl", "temperature": 0.3, "beta": 2.0, "tau_plus": 0.05}, HCL(0.3, 2.0, 0.05)),
    ],
)
def test_every_objective_is_the_loss_of_that_name_with_its_arguments(arguments, loss):
    supervisor = simclr(**arguments)
    expected = loss(*embeddings(supervisor))
    assert supervisor._forward(batch()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_hcl_without_beta_and_tau_plus_trains_exactly_as_simclr():
    plain = simclr().supervise(**SHORT)
    hcl = simclr(objective="hcl", beta=0, tau_plus=0).supervise(**SHORT, overwrite=True)
    assert all(torch.equal(value, hcl.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("preset", "kind", "temperature"),
    [("dcl", DCL, 0.1), ("dclw", DCLW, 0.1), ("hcl", HCL, 0.5), ("simclr-paper", NTXent, 0.1), ("simclr", NTXent, 0.5)],
)
def test_presets_have_the_numbers_of_their_papers(preset, kind, temperature):
    loss = create(preset, tiny_images(), backbone=TinyBackbone()).loss
    assert type(loss) is kind and loss.temperature == temperature
    assert getattr(loss, "sigma", 0.5) == 0.5 and (getattr(loss, "beta", 1), getattr(loss, "tau_plus", 0.1)) == (1, 0.1)


def test_the_preset_for_cifar10_is_the_default_at_32_pixels_without_blur_and_with_weak_colours():
    preset = create("simclr-cifar10", tiny_images(size=(32, 32)), backbone=TinyBackbone())
    assert str(preset.augmentation) == str(recipe("simclr", (32, 32), views=2))
    assert preset.temperature == simclr().temperature and "GaussianBlur" not in str(preset.augmentation)


# ---- the memory bank ---------------------------------------------------------------------------------------------------


def test_with_a_bank_all_negatives_come_from_it_in_both_directions():
    supervisor = simclr(memory_bank_size=12, temperature=0.3)
    first, second = embeddings(supervisor)
    losses = [InfoNCE(0.3)(a, b, supervisor.queue.features) for a, b in ((first, second), (second, first))]
    assert supervisor._forward(batch()).item() == pytest.approx(sum(losses).item() / 2, rel=1e-5)


def test_rows_of_the_bank_that_show_the_same_image_are_no_negatives():
    supervisor = simclr(memory_bank_size=40, temperature=0.3)
    first, second = embeddings(supervisor)
    plain = supervisor._forward(batch(index=False)).item()
    supervisor._forward(batch())
    supervisor._after_step()  # rows 0 to 31 are now both views of each image
    same = torch.arange(16)[:, None] == torch.cat([torch.arange(32) // 2, torch.full((8,), -1)])
    losses = [InfoNCE(0.3)(a, b, supervisor.queue.features, same) for a, b in ((first, second), (second, first))]
    assert supervisor._forward(batch()).item() == pytest.approx(sum(losses).item() / 2, rel=1e-5)
    assert supervisor._forward(batch(index=False)).item() > plain  # with its own views among the negatives


def test_the_bank_moves_after_the_step_and_holds_both_views_of_each_image():
    seen = []

    class Observed(SimCLRSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            before = self.queue.features.clone()
            super()._update(loss, optimizer, lr_scheduler)
            seen.append(torch.equal(self.queue.features, before))

    supervisor = simclr(kind=Observed, memory_bank_size=20)
    supervisor.supervise(**SHORT)
    assert seen == [True, True]
    assert supervisor.queue.enqueued == 32 and sorted(supervisor.queue.places.unique().tolist())[0] >= 0
    assert supervisor.queue.places.bincount().max() <= 2


def test_an_evaluation_moves_nothing():
    supervisor = simclr(memory_bank_size=20).eval()
    before = {name: value.clone() for name, value in supervisor.state_dict().items()}
    with torch.no_grad():
        supervisor._forward(batch())
    assert all(torch.equal(value, before[name]) for name, value in supervisor.state_dict().items())


# ---- what a run is told ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "candidates"),
    [
        ({}, 15),
        ({"objective": "hcl"}, 15),
        ({"objective": "dcl"}, 14),
        ({"objective": "dclw"}, 14),
        ({"memory_bank_size": 20}, 21),
        ({"memory_bank_size": 20, "objective": "dcl"}, 20),
    ],
)
def test_chance_level_is_the_loss_of_equal_similarities(arguments, candidates):
    supervisor = simclr(n=8, **arguments)
    assert (supervisor.chance_loss is None) == ("memory_bank_size" not in arguments)  # before a run B is not known
    supervisor.supervise(**SHORT)
    assert supervisor.run.chance_loss == pytest.approx(math.log(candidates))
    same = torch.ones(8, 4)
    given = [normalize(torch.ones(20, 4), dim=1)] if supervisor.queue is not None else []
    assert supervisor.loss(same, same, *given).item() == pytest.approx(supervisor.chance_loss, rel=1e-5)


def test_parts_of_a_batch_are_refused_where_images_are_compared():
    with pytest.raises(ValueError, match="the loss of SimCLRSupervisor compares .* micro_batch=4"):
        simclr().supervise(**SHORT, accumulate=2)
    with pytest.raises(ValueError, match="the loss of SimCLRSupervisor compares"):
        simclr(objective="dclw", memory_bank_size=8).supervise(**SHORT, accumulate=2)  # weights compare positives
    supervisor = simclr(memory_bank_size=20).supervise(**SHORT, accumulate=2)
    assert supervisor.queue.enqueued == 32


def test_noted_metrics_are_those_worked_by_hand():
    """Image 0: views at (1, 0) and (0.6, 0.8), image 1: (0, 1) and (0, 1). The second view of image 0 is nearer to image 1."""
    rows = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 1.0]]
    supervisor = simclr(2, Noting, projector=Given(rows))
    supervisor._forward(batch(2))
    assert supervisor.noted == {"top1": pytest.approx(3 / 4), "positive_cosine": pytest.approx(0.8)}


def test_metrics_with_a_bank_compare_with_its_rows():
    supervisor = simclr(
        2, Noting, projector=Given([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 1.0]]), memory_bank_size=1
    )
    supervisor.queue.features.copy_(torch.tensor([[0.8, 0.6]]))
    supervisor._forward(batch(2))
    assert supervisor.noted == {
        "queue_filled": 0,
        "top1": pytest.approx(2 / 4),
        "positive_cosine": pytest.approx(0.8),
    }


def test_a_custom_loss_gets_both_views_and_with_a_bank_its_rows():
    calls = []

    def loss(first, second, rows=None, same=None):
        calls.append([None if value is None else tuple(value.shape) for value in (first, second, rows, same)])
        return (first - second).square().mean()

    simclr(loss=loss)._forward(batch())
    simclr(loss=loss, memory_bank_size=6)._forward(batch())
    pair = [(16, 128), (16, 128)]
    assert calls == [[*pair, None, None], *[[*pair, (6, 128), (16, 6)]] * 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, got 0"),
        ({"objective": "ntxent"}, "objective='ntxent' is unknown; pass 'nt-xent', 'dcl', 'dclw' or 'hcl'"),
        ({"sigma": -1}, "sigma must be a number above 0"),
        ({"beta": -1}, "beta must be a number of at least 0"),
        ({"tau_plus": 1.0}, r"tau_plus must be a number in \[0, 1\)"),
        ({"memory_bank_size": -1}, "memory_bank_size must be an integer of at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simclr(**arguments)
