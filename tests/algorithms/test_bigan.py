import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import softplus

from superself.algorithms.bigan import BiGanSupervisor, PairDiscriminator, tell_apart
from superself.training import warmup_cosine

from cases import TinyBackbone, tiny_images


def bigan(images=None, **arguments):
    images = tiny_images() if images is None else images
    return BiGanSupervisor(images, **{"backbone": TinyBackbone(images.shape[1]), "seed": 0, **arguments})


def loss_of(supervisor, images=None):
    """The loss with the same latents each time."""
    images = tiny_images() if images is None else images
    supervisor.generator.manual_seed(1)
    return supervisor._forward((images, torch.arange(len(images))))


class Fixed(nn.Module):
    """A discriminator that says what it is told of real and of generated pairs, and keeps what it is given."""

    def __init__(self, of_real, of_generated):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([of_real, of_generated]))

    def forward(self, images, latents):
        self.images, self.latents = images, latents
        return self.logits.repeat_interleave(len(images) // 2) + 0 * images.sum() + 0 * latents.sum()


def test_losses_are_the_cross_entropies_with_labels_and_with_swapped_ones():
    supervisor = bigan(discriminator=Fixed(0.3, -1.2))
    loss = loss_of(supervisor)
    says_real = [1 / (1 + math.exp(-logit)) for logit in (0.3, -1.2)]  # D(x, E(x)), D(G(z), z)
    assert supervisor.discriminator_loss.item() == pytest.approx(
        -(math.log(says_real[0]) + math.log(1 - says_real[1])) / 2
    )
    assert loss.item() == pytest.approx(-(math.log(1 - says_real[0]) + math.log(says_real[1])) / 2)


def test_a_discriminator_that_knows_nothing_gives_ln_2_to_both():
    supervisor = bigan(discriminator=Fixed(0.0, 0.0))
    assert loss_of(supervisor).item() == pytest.approx(math.log(2))
    assert supervisor.discriminator_loss.item() == pytest.approx(math.log(2)) and supervisor.chance_loss is None


@pytest.mark.parametrize("fooled_on", ["real", "generated", "both"])
def test_loss_falls_when_the_discriminator_is_fooled_on_either_kind_of_pair(fooled_on):
    right = loss_of(bigan(discriminator=Fixed(4.0, -4.0))).item()
    of_real = -4.0 if fooled_on != "generated" else 4.0
    of_generated = 4.0 if fooled_on != "real" else -4.0
    fooled = bigan(discriminator=Fixed(of_real, of_generated))
    assert loss_of(fooled).item() < right - 1.9
    assert fooled.discriminator_loss > 1.9
    if fooled_on == "both":
        assert loss_of(fooled).item() < 0.02


def test_pairs_are_an_image_with_its_encoding_and_a_latent_with_its_image():
    supervisor = bigan(discriminator=Fixed(0.0, 0.0)).eval()
    loss_of(supervisor)
    (x, generated), (encoded, z) = supervisor.discriminator.images.chunk(2), supervisor.discriminator.latents.chunk(2)
    assert torch.equal(x, supervisor.preprocessing(tiny_images()))
    assert torch.allclose(encoded, supervisor.encode(x)) and torch.allclose(generated, supervisor.decoder(z))


@pytest.mark.parametrize("kind", ["real", "generated"])
def test_encoder_and_generator_are_each_taught_by_their_own_pairs(kind):
    """The loss is called with (logits to be called real, logits to be called generated): swapped for the first player."""

    def only(yes, no):
        return softplus(no).mean() if kind == "real" else softplus(-yes).mean()

    supervisor = bigan(loss=only)
    loss_of(supervisor).backward()
    of_encoder = [p.grad is not None and p.grad.any().item() for p in supervisor.model.parameters()]
    of_generator = [p.grad is not None and p.grad.any().item() for p in supervisor.decoder.parameters()]
    if kind == "real":
        assert all(of_encoder) and not any(of_generator)
    else:
        assert all(of_generator) and not any(of_encoder)


def test_a_step_against_the_gradient_fools_the_discriminator_more():
    for part in ("model", "decoder"):
        supervisor = bigan()
        before = loss_of(supervisor)
        own = list(getattr(supervisor, part).parameters())
        with torch.no_grad():
            for p, gradient in zip(own, torch.autograd.grad(before, own), strict=True):
                p -= 1e-3 * gradient
        assert loss_of(supervisor) < before, part


def test_discriminator_is_joint():
    """Its answer changes with either part, and the change by one part depends on the other: it is no sum of two opinions."""
    torch.manual_seed(0)
    judge = PairDiscriminator((3, 16, 16), latent=4)
    images, latents = torch.randn(2, 3, 16, 16), torch.rand(2, 4) * 2 - 1
    table = torch.stack([judge(images, z.expand(2, -1)) for z in latents])  # (latent, image)
    assert (table[0] - table[1]).abs().min() > 1e-3 and (table[:, 0] - table[:, 1]).abs().min() > 1e-3
    assert (table[0, 0] + table[1, 1] - table[0, 1] - table[1, 0]).abs() > 1e-3


def test_discriminator_judges_every_pair_by_itself():
    judge = PairDiscriminator((1, 20, 16), latent=4).train()
    images, latents = torch.randn(6, 1, 20, 16), torch.randn(6, 4)
    assert torch.allclose(judge(images[:2], latents[:2]), judge(images, latents)[:2], atol=1e-5)


def test_no_image_is_compared_with_its_reconstruction():
    """The generator is called once, with latents that were drawn; in another order the images give the same loss."""
    supervisor, calls = bigan().eval(), []
    supervisor.decoder.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    loss = loss_of(supervisor)
    supervisor.generator.manual_seed(1)
    assert len(calls) == 1 and torch.equal(calls[0], supervisor.draw(16))
    assert torch.allclose(loss_of(supervisor, tiny_images().flip(0)), loss, atol=1e-6)


def test_latents_and_encodings_have_the_same_range():
    supervisor = bigan(latent=5)
    z = supervisor.draw(2000)
    assert z.shape == (2000, 5) and z.min() < -0.99 and z.max() > 0.99 and z.abs().max() <= 1
    assert z.mean(0).abs().max() < 0.06 and z.std(0).sub(3**-0.5).abs().max() < 0.03
    with torch.no_grad():
        supervisor.model.predictor.weight *= 1e4
    encoded = supervisor.encode(supervisor.preprocessing(tiny_images()))
    assert encoded.shape == (16, 5) and encoded.abs().max() <= 1 and encoded.std() > 0.5


def test_latents_are_drawn_from_the_generator_of_the_run():
    supervisor = bigan()
    first = loss_of(supervisor.eval())
    torch.rand(5)
    assert torch.equal(loss_of(supervisor), first)


def test_forward_works_without_gradients():
    with torch.no_grad():
        assert torch.isfinite(loss_of(bigan().eval()))


@pytest.mark.parametrize(
    ("optimizer", "betas"),
    [
        (torch.optim.Adam, (0.5, 0.999)),
        (torch.optim.AdamW, (0.5, 0.999)),
        (functools.partial(torch.optim.Adam, betas=(0.8, 0.9)), (0.8, 0.9)),
    ],
    ids=["Adam", "AdamW", "one's own"],
)
def test_adam_forgets_faster_unless_it_is_told_otherwise(optimizer, betas):
    supervisor = bigan(discriminator_lr=2.0)
    supervisor.supervise(lr=1e-3, optimizer=optimizer, epochs=1, batch_size=16, name="run", progress=False)
    groups = supervisor.run.optimizer.param_groups
    assert [group["betas"] for group in groups] == [betas, betas]
    assert [group["lr"] for group in groups] == [1e-3, 2e-3]


def test_an_optimiser_without_betas_is_left_as_it_is():
    bigan().supervise(optimizer=torch.optim.SGD, epochs=1, batch_size=16, name="run", progress=False)
    supervisor = bigan(beta1=None).supervise(epochs=1, batch_size=16, name="run", progress=False)
    assert supervisor.run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("shape", [(1, 33, 20), (3, 16, 16), (4, 40, 64)])
def test_generator_makes_images_like_those_of_the_data_set(shape):
    images = tiny_images(4, shape[0], shape[1:])
    supervisor = bigan(images)
    assert supervisor.decoder(supervisor.draw(3)).shape == (3, *shape)
    found = supervisor.reconstruct(images)
    assert found.shape == images.shape and found.dtype == torch.float32
    with torch.no_grad():
        supervisor.decoder[-1].last.bias += 5
    assert supervisor.reconstruct(images).mean() > 4  # normalised images have no bounds, and the output has none


def test_reconstruction_is_the_generator_after_the_encoder():
    supervisor = bigan().eval()
    z = supervisor.model(supervisor.preprocessing(tiny_images())).tanh()
    assert torch.allclose(supervisor.reconstruct(tiny_images()), supervisor.decoder(z), atol=1e-6)


def test_shows_images_their_reconstructions_and_samples_and_changes_nothing():
    supervisor = bigan(tiny_images(4, size=(24, 16))).train()
    state, before = supervisor.generator.get_state(), {k: v.clone() for k, v in supervisor.state_dict().items()}
    path = supervisor.show_reconstruction("pictures/bigan.png", count=3)
    picture = np.asarray(Image.open(path))
    assert picture.shape[0] >= 3 * 24 and picture.shape[1] >= 3 * 16 and picture.std() > 0
    assert torch.equal(supervisor.generator.get_state(), state) and supervisor.training
    assert all(torch.equal(v, before[k]) for k, v in supervisor.state_dict().items())


def shades(n, seed):
    """Grey images from dark to bright (n, 3, 8, 8), with noise, and how bright each is in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    shade = torch.rand(n, generator=generator)
    images = 40 + 170 * shade.view(n, 1, 1, 1) + 15 * torch.randn(n, 3, 8, 8, generator=generator)
    return images.clamp(0, 255).to(torch.uint8), shade


def test_unseen_images_come_back_as_their_own_kind():
    supervisor = bigan(shades(128, seed=0)[0], latent=2)
    settings = {"lr_scheduler": warmup_cosine(0.1), "precision": "32-true", "progress": False}
    supervisor.supervise(lr=1e-3, epochs=100, batch_size=32, name="run", **settings)
    images, shade = shades(64, seed=5)
    wanted = supervisor.preprocessing(images)
    with torch.no_grad():
        found = supervisor.eval().reconstruct(images)
    error, error_to_another = ((found - other).square().mean() for other in (wanted, wanted.roll(1, 0)))
    assert error < 0.7 and error < 0.3 * error_to_another  # predicting the mean gives 1
    dark, bright = wanted[shade < 0.3].mean(0), wanted[shade > 0.7].mean(0)
    nearer_to_dark = (found - dark).square().mean((1, 2, 3)) < (found - bright).square().mean((1, 2, 3))
    assert nearer_to_dark[shade < 0.3].float().mean() > 0.9 and nearer_to_dark[shade > 0.7].float().mean() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent": 0}, "latent=0 is the number of values of z; pass a whole number of at least 1"),
        ({"beta1": 1.0}, r"beta1=1.0 must be in \[0, 1\)"),
        ({"discriminator_lr": 0}, "discriminator_lr=0 multiplies lr"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bigan(**arguments)


def test_half_the_cross_entropy_of_each():
    yes, no = torch.tensor([0.0, 2.0]), torch.tensor([1.0, -1.0])
    slow = (
        sum(math.log(1 + math.exp(-a)) for a in (0.0, 2.0)) / 2
        + sum(math.log(1 + math.exp(a)) for a in (1.0, -1.0)) / 2
    )
    assert tell_apart(yes, no).item() == pytest.approx(slow / 2)
