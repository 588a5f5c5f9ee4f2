"""Batch: named fields, an explicit error where a target is missing, and what other loaders yield."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from superself.data import Batch, Item

IMAGES = torch.arange(3 * 2 * 4 * 4.0).view(3, 2, 4, 4)
LABELS = torch.tensor([4, 5, 6])


def test_unpacking_gives_images_and_target():
    images, target = Batch(IMAGES, torch.tensor([7, 8, 9]), LABELS)
    assert images is IMAGES and target is LABELS and len(Batch(IMAGES)) == 3


def test_unpacking_without_a_target_is_an_error_and_never_the_index():
    with pytest.raises(ValueError, match=r"this data set has no targets.*use data\.images"):
        _images, _target = Batch(IMAGES, torch.tensor([7, 8, 9]))


def test_to_moves_every_tensor_and_nothing_else():
    batch = Batch(IMAGES, LABELS, [LABELS, "x"], LABELS, [IMAGES, IMAGES], {"a.png": "broken"})
    moved = batch.to("meta")
    for tensor in (moved.images, moved.index, moved.target[0], moved.mask, *moved.views):
        assert tensor.device.type == "meta"
    assert moved.target[1] == "x" and moved.broken == batch.broken and batch.images.device.type == "cpu"


def test_batches_can_be_pickled_for_worker_processes():
    again = pickle.loads(pickle.dumps(Batch(IMAGES, LABELS)))
    assert torch.equal(again.images, IMAGES) and torch.equal(again.index, LABELS)


def test_batch_is_made_of_what_any_loader_yields():
    batch = Batch(IMAGES, LABELS)
    assert Batch.from_loader(batch) is batch
    for value in (IMAGES, (IMAGES,), [IMAGES], {"image": IMAGES}, {"images": IMAGES}, {"img": IMAGES}):
        made = Batch.from_loader(value)
        assert made.images is IMAGES and (made.index, made.target, made.mask, made.views) == (None,) * 4
    for value in ((IMAGES, LABELS), [IMAGES, LABELS, "names"], {"image": IMAGES, "label": LABELS}):
        made = Batch.from_loader(value)
        assert made.images is IMAGES and made.target is LABELS
    made = Batch.from_loader({"img": IMAGES, "target": LABELS, "index": [1, 2, 3], "mask": IMAGES})
    assert made.index.tolist() == [1, 2, 3] and made.mask is IMAGES and made.target is LABELS
    (plain,) = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3)
    assert torch.equal(Batch.from_loader(plain).target, LABELS)
    made = Batch.from_loader(Item(IMAGES, LABELS, None, None))
    assert torch.equal(made.index, LABELS) and made.target is None


def test_image_targets_stay_targets():
    assert Batch.from_loader((IMAGES, IMAGES + 1)).target.ndim == 4


def test_several_tensors_in_the_place_of_the_images_are_views():
    for value in (([IMAGES, IMAGES + 1], LABELS), ((IMAGES, IMAGES + 1), LABELS), ([IMAGES, IMAGES + 1],)):
        made = Batch.from_loader(value)
        assert len(made.views) == 2 and made.images is IMAGES and torch.equal(made.views[1], IMAGES + 1)
    assert len(Batch.from_loader({"views": [IMAGES, IMAGES]}).views) == 2


def test_lists_of_numbers_become_tensors_and_of_other_things_stay_lists():
    assert Batch.from_loader((IMAGES, [4, 5, 6])).target.tolist() == [4, 5, 6]
    assert Batch.from_loader((IMAGES, ["a", "b", "c"])).target == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("images", "a str"),
        ([], r"a list of \[\]"),
        ({"x": IMAGES}, r"a dict with the keys \['x'\]"),
        (np.zeros((3, 2, 4, 4)), r"an array of shape \(3, 2, 4, 4\)"),
        (("a", "b"), r"a tuple of \['str', 'str'\]"),
    ],
)
def test_other_things_are_refused_with_what_was_found(value, found):
    with pytest.raises(TypeError, match=f"a batch must be images .*got {found}; change what the loader"):
        Batch.from_loader(value)


def test_three_image_tensors_are_ambiguous():
    with pytest.raises(TypeError, match=r"3 image tensors may be views.*return \(\[view, view"):
        Batch.from_loader([IMAGES, IMAGES, IMAGES])


# ---- parts -----------------------------------------------------------------------------------------------------------


def full_batch(n=6, target=None):
    images = torch.arange(n).view(n, 1, 1, 1)
    return Batch(images, torch.arange(n), target, images[:, 0], [images, images + 10], broken={"a.png": "truncated"})


def test_parts_hold_the_rows_of_every_field_in_order():
    parts = full_batch(target=torch.arange(6)).split(3)
    assert [len(part) for part in parts] == [2, 2, 2]
    whole = full_batch(target=torch.arange(6))
    for name in ("images", "index", "target", "mask"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    for view in range(2):
        assert torch.equal(torch.cat([part.views[view] for part in parts]), whole.views[view])
    assert [part.broken for part in parts] == [{"a.png": "truncated"}, {}, {}]


def test_parts_split_targets_of_any_structure():
    boxes = [torch.zeros(i, 4) for i in range(6)]
    target = {"boxes": boxes, "class": torch.arange(6), "pair": [torch.arange(6), torch.ones(6, 2)], "source": "disk"}
    parts = full_batch(target=target).split(2)
    assert [len(b) for part in parts for b in part.target["boxes"]] == list(range(6))
    assert parts[1].target["class"].tolist() == [3, 4, 5] and parts[1].target["source"] == "disk"
    assert parts[1].target["pair"][0].tolist() == [3, 4, 5] and parts[1].target["pair"][1].shape == (3, 2)
    assert [len(part.target) for part in full_batch(target=["a", None, "c", "d", "e", "f"]).split(2)] == [3, 3]


@pytest.mark.parametrize(("parts", "sizes"), [(1, [5]), (2, [2, 3]), (4, [1, 1, 2, 1]), (9, [1, 1, 1, 1, 1])])
def test_a_batch_that_is_not_divisible_gives_parts_of_nearly_equal_size(parts, sizes):
    assert [len(part) for part in full_batch(5).split(parts)] == sizes
