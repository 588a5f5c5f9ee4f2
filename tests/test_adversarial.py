import copy
import functools
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.optim.lr_scheduler import OneCycleLR

from superself import BiGanSupervisor, ContextNetSupervisor
from superself.adversarial import AdversarialSupervisor
from superself.basics.random import seed_everything
from superself.data import Batch
from superself.networks import CombinedNet
from superself.training import Run, Settings, warmup_cosine

from cases import TinyBackbone, tiny_images


class Game(AdversarialSupervisor):
    """A backbone against a discriminator that separates its embeddings from noise."""

    def __init__(self, dataset=None, backbone=None, **options):
        super().__init__(None, dataset, **options)
        self.given.backbone = backbone

    def _build(self):
        self.model = CombinedNet(self.given.backbone or TinyBackbone(), nn.Linear(16, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def _forward(self, data):
        (images,) = self.views(data)
        embeddings = self.model(images)
        noise = torch.randn(embeddings.shape, generator=self.generator)
        pair = torch.cat([embeddings, noise])
        loss = softplus(-self.judge(pair).flatten()[: len(images)]).mean()
        fake, real = self.train_discriminator(pair).flatten().chunk(2)
        self.losses = loss, softplus(-real).mean() + softplus(fake).mean()
        return self.both_losses(*self.losses)


def game(images=None, **arguments):
    return Game(tiny_images() if images is None else images, **{"seed": 0, **arguments})


def two_losses(algorithm):
    """The algorithm with one call of the whole discriminator for each loss, which are kept apart: the obvious way.

    Each player's gradient is then that of its own loss with respect to its own parameters only.
    """

    class TwoLosses(algorithm):
        def train_discriminator(self, *inputs):
            return self.discriminator(*inputs)

        def judge(self, *inputs):
            return self.discriminator(*inputs)

        def both_losses(self, loss, discriminator_loss):
            self.losses = loss, discriminator_loss
            return loss

        def gradients(self):
            """By name, of the losses of the last ``_forward``."""
            found = {}
            for loss, player in zip(self.losses, players(self), strict=True):
                found |= dict(
                    zip(player, torch.autograd.grad(loss, list(player.values()), retain_graph=True), strict=True)
                )
            return found

    return TwoLosses


GAMES = [
    pytest.param(Game, {}, id="Game"),
    pytest.param(BiGanSupervisor, {"backbone": TinyBackbone(), "latent": 4}, id="BiGAN"),
    pytest.param(ContextNetSupervisor, {"backbone": TinyBackbone()}, id="context encoder, blocks"),
    pytest.param(
        ContextNetSupervisor,
        {"backbone": TinyBackbone(), "region": "center", "adversarial_weight": 0.3},
        id="context encoder, centre",
    ),
]


def make(algorithm, options):
    """A supervisor with the same weights at every call."""
    return algorithm(tiny_images(), seed=0, **{name: copy.deepcopy(value) for name, value in options.items()})


def loss_of(supervisor):
    supervisor.generator.manual_seed(1)
    return supervisor._forward(Batch(tiny_images(), torch.arange(16)))


def prepared(supervisor, **settings):
    """The optimizer and the schedule as supervise() makes them."""
    settings = Settings(**{"lr": 0.1, "optimizer": torch.optim.SGD, "epochs": 2, "batch_size": 8, **settings})
    supervisor.run = Run(supervisor, settings)
    return supervisor._init_data_optimizer(settings.optimizer, 8, True, 0, None, settings.lr, settings.lr_scheduler)[1:]


def players(supervisor):
    """Names and parameters of the first player, and of the second."""
    named = dict(supervisor.named_parameters())
    second = {name: p for name, p in named.items() if name.startswith("discriminator.")}
    return {name: p for name, p in named.items() if name not in second}, second


@pytest.mark.parametrize(("algorithm", "options"), GAMES)
def test_one_backward_pass_gives_exactly_the_gradients_of_two_separate_losses(algorithm, options):
    slow, supervisor = make(two_losses(algorithm), options).train(), make(algorithm, options).train()
    noted = {}
    supervisor.note = noted.__setitem__
    loss_of(slow)
    total = loss_of(supervisor)
    assert torch.equal(total, slow.losses[0]) and torch.equal(noted["discriminator_loss"], slow.losses[1])
    total.backward()
    wanted = slow.gradients()
    for name, p in supervisor.named_parameters():
        assert torch.equal(p.grad, wanted[name]), name
    assert sum(gradient.any().item() for gradient in wanted.values()) > len(wanted) / 2


@pytest.mark.parametrize(("algorithm", "options"), GAMES)
def test_a_step_with_clipped_gradients_follows_each_players_own_loss(algorithm, options):
    class Clipped(algorithm):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm=0.01)
            assert norm > 0.02
            optimizer.step()
            lr_scheduler.step()

    slow, supervisor = make(two_losses(algorithm), options).train(), make(Clipped, options)
    before = {name: p.clone() for name, p in supervisor.named_parameters()}
    seed_everything(0, slow.generator)  # as a run starts
    slow._forward(Batch(tiny_images(), torch.arange(16)))
    gradients = slow.gradients()
    scale = 0.01 / torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    rates = dict.fromkeys(before, 1.0) | dict.fromkeys(players(supervisor)[1], supervisor.discriminator_lr)
    supervisor.supervise(
        lr=1.0,
        optimizer=torch.optim.SGD,
        epochs=1,
        batch_size=16,
        shuffle=False,
        name="run",
        precision="32-true",
        progress=False,
    )
    for name, p in supervisor.named_parameters():
        step = rates[name] * scale * gradients[name]
        torch.testing.assert_close(before[name] - p, step, rtol=1e-3, atol=1e-6, msg=name)


def test_one_backward_pass_gives_each_player_the_gradient_of_its_own_loss():
    supervisor = game()
    first, second = players(supervisor)
    total = loss_of(supervisor)
    loss, discriminator_loss = supervisor.losses
    assert total.item() == pytest.approx(loss.item(), abs=1e-6)  # the progress line shows the loss of the first player
    wanted = dict(zip(first, torch.autograd.grad(loss, list(first.values()), retain_graph=True), strict=True))
    wanted |= dict(
        zip(second, torch.autograd.grad(discriminator_loss, list(second.values()), retain_graph=True), strict=True)
    )
    total.backward()
    for name, p in supervisor.named_parameters():
        assert torch.allclose(p.grad, wanted[name], atol=1e-7) and wanted[name].any(), name


def test_judging_neither_trains_the_discriminator_nor_moves_its_statistics():
    supervisor = game()
    before = supervisor.discriminator[1].running_mean.clone()
    embeddings = torch.randn(8, 4, requires_grad=True)
    supervisor.judge(embeddings).sum().backward()
    assert embeddings.grad.any() and all(p.grad is None for p in supervisor.discriminator.parameters())
    assert torch.equal(supervisor.discriminator[1].running_mean, before)
    embeddings.grad = None
    supervisor.train_discriminator(embeddings).sum().backward()
    assert embeddings.grad is None and all(p.grad is not None for p in supervisor.discriminator.parameters())
    assert not torch.equal(supervisor.discriminator[1].running_mean, before)


def test_a_users_update_that_clips_nothing_changes_nothing():
    class Clipped(Game):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm=1e6)  # so large that nothing is clipped
            optimizer.step()
            lr_scheduler.step()

    plain = game().supervise(epochs=2, batch_size=8, name="plain", progress=False)
    clipped = Clipped(tiny_images(), seed=0).supervise(epochs=2, batch_size=8, name="clipped", progress=False)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(clipped.state_dict()[name], tensor), name


def test_frozen_parts_of_either_player_do_not_change():
    supervisor = game()
    frozen = [supervisor.discriminator[0].weight, supervisor.model.backbone.layers[0].weight]
    for p in frozen:
        p.requires_grad_(False)
    before = [p.clone() for p in frozen]
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(frozen, before, strict=True))


def test_the_discriminators_learning_rate_is_a_multiple_and_the_schedule_acts_on_both():
    optimizer, schedule = prepared(game(discriminator_lr=0.5), lr_scheduler=warmup_cosine(0.5))
    rates = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert all(second == pytest.approx(0.5 * first) for first, second in rates)
    assert rates[1][0] == pytest.approx(2 / 3 * 0.1) and rates[4][0] == pytest.approx(0, abs=1e-12)


def test_weight_decay_leaves_out_biases_and_norms_of_both_players():
    supervisor = game()
    optimizer = prepared(supervisor, weight_decay=0.1)[0]
    found = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(p): 0.1 if p.ndim >= 2 else 0.0 for p in supervisor.parameters()}


def test_the_optimizer_is_fused_as_for_other_algorithms():
    optimizer = prepared(game(), optimizer=torch.optim.Adam)[0]
    assert all(group["fused"] for group in optimizer.param_groups)
    optimizer = prepared(game(), optimizer=functools.partial(torch.optim.Adam, betas=(0.5, 0.9)))[0]
    assert all(group["fused"] and group["betas"] == (0.5, 0.9) for group in optimizer.param_groups)


def test_an_optimizer_may_be_any_function():
    optimizer = prepared(game(), optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9))[0]
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.1, "lr_scheduler": warmup_cosine(0.3)}],
    ids=["plain", "weight decay and schedule"],
)
def test_resumed_run_equals_uninterrupted_run(settings):
    class Stopped(Game):
        def _after_step(self):
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    settings = {"lr": 1e-2, "epochs": 4, "batch_size": 8, "progress": False, **settings}
    options = {"discriminator_lr": 0.3}
    whole = game(tiny_images(20), **options).supervise(name="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        Stopped(tiny_images(20), seed=0, **options).supervise(name="parts", **settings)
    resumed = game(tiny_images(20), seed=None, **options).supervise(name="parts", resume=True, **settings)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    states = [s.run.optimizer.state_dict()["state"] for s in (whole, resumed)]
    assert states[0] and all(torch.equal(states[0][p]["exp_avg"], states[1][p]["exp_avg"]) for p in states[0])


def test_a_schedule_may_change_beta1_during_the_run():
    supervisor = BiGanSupervisor(tiny_images(16), backbone=TinyBackbone())
    supervisor.supervise(
        epochs=1,
        batch_size=8,
        name="run",
        lr_scheduler=lambda optimizer, total_steps: OneCycleLR(optimizer, [1e-2, 5e-3], total_steps=total_steps),
        progress=False,
    )
    assert all(0.85 < group["betas"][0] < 0.95 for group in supervisor.run.optimizer.param_groups)  # from 0.5


def test_both_losses_are_reported():
    supervisor = game().supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert "discriminator_loss" in Path("run.csv").read_text() and supervisor.step == 2


def test_without_a_discriminator_it_is_a_supervisor():
    class Alone(Game):
        def _build(self):
            super()._build()
            self.discriminator = None

        def _forward(self, data):
            return self.model(self.views(data)[0]).square().mean()

    supervisor = Alone(tiny_images(), seed=0)
    assert len(prepared(supervisor)[0].param_groups) == 1
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)


def test_loads_without_a_data_set():
    supervisor = game().supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = Game().load("run")
    for name, tensor in supervisor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("rate", [0, -1.0])
def test_a_rate_that_is_not_positive_is_refused(rate):
    with pytest.raises(
        ValueError, match=rf"discriminator_lr must be a number above 0, got {rate} \(it multiplies lr\)"
    ):
        game(discriminator_lr=rate)


def test_a_misspelt_option_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match="did you mean 'discriminator_lr'"):
        game(discriminator_rl=0.5)
