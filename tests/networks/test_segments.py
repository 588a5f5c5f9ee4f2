"""Features of segments: the mean over the cells of the map that are mostly theirs."""

from __future__ import annotations

import torch
from torch import nn

from superself.networks import SegmentNet, build_backbone, map_shape, pool_segments, segment_areas
from superself.networks.segments import downsampled


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_masks(n=3, size=(8, 12), labels=5, seed=0):
    """Smooth maps of ids from 0 on."""
    rough = torch.randint(labels, (n, 3, 4), generator=seeded(seed)).float()
    return nn.functional.interpolate(rough[:, None], size, mode="nearest")[:, 0].byte()


def test_features_equal_a_loop_over_cells():
    masks, maps = some_masks(), torch.randn(3, 5, 2, 3, generator=seeded(1))
    ids = torch.tensor([[1, 2, 2, 4], [0, 1, 3, 200], [4, 3, 2, 1]])
    features, shown = pool_segments(maps, masks, ids)
    for b in range(3):
        owners = {}
        for i in range(2):
            for j in range(3):
                counts = masks[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten().bincount(minlength=256)
                owners.setdefault(counts.argmax().item(), []).append(maps[b, :, i, j])
        for s, identity in enumerate(ids[b].tolist()):
            cells = owners.get(identity, []) if identity else []
            expected = torch.stack(cells).mean(0) if cells else maps[b].mean((1, 2))
            assert torch.allclose(features[b, s], expected, atol=1e-6)
            assert shown[b, s] == (identity if cells else 0)


def test_a_number_worked_by_hand():
    """Left column of a 2 x 2 map: (1 + 3) / 2 = 2; right column: (2 + 4) / 2 = 3."""
    maps, masks = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[7, 7, 9, 9]]).expand(1, 4, 4).byte()
    features, shown = pool_segments(maps, masks, torch.tensor([[7, 9, 8]]))
    assert features.flatten().tolist() == [2, 3, 2.5] and shown.tolist() == [[7, 9, 0]]


def test_a_cell_belongs_to_the_segment_with_most_of_its_pixels():
    masks = torch.tensor([[[1, 1, 1, 2], [1, 2, 2, 2], [0, 0, 2, 0], [0, 3, 0, 0]]]).byte()
    assert downsampled(masks, (2, 2)).tolist() == [[1, 2, 0, 0]]
    assert downsampled(masks, (1, 1)).tolist() == [[0]]
    assert downsampled(masks, (4, 4)).tolist() == [masks.flatten().tolist()]


def test_maps_that_do_not_divide_the_image_share_its_pixels():
    assert downsampled(torch.arange(1, 8).expand(1, 7, 7).byte(), (1, 3)).tolist() == [[1, 4, 6]]
    assert downsampled(torch.ones(1, 5, 5).byte(), (3, 2)).tolist() == [[1] * 6]


def test_areas_count_pixels():
    areas = segment_areas(torch.tensor([[[0, 3], [3, 255]]]).byte())[:, :, 0]
    assert areas.shape == (1, 256) and areas.nonzero()[:, 1].tolist() == [0, 3, 255] and areas[0, 3] == 2


def test_half_precision_maps_are_averaged_in_float32():
    maps = torch.full((1, 1, 16, 16), 1.0)
    maps[0, 0, 0, 0] = 1 + 2**-7
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = pool_segments(maps.bfloat16(), torch.ones(1, 16, 16).byte(), torch.ones(1, 1).long())
    assert features.dtype == torch.float32 and features.item() == 1 + 2**-15


def test_gradients_reach_the_cells_of_the_segment_alone():
    maps = torch.randn(1, 2, 2, 2).requires_grad_()
    masks = torch.tensor([[[1, 2], [2, 2]]]).byte()
    pool_segments(maps, masks, torch.tensor([[1]]))[0].sum().backward()
    assert maps.grad[0, :, 0, 0].tolist() == [1, 1] and maps.grad.sum() == 2


def test_every_kind_of_backbone_gives_embeddings_of_segments():
    for name in ("resnet18", "mobilenet_v3_small", "vgg11", None):
        backbone = build_backbone(name, (3, 32, 32))
        network = SegmentNet(backbone, nn.Linear(map_shape(backbone, (3, 32, 32))[0], 4)).eval()
        images, masks = torch.rand(2, 3, 32, 32, generator=seeded()), some_masks(2, (32, 32))
        embeddings, shown = network(images, masks, torch.tensor([[1, 2, 3], [0, 1, 2]]))
        assert embeddings.shape == (2, 3, 4) and shown.shape == (2, 3), name
        assert network(images).shape == (2, 4)
