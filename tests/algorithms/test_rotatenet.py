import math

import pytest
import torch
from torch import nn

from superself import RotateNetSupervisor
from superself.algorithms.rotatenet import rotated_views

from cases import TinyBackbone, tiny_images


class Recorder(nn.Module):
    """A predictor that knows nothing and remembers nothing: uniform logits."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, y):
        return y.new_zeros(len(y), self.classes) + self.unused


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
    places = [images[..., i : i + 20, j : j + 20] for i in range(size[0] - 19) for j in range(size[1] - 19)]
    assert any(torch.equal(views[:2], place) for place in places)


def test_square_moves_over_images_that_are_not_square():
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


def test_interpolation_does_not_tell_the_angle():
    noise = torch.rand(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    views = views_of(noise, (0, 45, 90)).view(3, 200, 21, 21)
    sharpness = (views[..., 1:] - views[..., :-1]).square().mean(dim=(1, 2, 3))
    assert sharpness.max() / sharpness.min() < 1.1


def test_smoothing_does_not_tell_the_angle():
    """What is near a pixel's size has no direction: it changes along the axes as it does along the diagonals."""
    noise = torch.rand(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    views = views_of(noise, (0, 45, 90)).view(3, 200, 21, 21)

    def change(down, right):
        moved = views.roll((down, right), (2, 3))[..., 1:-1, 1:-1]
        return (moved - views[..., 1:-1, 1:-1]).square().mean(dim=(1, 2, 3))

    ratio = (change(0, 1) + change(1, 0)) / (change(1, 1) + change(1, -1))
    assert ratio.max() / ratio.min() < 1.02


def test_loss_of_uniform_logits_is_chance():
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), predictor=Recorder(4))
    loss = supervisor._forward((tiny_images(), torch.arange(16)))
    assert loss.item() == pytest.approx(math.log(4)) == supervisor.chance_loss


def test_targets_belong_to_their_views():
    def both(logits, targets):
        return logits, targets

    supervisor = RotateNetSupervisor(tiny_images(3), backbone=TinyBackbone(), rotations=(0, 180), loss=both)
    logits, targets = supervisor._forward((tiny_images(3), torch.arange(3)))
    assert logits.shape == (6, 2) and targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_learns_which_way_is_up_on_images_it_has_not_seen():
    supervisor = RotateNetSupervisor(tiny_images(64), backbone=TinyBackbone(), seed=0)
    supervisor.supervise(lr=1e-2, epochs=15, batch_size=32, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        assert supervisor._forward((tiny_images(32, seed=1), torch.arange(32))) < 0.1 * math.log(4)


@pytest.mark.parametrize("rotations", [(0,), (0, 360), (90, 90, 180)])
def test_needs_two_different_rotations(rotations):
    with pytest.raises(ValueError, match="two or more different angles"):
        RotateNetSupervisor(tiny_images(), rotations=rotations, backbone=TinyBackbone())
