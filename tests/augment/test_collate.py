import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as F

from superself import BYOLSupervisor, SimCLRSupervisor
from superself.augment import (
    BaseCollateFunction,
    GaussianBlur,
    ImageCollateFunction,
    MultiViewCollate,
    RandomHorizontalFlip,
    RandomResizedCrop,
    SimCLRCollateFunction,
    recipe,
)
from superself.data import Batch
from superself.data.batch import Item

from cases import TinyBackbone, tiny_images

# Two flips of a crop of everything: no random pixel values.
WHOLE = {"min_scale": 1.0, "cj_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0, "hf_prob": 0.0}


def photograph(height=40, width=30, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def items(count=4, **options):
    """Images of different sizes with a label and a file name."""
    return [(photograph(40 + 3 * i, 30 + i, seed=i, **options), i % 3, f"{i}.png") for i in range(count)]


def middle_pixel(image):
    """A transform of one image by a function."""
    return torch.full((3, 2, 2), float(np.asarray(image)[0, 0, 0]))


# ---- what comes out ----------------------------------------------------------------------------------------------------


def test_a_list_of_pillow_images_of_different_sizes_becomes_two_views_labels_and_names():
    views, labels, names = SimCLRCollateFunction(input_size=24)(items())
    assert isinstance(views, tuple) and [tuple(view.shape) for view in views] == [(4, 3, 24, 24)] * 2
    assert not torch.allclose(*views)
    assert labels.tolist() == [0, 1, 2, 0] and labels.dtype == torch.long
    assert names == ["0.png", "1.png", "2.png", "3.png"]


def test_views_are_normalized_by_imagenet_unless_told_otherwise():
    white = [(Image.new("RGB", (32, 32), "white"), 0, "a")]
    (view, _), _, _ = ImageCollateFunction(16, **WHOLE)(white)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(view, expected.view(1, 3, 1, 1).expand_as(view), atol=1e-5)
    (view, _), _, _ = ImageCollateFunction(16, **WHOLE, normalize=None)(white)
    assert torch.allclose(view, torch.ones_like(view))


@pytest.mark.parametrize("angle", [None, (90, 90), (30, 30)])
def test_rotations_are_counter_clockwise_as_in_torchvision(angle):
    image = photograph(16, 16)
    (view, _), _, _ = ImageCollateFunction(16, **WHOLE, normalize=None, rr_prob=1.0, rr_degrees=angle)(
        [(image, 0, "a")]
    )
    turned = F.rotate(F.to_tensor(image), 90 if angle is None else angle[0], F.InterpolationMode.BILINEAR)
    inside = slice(4, 12)
    assert torch.allclose(view[0, :, inside, inside], turned[:, inside, inside], atol=0.02)


def test_the_probabilities_and_strengths_reach_their_steps():
    text = str(SimCLRCollateFunction(input_size=32, gaussian_blur=0.0).transform)
    assert "GaussianBlur" not in text
    steps = SimCLRCollateFunction(32, cj_prob=0.3, cj_strength=0.25, min_scale=0.5, sigmas=(0.5, 1.0)).transform
    crop, flip, upside_down, jitter, grey, blur = steps.transforms[0].transforms
    assert crop.size == (32, 32) and crop.scale == (0.5, 1.0)
    assert (flip.p, upside_down.p, jitter.p, grey.p, blur.p) == (0.5, 0, 0.3, 0.2, 0.5)
    assert blur.sigma == (0.5, 1.0) and blur.kernel_size == 7
    assert [tuple(round(v, 6) for v in r) for r in (*jitter.factors, jitter.hue)] == [*[(0.8, 1.2)] * 3, (-0.05, 0.05)]
    blur = next(
        part for part in ImageCollateFunction(50, kernel_size=0.1).transform.modules() if type(part) is GaussianBlur
    )
    assert blur.sigma == pytest.approx((2.0, 3.0))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_other_modes_are_read_as_the_data_sets_of_the_package_read_them(mode):
    array = np.full((20, 20), 1000, np.uint16)
    image = Image.fromarray(array) if mode == "I;16" else photograph(20, 20, mode)
    channels = 1 if mode in ("L", "I;16") else 3
    (view, _), _, _ = SimCLRCollateFunction(16, normalize=None)([(image, 0, "a")] * 2)
    assert view.shape == (2, channels, 16, 16) and view.amin() >= 0 and view.amax() <= 1


def test_grey_and_coloured_images_form_a_batch_of_three_channels():
    batch = [(photograph(20, 20), 0, "a"), (photograph(20, 20, "L"), 1, "b")]
    (view, _), _, _ = ImageCollateFunction(16, **WHOLE, normalize=None)(batch)
    assert view.shape == (2, 3, 16, 16) and torch.equal(view[1, 0], view[1, 2])


def test_grey_images_become_rgb_where_normalization_is_for_rgb():
    (view, _), _, _ = SimCLRCollateFunction(16)([(photograph(20, 20, "L"), 0, "a")] * 2)
    assert view.shape == (2, 3, 16, 16)


def test_tensors_and_arrays_are_taken_too_and_items_without_a_name():
    pixels = tiny_images(2)
    (view, _), labels, names = ImageCollateFunction(16, **WHOLE, normalize=None)([(pixels[0], 1), (pixels[1], 2)])
    assert torch.allclose(view, pixels / 255, atol=1e-5) and labels.tolist() == [1, 2] and names == ["", ""]
    array = pixels[0].permute(1, 2, 0).numpy()
    (view, _), _, _ = ImageCollateFunction(16, **WHOLE, normalize=None)([(array, 1, "a")])
    assert torch.allclose(view, pixels[:1] / 255, atol=1e-5)


def test_images_of_one_size_get_the_same_views_as_one_by_one():
    pixels = tiny_images(5)
    collate = SimCLRCollateFunction(12)
    torch.manual_seed(3)
    together = collate.views(list(pixels))
    torch.manual_seed(3)
    alone = [collate.views([image]) for image in pixels]
    for view, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.allclose(view, torch.cat(parts), atol=1e-6)


# ---- other transforms --------------------------------------------------------------------------------------------------


def test_a_recipe_decides_how_many_views_there_are():
    views, _, _ = BaseCollateFunction(recipe("byol", 24), normalize=((0.5,) * 3, (0.5,) * 3))(items())
    assert [tuple(view.shape) for view in views] == [(4, 3, 24, 24)] * 2
    views, _, _ = BaseCollateFunction(recipe("dino", 28))(items(2))
    assert [view.shape[-1] for view in views] == [28] * 2 + [12] * 8


def test_a_function_of_one_image_gets_it_as_the_data_set_gives_it():
    seen = []

    def transform(image):
        seen.append(type(image))
        return middle_pixel(image)

    views, _, _ = BaseCollateFunction(transform)([(photograph(), 0, "a"), (photograph(30, 30), 0, "b")])
    assert seen == [Image.Image] * 4 and [tuple(view.shape) for view in views] == [(2, 3, 2, 2)] * 2


def test_a_subclass_needs_a_transform_only():
    class Own(BaseCollateFunction):
        def __init__(self):
            super().__init__(RandomResizedCrop(8))

    assert Own()(items())[0][0].shape == (4, 3, 8, 8)


def test_views_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"different shapes \(\(3, 40, 30\), \(3, 43, 31\)"):
        BaseCollateFunction(RandomHorizontalFlip())(items())
    with pytest.raises(TypeError, match="is not a transform; pass one, or a function"):
        BaseCollateFunction(RandomHorizontalFlip)


def test_views_made_by_the_data_set_are_stacked():
    made = [([torch.full((3, 8, 8), i), torch.full((3, 4, 4), -i)], i, f"{i}") for i in range(3)]
    views, labels, names = MultiViewCollate()(made)
    assert [tuple(view.shape) for view in views] == [(3, 3, 8, 8), (3, 3, 4, 4)]
    assert views[1][2, 0, 0, 0] == -2 and labels.tolist() == [0, 1, 2] and names == ["0", "1", "2"]


# ---- in loaders and supervisors ----------------------------------------------------------------------------------------


class OneImage(torch.utils.data.Dataset):
    """The same image again and again, so that only random numbers tell views apart."""

    def __len__(self):
        return 8

    def __getitem__(self, place):
        return tiny_images(1)[0], place, f"{place}.png"


@pytest.mark.parametrize("workers", [0, 2])
def test_views_differ_between_images_workers_and_epochs(workers):
    collate = pickle.loads(pickle.dumps(SimCLRCollateFunction(8)))
    loader = DataLoader(OneImage(), 2, collate_fn=collate, num_workers=workers)
    views = torch.cat([torch.cat(views) for _ in range(2) for views, _, _ in loader])
    assert len(views) == 32 and len(views.flatten(1).unique(dim=0)) == 32


def test_a_supervisor_takes_one_as_collate_fn_and_normalizes_the_views_itself():
    batch = ImageCollateFunction(16, **WHOLE)([Item(image, i, i % 2) for i, image in enumerate(tiny_images(4))])
    assert isinstance(batch, Batch) and torch.allclose(batch.views[1], tiny_images(4) / 255, atol=1e-5)
    seen = []

    class Observed(SimCLRSupervisor):
        def _forward(self, data):
            seen.append((data.index, data.target, len(data.views)))
            return super()._forward(data)

    dataset = torch.utils.data.TensorDataset(tiny_images(8), torch.arange(8) % 3)
    supervisor = Observed(dataset, backbone=TinyBackbone(), collate_fn=SimCLRCollateFunction(16))
    supervisor.supervise(epochs=1, batch_size=4, name="run", progress=False)
    index, target, views = seen[0]
    assert torch.equal(target, index % 3) and views == 2


def test_a_supervisor_trains_on_a_plain_loader_of_these_views():
    class Own(BYOLSupervisor):
        def _init_data_optimizer(self, *given):
            _, optimizer, schedule = super()._init_data_optimizer(*given)
            collate = SimCLRCollateFunction(16, normalize=None)
            return DataLoader(OneImage(), 4, collate_fn=collate), optimizer, schedule

    supervisor = Own(tiny_images(8), backbone=TinyBackbone(), momentum=0.9)
    supervisor.supervise(epochs=1, batch_size=4, name="run", progress=False)
    assert supervisor.step == 2
