import csv

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from superself import Batch, SimSiamSupervisor, create
from superself.losses import SymmetricNegativeCosine

from cases import SMALL, TinyBackbone, tiny_images


def simsiam(**arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, "projector": SMALL, **arguments}
    return SimSiamSupervisor(tiny_images(), **given)


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch():
    return Batch(tiny_images(), torch.arange(16))


def embeddings(supervisor):
    return [supervisor.model(supervisor.preprocessing(view / 255)) for view in two_views(tiny_images().float())]


def test_loss_is_minus_the_mean_cosine_of_both_directions():
    supervisor = simsiam()
    first, second = embeddings(supervisor)
    slow = 0.0
    for z, other in ((first, second), (second, first)):
        p = supervisor.predictor(z)
        slow -= sum(cosine_similarity(a, b, dim=0).item() for a, b in zip(p, other, strict=True)) / 32
    loss = supervisor._forward(batch())
    assert loss.item() == pytest.approx(slow, abs=1e-5)
    pairs = [(z, supervisor.predictor(z)) for z in (first, second)]
    assert loss.item() == pytest.approx(SymmetricNegativeCosine()(*pairs).item(), abs=1e-5)


def test_no_gradient_flows_into_the_targets():
    """Without the predictor, a network whose targets moved too would get twice the gradient."""
    supervisor = simsiam(projector=nn.Linear(16, 8), predictor=nn.Identity(), loss=lambda p, z: (p - z).square().mean())
    supervisor._forward(batch()).backward()
    found = supervisor.model.predictor.weight.grad.clone()
    supervisor.zero_grad()
    first, second = embeddings(supervisor)
    (first - second).square().mean().backward()
    assert torch.allclose(supervisor.model.predictor.weight.grad, 2 * found, rtol=1e-4)


def test_aligned_predictions_give_minus_one_and_orthogonal_ones_chance():
    same = simsiam(projector=Constant([1.0, 0.0]), predictor=nn.Identity())
    assert same._forward(batch()).item() == pytest.approx(-1)
    across = simsiam(projector=Constant([1.0, 0.0]), predictor=Constant([0.0, 3.0]))
    assert across._forward(batch()).item() == pytest.approx(0) == across.chance_loss


class Constant(nn.Module):
    """Every image gets the same embedding."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x):
        return self.values.expand(len(x), -1)


def test_heads_are_those_of_the_paper():
    supervisor = simsiam(projector=None)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in supervisor.model.predictor] == [*kinds, *kinds, *kinds[:2]]
    linears = [layer for layer in supervisor.model.predictor if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linears] == [2048] * 3 and all(layer.bias is None for layer in linears)
    *inner, last = [layer for layer in supervisor.model.predictor if isinstance(layer, nn.BatchNorm1d)]
    assert not last.affine and all(norm.affine for norm in inner)
    hidden, norm, _, out = supervisor.predictor
    assert (hidden.in_features, hidden.out_features, out.out_features) == (2048, 512, 2048)
    assert isinstance(norm, nn.BatchNorm1d) and out.bias is not None


def test_the_projector_of_the_cifar_preset_has_two_layers():
    supervisor = create("simsiam-cifar10", tiny_images(), backbone=TinyBackbone())
    assert sum(isinstance(layer, nn.Linear) for layer in supervisor.model.predictor) == 2
    assert not supervisor.model.predictor[-1].affine


def test_the_predictor_keeps_a_bottleneck_of_a_quarter_of_any_projector():
    hidden, *_, out = simsiam(projector=nn.Linear(16, 24), predictor={"norm": "layer"}).predictor
    assert (hidden.out_features, out.out_features) == (6, 24)


@pytest.mark.parametrize("fixed", [True, False])
def test_the_learning_rate_of_the_predictor_is_fixed_unless_asked_otherwise(fixed):
    rates = []

    class Observed(SimSiamSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            super()._update(loss, optimizer, lr_scheduler)
            rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    given = {"augment": two_views, "backbone": TinyBackbone(), "projector": SMALL, "fixed_predictor_lr": fixed}
    settings = {"lr": 0.1, "lr_scheduler": "cosine", "epochs": 2, "batch_size": 8, "name": "run", "progress": False}
    Observed(tiny_images(), **given).supervise(**settings)
    assert rates[-1]["main"] < 0.01 and rates[-1]["predictor"] == (0.1 if fixed else rates[-1]["main"])


def test_a_predictor_without_weights_is_accepted():
    simsiam(predictor=nn.Identity()).supervise(epochs=1, batch_size=16, name="run", progress=False)


def test_the_spread_of_embeddings_is_recorded_next_to_that_of_uniform_ones():
    simsiam(augment="moco-v2").supervise(epochs=1, batch_size=16, name="run", progress=False)
    with open("run.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["embedding_std_uniform"]) == pytest.approx(64**-0.5, rel=1e-3)
    assert 0 < float(row["embedding_std"]) <= 64**-0.5


def test_fixed_predictor_lr_must_be_true_or_false():
    with pytest.raises(TypeError, match="fixed_predictor_lr must be True or False, got 1 "):
        simsiam(fixed_predictor_lr=1)
