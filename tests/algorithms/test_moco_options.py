"""MoCo's variants: EqCo, MoCHi, CO2, a predictor, and the parts that batch norm sees."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, MomentumContrastSupervisor, create, losses
from superself.algorithms import moco as module
from superself.data import to_float

from cases import TinyBackbone, tiny_images


def moco(**arguments):
    arguments = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, "queue_size": 12, **arguments}
    return MomentumContrastSupervisor(tiny_images(), **arguments)


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch():
    return Batch(tiny_images(), torch.arange(16))


def views_of(supervisor):
    return [supervisor.preprocessing(v) for v in two_views(to_float(tiny_images()))]


class Constant(nn.Module):
    """Every image gets the same embedding."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x):
        return self.values.expand(len(x), -1)


def fill(supervisor, places=None):
    """Fills the queue with fixed directions, as if they were keys of other images."""
    queue = supervisor.queue
    keys = torch.randn(queue.features.shape, generator=torch.Generator().manual_seed(7))
    queue.enqueue(keys, torch.full((len(keys),), 99) if places is None else places)
    return queue


# ---- EqCo ------------------------------------------------------------------------------------------------------------


def test_eqco_with_the_size_of_the_queue_equals_plain_moco():
    plain, eqco = moco(splits=1), moco(splits=1, eqco_alpha=12)
    fill(plain), fill(eqco)
    assert eqco._forward(batch()).item() == pytest.approx(plain._forward(batch()).item(), rel=1e-6)


def test_a_queue_of_half_the_size_has_the_same_loss_in_expectation():
    whole, half = moco(splits=1, queue_size=4096), moco(splits=1, queue_size=2048, eqco_alpha=4096)
    fill(whole), fill(half)
    assert half._forward(batch()).item() == pytest.approx(whole._forward(batch()).item(), rel=0.01)
    assert half.chance_loss == whole.chance_loss == math.log(4097)


def test_eqco_equals_a_number_worked_by_hand():
    """Two rows orthogonal to query and key, t = 0.5, alpha = 10: ln(1 + 10 e^-2); chance level: ln 11."""
    supervisor = moco(projector=Constant([1.0, 0.0, 0.0]), queue_size=2, temperature=0.5, eqco_alpha=10)
    supervisor.queue.enqueue(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 4.0]]))
    assert supervisor._forward(batch()).item() == pytest.approx(math.log(1 + 10 * math.exp(-2)))
    supervisor.queue.enqueue(torch.tensor([[1.0, 0.0, 0.0]]).expand(2, 3))
    assert supervisor._forward(batch()).item() == pytest.approx(math.log(11)) == supervisor.chance_loss


# ---- MoCHi -----------------------------------------------------------------------------------------------------------


def test_mochi_equals_a_loop_over_the_queue_and_the_synthetic_negatives(monkeypatch):
    made = []

    def observed(query, negatives, generator, *counts, exclude):
        made.append((losses.mix_hard_negatives(query, negatives, generator, *counts, exclude=exclude), counts, exclude))
        return made[-1][0]

    monkeypatch.setattr(module, "mix_hard_negatives", observed)
    supervisor = moco(splits=1, mochi=(4, 3, 2), mochi_warmup=0, temperature=0.3)
    queue = fill(supervisor, torch.tensor([3, 90, 4, 3, 91, *[99] * 7]))
    loss = supervisor._forward(batch()).item()
    ((synthetic, counts, exclude),) = made
    assert counts == (4, 3, 2) and torch.equal(exclude, queue.same_image(torch.arange(16)))
    first, second = views_of(supervisor)
    q, k = (
        normalize(network(v), dim=1).detach()
        for network, v in ((supervisor.model, first), (supervisor.key_encoder, second))
    )
    slow = 0.0
    for i in range(16):
        rows = [*queue.features[~exclude[i]], *synthetic[i]]
        positive = math.exp(q[i] @ k[i] / 0.3)
        slow -= math.log(positive / (positive + sum(math.exp(q[i] @ row / 0.3) for row in rows))) / 16
    assert loss == pytest.approx(slow, rel=1e-4)


def test_synthetic_negatives_start_after_the_warm_up():
    seen = []

    supervisor = moco(mochi=(4, 3, 2), mochi_warmup=2)
    supervisor.loss.register_forward_pre_hook(lambda _, given: seen.append((supervisor.epoch, len(given))))
    supervisor.supervise(epochs=3, batch_size=16, name="run", progress=False)
    assert seen == [(0, 4), (1, 4), (2, 5)]


def test_a_warm_up_as_long_as_the_run_is_reported():
    supervisor = moco(mochi=(4, 3, 2))
    with pytest.warns(UserWarning, match="starts after 10 epochs, and this run has 1; pass a smaller mochi_warmup="):
        supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)


def test_chance_with_mochi_counts_the_synthetic_negatives():
    supervisor = moco(projector=Constant([1.0, 0.0]), queue_size=12, mochi=(4, 3, 2), mochi_warmup=0)
    supervisor.queue.enqueue(torch.tensor([[1.0, 0.0]]).expand(12, 2))
    assert supervisor._forward(batch()).item() == pytest.approx(math.log(18)) == supervisor.chance_loss


# ---- CO2 -------------------------------------------------------------------------------------------------------------


def test_co2_is_added_with_its_weight_and_has_a_gradient():
    plain, regularized = moco(splits=1), moco(splits=1, co2_weight=3.0, co2_temperature=0.1)
    fill(plain), fill(regularized)
    first, second = views_of(plain)
    with torch.no_grad():
        consistency = losses.CO2(0.1)(plain.model(first), plain.key_encoder(second), plain.queue.features)
    supervised = plain._forward(batch()), regularized._forward(batch())
    assert (supervised[1] - supervised[0]).item() == pytest.approx(3 * consistency.item(), rel=1e-4)
    for loss in supervised:
        loss.backward()
    gradients = [s.model.predictor[0].weight.grad for s in (plain, regularized)]
    assert (gradients[1] - gradients[0]).norm() > 0.1 * gradients[0].norm()


# ---- predictor -------------------------------------------------------------------------------------------------------


def test_a_predictor_follows_the_projector_on_the_query_side_only():
    predictor = nn.Linear(128, 128)
    supervisor = moco(splits=1, predictor=predictor)
    queue = fill(supervisor)
    first, second = views_of(supervisor)
    with torch.no_grad():
        expected = supervisor.loss(predictor(supervisor.model(first)), supervisor.key_encoder(second), queue.features)
    loss = supervisor._forward(batch())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(queue.pending[0], supervisor.key_encoder(second), atol=1e-6)  # keys have no predictor
    loss.backward()
    assert predictor.weight.grad.norm() > 0
    names = {name.removeprefix("average.") for name, _ in supervisor.key_encoder.named_parameters()}
    assert names == {name for name, _ in supervisor.model.named_parameters()}


def test_a_predictor_may_be_arguments_of_mlp_and_its_batch_norm_sees_parts_too():
    supervisor = moco(predictor={"layers": 2, "hidden": 8, "norm": "batch"}, splits=4)
    norm = supervisor.predictor[1]
    assert isinstance(norm, nn.BatchNorm1d)
    supervisor._forward(batch())
    assert norm.num_batches_tracked == 4
    alone = moco(backbone=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), predictor={"norm": "batch"}, splits=4)
    alone._forward(batch())
    assert alone.predictor[1].num_batches_tracked == 4


def test_without_a_predictor_there_is_nothing_to_train_or_to_store():
    assert not [name for name in moco().state_dict() if name.startswith("predictor")]


def test_a_predictor_for_features_is_answered_with_projector():
    with pytest.raises(
        ValueError, match="linear layer for 16 values.* have 128; pass what maps features to embeddings as projector="
    ):
        moco(predictor=nn.Linear(16, 128))


# ---- parts of a batch ------------------------------------------------------------------------------------------------


def test_with_two_splits_query_and_key_see_different_random_halves():
    """Half-split batch norm: each half is drawn separately for queries and for keys, in every step."""

    class Observed(MomentumContrastSupervisor):
        def _split_batch_norm(self, network, views):
            hook = network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            found = super()._split_batch_norm(network, torch.arange(16.0).view(-1, 1, 1, 1) + 0 * views)
            hook.remove()
            return found

    halves = []
    supervisor = Observed(tiny_images(), augment=two_views, backbone=TinyBackbone(), queue_size=12, seed=0, splits=2)
    for _ in range(3):
        seen = []
        supervisor._forward(batch())
        halves += [{frozenset(half[:, 0, 0, 0].tolist()) for half in x.tensor_split(2)} for x in seen]
    assert all({len(half) for half in pair} == {8} and len(frozenset.union(*pair)) == 16 for pair in halves)
    assert len(set(map(frozenset, halves))) == 6  # a query's half is never its key's, nor that of another step


# ---- presets and errors ----------------------------------------------------------------------------------------------


def test_presets_have_the_numbers_of_the_papers():
    made = {
        name: create(name, tiny_images(), backbone=TinyBackbone()) for name in ("moco-cifar10", "eqco", "mochi", "co2")
    }
    cifar = made["moco-cifar10"]
    assert (cifar.queue_size, cifar.momentum, cifar.temperature, cifar.splits, cifar.symmetric) == (
        4096,
        0.99,
        0.1,
        8,
        False,
    )
    assert [type(layer) for layer in cifar.model.predictor] == [nn.Linear]
    assert made["eqco"].chance_loss == math.log(65537) and made["eqco"].queue.features.shape[0] == 256
    assert made["mochi"].mochi == (1024, 1024, 128) and made["mochi"].mochi_warmup == 10
    assert (made["co2"].co2_weight, made["co2"].co2.temperature, made["co2"].temperature) == (10, 0.04, 0.07)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eqco_alpha": 0}, r"eqco_alpha must be a number above 0, got 0 \(it is the number of negatives"),
        ({"mochi": (4, 3)}, r"mochi=\(4, 3\) must be \(N, s, s'\)"),
        ({"mochi": "all"}, r"mochi='all' must be \(N, s, s'\)"),
        (
            {"mochi": (13, 3, 2)},
            r"mochi\[0\] must be an integer of at most 12, got 13 \(it is the number of hardest rows",
        ),
        ({"mochi": (4, -1, 2)}, r"mochi\[1\] must be an integer of at least 0, got -1"),
        ({"mochi_warmup": -1}, "mochi_warmup must be an integer of at least 0, got -1"),
        ({"co2_weight": -1.0}, r"co2_weight must be a number of at least 0, got -1.0 \(it is the weight"),
        ({"co2_temperature": 0}, r"co2_temperature must be a number above 0, got 0"),
        ({"predictor": {"widht": 3}}, "predictor=.* has the key 'widht'"),
    ],
)
def test_options_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        moco(**arguments)


def test_a_run_with_all_options_is_resumed_with_its_hyper_parameters():
    options = {"mochi": (4, 3, 2), "mochi_warmup": 1, "eqco_alpha": 40, "co2_weight": 0.5, "symmetric": True}
    supervisor = moco(predictor={"layers": 1}, **options)
    supervisor.supervise(epochs=2, batch_size=8, name="run", progress=False)
    loaded = MomentumContrastSupervisor(backbone=TinyBackbone()).load("run")
    assert {name: getattr(loaded, name) for name in options} == options
    assert torch.equal(loaded.predictor[0].weight, supervisor.predictor[0].weight)
