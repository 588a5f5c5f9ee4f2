import torch
from torch.nn.functional import interpolate

from superself.data import open_images
from superself.evaluation import leakage
from superself.evaluation.leakage import duplicates_warning, near_duplicates


def noise(count, seed, side=16):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).byte()


def test_copies_are_found_also_resized_and_with_noise(monkeypatch):
    monkeypatch.setattr(leakage, "DISTANCES_AT_A_TIME", 1)  # one test image at a time
    train, test = noise(40, 0), noise(20, 1)
    test[3] = train[17]
    test[5] = (train[30].int() + torch.randint(-2, 3, (3, 16, 16))).clamp(0, 255).byte()
    larger = interpolate(test.float(), scale_factor=2).byte()
    for images in (test, larger):
        assert near_duplicates(open_images(train), open_images(images)) == [(3, 17), (5, 30)]


def test_types_may_differ_and_channels_decide_nothing():
    train = noise(40, 0)
    assert near_duplicates(open_images(train), open_images(train[:3].float() / 255)) == [(0, 0), (1, 1), (2, 2)]
    assert near_duplicates(open_images(train), open_images(train[:3, :1])) == []


def test_dark_images_with_different_content_are_not_copies():
    dark = (noise(40, 0) // 64, noise(20, 1) // 64)  # differ by less than 1 % of the range of values
    bright = torch.full((1, 3, 16, 16), 255).byte()
    assert near_duplicates(open_images(torch.cat([dark[0], bright])), open_images(dark[1])) == []


def test_a_warning_names_share_and_examples():
    train, test = open_images(noise(40, 0)), open_images(torch.cat([noise(40, 0)[2:4], noise(98, 1)]))
    pairs = near_duplicates(train, test)
    text = duplicates_warning(pairs, train, test)
    assert "2 of 100 test images (2.0%) are near-duplicates" in text and "item 0 and item 2, item 1 and item 3" in text
    assert duplicates_warning(pairs[:1], train, open_images(noise(101, 1))) is None  # less than 1 %
    assert duplicates_warning([], train, test) is None


def test_an_unreadable_image_is_no_copy_of_what_stands_in_for_it(monkeypatch):
    monkeypatch.setattr("superself.data.images.BROKEN_SHARE", 0.5)

    class Broken(list):
        def __getitem__(self, place):
            if place == 2:
                raise OSError("bad sector")
            return super().__getitem__(place)

    train, test = noise(10, 0), noise(5, 1)
    test[3] = train[4]  # stands in for image 2
    assert near_duplicates(open_images(train), open_images(Broken(test))) == [(3, 4)]
