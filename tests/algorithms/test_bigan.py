import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from superself import BiGanSupervisor

from cases import TinyBackbone, tiny_images


def bigan(images=None, **arguments):
    images = tiny_images() if images is None else images
    return BiGanSupervisor(images, **{"backbone": TinyBackbone(), "seed": 0, "latent": 4, **arguments})


def batch(n=16):
    return tiny_images(n), torch.arange(n)


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)


class Fixed(nn.Module):
    """A discriminator that calls every pair real by the same amount."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, images, latents):
        return self.logit + 0 * images.flatten(1).sum(1) + 0 * latents.sum(1)


def test_both_losses_are_the_cross_entropy_with_labels_swapped_for_the_first_player():
    supervisor = bigan()
    seen = []
    supervisor.discriminator.register_forward_hook(lambda module, inputs, output: seen.append(output))
    loss = supervisor._forward(batch())
    real, fake = seen[0].double().chunk(2)
    of_discriminator = sum(-math.log(1 / (1 + math.exp(-r))) for r in real) + sum(
        -math.log(1 - 1 / (1 + math.exp(-f))) for f in fake
    )
    of_the_others = sum(-math.log(1 - 1 / (1 + math.exp(-r))) for r in real) + sum(
        -math.log(1 / (1 + math.exp(-f))) for f in fake
    )
    assert supervisor.discriminator_loss.item() == pytest.approx(of_discriminator / 32, rel=1e-4)
    assert loss.item() == pytest.approx(of_the_others / 32, rel=1e-4)


def test_a_discriminator_that_tells_nothing_gives_the_logarithm_of_two():
    supervisor = bigan(discriminator=Fixed(0.0))
    assert supervisor._forward(batch()).item() == pytest.approx(math.log(2))
    assert supervisor.discriminator_loss.item() == pytest.approx(math.log(2))


def test_encoder_and_generator_are_both_trained_to_fool_the_discriminator():
    supervisor = bigan()
    loss = supervisor._forward(batch())
    for network in (supervisor.model, supervisor.decoder):
        found = gradients(loss, network)
        assert all(g is not None for g in found) and max(g.abs().max() for g in found) > 0


def test_encoder_is_moved_by_pairs_of_images_and_generator_by_pairs_of_latents():
    supervisor = bigan()
    seen = []
    supervisor.discriminator.register_forward_hook(lambda module, inputs, output: seen.append(output))
    supervisor._forward(batch())
    real, fake = seen[0].chunk(2)
    encoder, generator = supervisor.model.predictor, supervisor.decoder[0]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(softplus(real).mean(), encoder))
    assert all(g is None or g.abs().sum() == 0 for g in gradients(softplus(real).mean(), generator))
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(softplus(-fake).mean(), generator))
    assert all(g is None or g.abs().sum() == 0 for g in gradients(softplus(-fake).mean(), encoder))


def test_one_update_moves_all_three_networks_each_by_its_own_loss():
    supervisor = bigan()
    before = {name: p.clone() for name, p in supervisor.named_parameters()}
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
    for part in ("model", "decoder", "discriminator"):
        moved = [not torch.equal(p, before[n]) for n, p in supervisor.named_parameters() if n.startswith(part)]
        assert moved and all(moved), part


def test_the_pair_matters_and_not_only_its_parts():
    supervisor = bigan().eval()
    x, z = torch.randn(4, 3, 16, 16), torch.rand(4, 4) * 2 - 1
    logits = supervisor.discriminator(x, z)
    other_z = supervisor.discriminator(x, z.roll(1, 0)) - logits
    other_x = supervisor.discriminator(x.roll(1, 0), z) - logits
    assert other_z.abs().max() > 1e-3 and other_x.abs().max() > 1e-3
    # if the logit were a sum of what each part says, swapping the latents would change nothing in all
    assert other_z.sum().abs() > 1e-4


def test_there_is_no_reconstruction_term():
    """G is called with z alone, never with E(x)."""
    supervisor = bigan()
    given = []
    supervisor.decoder.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    supervisor._forward(batch())
    assert len(given) == 1 and not given[0].requires_grad


def test_latents_of_images_and_drawn_ones_have_the_same_range():
    supervisor = bigan()
    z, e = supervisor.draw(500), supervisor.encode(100 * torch.randn(16, 3, 16, 16))
    assert -1 <= z.min() < -0.98 and 0.98 < z.max() <= 1
    assert e.min() >= -1 and e.max() <= 1


def test_real_and_generated_images_do_not_mix_in_the_discriminator():
    supervisor = bigan().train()
    x, z = torch.randn(6, 3, 16, 16), torch.rand(6, 4)
    together = supervisor.discriminator(x, z)
    assert torch.allclose(supervisor.discriminator(x[:1], z[:1]), together[:1], atol=1e-5)


def test_adam_gets_the_papers_beta_and_other_optimisers_none():
    seen = []

    class Watched(BiGanSupervisor):
        def _init_data_optimizer(self, *arguments):
            made = super()._init_data_optimizer(*arguments)
            seen.append(made[1])
            return made

    for optimizer in (torch.optim.Adam, torch.optim.SGD):
        supervisor = Watched(tiny_images(), backbone=TinyBackbone(), latent=4, discriminator_lr=0.5)
        supervisor.supervise(lr=1e-3, optimizer=optimizer, epochs=1, batch_size=16, name="run", progress=False)
    assert [group["betas"] for group in seen[0].param_groups] == [(0.5, 0.999)] * 2
    assert "betas" not in seen[1].param_groups[0]


def test_images_come_back_as_their_own_kind():
    """Dark and bright images: after training G(E(x)) is nearer to the images of its own kind."""
    images = torch.cat([tiny_images(16) // 4, 255 - tiny_images(16) // 4])
    supervisor = bigan(images, latent=2)
    supervisor.supervise(lr=2e-3, epochs=150, batch_size=16, name="run", progress=False)
    back, wanted = supervisor.eval().reconstruct(images), supervisor.preprocessing(images)
    dark, bright = wanted[:16].mean(0), wanted[16:].mean(0)
    nearer_to_dark = (back - dark).square().mean((1, 2, 3)) < (back - bright).square().mean((1, 2, 3))
    assert nearer_to_dark[:16].float().mean() > 0.8 and nearer_to_dark[16:].float().mean() < 0.2


def test_pictures_are_written(tmp_path):
    path = bigan(tiny_images(8, size=(20, 16))).show_reconstruction(tmp_path / "a.png", count=3)
    assert path.stat().st_size > 0


def test_refuses_impossible_numbers():
    with pytest.raises(ValueError, match="latent=0 is the number of values of z; pass a whole number of at least 1"):
        bigan(latent=0)
    with pytest.raises(ValueError, match=r"beta1=1 must be in \[0, 1\)"):
        bigan(beta1=1)
