"""The other library's algorithms, where it is installed."""

import pytest
import torch

from bench import peers
from superself.data import Preprocessing

from cases import TinyBackbone, tiny_images


@pytest.mark.parametrize("name", peers.PEERS)
def test_every_peer_trains_its_backbone_and_its_views_fit(name):
    pytest.importorskip("lightly")
    torch.manual_seed(0)
    images = tiny_images(8, size=(32, 32))
    model = peers.PEERS[name](TinyBackbone(), (3, 32, 32))
    before = [p.clone() for p in model.backbone.parameters()]
    transform = model.transform(32, Preprocessing((3, 32, 32), "uint8", (0.5,) * 3, (0.2,) * 3))
    steps = list(peers.lightly_loop(model, images, transform, total_steps=2, batch_size=8, lr=1e-2))
    assert steps == [1, 2]
    assert any(not torch.equal(p, q) for p, q in zip(before, model.backbone.parameters(), strict=True))
