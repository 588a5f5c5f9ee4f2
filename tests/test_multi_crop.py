"""MultiCropEmbedding: how many views of which size, through SwAV."""

import pytest
import torch
from torch import nn

from superself import Batch, SwAVSupervisor
from superself.augment import RandomHorizontalFlip, Views

from cases import TinyBackbone, tiny_images


def swav(images=None, **arguments):
    images = tiny_images() if images is None else images
    given = {"backbone": TinyBackbone(), "seed": 0, "n_prototypes": 12, "projector": {"hidden": 16}, **arguments}
    return SwAVSupervisor(images, **given)


def sizes(supervisor):
    data = Batch(supervisor.images.batch(torch.arange(8)).images, torch.arange(8))
    assert torch.isfinite(supervisor._forward(data))
    return [tuple(view.shape[2:]) for view in supervisor.views(data)]


@pytest.mark.parametrize(
    ("arguments", "small"),
    [
        ({}, 6),
        ({"small_crops": 2}, 2),
        ({"small_crops": 0}, 0),
        ({"augment": "dino"}, 8),
        ({"augment": {"name": "swav", "small_count": 3}}, 3),
        ({"augment": {"name": "dino", "blur": True}, "small_crops": 1}, 1),
        ({"augment": {"name": "swav", "small_count": 3}, "small_crops": 1}, 1),
        ({"augment": True, "small_crops": 1}, 1),
        ({"augment": "simclr"}, 0),
        ({"augment": "simclr", "small_crops": 0}, 0),
        ({"augment": "byol"}, 0),
        ({"augment": None}, 0),
        ({"augment": RandomHorizontalFlip()}, 0),
        ({"augment": lambda images: [images, images.flip(2), images[..., :7, :7]]}, 1),
    ],
)
def test_recipes_make_two_large_views_and_any_number_of_small_ones(arguments, small):
    assert sizes(swav(**arguments)) == [(16, 16)] * 2 + [(7, 7)] * small


def test_views_that_a_collate_function_makes_may_be_of_any_number():
    supervisor = swav()
    views = [torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16), torch.rand(8, 3, 9, 9)]
    assert torch.isfinite(supervisor._forward(Batch(tiny_images(8), torch.arange(8), views=views)))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"small_crops": -1}, "small_crops must be .*at least 0, got -1"),
        ({"small_crops": 2, "augment": "simclr"}, "small_crops=2 needs a recipe .* and augment is 'simclr'"),
        ({"small_crops": 2, "augment": RandomHorizontalFlip()}, "and augment is 'RandomHorizontalFlip'; leave"),
        ({"small_crops": 2, "augment": "sawv"}, "augment='sawv' is not a recipe; did you mean 'swav'"),
    ],
)
def test_numbers_of_views_that_cannot_be_made_are_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        swav(**arguments)


@pytest.mark.parametrize(
    "augment", [Views(RandomHorizontalFlip(), 1), lambda images: images], ids=["Views", "function"]
)
def test_a_single_view_is_refused(augment):
    with pytest.raises(ValueError, match=r"needs at least 2 view\(s\) of each image and got 1"):
        sizes(swav(augment=augment))


class Fixed(nn.Module):
    """Takes images of 16 x 16 pixels only, as a vision transformer with learned positions does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 8)

    def forward(self, images):
        torch._assert(images.shape[2:] == (16, 16), "wrong height")  # as torchvision's does
        return self.layer(images.flatten(1))


def test_a_backbone_for_one_size_is_refused_with_a_remedy_and_trains_without_small_views():
    message = r"backbone Fixed, built for images of 16 x 16, cannot take the views of 7 x 7 \(wrong height\); pass small_crops=0"
    with pytest.raises(ValueError, match=message):
        sizes(swav(backbone=Fixed()))
    assert sizes(swav(backbone=Fixed(), small_crops=0)) == [(16, 16)] * 2


def test_a_transformer_of_timm_takes_small_views_if_its_positions_are_interpolated():
    timm = pytest.importorskip("timm")

    def transformer(**options):
        size = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 0}
        return timm.models.vision_transformer.VisionTransformer(**size, **options)

    with pytest.raises(ValueError, match="cannot take the views of 8 x 8 .* dynamic_img_size=True"):
        swav_on_crops(transformer())
    swav_on_crops(transformer(dynamic_img_size=True))


def swav_on_crops(backbone):
    return sizes(swav(backbone=backbone, augment=lambda images: [images, images.flip(2), images[..., :8, :8]]))


def test_the_look_at_a_size_changes_no_state():
    supervisor = swav().train()
    before = {name: value.clone() for name, value in supervisor.state_dict().items()}
    supervisor._require_size(supervisor.model, torch.ones(8, 3, 5, 5))
    assert all(torch.equal(before[name], value) for name, value in supervisor.state_dict().items())
    assert supervisor.training and all(module.training for module in supervisor.modules())
