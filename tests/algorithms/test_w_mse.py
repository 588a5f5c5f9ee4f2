import pytest
import torch
from torch import nn

from superself import Batch, WhiteningMSESupervisor, create
from superself.losses import WMSE

from cases import TinyBackbone, tiny_images

NARROW = {"hidden": 64, "out_features": 4}


def w_mse(**arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, "projector": NARROW, **arguments}
    return WhiteningMSESupervisor(tiny_images(), **given)


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch():
    return Batch(tiny_images(), torch.arange(16))


def test_loss_is_that_of_the_embeddings_in_parts_drawn_from_the_generator_of_the_run():
    supervisor = w_mse(w_size=8, iterations=2, eps=1e-3)
    views = [supervisor.preprocessing(view / 255) for view in two_views(tiny_images().float())]
    embeddings = [supervisor.model(view) for view in views]
    expected = WMSE(8, 2, 1e-3, torch.Generator().manual_seed(7))(*embeddings)
    supervisor.generator.manual_seed(7)
    torch.rand(3)
    assert supervisor._forward(batch()).item() == pytest.approx(expected.item(), rel=1e-4)


def test_aligned_views_have_no_loss():
    assert w_mse(augment=lambda images: [images, images])._forward(batch()).item() == pytest.approx(0, abs=1e-3)


def test_a_custom_loss_gets_both_embeddings():
    seen = []
    w_mse(loss=lambda *given: seen.append([z.shape for z in given]) or given[0].sum())._forward(batch())
    assert seen == [[(16, 4), (16, 4)]]


def test_a_batch_that_is_too_small_is_refused_with_what_to_do():
    supervisor = w_mse(w_size=12)
    with pytest.raises(
        ValueError, match="batch of 8 images is smaller than the 12 .* pass batches of at least 12 images"
    ):
        supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)


def test_the_defaults_work_with_the_default_batch_of_32():
    supervisor = WhiteningMSESupervisor(tiny_images(32), backbone=TinyBackbone(), seed=0)
    supervisor.supervise(epochs=1, name="run", progress=False)
    assert supervisor.step == 1 and supervisor.embedding_width == 16 and supervisor.loss.size is None


def test_presets_have_the_embeddings_and_parts_of_the_authors():
    cifar, stl = (create(name, tiny_images(), backbone=TinyBackbone()) for name in ("w-mse-cifar10", "w-mse-stl10"))
    assert [layer.out_features for layer in cifar.model.predictor if isinstance(layer, nn.Linear)] == [1024, 64]
    assert (stl.embedding_width, stl.loss.iterations) == (128, 4)


def test_bad_values_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="size must be an integer of at least 2, got 1 "):
        WhiteningMSESupervisor(w_size=1)
