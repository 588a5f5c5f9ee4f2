import pytest
import torch
from torch import nn

from superself import Batch
from superself.algorithms.denoising_autoencoder import DenoiseNetSupervisor

from cases import TinyBackbone, tiny_images


def denoise(images=None, **arguments):
    images = tiny_images() if images is None else images
    return DenoiseNetSupervisor(images, **{"backbone": TinyBackbone(images.shape[1]), "seed": 0, **arguments})


def both(prediction, target):
    return prediction, target


class Recording(nn.Module):
    """A backbone that records its input."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        self.seen = images
        return images * self.scale


class Constant(nn.Module):
    """A predictor that returns the same value everywhere."""

    def __init__(self, value, shape):
        super().__init__()
        self.value, self.shape = nn.Parameter(torch.tensor(value)), shape

    def forward(self, features):
        return self.value.expand(len(features), *self.shape)


def corrupted_and_clean(images, **arguments):
    """The supervisor, the input of its network, and the target."""
    supervisor = denoise(images, backbone=Recording(), loss=both, **arguments)
    target = supervisor._forward(Batch(images))[1]
    return supervisor, supervisor.model.backbone.seen, target


@pytest.mark.parametrize("noise", ["mask", "gaussian", "salt-and-pepper"])
def test_the_target_is_the_clean_image_and_both_are_normalised_alike(noise):
    images = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    images[:2] += torch.randint(60, (2, 3, 32, 32), dtype=torch.uint8)
    supervisor, seen, target = corrupted_and_clean(images, noise=noise, sigma=0.05)
    assert torch.equal(target, supervisor.preprocessing(images))
    assert not torch.equal(seen, target) and abs((seen - target).median().item()) < 0.1


def test_mask_sets_a_fraction_p_of_the_pixels_to_zero_in_all_channels():
    images = tiny_images(16, size=(32, 32))
    _, seen, target = corrupted_and_clean(images, p=0.3)
    masked = (seen == 0).all(1, keepdim=True)
    assert masked.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(seen, target * ~masked)
    assert len({row.sum().item() for row in masked}) > 1  # a different mask for each image


def test_salt_and_pepper_makes_a_fraction_p_of_the_pixels_half_white_and_half_black():
    images = torch.full((16, 3, 32, 32), 128, dtype=torch.uint8)
    images[0, :, 0] = 127
    supervisor, seen, _ = corrupted_and_clean(images, p=0.4, noise="salt-and-pepper")
    pixels = supervisor.preprocessing.undo(seen)
    for value in (0.0, 1.0):
        hit = (pixels - value).abs() < 1e-4
        assert hit.float().mean().item() == pytest.approx(0.2, abs=0.02)
        assert torch.equal(hit.any(1), hit.all(1))


def test_gaussian_noise_has_the_standard_deviation_sigma():
    images = torch.full((16, 3, 32, 32), 128, dtype=torch.uint8)
    images[0, :, 0] = 127
    supervisor, seen, target = corrupted_and_clean(images, noise="gaussian", sigma=0.1)
    difference = supervisor.preprocessing.undo(seen) - supervisor.preprocessing.undo(target)
    assert difference.std().item() == pytest.approx(0.1, abs=0.003) and abs(difference.mean().item()) < 0.003


def test_loss_equals_the_mean_squared_error_by_a_loop():
    supervisor, data = denoise(), Batch(tiny_images())
    supervisor.generator.manual_seed(1)
    corrupted, clean = supervisor._corrupted_and_clean(data.images)
    prediction = supervisor.model(corrupted)
    slow = (
        sum(((p - c) ** 2).item() for p, c in zip(prediction.flatten(), clean.flatten(), strict=True)) / clean.numel()
    )
    supervisor.generator.manual_seed(1)
    assert supervisor._forward(data).item() == pytest.approx(slow, rel=1e-4)


def test_loss_equals_a_number_worked_by_hand():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 16, 16)  # -1 and 1 when normalised
    supervisor = denoise(images, predictor=Constant(0.5, (1, 16, 16)))
    assert supervisor._forward(Batch(images)).item() == pytest.approx((1.5**2 + 0.5**2) / 2)


@pytest.mark.parametrize("noise", ["mask", "gaussian", "salt-and-pepper"])
def test_corrupted_only_averages_over_the_pixels_that_the_noise_changed(noise):
    supervisor, data = denoise(corrupted_only=True, noise=noise, sigma=0.002), Batch(tiny_images())
    supervisor.generator.manual_seed(1)
    corrupted, clean = supervisor._corrupted_and_clean(data.images)
    error = (supervisor.model(corrupted) - clean).square()
    destroyed = (corrupted != clean).any(1, keepdim=True).expand_as(error)
    assert destroyed.float().mean() > 0.1 and (noise == "gaussian" or destroyed.float().mean() < 0.4)
    supervisor.generator.manual_seed(1)
    assert supervisor._forward(data).item() == pytest.approx(error[destroyed].mean().item(), rel=1e-4)


def test_chance_level_is_the_loss_of_predicting_the_mean():
    supervisor = denoise(predictor=Constant(0.0, (3, 16, 16)))
    assert supervisor._forward(Batch(tiny_images())).item() == pytest.approx(supervisor.chance_loss, rel=1e-4)
    assert supervisor.chance_loss == pytest.approx(1, rel=1e-4)
    assert denoise(normalize=(0.0, 1.0)).chance_loss < 0.1


def darker_centre(images):
    """The middle 16 x 16 pixels at half their brightness."""
    return images[:, :, 4:20, 4:20] / 2


@pytest.mark.parametrize(("augment", "variance"), [(False, 0.75), (darker_centre, 0.1875)], ids=["plain", "augmented"])
def test_chance_level_is_that_of_the_views_not_of_the_stored_images(augment, variance):
    images = torch.randint(256, (32, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, :, :4] = images[:, :, 20:] = 0  # outside the views
    supervisor = denoise(images, view_size=16, augment=augment)
    clean = supervisor.views(Batch(images))[0]
    error = (clean - clean.mean((0, 2, 3), keepdim=True)).square().mean()
    assert supervisor.chance_loss == pytest.approx(error.item(), rel=1e-4) == pytest.approx(variance, rel=0.1)


def test_noise_is_added_to_augmented_views_of_view_size():
    images = tiny_images(4, size=(24, 24))
    _, seen, target = corrupted_and_clean(images, view_size=16, augment=darker_centre)
    assert seen.shape == target.shape == (4, 3, 16, 16)
    assert torch.equal(target[seen != 0], seen[seen != 0]) and (seen != target).any()


def test_chance_level_is_unknown_without_images():
    denoise().supervise(epochs=1, batch_size=16, name="run", progress=False)
    assert DenoiseNetSupervisor(backbone=TinyBackbone()).chance_loss is None
    assert DenoiseNetSupervisor(backbone=TinyBackbone()).load("run").chance_loss is None


def test_output_has_neither_norm_nor_activation():
    supervisor = denoise()
    last = [m for m in supervisor.model.predictor.modules() if not list(m.children())][-1]
    nn.init.zeros_(last.weight)
    for value in (-30.0, 30.0):
        nn.init.constant_(last.bias, value)
        assert torch.equal(supervisor.model(torch.rand(2, 3, 16, 16)), torch.full((2, 3, 16, 16), value))


def test_noise_is_drawn_from_the_generator_of_the_run():
    supervisor = denoise()
    views = []
    for _ in range(2):
        supervisor.generator.manual_seed(3)
        views.append(supervisor._corrupted_and_clean(tiny_images())[0])
        torch.rand(5)
    assert torch.equal(*views) and not torch.equal(views[0], supervisor._corrupted_and_clean(tiny_images())[0])


def test_learns_to_clean_unseen_images():
    supervisor = denoise(tiny_images(64))
    supervisor.supervise(lr=1e-2, epochs=15, batch_size=32, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        loss = supervisor._forward(Batch(tiny_images(32, seed=1))).item()
    assert loss < 0.3 * supervisor.chance_loss


def test_picture_has_three_columns_and_changes_nothing(drawn):
    supervisor = denoise(tiny_images(size=(16, 12))).train()
    weights = {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}
    state = supervisor.generator.get_state()
    assert supervisor.show_reconstruction("pictures/denoise.png", count=5).stat().st_size > 0
    (corrupted, clean, predicted), titles = drawn[0]
    assert titles == ["corrupted", "original", "prediction"]
    assert all(len(column.unique()) > 10 for column in (corrupted, clean))
    assert not torch.equal(corrupted, clean) and not torch.equal(clean, predicted)
    assert supervisor.training and torch.equal(supervisor.generator.get_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in supervisor.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 0.0}, r"p must be a number in \(0, 1\), got 0.0 \(it is the probability that a pixel is destroyed\)"),
        ({"p": 1.0}, r"p must be a number in \(0, 1\), got 1.0 "),
        ({"noise": "pepper"}, r"noise='pepper' is unknown; pass 'mask', 'gaussian' or 'salt-and-pepper'"),
        ({"sigma": 0.0}, r"sigma must be a number above 0, got 0.0 \(it is the standard deviation of the noise\)"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        denoise(**arguments)
