import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from superself import Batch
from superself.algorithms.context_encoder import ChannelwiseLinear, ContextNetSupervisor
from superself.augment import Lambda
from superself.networks import feature_maps

from cases import TinyBackbone, tiny_images


def context(images=None, **arguments):
    images = tiny_images() if images is None else images
    return ContextNetSupervisor(images, **{"backbone": TinyBackbone(images.shape[1]), "seed": 0, **arguments})


def loss_of(supervisor, images=None):
    """The loss with the same holes at every call."""
    images = tiny_images() if images is None else images
    supervisor.generator.manual_seed(1)
    return supervisor._forward(Batch(images, torch.arange(len(images))))


def discriminator_loss_of(supervisor):
    """What ``_forward`` reports as the loss of the discriminator."""
    noted = {}
    supervisor.note = noted.__setitem__
    loss_of(supervisor)
    return noted["discriminator_loss"].item()


def masks_of(supervisor, images=None):
    """Region and hole as in ``loss_of``."""
    supervisor.generator.manual_seed(1)
    return supervisor._masks(supervisor.preprocessing(tiny_images() if images is None else images))


class Recording(nn.Module):
    """A module that records its inputs."""

    def __init__(self, module):
        super().__init__()
        self.module, self.seen = module, []

    def forward(self, images):
        self.seen.append(images)
        return self.module(images)


class Fixed(nn.Module):
    """A predictor that returns the same images whatever the features."""

    def __init__(self, images):
        super().__init__()
        self.images = nn.Parameter(images)

    def forward(self, features):
        return self.images.expand(-1, -1, 16, 16) + 0 * features.sum()


def test_loss_equals_the_mean_squared_error_in_the_hole_by_a_loop():
    supervisor = context(adversarial_weight=0, predictor=Fixed(torch.randn(16, 3, 16, 16)))
    region, hole = masks_of(supervisor)
    images, prediction = supervisor.preprocessing(tiny_images()), supervisor.model.predictor.images
    slow, count = 0.0, 0
    for b, c, y, x in np.ndindex(16, 3, 16, 16):
        if hole[b, 0, y, x]:
            slow, count = slow + (prediction[b, c, y, x] - images[b, c, y, x]).item() ** 2, count + 1
    loss = loss_of(supervisor)
    assert torch.equal(region, hole) and loss.item() == pytest.approx(slow / count, rel=1e-4)
    loss.backward()
    assert torch.equal((prediction.grad != 0).any(1, keepdim=True), hole)


def test_network_sees_zero_in_the_hole_and_the_image_around_it():
    supervisor = context(backbone=Recording(TinyBackbone()))
    hole, images = masks_of(supervisor)[1], supervisor.preprocessing(tiny_images())
    loss_of(supervisor)
    assert torch.equal(supervisor.model.backbone.seen[-1], torch.where(hole, 0.0, images))


def test_random_blocks_hide_up_to_a_quarter_and_differ_between_images():
    images = tiny_images(64, size=(32, 32))
    region, hole = context(images)._masks(images.float())
    fraction = region.float().mean((1, 2, 3))
    assert fraction.min() >= 1 / 16 and fraction.max() == 1 / 4 and torch.equal(region, hole)
    assert len({tuple(mask.flatten().tolist()) for mask in region}) == 64
    assert region.any(0)[0].any(0).all() and region.any(0)[0].any(1).all()  # up to the edges


def test_number_and_size_of_the_blocks_follow_the_arguments():
    images = tiny_images(16, size=(20, 32))
    region = context(images, blocks=1, block_size=0.5)._masks(images.float())[0]
    assert (region.sum((1, 2, 3)) == 100).all()


def test_centre_is_half_of_both_sides_and_the_hole_excludes_the_overlap():
    images = tiny_images(2, size=(32, 40))
    region, hole = context(images, region="center", overlap=3)._masks(images.float())
    expected = torch.zeros(2, 1, 32, 40, dtype=torch.bool)
    expected[:, :, 8:24, 10:30] = True
    assert torch.equal(region, expected)
    expected[:] = False
    expected[:, :, 11:21, 13:27] = True
    assert torch.equal(hole, expected)


def test_overlap_is_7_of_128_pixels_with_the_centre_and_none_with_blocks():
    assert context(tiny_images(2, size=(128, 130)), region="center").border == 7
    assert context(tiny_images(2, size=(32, 32)), region="center").border == 2
    assert context(tiny_images(2, size=(128, 130))).border == 0


def test_overlap_follows_the_size_of_the_views():
    assert context(tiny_images(2, size=(128, 130)), region="center", view_size=32).border == 2
    with pytest.raises(ValueError, match="overlap=4 on both sides leaves no hole in a region of 8 pixels"):
        context(tiny_images(2, size=(128, 130)), region="center", view_size=16, overlap=4)


@pytest.mark.parametrize("region", ["center", "random"])
def test_error_in_the_overlap_counts_ten_times(region):
    predictor = Fixed(torch.randn(16, 3, 16, 16))
    supervisor = context(region=region, overlap=1, adversarial_weight=0, predictor=predictor)
    region, hole = masks_of(supervisor)
    error = (predictor.images - supervisor.preprocessing(tiny_images())).square().mean(1, keepdim=True)
    inner, border = error[hole], error[region & ~hole]
    assert len(inner) > 0 and len(border) > 0
    slow = (inner.sum() + 10 * border.sum()) / (len(inner) + 10 * len(border))
    assert loss_of(supervisor).item() == pytest.approx(slow.item(), rel=1e-4)


def test_overlap_grows_from_the_context_not_from_the_edge_of_the_image():
    supervisor = context(blocks=1, block_size=0.5, overlap=2)
    supervisor.place_blocks = Lambda(lambda ones: ones * (torch.arange(16).view(16, 1) >= 8))  # the upper half
    hole = supervisor._masks(torch.zeros(1, 3, 16, 16))[1]
    assert hole[0, 0, :6].all() and not hole[0, 0, 6:].any()


def test_joint_loss_weighs_reconstruction_and_discriminator_999_to_1():
    supervisor = context(discriminator_lr=1.0)
    alone = context(adversarial_weight=0)
    assert alone.discriminator is None
    region = masks_of(supervisor)[0]
    supervisor.discriminator = Recording(supervisor.discriminator)
    joint, reconstruction = loss_of(supervisor), loss_of(alone)
    real, fake, judged = supervisor.discriminator.seen
    ones, zeros = torch.ones(16), torch.zeros(16)
    real_logits, fake_logits = supervisor.discriminator.module(real), supervisor.discriminator.module(fake)
    adversarial = binary_cross_entropy_with_logits(fake_logits, ones)
    assert joint.item() == pytest.approx(0.999 * reconstruction.item() + 0.001 * adversarial.item(), rel=1e-4)
    second = binary_cross_entropy_with_logits(real_logits, ones) + binary_cross_entropy_with_logits(fake_logits, zeros)
    assert discriminator_loss_of(supervisor) == pytest.approx(second.item(), rel=1e-4)
    images = supervisor.preprocessing(tiny_images())
    assert torch.equal(real, images * region) and not torch.equal(fake, real) and torch.equal(judged, fake)
    assert not (fake * ~region).any()  # nothing outside the region


def test_each_player_learns_from_its_own_loss():
    class Constant(nn.Module):
        """A discriminator with the same logit for all images."""

        def __init__(self):
            super().__init__()
            self.logit = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return self.logit.expand(len(images)) + 0 * images.sum()

    supervisor = context(region="center")
    supervisor.discriminator = Constant()
    assert discriminator_loss_of(supervisor) == pytest.approx(2 * math.log(2))
    loss = loss_of(supervisor)
    optimizer = torch.optim.SGD(supervisor.parameters(), lr=1.0)
    before = supervisor.model.predictor[-1].last.bias.detach().clone()
    supervisor._update(loss, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))
    # Real and predicted regions pull its logit in opposite directions; the other player's loss would move it.
    assert supervisor.discriminator.logit.item() == pytest.approx(0)
    assert not torch.equal(supervisor.model.predictor[-1].last.bias, before)


def test_discriminator_has_a_tenth_of_the_learning_rate():
    rates = {}

    class Inspected(ContextNetSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            super()._update(loss, optimizer, lr_scheduler)
            rates.update({id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]})

    supervisor = Inspected(tiny_images(), backbone=TinyBackbone())
    supervisor.supervise(lr=1e-3, epochs=1, batch_size=16, name="run", progress=False)
    assert all(rates[id(p)] == pytest.approx(1e-4) for p in supervisor.discriminator.parameters())
    assert all(rates[id(p)] == pytest.approx(1e-3) for p in supervisor.model.parameters())


def test_channelwise_layer_equals_a_linear_layer_for_each_channel():
    layer, maps = ChannelwiseLinear(3, 4, 9), torch.randn(2, 3, 4)
    slow = torch.stack([maps[:, c] @ layer.weight[c] + layer.bias.view(3, 9)[c] for c in range(3)], dim=1)
    assert torch.allclose(layer(maps), slow, atol=1e-6)


def test_channelwise_layer_connects_all_positions_and_no_channels():
    layer, maps = ChannelwiseLinear(5, 49, 49), torch.randn(1, 5, 49, requires_grad=True)
    layer(maps)[0, 2, 10].backward()
    assert (maps.grad[0, 2] != 0).all() and not maps.grad[0, [0, 1, 3, 4]].any()
    assert layer.weight.numel() == 5 * 7**4  # m n^4


class Shaped(nn.Module):
    """A backbone that returns features of a given shape."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, images):
        return self.weight * images.mean((1, 2, 3)).view(-1, *[1] * self.weight.ndim)


@pytest.mark.parametrize(
    ("backbone", "maps", "positions"),
    [
        (Shaped(6), (6, 1, 1), 1),
        (Shaped(6, 5, 3), (6, 5, 3), 15),
        (Shaped(6, 9, 8), (6, 9, 8), 49),
        (Shaped(10, 6), (6, 3, 3), 9),  # nine tokens and a class token
        (None, (64, 7, 7), 49),
    ],
    ids=["vector", "map", "large map", "tokens", "default"],
)
def test_predictor_takes_the_maps_of_any_backbone_pooled_to_at_most_49_positions(backbone, maps, positions):
    supervisor, images = context(backbone=backbone), torch.zeros(2, 3, 16, 16)
    assert feature_maps(supervisor.model.backbone, images).shape == (2, *maps)
    assert supervisor.model(images).shape == (2, 3, 16, 16)
    layer = next(module for module in supervisor.model.modules() if isinstance(module, ChannelwiseLinear))
    assert layer.weight.shape == (maps[0], positions, 49)


def undecided(discriminator):
    """Makes a Discriminator give the logit 0 to every image."""
    nn.init.zeros_(discriminator[-2].weight)
    nn.init.zeros_(discriminator[-2].bias)


def shaded_centre(images):
    """The middle 16 x 16 pixels, from black on the left to unchanged on the right."""
    return images[:, :, 4:20, 4:20] * torch.linspace(0, 1, 16)


@pytest.mark.parametrize("region", ["random", "center"])
@pytest.mark.parametrize("augment", [False, shaded_centre], ids=["plain", "augmented"])
def test_chance_level_is_the_loss_of_predicting_the_mean_of_the_region(region, augment):
    images = torch.randint(256, (32, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, :, :4] = images[:, :, 20:] = 0  # outside the views
    predictor = Fixed(torch.zeros(32, 3, 1, 1))
    supervisor = context(images, region=region, view_size=16, augment=augment, predictor=predictor)
    undecided(supervisor.discriminator)
    optimizer = torch.optim.SGD([predictor.images], lr=30.0)
    for _ in range(60):
        optimizer.zero_grad()
        supervisor.generator.manual_seed(0)  # the seed of what is measured
        loss = supervisor._forward(Batch(images))
        loss.backward()
        predictor.images.grad[:] = predictor.images.grad.mean(0, keepdim=True)  # the same for all images
        optimizer.step()
    assert loss.item() == pytest.approx(supervisor.chance_loss, rel=1e-4)
    assert supervisor.chance_loss < 0.8  # the stored images have the variance 1


def test_chance_level_of_whole_images_of_noise_is_1():
    images = torch.randint(256, (512, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert context(images).chance_loss == pytest.approx(0.999 + 0.001 * math.log(2), rel=5e-3)


def test_chance_level_of_the_centre_is_that_of_its_pixels():
    images = tiny_images()
    images[:, :, 4:12, 4:12] = 100
    assert context(images, region="center", adversarial_weight=0).chance_loss == pytest.approx(0, abs=1e-5)


def test_chance_level_is_unknown_without_images():
    context().supervise(epochs=1, batch_size=16, name="run", progress=False)
    assert ContextNetSupervisor(backbone=TinyBackbone()).chance_loss is None
    assert ContextNetSupervisor(backbone=TinyBackbone()).load("run").chance_loss is None


def test_learns_to_fill_holes_of_unseen_images():
    supervisor = context(tiny_images(64), adversarial_weight=0.001)
    supervisor.supervise(lr=1e-2, epochs=15, batch_size=32, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        assert loss_of(supervisor, tiny_images(32, seed=1)).item() < 0.3 * supervisor.chance_loss


def test_trains_without_a_discriminator_and_loads():
    supervisor = context(adversarial_weight=0, region="center")
    supervisor.supervise(epochs=2, batch_size=16, name="run", progress=False)
    loaded = ContextNetSupervisor(backbone=TinyBackbone()).load("run")
    assert loaded.discriminator is None and loaded.region == "center"


def test_picture_shows_hole_image_prediction_and_filled_image_and_changes_nothing(drawn):
    supervisor = context(tiny_images(size=(16, 12))).train()
    weights = {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}
    state = supervisor.generator.get_state()
    assert supervisor.show_reconstruction("pictures/context.png", count=5).stat().st_size > 0
    (hole, image, prediction, filled), titles = drawn[0]
    assert titles == ["with the hole", "original", "prediction", "hole filled in"]
    hidden = (hole != image).any(1, keepdim=True)
    assert 0.05 < hidden.float().mean() < 0.3
    assert torch.equal(filled, torch.where(hidden, prediction, image))
    assert supervisor.training and torch.equal(supervisor.generator.get_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in supervisor.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"region": "middle"}, r"region='middle' is unknown; pass 'random' or 'center'"),
        ({"blocks": 0}, r"blocks must be an integer of at least 1, got 0 \(it is the number of blocks\)"),
        ({"block_size": 1.0}, r"block_size must be a number in \(0, 1\), got 1.0 \(it is the side of a block"),
        (
            {"overlap": 2},
            r"overlap=2 on both sides leaves no hole in a region of 4 pixels; pass an overlap from 0 to 1",
        ),
        ({"region": "center", "overlap": 4}, r"a region of 8 pixels; pass an overlap from 0 to 3"),
        ({"overlap": -1}, r"overlap must be an integer of at least 0, got -1 \(it is a width in pixels\)"),
        (
            {"adversarial_weight": 1.0},
            r"adversarial_weight must be a number in \[0, 1\), got 1.0 \(it is the weight of the adversarial loss\)",
        ),
        (
            {"overlap_weight": 0},
            r"overlap_weight must be a number above 0, got 0 \(it weights the error in the overlap\)",
        ),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        context(**arguments)


def test_a_loss_that_averages_is_refused():
    message = r"loss returned shape \(\) for images of shape \(16, 3, 16, 16\), .*; pass a loss that does not average"
    with pytest.raises(ValueError, match=message):
        loss_of(context(loss=nn.MSELoss()))
