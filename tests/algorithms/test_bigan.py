import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import softplus

from superself import Batch
from superself.algorithms.bigan import BiGanSupervisor, PairDiscriminator, balanced_cross_entropy
from superself.training import warmup_cosine

from cases import TinyBackbone, tiny_images


def bigan(images=None, **arguments):
    images = tiny_images() if images is None else images
    return BiGanSupervisor(images, **{"backbone": TinyBackbone(images.shape[1]), "seed": 0, **arguments})


def loss_of(supervisor, images=None):
    """The loss with the same latents each time."""
    images = tiny_images() if images is None else images
    supervisor.generator.manual_seed(1)
    return supervisor._forward(Batch(images, torch.arange(len(images))))


def discriminator_loss_of(supervisor):
    """What ``_forward`` reports as the loss of the discriminator."""
    noted = {}
    supervisor.note = noted.__setitem__
    loss_of(supervisor)
    return noted["discriminator_loss"].item()


class Fixed(nn.Module):
    """A discriminator with a given logit for real pairs and one for generated pairs; it remembers its inputs."""

    def __init__(self, real, generated):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([real, generated]))

    def forward(self, images, latents):
        self.images, self.latents = images, latents
        return self.logits.repeat_interleave(len(images) // 2) + 0 * images.sum() + 0 * latents.sum()


def test_losses_are_the_cross_entropies_with_true_and_with_swapped_labels():
    supervisor = bigan(discriminator=Fixed(0.3, -1.2))
    loss = loss_of(supervisor)
    real, generated = (1 / (1 + math.exp(-logit)) for logit in (0.3, -1.2))  # D(x, E(x)), D(G(z), z)
    assert discriminator_loss_of(supervisor) == pytest.approx(-(math.log(real) + math.log(1 - generated)) / 2)
    assert loss.item() == pytest.approx(-(math.log(1 - real) + math.log(generated)) / 2)


def test_an_undecided_discriminator_gives_both_players_a_loss_of_ln_2():
    supervisor = bigan(discriminator=Fixed(0.0, 0.0))
    assert loss_of(supervisor).item() == pytest.approx(math.log(2))
    assert discriminator_loss_of(supervisor) == pytest.approx(math.log(2))
    assert supervisor.chance_loss is None  # neither player's loss need fall


@pytest.mark.parametrize("fooled_on", ["real", "generated", "both"])
def test_loss_falls_when_the_discriminator_is_fooled_on_either_kind_of_pair(fooled_on):
    right = loss_of(bigan(discriminator=Fixed(4.0, -4.0))).item()
    real = -4.0 if fooled_on != "generated" else 4.0
    generated = 4.0 if fooled_on != "real" else -4.0
    fooled = bigan(discriminator=Fixed(real, generated))
    assert loss_of(fooled).item() < right - 1.9
    assert discriminator_loss_of(fooled) > 1.9
    if fooled_on == "both":
        assert loss_of(fooled).item() < 0.02


def test_pairs_are_an_image_with_its_encoding_and_a_latent_with_its_image():
    supervisor = bigan(discriminator=Fixed(0.0, 0.0)).eval()
    loss_of(supervisor)
    (x, generated), (encoded, z) = supervisor.discriminator.images.chunk(2), supervisor.discriminator.latents.chunk(2)
    assert torch.equal(x, supervisor.preprocessing(tiny_images()))
    assert torch.allclose(encoded, supervisor.encode(x)) and torch.allclose(generated, supervisor.decoder(z))


@pytest.mark.parametrize("kind", ["real", "generated"])
def test_encoder_learns_from_real_pairs_and_generator_from_generated_ones(kind):
    """The loss is called with (logits to be positive, logits to be negative), swapped for encoder and generator."""

    def only(positive, negative):
        return softplus(negative).mean() if kind == "real" else softplus(-positive).mean()

    supervisor = bigan(loss=only)
    loss_of(supervisor).backward()
    encoder = [p.grad is not None and p.grad.any().item() for p in supervisor.model.parameters()]
    generator = [p.grad is not None and p.grad.any().item() for p in supervisor.decoder.parameters()]
    if kind == "real":
        assert all(encoder) and not any(generator)
    else:
        assert all(generator) and not any(encoder)


@pytest.mark.parametrize("part", ["model", "decoder"])
def test_a_step_along_the_negative_gradient_fools_the_discriminator_more(part):
    supervisor = bigan()
    before = loss_of(supervisor)
    parameters = list(getattr(supervisor, part).parameters())
    with torch.no_grad():
        for p, gradient in zip(parameters, torch.autograd.grad(before, parameters), strict=True):
            p -= 1e-3 * gradient
    assert loss_of(supervisor) < before


def test_discriminator_judges_image_and_latent_jointly():
    """Its logit depends on both, and how it depends on one depends on the other: it is not a sum over the two."""
    torch.manual_seed(0)
    discriminator = PairDiscriminator((3, 16, 16), latent=4)
    images, latents = torch.randn(2, 3, 16, 16), torch.rand(2, 4) * 2 - 1
    table = torch.stack([discriminator(images, z.expand(2, -1)) for z in latents])  # (latent, image)
    assert (table[0] - table[1]).abs().min() > 1e-3 and (table[:, 0] - table[:, 1]).abs().min() > 1e-3
    assert (table[0, 0] + table[1, 1] - table[0, 1] - table[1, 0]).abs() > 1e-3


def test_discriminator_judges_each_pair_independently_of_the_others():
    discriminator = PairDiscriminator((1, 20, 16), latent=4).train()
    images, latents = torch.randn(6, 1, 20, 16), torch.randn(6, 4)
    assert torch.allclose(discriminator(images[:2], latents[:2]), discriminator(images, latents)[:2], atol=1e-5)


def test_no_image_is_compared_with_its_reconstruction():
    """The generator is called once, with drawn latents, and the order of the images does not change the loss."""
    supervisor, calls = bigan().eval(), []
    supervisor.decoder.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    loss = loss_of(supervisor)
    supervisor.generator.manual_seed(1)
    assert len(calls) == 1 and torch.equal(calls[0], supervisor.draw_latents(16))
    assert torch.allclose(loss_of(supervisor, tiny_images().flip(0)), loss, atol=1e-6)


def test_latents_and_encodings_have_the_same_range():
    supervisor = bigan(latent=5)
    z = supervisor.draw_latents(2000)
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
    ids=["Adam", "AdamW", "partial"],
)
def test_beta1_applies_to_optimizer_classes_and_not_to_functions(optimizer, betas):
    supervisor = bigan(discriminator_lr=2.0)
    supervisor.supervise(lr=1e-3, optimizer=optimizer, epochs=1, batch_size=16, name="run", progress=False)
    groups = supervisor.run.optimizer.param_groups
    assert [group["betas"] for group in groups] == [betas, betas]
    assert [group["lr"] for group in groups] == [1e-3, 2e-3]


def test_optimizers_without_betas_and_beta1_none_are_left_as_they_are():
    bigan().supervise(optimizer=torch.optim.SGD, epochs=1, batch_size=16, name="run", progress=False)
    supervisor = bigan(beta1=None).supervise(epochs=1, batch_size=16, name="run", progress=False)
    assert supervisor.run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_beta1_is_not_passed_to_an_optimizer_whose_betas_have_no_default():
    class Own(torch.optim.Adam):
        def __init__(self, parameters, lr, *, betas=None):
            super().__init__(parameters, lr, betas or (0.8, 0.9))

    supervisor = bigan().supervise(optimizer=Own, epochs=1, batch_size=16, name="run", progress=False)
    assert {group["betas"] for group in supervisor.run.optimizer.param_groups} == {(0.8, 0.9)}


def test_an_empty_sequential_is_a_head_that_changes_nothing():
    features = nn.Sequential(TinyBackbone(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    supervisor = bigan(latent=5, backbone=features, predictor=nn.Sequential())
    assert len(supervisor.model.predictor) == 0 and torch.isfinite(loss_of(supervisor))


@pytest.mark.parametrize("shape", [(1, 33, 20), (3, 16, 16), (4, 40, 64)])
def test_generator_makes_images_of_the_shape_of_the_data_set(shape):
    images = tiny_images(4, shape[0], shape[1:])
    supervisor = bigan(images)
    assert supervisor.decoder(supervisor.draw_latents(3)).shape == (3, *shape)
    found = supervisor.reconstruct(images)
    assert found.shape == images.shape and found.dtype == torch.float32
    with torch.no_grad():
        supervisor.decoder[-1].last.bias += 5
    assert supervisor.reconstruct(images).mean() > 4  # normalised images are not bounded, so the output is not


def test_reconstruction_is_the_generator_after_the_encoder():
    supervisor = bigan().eval()
    z = supervisor.model(supervisor.preprocessing(tiny_images())).tanh()
    assert torch.allclose(supervisor.reconstruct(tiny_images()), supervisor.decoder(z), atol=1e-6)


def test_picture_shows_images_reconstructions_and_samples_and_changes_nothing():
    supervisor = bigan(tiny_images(4, size=(24, 16))).train()
    state, before = supervisor.generator.get_state(), {k: v.clone() for k, v in supervisor.state_dict().items()}
    path = supervisor.show_reconstruction("pictures/bigan.png", count=3)
    picture = np.asarray(Image.open(path))
    assert picture.shape[0] >= 3 * 24 and picture.shape[1] >= 3 * 16 and picture.std() > 0
    assert torch.equal(supervisor.generator.get_state(), state) and supervisor.training
    assert all(torch.equal(v, before[k]) for k, v in supervisor.state_dict().items())


def test_picture_shows_views_that_are_smaller_than_the_stored_images(drawn):
    supervisor = bigan(tiny_images(4, size=(24, 24)), view_size=16)
    supervisor.show_reconstruction("bigan.png", count=3)
    columns, titles = drawn[0]
    assert titles == ["image x", "reconstruction G(E(x))", "sample G(z)"]
    assert [column.shape for column in columns] == [(3, 3, 16, 16)] * 3


def shades(n, seed):
    """Noisy grey images (n, 3, 8, 8) from dark to bright, and the brightness of each in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    shade = torch.rand(n, generator=generator)
    images = 40 + 170 * shade.view(n, 1, 1, 1) + 15 * torch.randn(n, 3, 8, 8, generator=generator)
    return images.clamp(0, 255).to(torch.uint8), shade


def test_reconstructions_of_unseen_images_resemble_them_rather_than_others():
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
        ({"latent": 0}, r"latent must be an integer of at least 1, got 0 \(it is the number of values of z\)"),
        (
            {"beta1": 1.0},
            r"beta1 must be a number in \[0, 1\), got 1.0 \(it is the decay rate of Adam's first moment\)",
        ),
        ({"discriminator_lr": 0}, r"discriminator_lr must be a number above 0, got 0 \(it multiplies lr\)"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bigan(**arguments)


def test_balanced_cross_entropy_equals_the_mean_over_both_kinds():
    positive, negative = torch.tensor([0.0, 2.0]), torch.tensor([1.0, -1.0])
    slow = (
        sum(math.log(1 + math.exp(-a)) for a in (0.0, 2.0)) / 2
        + sum(math.log(1 + math.exp(a)) for a in (1.0, -1.0)) / 2
    )
    assert balanced_cross_entropy(positive, negative).item() == pytest.approx(slow / 2)
