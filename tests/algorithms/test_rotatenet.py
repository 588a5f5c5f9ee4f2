import math

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from superself import Batch, RotateNetSupervisor
from superself.algorithms.rotatenet import rotated_views

from cases import TinyBackbone, tiny_images


class UniformLogits(nn.Module):
    """A predictor for which every class is equally likely."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, y):
        return y.new_zeros(len(y), self.classes) + self.unused


class Recorder(TinyBackbone):
    """A backbone that keeps what it was given."""

    def forward(self, images):
        self.seen = images
        return super().forward(images)


def batch(n=16, seed=0):
    return Batch(tiny_images(n, seed=seed), torch.arange(n))


def views_of(images, rotations):
    return rotated_views(images, rotations, torch.Generator().manual_seed(0))


def test_right_angles_are_exact_and_grouped_by_rotation():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    views = views_of(images, (0, 90, 180, 270)).view(4, 2, 3, 4, 4)
    assert torch.equal(views[0], images)
    assert torch.equal(views[1], images.transpose(2, 3).flip(2))  # counter-clockwise: the right edge comes to the top
    assert torch.equal(views[2], images.flip(2, 3))
    assert torch.equal(views[3], images.transpose(2, 3).flip(3))


def test_a_number_worked_by_hand():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert views_of(image, (0, 90))[1, 0].tolist() == [[2.0, 4.0], [1.0, 3.0]]


@pytest.mark.parametrize("size", [(20, 32), (32, 20)])
def test_images_that_are_not_square_give_square_views_of_the_image(size):
    images = torch.rand(2, 3, *size)
    views = views_of(images, (0, 180))
    assert views.shape == (4, 3, 20, 20)
    crops = [images[..., i : i + 20, j : j + 20] for i in range(size[0] - 19) for j in range(size[1] - 19)]
    assert any(torch.equal(views[:2], crop) for crop in crops)


def test_the_square_is_at_a_random_position_of_images_that_are_not_square():
    images, generator = torch.rand(1, 1, 8, 16), torch.Generator().manual_seed(0)
    assert len({rotated_views(images, (0, 180), generator)[0].sum().item() for _ in range(30)}) > 3


def test_other_angles_show_no_corners():
    views = views_of(torch.full((3, 1, 32, 32), 7.0), (0, 30, 60))
    assert torch.allclose(views, torch.tensor(7.0)) and views.shape == (9, 1, 21, 21)


def test_other_angles_turn_counter_clockwise_as_right_angles_do():
    ramp = torch.linspace(0, 1, 40).view(1, 1, 1, 40).expand(1, 1, 40, 40)  # brighter to the right
    turned = views_of(ramp, (0, 90, 45))[:, 0]
    assert turned[0, :, -1].mean() > turned[0, :, 0].mean() + 0.3
    assert turned[1, 0].mean() > turned[1, -1].mean() + 0.3  # the right edge is at the top
    assert turned[2, 0, -1] > turned[2, -1, 0] + 0.3  # and here in the top right corner


def test_interpolation_does_not_give_the_angle_away():
    noise = torch.rand(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    views = views_of(noise, (0, 45, 90)).view(3, 200, 21, 21)
    sharpness = (views[..., 1:] - views[..., :-1]).square().mean(dim=(1, 2, 3))
    assert sharpness.max() / sharpness.min() < 1.1


def test_smoothing_does_not_give_the_angle_away():
    """The finest details have no direction: neighbours differ along the axes as much as along the diagonals."""
    noise = torch.rand(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    views = views_of(noise, (0, 45, 90)).view(3, 200, 21, 21)

    def change(down, right):
        moved = views.roll((down, right), (2, 3))[..., 1:-1, 1:-1]
        return (moved - views[..., 1:-1, 1:-1]).square().mean(dim=(1, 2, 3))

    ratio = (change(0, 1) + change(1, 0)) / (change(1, 1) + change(1, -1))
    assert ratio.max() / ratio.min() < 1.02


def test_loss_of_uniform_logits_is_chance():
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), predictor=UniformLogits(4))
    loss = supervisor._forward(batch())
    assert loss.item() == pytest.approx(math.log(4)) == supervisor.chance_loss


def test_targets_belong_to_their_views():
    def both(logits, targets):
        return logits, targets

    supervisor = RotateNetSupervisor(tiny_images(3), backbone=TinyBackbone(), rotations=(0, 180), loss=both)
    logits, targets = supervisor._forward(batch(3))
    assert logits.shape == (6, 2) and targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_images_are_cropped_and_flipped_by_default_and_all_rotations_of_the_same_crop_are_in_the_batch():
    noise = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    backbone = Recorder()
    supervisor = RotateNetSupervisor(noise, backbone=backbone, seed=0, normalize=(0.0, 1.0))
    supervisor._forward(Batch(noise, torch.arange(12)))
    upright, *others = backbone.seen.unflatten(0, (4, 12))
    for k, rotated in enumerate(others, 1):
        assert torch.equal(rotated, upright.rot90(k, dims=(2, 3)))  # exact, so no crop was drawn after the rotation
    padded = pad(noise, (2, 2, 2, 2))  # an eighth of 16 pixels
    positions = []
    for view, image in zip(upright, padded, strict=True):
        crops = [image[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
        found = [n for n, crop in enumerate([*crops, *(crop.flip(2) for crop in crops)]) if torch.allclose(crop, view)]
        assert len(found) == 1
        positions += found
    assert len(set(positions)) > 6 and min(positions) < 25 <= max(positions)  # drawn for each image on its own


def test_without_augmentation_the_first_views_are_the_images():
    backbone = Recorder()
    supervisor = RotateNetSupervisor(tiny_images(), backbone=backbone, augment=None)
    supervisor._forward(batch())
    assert torch.equal(backbone.seen[:16], supervisor.preprocessing(tiny_images()))


def test_accuracy_is_noted():
    class Noted(RotateNetSupervisor):
        def note(self, name, value):
            self.noted = name, value.mean().item()

    supervisor = Noted(tiny_images(), backbone=TinyBackbone(), predictor=UniformLogits(4))
    supervisor._forward(batch())
    assert supervisor.noted == ("accuracy", 0.25)  # the first class wins everywhere


def test_an_empty_sequence_is_a_predictor():
    """It leaves the features as they are: len() of it is 0, and yet it was passed."""
    identity = nn.Sequential()
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(width=4), predictor=identity)
    assert supervisor.model.predictor is identity and torch.isfinite(supervisor._forward(batch()))


def test_learns_which_way_is_up_on_images_it_has_not_seen():
    supervisor = RotateNetSupervisor(tiny_images(64), backbone=TinyBackbone(), seed=0)
    supervisor.supervise(lr=1e-2, epochs=15, batch_size=32, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        assert supervisor._forward(batch(32, seed=1)) < 0.1 * math.log(4)


@pytest.mark.parametrize("rotations", [(0,), (0, 360), (90, 90, 180)])
def test_needs_two_different_rotations(rotations):
    with pytest.raises(ValueError, match="two or more different angles"):
        RotateNetSupervisor(tiny_images(), rotations=rotations, backbone=TinyBackbone())
