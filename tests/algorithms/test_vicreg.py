import pytest
import torch
from torch import nn

from superself import Batch, VICRegSupervisor, create
from superself.losses import VICReg

from cases import SMALL, TinyBackbone, tiny_images


class Noting(VICRegSupervisor):
    """Keeps what is noted."""

    def note(self, name, value):
        vars(self).setdefault("noted", {})[name] = value.item()


def vicreg(**arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, "projector": SMALL, **arguments}
    return Noting(tiny_images(), **given)


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch():
    return Batch(tiny_images(), torch.arange(16))


def embeddings(supervisor):
    return [supervisor.model(supervisor.preprocessing(view / 255)) for view in two_views(tiny_images().float())]


def test_loss_is_that_of_the_embeddings_and_its_three_terms_are_noted():
    supervisor = vicreg(invariance=3, variance=5, covariance=7)
    terms = VICReg(3, 5, 7).terms(*embeddings(supervisor))
    loss = supervisor._forward(batch())
    assert loss.item() == pytest.approx(sum(terms).item(), rel=1e-4)
    expected = dict(zip(("invariance", "variance", "covariance"), [term.item() for term in terms], strict=True))
    assert supervisor.noted == pytest.approx(expected, rel=1e-4)


def test_a_custom_loss_gets_both_embeddings_and_nothing_is_noted():
    supervisor = vicreg(loss=nn.MSELoss())
    expected = nn.MSELoss()(*embeddings(supervisor)).item()
    assert supervisor._forward(batch()).item() == pytest.approx(expected, rel=1e-4)
    assert not hasattr(supervisor, "noted")


def test_the_expander_has_neither_norm_nor_bias_at_its_end():
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    layers = vicreg(projector=None).model.predictor
    assert [type(layer) for layer in layers] == [*kinds, *kinds, nn.Linear]
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [2048] * 3
    assert layers[-1].bias is None


def test_the_preset_of_the_paper_has_8192_features(monkeypatch):
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)  # 134 million weights
    supervisor = create("vicreg-paper", tiny_images(), backbone=TinyBackbone())
    assert supervisor.embedding_width == 8192
    assert (supervisor.loss.invariance, supervisor.loss.variance, supervisor.loss.covariance) == (25, 25, 1)


def test_the_preset_for_cifar10_adds_up_the_variance_of_both_views_and_does_not_blur():
    supervisor = create("vicreg-cifar10", tiny_images(size=(64, 64)), backbone=TinyBackbone(), projector=SMALL)
    assert supervisor.loss.variance == 2 * VICReg().variance
    assert "ColorJitter" in repr(supervisor.augmentation) and "Blur" not in repr(supervisor.augmentation)


def test_parts_of_a_batch_are_refused_because_images_are_compared():
    with pytest.raises(ValueError, match="VICReg.* compares the images of a batch"):
        VICRegSupervisor(tiny_images(), backbone=TinyBackbone(), projector=SMALL).supervise(
            epochs=1, batch_size=8, accumulate=2, name="run", progress=False
        )


def test_bad_values_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="covariance must be a number of at least 0, got -0.1 "):
        VICRegSupervisor(covariance=-0.1)
