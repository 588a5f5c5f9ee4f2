"""Chance levels measured on the views of a supervisor."""

import pytest
import torch

import superself
from superself import Batch
from superself.augment import ColorJitter
from superself.evaluation import map_views, mean_prediction_loss

from cases import TinyBackbone, tiny_images


def supervisor_of(images=None, **options):
    images = tiny_images(40) if images is None else images
    return superself.RotateNetSupervisor(images, backbone=TinyBackbone(), **{"seed": 0, "augment": False, **options})


def error_of_the_mean(pixels):
    """The squared error of predicting the mean of each channel."""
    return (pixels - pixels.mean((0, 2, 3), keepdim=True)).square().mean().item()


@pytest.mark.parametrize("normalize", [None, (0.5, 0.2)], ids=["measured", "given"])
def test_loss_of_predicting_the_mean_is_the_error_of_doing_so(normalize):
    supervisor = supervisor_of(normalize=normalize)
    pixels = supervisor.preprocessing(tiny_images(40))
    assert mean_prediction_loss(supervisor) == pytest.approx(error_of_the_mean(pixels), rel=1e-5)


def test_pixels_of_normalised_images_have_variance_1():
    assert mean_prediction_loss(supervisor_of()) == pytest.approx(1, rel=1e-5)


def test_errors_are_weighted_as_by_a_loop():
    supervisor = supervisor_of(tiny_images(6))

    def weigh(views):
        return (views[:, :1] > 0.2) * torch.linspace(1, 3, 16)

    slow = 0.0
    views = supervisor.preprocessing(tiny_images(6))
    weights = weigh(views)[:, 0]
    for channel in range(3):
        mean = sum((w * x).sum() for w, x in zip(weights, views[:, channel], strict=True)) / weights.sum()
        slow += (
            sum((w * (x - mean) ** 2).sum() for w, x in zip(weights, views[:, channel], strict=True))
            / weights.sum()
            / 3
        )
    assert mean_prediction_loss(supervisor, weigh) == pytest.approx(slow.item(), rel=1e-5)


def test_only_pixels_inside_the_views_count():
    images = tiny_images(8, size=(24, 24))
    images[:, :, 4:20, 4:20] = 100
    assert mean_prediction_loss(supervisor_of(images, view_size=16)) == pytest.approx(0, abs=1e-5)
    assert mean_prediction_loss(supervisor_of(images)) > 0.5


def test_the_augmentation_counts():
    plain, jittered = supervisor_of(), supervisor_of(augment=ColorJitter(brightness=(0.0, 2.0)))
    views = jittered.augmentation(tiny_images(40).repeat(50, 1, 1, 1), jittered.generator)[0]
    wanted = error_of_the_mean(jittered.preprocessing(views))
    assert mean_prediction_loss(jittered) == pytest.approx(wanted, rel=0.15)
    assert mean_prediction_loss(jittered) > 1.4 * mean_prediction_loss(plain)


def test_views_of_a_collate_function_count():
    def halved(items):
        images = torch.stack([item.image for item in items])
        return Batch(images, views=[images.float() / 255 / 2])

    assert mean_prediction_loss(supervisor_of(collate_fn=halved)) == pytest.approx(0.25, rel=1e-5)


def test_measuring_is_repeatable_and_leaves_random_states_alone():
    supervisor = supervisor_of(augment="crop-flip")
    states = supervisor.generator.get_state(), torch.get_rng_state()
    first, second = mean_prediction_loss(supervisor), mean_prediction_loss(supervisor)
    assert first == second
    assert torch.equal(supervisor.generator.get_state(), states[0]) and torch.equal(torch.get_rng_state(), states[1])


def test_a_function_is_applied_to_batches_of_views_spread_over_the_data_set():
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1).expand(200, 1, 16, 16)
    supervisor = superself.RotateNetSupervisor(
        images, backbone=TinyBackbone(1), augment=False, normalize=(0.0, 1 / 255)
    )
    found = map_views(supervisor, lambda views: views[:, 0, 0, 0].tolist(), count=50)
    assert [len(part) for part in found] == [32, 18]
    assert [round(value) for part in found for value in part] == list(range(0, 200, 4))
