import pytest
import torch
from torch import nn

from superself import BarlowTwinsSupervisor, Batch, create
from superself.losses import BarlowTwins

from cases import SMALL, TinyBackbone, tiny_images


class Noting(BarlowTwinsSupervisor):
    """Keeps what is noted."""

    def note(self, name, value):
        vars(self).setdefault("noted", {})[name] = value.item()


def barlow_twins(**arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, "projector": SMALL, **arguments}
    return Noting(tiny_images(), **given)


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch():
    return Batch(tiny_images(), torch.arange(16))


def embeddings(supervisor):
    return [supervisor.model(supervisor.preprocessing(view / 255)) for view in two_views(tiny_images().float())]


def test_loss_is_that_of_the_embeddings_and_its_terms_are_noted():
    supervisor = barlow_twins(weight=0.1, scale=0.5)
    loss = supervisor._forward(batch())
    assert loss.item() == pytest.approx(BarlowTwins(0.1, 0.5)(*embeddings(supervisor)).item(), rel=1e-4)
    assert set(supervisor.noted) == {"invariance", "redundancy"}
    assert sum(supervisor.noted.values()) == pytest.approx(loss.item(), rel=1e-5)


def test_a_custom_loss_gets_both_embeddings_and_nothing_is_noted():
    supervisor = barlow_twins(loss=nn.MSELoss())
    expected = nn.MSELoss()(*embeddings(supervisor)).item()
    assert supervisor._forward(batch()).item() == pytest.approx(expected, rel=1e-4)
    assert not hasattr(supervisor, "noted")


def test_the_chance_level_follows_batch_and_width():
    supervisor = barlow_twins(weight=0.1)
    assert supervisor.chance_loss is None
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert supervisor.chance_loss == pytest.approx(64 * (1 + 1 / 8) + 0.1 * 64 * 63 / 8)


def test_the_projector_has_neither_norm_nor_bias_at_its_end():
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    layers = barlow_twins(projector=None).model.predictor
    assert [type(layer) for layer in layers] == [*kinds, *kinds, nn.Linear]
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linears] == [2048] * 3 and all(layer.bias is None for layer in linears)


def test_the_preset_has_the_width_and_the_weight_of_the_paper(monkeypatch):
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)  # 134 million weights
    supervisor = create("barlow-twins-paper", tiny_images(), backbone=TinyBackbone())
    assert supervisor.embedding_width == 8192 and supervisor.loss.weight_for(8192, 64) == 0.0051
    assert BarlowTwinsSupervisor(backbone=TinyBackbone()).weight is None


def test_parts_of_a_batch_are_refused_because_images_are_compared():
    with pytest.raises(ValueError, match="BarlowTwins.* compares the images of a batch"):
        BarlowTwinsSupervisor(tiny_images(), backbone=TinyBackbone(), projector=SMALL).supervise(
            epochs=1, batch_size=8, accumulate=2, name="run", progress=False
        )


def test_bad_values_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="weight must be a number of at least 0, got -0.1 "):
        BarlowTwinsSupervisor(weight=-0.1)
    with pytest.raises(ValueError, match="scale must be a number above 0, got 0 "):
        BarlowTwinsSupervisor(scale=0)
