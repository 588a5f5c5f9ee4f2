import functools
import os
import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from superself import BiGanSupervisor
from superself.adversarial import AdversarialSupervisor
from superself.networks import CombinedNet
from superself.training import OptimizerPair, warmup_cosine

from cases import TinyBackbone, tiny_images


class Game(AdversarialSupervisor):
    """A backbone against a discriminator that tells its embeddings from noise; both losses are of the same logits."""

    def __init__(self, dataset=None, backbone=None, **options):
        super().__init__(None, dataset, **options)
        self.model = CombinedNet(backbone or TinyBackbone(), nn.Linear(16, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def _forward(self, data):
        embeddings = self.model(self.preprocessing(data[0]))
        noise = torch.randn(embeddings.shape, generator=self.generator)
        fake, real = self.discriminator(torch.cat([embeddings, noise])).flatten().chunk(2)
        self.discriminator_loss = softplus(-real).mean() + softplus(fake).mean()
        return softplus(-fake).mean()


def game(images=None, **arguments):
    return Game(tiny_images() if images is None else images, **{"seed": 0, **arguments})


def loss_of(supervisor):
    supervisor.generator.manual_seed(1)
    return supervisor._forward((tiny_images(), torch.arange(16)))


def prepared(supervisor, lr=0.1, optimizer=torch.optim.SGD, lr_scheduler=None, weight_decay=None):
    """The optimiser and the schedule as supervise() makes them."""
    supervisor.settings, supervisor.total_epochs = {"compile": False, "weight_decay": weight_decay}, 2
    return supervisor._init_data_optimizer(optimizer, 8, True, 0, None, lr, lr_scheduler)[1:]


def players(supervisor):
    """Names and parameters of the first player, and of the second."""
    named = dict(supervisor.named_parameters())
    second = {name: p for name, p in named.items() if name.startswith("discriminator.")}
    return {name: p for name, p in named.items() if name not in second}, second


def test_each_loss_reaches_its_own_player_alone_and_both_step():
    supervisor = game()
    first, second = players(supervisor)
    loss = loss_of(supervisor)
    wanted = dict(zip(first, torch.autograd.grad(loss, list(first.values()), retain_graph=True), strict=True))
    wanted |= dict(zip(second, torch.autograd.grad(supervisor.discriminator_loss, list(second.values())), strict=True))
    before = {name: p.detach().clone() for name, p in supervisor.named_parameters()}
    optimizer, schedule = prepared(supervisor, lr=0.1)
    supervisor._update(loss_of(supervisor), optimizer, schedule)
    for name, p in supervisor.named_parameters():
        assert torch.allclose(p.grad, wanted[name], atol=1e-7), name
        assert torch.allclose(p, before[name] - 0.1 * wanted[name], atol=1e-7) and wanted[name].any(), name


def test_gradients_of_one_step_are_forgotten_before_the_next():
    supervisor = game()
    optimizer, schedule = prepared(supervisor, lr=0.0)
    for _ in range(2):
        supervisor._update(loss_of(supervisor.eval()), optimizer, schedule)
        gradients = [p.grad.clone() for p in supervisor.parameters()]
    supervisor._update(loss_of(supervisor), optimizer, schedule)
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(supervisor.parameters(), gradients, strict=True))


def test_a_frozen_part_of_either_player_stays():
    supervisor = game()
    frozen = [supervisor.discriminator[0].weight, supervisor.model.backbone.layers[0].weight]
    for p in frozen:
        p.requires_grad_(False)
    before = [p.clone() for p in frozen]
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(frozen, before, strict=True))


def test_learning_rate_of_the_second_player_is_a_multiple_and_the_schedule_acts_on_both():
    optimizer, schedule = prepared(game(discriminator_lr=0.5), lr=0.1, lr_scheduler=warmup_cosine(0.5))
    rates = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert all(second == pytest.approx(0.5 * first) for first, second in rates)
    assert rates[1][0] == pytest.approx(2 / 3 * 0.1) and rates[4][0] == pytest.approx(0, abs=1e-12)
    assert optimizer.second.param_groups[0]["lr"] == rates[4][1]  # what the second optimiser steps by


def test_weight_decay_leaves_out_biases_and_norms_of_both():
    supervisor = game()
    optimizer = prepared(supervisor, weight_decay=0.1)[0]
    found = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(p): 0.1 if p.ndim >= 2 else 0.0 for p in supervisor.parameters()}
    assert len(optimizer.first.param_groups) == len(optimizer.second.param_groups) == 2


def test_both_optimisers_are_fused_where_one_would_be():
    optimizer = prepared(game(), optimizer=torch.optim.Adam)[0]
    assert all(group["fused"] for group in optimizer.param_groups)
    optimizer = prepared(game(), optimizer=functools.partial(torch.optim.Adam, betas=(0.5, 0.9)))[0]
    assert all(group["fused"] and group["betas"] == (0.5, 0.9) for group in optimizer.param_groups)


def test_an_optimiser_of_the_users_own_may_be_any_function():
    optimizer = prepared(game(), optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9))[0]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]


@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.1, "lr_scheduler": warmup_cosine(0.3)}],
    ids=["plain", "weight decay and schedule"],
)
def test_resumed_run_equals_uninterrupted_run(settings):
    class Stopped(Game):
        def _update(self, *arguments):
            super()._update(*arguments)
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    settings = {"lr": 1e-2, "epochs": 4, "batch_size": 8, "progress": False, **settings}
    options = {"discriminator_lr": 0.3}
    whole = game(tiny_images(20), **options).supervise(name="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        Stopped(tiny_images(20), seed=0, **options).supervise(name="parts", **settings)
    resumed = game(tiny_images(20), seed=5, **options).supervise(name="parts", resume=True, **settings)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    states = [s.run.optimizer.state_dict()["second"]["state"] for s in (whole, resumed)]
    assert states[0] and all(torch.equal(states[0][p]["exp_avg"], states[1][p]["exp_avg"]) for p in states[0])


def test_a_schedule_that_moves_momenta_too_finds_them():
    supervisor = BiGanSupervisor(tiny_images(16), backbone=TinyBackbone())
    supervisor.supervise(
        epochs=1,
        batch_size=8,
        name="run",
        lr_scheduler=functools.partial(OneCycleLR, max_lr=[1e-2, 5e-3]),
        progress=False,
    )
    assert all(0.85 < group["betas"][0] < 0.95 for group in supervisor.run.optimizer.param_groups)  # from 0.5


def test_pair_keeps_the_state_and_the_groups_of_both():
    def pair():
        first, second = nn.Linear(2, 1), nn.Linear(2, 1)
        made = OptimizerPair(torch.optim.Adam(first.parameters(), 0.1), torch.optim.SGD(second.parameters(), 0.2, 0.9))
        (first(torch.ones(1, 2)) + second(torch.ones(1, 2))).backward()
        return made

    stored, taken = pair(), pair()
    stored.step()
    schedule = LambdaLR(taken, lambda step: 1 / (step + 1))
    taken.load_state_dict(stored.state_dict())
    assert [g["lr"] for g in taken.param_groups] == [0.1, 0.2]
    assert (
        taken.param_groups[0] is taken.first.param_groups[0] and taken.param_groups[1] is taken.second.param_groups[0]
    )
    assert (
        taken.first.state_dict()["state"][0]["step"] == 1 and "momentum_buffer" in taken.second.state_dict()["state"][0]
    )
    taken.step()
    schedule.step()
    assert [g["lr"] for g in (taken.first.param_groups[0], taken.second.param_groups[0])] == [0.05, 0.1]
    taken.zero_grad()
    assert all(p.grad is None for g in taken.param_groups for p in g["params"])


def test_a_subclass_may_write_its_own_forward_with_one_pass_for_each_player():
    class Own(Game):
        def _forward(self, data):
            embeddings = self.model(self.preprocessing(data[0]))
            self.discriminator_loss = softplus(self.discriminator(embeddings.detach())).mean()
            return softplus(-self.discriminator(embeddings)).mean()

    supervisor = Own(tiny_images(), seed=0)
    before = {name: p.detach().clone() for name, p in supervisor.named_parameters()}
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert all(not torch.equal(p, before[name]) for name, p in supervisor.named_parameters())


def test_a_forward_that_forgets_the_second_loss_is_told():
    class Forgets(Game):
        def _forward(self, data):
            return self.discriminator(self.model(self.preprocessing(data[0]))).mean()

    with pytest.raises(TypeError, match="Forgets._forward left no loss in self.discriminator_loss"):
        Forgets(tiny_images(), seed=0).supervise(epochs=1, batch_size=8, name="run", progress=False)


def test_the_loss_of_one_step_is_not_used_twice():
    supervisor = game()
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert supervisor.discriminator_loss is None


def test_without_a_discriminator_it_is_a_supervisor():
    class Alone(Game):
        def __init__(self, dataset=None, **options):
            super().__init__(dataset, **options)
            self.discriminator = None

        def _forward(self, data):
            return self.model(self.preprocessing(data[0])).square().mean()

    supervisor = Alone(tiny_images(), seed=0)
    assert isinstance(prepared(supervisor)[0], torch.optim.SGD)
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)


def test_loads_without_a_data_set():
    supervisor = game().supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = Game().load("run")
    for name, tensor in supervisor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("rate", [0, -1.0])
def test_a_rate_that_is_not_positive_is_refused(rate):
    with pytest.raises(ValueError, match=f"discriminator_lr={rate} multiplies lr; pass a number above 0"):
        game(discriminator_lr=rate)


def test_a_misspelt_option_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match="did you mean 'discriminator_lr'"):
        game(discriminator_rl=0.5)
