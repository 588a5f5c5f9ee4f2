from __future__ import annotations

import pytest
import torch

from superself.augment import (
    RECIPES,
    ColorJitter,
    Compose,
    ElasticTransform,
    GaussianBlur,
    GaussianNoise,
    GridTiles,
    Lambda,
    MultiCrop,
    Normalize,
    OverlappingPatches,
    PixelMask,
    RandomAdjustSharpness,
    RandomAffine,
    RandomApply,
    RandomChoice,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomInvert,
    RandomResizedCrop,
    Resize,
    RGBToLab,
    Sobel,
    Standardize,
    Transform,
    Views,
    recipe,
)
from superself.augment import transform as module

from tensors import seeded


def bytes_of(count: int, size: int = 24, channels: int = 3) -> torch.Tensor:
    smooth = torch.rand(count, channels, 6, 6, generator=seeded(count))
    smooth = torch.nn.functional.interpolate(smooth, (size, size), mode="bilinear")
    return (smooth * 255).round().byte()


def as_list(views):
    return views if isinstance(views, list) else [views]


EVERY_KIND = Compose(
    [
        RandomResizedCrop(20),
        RandomHorizontalFlip(),
        RandomAffine(20, (0.1, 0.1), (0.8, 1.2), 10, p=0.7),
        ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        RandomChoice([RandomInvert(1.0), GaussianBlur(5)], [1, 3], p=0.5),
        RandomApply([RandomGrayscale(0.5), GaussianNoise()], 0.5),
        PixelMask((0.0, 0.2)),
        RandomErasing(),
    ]
)


@pytest.mark.parametrize("augment", [*RECIPES, EVERY_KIND], ids=lambda a: a if isinstance(a, str) else "every kind")
def test_equal_seeds_give_equal_views_whatever_the_batch_is_split_into(augment):
    images, transform = bytes_of(12, 40), recipe(augment, 40)
    whole = as_list(transform(images, seeded()))
    if isinstance(transform, Views):  # each view has its columns of the one block, so the same holds for lists
        generator = seeded()
        parts = [transform(part, generator) for part in images.split([5, 1, 6])]
        parts = [torch.cat(view) for view in zip(*parts, strict=True)]
    else:
        generator = seeded()
        parts = [torch.cat([transform(part, generator) for part in images.split([5, 1, 6])])]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_chunks_do_not_change_views(monkeypatch):
    images = bytes_of(10)
    whole = EVERY_KIND(images, seeded())
    monkeypatch.setattr(module, "CHUNK", 3 * images[0].numel())
    torch.testing.assert_close(EVERY_KIND(images, seeded()), whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("augment", RECIPES)
def test_bytes_words_and_floats_agree_and_stay_as_they_were(augment):
    images = bytes_of(6, 40)
    views = [
        as_list(recipe(augment, 40)(given, seeded(3)))
        for given in (images, images / 255, (images.int() * 257).to(torch.uint16))
    ]
    for i in range(len(views[0])):
        assert views[0][i].dtype == torch.float32
        for others in views[1:]:  # but for single pixels that posterizing rounds the other way
            assert ((views[0][i] - others[i]).abs() > 1e-5).float().mean() < 1e-3
    floats = images / 255
    before = floats.clone()
    recipe(augment, 40)(floats, seeded())
    EVERY_KIND(floats, seeded())
    ColorJitter(0.5)(floats, seeded())
    assert torch.equal(floats, before)


@pytest.mark.filterwarnings("ignore:.*needs RGB")
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("augment", RECIPES)
def test_recipes_take_any_number_of_channels(augment, channels):
    for view in as_list(recipe(augment, 40)(bytes_of(5, 40, channels), seeded())):
        assert view.shape[:2] == (5, channels) and view.isfinite().all()


@pytest.mark.parametrize("augment", [*RECIPES, EVERY_KIND], ids=lambda a: a if isinstance(a, str) else "every kind")
def test_views_are_the_same_under_autocast(augment):
    images, transform = bytes_of(6, 40), recipe(augment, 40)
    expected = as_list(transform(images, seeded()))
    with torch.autocast("cpu", torch.bfloat16):
        views = as_list(transform(images, seeded()))
    for view, one in zip(views, expected, strict=True):
        assert view.dtype == torch.float32 and torch.equal(view, one)


@pytest.mark.parametrize(
    "transform",
    [Sobel(), RGBToLab(), GaussianBlur(5), ElasticTransform(), RandomAdjustSharpness(p=1.0), Lambda(lambda x: x @ x)]
    + [GridTiles(2, standardize=True), OverlappingPatches(8), Standardize(), Normalize([0.5] * 3, [0.2] * 3)],
    ids=lambda transform: type(transform).__name__,
)
def test_single_transforms_are_the_same_under_autocast(transform):
    images = bytes_of(3) / 255
    expected = transform(images, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        view = transform(images, seeded())
    assert view.dtype == torch.float32 and torch.equal(view, expected)


def test_samples_differ_in_their_parameters():
    images = bytes_of(1).expand(8, -1, -1, -1)
    views = recipe("simclr", 24)(images, seeded())
    distances = torch.cdist(views.flatten(1), views.flatten(1))
    assert (distances[~torch.eye(8, dtype=torch.bool)] > 0.01).all()


def test_p_is_the_share_of_samples_that_change():
    images = torch.full((4000, 1, 2, 2), 0.25)
    share = (RandomInvert(0.3)(images, seeded())[:, 0, 0, 0] == 0.75).float().mean()
    assert abs(share - 0.3) < 0.03
    assert torch.equal(RandomInvert(0.0)(images, seeded()), images)
    assert torch.equal(RandomInvert(1.0)(images, seeded()), 1 - images)


def test_random_apply_runs_all_or_none():
    images = torch.zeros(2000, 1, 1, 1)
    add = [Lambda(lambda x: x + 0.25), Lambda(lambda x: x + 0.5)]
    values, counts = RandomApply(add, 0.7)(images, seeded()).flatten().unique(return_counts=True)
    assert values.tolist() == [0.0, 0.75]
    assert abs(counts[1] / 2000 - 0.7) < 0.04


def test_random_choice_follows_its_weights_and_count():
    images = torch.zeros(4000, 1, 1, 1)
    steps = [Lambda(lambda x: x + 1.0), Lambda(lambda x: x + 10.0), Lambda(lambda x: x + 100.0)]
    values, counts = RandomChoice(steps, [1, 2, 5])(images, seeded()).flatten().unique(return_counts=True)
    assert values.tolist() == [1, 10, 100]
    torch.testing.assert_close(counts / 4000, torch.tensor([0.125, 0.25, 0.625]), atol=0.03, rtol=0)
    three = RandomChoice(steps, count=3)(images, seeded()).flatten()
    digits = sum((three // 10**place) % 10 for place in range(3))
    assert (digits == 3).all()


def test_random_choice_may_change_the_size():
    views = RandomChoice([Compose([Resize(7), RandomInvert(1.0)]), Resize(7)])(bytes_of(9), seeded())
    assert views.shape == (9, 3, 7, 7)


def test_transforms_of_some_samples_must_keep_the_size():
    with pytest.raises(ValueError, match=r"images of shape \(3, 24, 24\) into \(3, 7, 7\), so they no longer"):
        RandomApply([Resize(7)], 0.5)(bytes_of(9), seeded())


def test_nested_compositions_equal_flat_ones():
    crop, flip, jitter = RandomResizedCrop(20), RandomHorizontalFlip(), ColorJitter(0.4)
    nested, flat = Compose([Compose([crop, flip]), jitter]), Compose([crop, flip, jitter])
    assert torch.equal(nested(bytes_of(5), seeded()), flat(bytes_of(5), seeded()))


def test_views_are_as_many_as_asked_for_and_independent():
    images = bytes_of(6)
    first, second, third = Views(RandomResizedCrop(20), 3)(images, seeded())
    assert first.shape == second.shape == third.shape == (6, 3, 20, 20)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    small, large = Views([Resize(8), Resize(16)])(images)
    assert small.shape[-1] == 8 and large.shape[-1] == 16
    with pytest.raises(ValueError, match="2 transforms for count=3 views"):
        Views([Resize(8), Resize(16)], 3)


def test_multi_crop_gives_large_views_then_small_ones():
    views = MultiCrop([RandomResizedCrop(20)] * 2, RandomResizedCrop(9), 4)(bytes_of(3), seeded())
    assert [v.shape[-1] for v in views] == [20, 20, 9, 9, 9, 9]


def test_generator_decides_and_the_global_state_is_left_alone():
    state = torch.get_rng_state()
    one, other = EVERY_KIND(bytes_of(4), seeded(1)), EVERY_KIND(bytes_of(4), seeded(2))
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match=r"p=1.5 is not a probability"):
        RandomInvert(1.5)
    with pytest.raises(ValueError, match=r"batch of images \(B, C, H, W\), got a tensor of shape \(3, 8, 8\)"):
        RandomInvert()(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="2 transforms and 3 weights"):
        RandomChoice([Resize(8), Resize(8)], [1, 2, 3])
    with pytest.raises(NotImplementedError):
        Transform()(torch.rand(1, 3, 8, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", [*RECIPES, EVERY_KIND], ids=lambda a: a if isinstance(a, str) else "every kind")
def test_views_on_the_gpu_are_those_of_the_cpu(augment):
    images, transform = bytes_of(12, 40), recipe(augment, 40)
    for one, other in zip(
        as_list(transform(images, seeded())), as_list(transform(images.cuda(), seeded())), strict=True
    ):
        assert other.is_cuda and ((one - other.cpu()).abs() > 1e-3).float().mean() < 1e-3


def test_channels_of_the_views_are_declared_and_true():
    transforms = {
        RandomResizedCrop(8): 3,
        Sobel(): 2,
        RGBToLab(): 3,
        Compose([RandomResizedCrop(8), Sobel()]): 2,
        Views([Compose([Sobel(), Resize(8)]), Sobel()]): 2,
        MultiCrop([Resize(8)] * 2, Resize(4), 2): 3,
        RandomChoice([Sobel(), Compose([RandomGrayscale(), Sobel()])]): 2,
        RandomApply([RandomGrayscale()], 0.5): 3,
        Lambda(lambda batch: batch[:, :1], channels=1): 1,
        Lambda(lambda batch: [batch, batch]): 3,
        Standardize(): 3,
    }
    for transform, channels in transforms.items():
        assert transform.out_channels(3) == channels
        assert as_list(transform(bytes_of(2), seeded()))[0].shape[1] == channels
    assert Sobel().out_channels(5) == 2 and RGBToLab().out_channels(1) == 1
    assert recipe(Sobel(), 8, views=2).out_channels(4) == 2
