import copy
import os
import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, BYOLSupervisor
from superself.training import cosine

from cases import TinyBackbone, tiny_images


def byol(n=16, **arguments):
    return BYOLSupervisor(tiny_images(n), **{"backbone": TinyBackbone(), "seed": 0, "augment": two_views, **arguments})


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch():
    return Batch(tiny_images(), torch.arange(16))


def test_loss_equals_the_double_sum_of_squared_distances():
    supervisor = byol()
    first, second = (supervisor.preprocessing(v / 255) for v in two_views(tiny_images().float()))
    slow = 0.0
    for view, other in ((first, second), (second, first)):
        q = normalize(supervisor.predictor(supervisor.model(view)), dim=1)
        z = normalize(supervisor.target(other), dim=1)
        slow += sum(((a - b) ** 2).sum() for a, b in zip(q, z, strict=True)).item() / 16
    loss = supervisor._forward(batch())
    assert loss.item() == pytest.approx(slow, rel=1e-4)


def test_aligned_predictions_give_zero_and_orthogonal_ones_four():
    same = byol(projector=Constant([1.0, 0.0]), predictor=nn.Identity())
    assert same._forward(batch()).item() == pytest.approx(0, abs=1e-6)
    across = byol(projector=Constant([1.0, 0.0]), predictor=Constant([0.0, 3.0]))
    assert across._forward(batch()).item() == pytest.approx(4) == across.chance_loss


class Constant(nn.Module):
    """Every image gets the same embedding."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x):
        return self.values.expand(len(x), -1)


def test_target_starts_equal_has_no_predictor_and_gets_no_gradient():
    supervisor = byol(predictor=nn.Linear(256, 256))
    names = {name for name, _ in supervisor.model.named_parameters()}
    assert {name.removeprefix("average.") for name, _ in supervisor.target.named_parameters()} == names
    for name, p in supervisor.model.named_parameters():
        assert torch.equal(supervisor.target.get_parameter(f"average.{name}"), p)
    supervisor._forward(batch()).backward()
    assert all(p.grad is None for p in supervisor.target.parameters())
    assert all(p.grad is not None for p in [*supervisor.model.parameters(), *supervisor.predictor.parameters()])


def test_target_moves_only_after_the_optimizer_step_and_by_the_schedule():
    seen = []

    class Observed(BYOLSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            self.old = copy.deepcopy(list(self.target.parameters()))
            super()._update(loss, optimizer, lr_scheduler)
            assert all(torch.equal(a, b) for a, b in zip(self.old, self.target.parameters(), strict=True))

        def _after_step(self):
            super()._after_step()
            momentum = cosine(0.9, 1.0, self.step / 6)
            for old, new, online in zip(self.old, self.target.parameters(), self.model.parameters(), strict=True):
                assert torch.allclose(new, momentum * old + (1 - momentum) * online, atol=1e-7)
            seen.append(momentum)

    supervisor = Observed(tiny_images(), augment=two_views, backbone=TinyBackbone(), momentum=0.9)
    supervisor.supervise(epochs=3, batch_size=8, name="run", progress=False)
    assert seen[0] == 0.9 and len(seen) == 6 and seen == sorted(seen)


def test_the_momentum_of_a_resumed_run_continues_the_schedule_of_the_whole_run(monkeypatch):
    momenta = []
    monkeypatch.setattr("superself.networks.MomentumEncoder.update", lambda self, online, m: momenta.append(m))

    class Stopped(BYOLSupervisor):
        def _after_step(self):
            super()._after_step()
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    given = {"augment": two_views, "backbone": TinyBackbone(), "seed": 0, "momentum": 0.9}
    settings = {"epochs": 3, "batch_size": 8, "name": "run", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        Stopped(tiny_images(), **given).supervise(**settings)
    BYOLSupervisor(tiny_images(), **given).supervise(**settings, resume=True)
    assert momenta == [cosine(0.9, 1.0, step / 6) for step in range(6)]


def test_target_is_in_train_mode_while_training():
    supervisor = byol()
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert supervisor.target.average.backbone.layers[1].num_batches_tracked > 0


def test_views_are_drawn_from_the_generator_of_the_run():
    supervisor = byol(augment="byol")
    supervisor.generator.manual_seed(3)
    first = supervisor.views(batch())
    supervisor.generator.manual_seed(3)
    torch.rand(5)
    again = supervisor.views(batch())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_momentum_outside_zero_to_one_is_refused(momentum):
    with pytest.raises(
        ValueError, match=rf"momentum must be a number in \[0, 1\], got {momentum} \(it is the fraction of the target"
    ):
        byol(momentum=momentum)
    with pytest.raises(ValueError, match=f"momentum must be .*, got {momentum} "):
        byol(momentum=momentum, loss=nn.MSELoss())


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="augment='simclear' is not a recipe; did you mean 'simclr'"):
        byol(augment="simclear")


def test_a_projector_that_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match="projector='.*' is not a head; pass an instance of nn.Module, a dictionary"):
        byol(projector="mlp")


def test_the_noted_cosine_is_that_of_predictions_and_targets_in_both_directions():
    noted = []

    class Noting(BYOLSupervisor):
        def note(self, name, value):
            noted.append((name, value.item()))

    heads = {"projector": Constant([1.0, 0.0]), "predictor": Constant([1.0, 1.0])}
    supervisor = Noting(tiny_images(), augment=two_views, backbone=TinyBackbone(), **heads)
    supervisor._forward(batch())
    assert noted == [("cosine", pytest.approx(0.5**0.5))] * 2  # an angle of 45 degrees


def test_a_custom_loss_is_not_noted_as_a_cosine():
    noted = []

    class Noting(BYOLSupervisor):
        def note(self, name, value):
            noted.append((name, value.item()))

    Noting(tiny_images(), augment=two_views, backbone=TinyBackbone(), loss=nn.MSELoss())._forward(batch())
    assert noted == []


def test_predictor_follows_the_width_of_the_projector():
    supervisor = byol(projector=nn.Linear(16, 24))
    assert torch.isfinite(supervisor._forward(batch()))
    assert supervisor.predictor(torch.zeros(2, 24)).shape == (2, 24)


def test_an_empty_predictor_is_used_as_it_was_passed():
    predictor = nn.Sequential()  # as a truth value it is False
    assert byol(predictor=predictor).predictor is predictor


def test_heads_may_be_given_as_arguments_of_mlp_which_replace_the_papers_one_by_one():
    supervisor = BYOLSupervisor(
        tiny_images(), backbone=TinyBackbone(), projector={"out_features": 12, "layers": 3}, predictor={"norm": "layer"}
    )
    linears = [layer for layer in supervisor.model.predictor if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linears] == [4096, 4096, 12]
    assert [type(layer) for layer in supervisor.predictor] == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
    loaded = BYOLSupervisor(backbone=TinyBackbone()).load("run")
    assert loaded.given.projector == {"out_features": 12, "layers": 3} and loaded.embedding_width == 12


def test_a_predictor_with_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="predictor=.* has the key 'widht'; the arguments are out_features, hidden"):
        BYOLSupervisor(tiny_images(), backbone=TinyBackbone(), predictor={"widht": 3})
