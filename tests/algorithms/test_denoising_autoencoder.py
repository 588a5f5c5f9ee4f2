import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from superself.algorithms.denoising_autoencoder import DenoiseNetSupervisor

from cases import TinyBackbone, tiny_images


def denoise(images=None, **arguments):
    images = tiny_images() if images is None else images
    return DenoiseNetSupervisor(images, **{"backbone": TinyBackbone(images.shape[1]), "seed": 0, **arguments})


def both(prediction, target):
    return prediction, target


class Remembers(nn.Module):
    """A backbone that keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        self.seen = images
        return images * self.scale


class Constant(nn.Module):
    """A predictor that gives the same value everywhere."""

    def __init__(self, value, shape):
        super().__init__()
        self.value, self.shape = nn.Parameter(torch.tensor(value)), shape

    def forward(self, features):
        return self.value.expand(len(features), *self.shape)


def corrupted_and_clean(images, **arguments):
    """What the network is given, and what it is to predict."""
    supervisor = denoise(images, backbone=Remembers(), loss=both, **arguments)
    target = supervisor._forward((images, torch.arange(len(images))))[1]
    return supervisor, supervisor.model.backbone.seen, target


@pytest.mark.parametrize("noise", ["mask", "gaussian", "salt-and-pepper"])
def test_the_target_is_the_clean_image_and_both_are_normalised_alike(noise):
    images = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    images[:2] += torch.randint(60, (2, 3, 32, 32), dtype=torch.uint8)
    supervisor, seen, target = corrupted_and_clean(images, noise=noise, sigma=0.05)
    assert torch.equal(target, supervisor.preprocessing(images))
    assert not torch.equal(seen, target) and abs((seen - target).median().item()) < 0.1


def test_mask_gives_zero_in_all_channels_of_a_share_p_of_the_pixels():
    images = tiny_images(16, size=(32, 32))
    _, seen, target = corrupted_and_clean(images, p=0.3)
    masked = (seen == 0).all(1, keepdim=True)
    assert masked.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(seen, target * ~masked)
    assert len({row.sum().item() for row in masked}) > 1  # every image has its own


def test_salt_and_pepper_makes_half_of_a_share_p_white_and_half_black():
    images = torch.full((16, 3, 32, 32), 128, dtype=torch.uint8)
    images[0, :, 0] = 127
    supervisor, seen, _ = corrupted_and_clean(images, p=0.4, noise="salt-and-pepper")
    pixels = supervisor.preprocessing.undo(seen)
    for value, share in ((0.0, 0.2), (1.0, 0.2)):
        hit = (pixels - value).abs() < 1e-4
        assert hit.float().mean().item() == pytest.approx(share, abs=0.02)
        assert torch.equal(hit.any(1), hit.all(1))


def test_gaussian_noise_has_the_deviation_sigma():
    images = torch.full((16, 3, 32, 32), 128, dtype=torch.uint8)
    images[0, :, 0] = 127
    supervisor, seen, target = corrupted_and_clean(images, noise="gaussian", sigma=0.1)
    difference = supervisor.preprocessing.undo(seen) - supervisor.preprocessing.undo(target)
    assert difference.std().item() == pytest.approx(0.1, abs=0.003) and abs(difference.mean().item()) < 0.003


def test_loss_equals_the_mean_over_every_value():
    supervisor, data = denoise(), (tiny_images(), torch.arange(16))
    supervisor.generator.manual_seed(1)
    corrupted, clean = supervisor._views(data[0])
    prediction = supervisor.model(corrupted)
    slow = (
        sum(((p - c) ** 2).item() for p, c in zip(prediction.flatten(), clean.flatten(), strict=True)) / clean.numel()
    )
    supervisor.generator.manual_seed(1)
    assert supervisor._forward(data).item() == pytest.approx(slow, rel=1e-4)


def test_a_number_worked_by_hand():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 16, 16)  # -1 and 1 when normalised
    supervisor = denoise(images, predictor=Constant(0.5, (1, 16, 16)))
    assert supervisor._forward((images, torch.arange(2))).item() == pytest.approx((1.5**2 + 0.5**2) / 2)


def test_loss_of_the_corrupted_pixels_alone():
    supervisor, data = denoise(corrupted_only=True), (tiny_images(), torch.arange(16))
    supervisor.generator.manual_seed(1)
    corrupted, clean = supervisor._views(data[0])
    error = (supervisor.model(corrupted) - clean).square()
    destroyed = (corrupted != clean).any(1, keepdim=True).expand_as(error)
    supervisor.generator.manual_seed(1)
    assert supervisor._forward(data).item() == pytest.approx(error[destroyed].mean().item(), rel=1e-4)


def test_predicting_the_mean_is_chance():
    supervisor = denoise(predictor=Constant(0.0, (3, 16, 16)))
    assert supervisor._forward((tiny_images(), torch.arange(16))).item() == pytest.approx(
        supervisor.chance_loss, rel=1e-4
    )
    assert supervisor.chance_loss == pytest.approx(1, rel=1e-4)
    assert denoise(normalize=(0.0, 1.0)).chance_loss < 0.1


def test_nothing_is_known_of_chance_without_images():
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
        views.append(supervisor._views(tiny_images())[0])
        torch.rand(5)
    assert torch.equal(*views) and not torch.equal(views[0], supervisor._views(tiny_images())[0])


def test_learns_to_clean_images_that_it_has_not_seen():
    supervisor = denoise(tiny_images(64))
    supervisor.supervise(lr=1e-2, epochs=15, batch_size=32, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        loss = supervisor._forward((tiny_images(32, seed=1), torch.arange(32))).item()
    assert loss < 0.3 * supervisor.chance_loss


def test_picture_has_three_columns_and_changes_nothing():
    supervisor = denoise(tiny_images(size=(16, 12))).train()
    weights = {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}
    state = supervisor.generator.get_state()
    path = supervisor.show_reconstruction("pictures/denoise.png", count=5)
    columns = np.split(np.asarray(Image.open(path)), 3, axis=1)
    assert all(len(np.unique(column)) > 10 for column in columns[:2])
    assert not np.array_equal(columns[0], columns[1]) and not np.array_equal(columns[1], columns[2])
    assert supervisor.training and torch.equal(supervisor.generator.get_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in supervisor.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 0.0}, r"p=0.0 is the share of pixels that are destroyed"),
        ({"p": 1.0}, r"above 0 and below 1"),
        ({"noise": "pepper"}, r"noise='pepper' is unknown; pass one of 'mask', 'gaussian', 'salt-and-pepper'"),
        ({"sigma": 0.0}, r"sigma=0.0 is the standard deviation of the noise; pass a number above 0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        denoise(**arguments)
