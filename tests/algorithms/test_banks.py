"""What all methods with a memory bank keep: it starts as the embeddings of the untrained network."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import InstanceDiscriminationSupervisor, PIRLSupervisor
from superself.networks import MemoryBank

from cases import TinyBackbone, tiny_images

METHODS = pytest.mark.parametrize("method", [InstanceDiscriminationSupervisor, PIRLSupervisor])
SETTINGS = {"batch_size": 8, "progress": False, "precision": "32-true"}


@pytest.fixture
def fills(monkeypatch):
    """What every bank was filled with, in order."""
    given, fill = [], MemoryBank.fill

    def noting(self, features):
        given.append(features.clone())
        fill(self, features)

    monkeypatch.setattr(MemoryBank, "fill", noting)
    return given


def make(method, images=None, **arguments):
    images = tiny_images() if images is None else images
    return method(images, **{"backbone": TinyBackbone(), "seed": 0, **arguments})


def plain_embeddings(supervisor, images):
    """The embeddings of images without augmentation, normalised by the statistics of this batch."""
    with torch.no_grad():
        return supervisor.model.train()(supervisor.preprocessing(images))


@METHODS
def test_a_bank_is_filled_once_with_the_embeddings_of_the_untrained_network_before_the_first_step(method, fills):
    at_first_step = []

    class Observed(method):
        def _forward(self, data):
            at_first_step.append(self.bank.features.clone())
            return super()._forward(data)

    supervisor = make(Observed)
    expected = plain_embeddings(make(method), tiny_images())
    assert fills == [] and not supervisor.bank.filled
    supervisor.supervise(epochs=3, name="run", **SETTINGS)
    assert len(fills) == 1 and torch.allclose(fills[0], expected, atol=1e-5)
    assert torch.allclose(at_first_step[0], normalize(expected, dim=1), atol=1e-5)


@METHODS
def test_a_filled_bank_is_kept_by_a_second_run_a_resumed_run_and_a_load_of_the_same_images(method, fills):
    supervisor = make(method).supervise(epochs=1, name="run", **SETTINGS)
    rows = supervisor.bank.features.clone()
    supervisor.supervise(epochs=1, name="second", **SETTINGS)
    loaded = make(method, seed=1).load("run")
    assert torch.equal(loaded.bank.features, rows) and loaded.bank.filled
    make(method).supervise(epochs=1, name="third", pretrained="run", **SETTINGS)
    assert len(fills) == 1

    class Stopped(method):
        def _after_step(self):
            super()._after_step()
            if self.step == 2:
                raise KeyboardInterrupt  # the file of the first epoch stays

    with pytest.raises(KeyboardInterrupt):
        make(Stopped).supervise(epochs=2, name="parts", **SETTINGS)
    assert len(fills) == 2
    make(method).supervise(epochs=2, name="parts", resume=True, **SETTINGS)
    assert len(fills) == 2


@METHODS
@pytest.mark.parametrize("count", [16, 12])
def test_a_bank_is_filled_again_for_other_images(method, fills, count):
    first = make(method).supervise(epochs=1, name="run", **SETTINGS)
    images = tiny_images(count, seed=5)
    other = make(method, images).load("run")
    assert not other.bank.filled and len(other.bank.features) == count
    expected = plain_embeddings(make(method, images).load("run"), images)
    other.supervise(epochs=1, name="other", **SETTINGS)
    assert len(fills) == 2 and torch.allclose(fills[1], expected, atol=1e-5)
    assert first.bank.features.shape == (16, 128)


@METHODS
def test_filling_a_bank_changes_neither_the_networks_nor_any_random_state(method):
    supervisor = make(method)
    states = []

    class Observed(method):
        def _before_epoch(self, epoch):
            states.append(state_of(self))
            super()._before_epoch(epoch)
            states.append(state_of(self))

    def state_of(self):
        values = {name: value.clone() for name, value in self.state_dict().items() if not name.startswith("bank.")}
        return values | {"torch": torch.get_rng_state(), "generator": self.generator.get_state()}

    supervisor.__class__ = Observed
    supervisor.supervise(epochs=1, name="run", **SETTINGS)
    before, after = states
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(module.training for module in supervisor.model.modules())


class FixedSize(nn.Module):
    """A backbone that takes images of 16 x 16 only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 5)

    def forward(self, images):
        return self.layer(images.flatten(1))


@METHODS
def test_a_bank_is_filled_with_embeddings_at_the_size_of_the_views(method, fills):
    arguments = {"tile": 16} if method is PIRLSupervisor else {}
    images = tiny_images(size=(24, 24))
    supervisor = make(method, images, backbone=FixedSize(), view_size=16, augment=False, **arguments)
    expected = plain_embeddings(supervisor, images[:, :, 4:20, 4:20])  # the middle
    supervisor.supervise(epochs=1, name="run", **SETTINGS)
    assert torch.allclose(fills[0], expected, atol=1e-5)
