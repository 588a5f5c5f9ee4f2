import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from superself import CombinedNet, LabelSupervisor, RotateNetSupervisor
from superself.networks.modes import evaluation_mode

from cases import TinyBackbone, tiny_images


def labelled(n=40, seed=0):
    """Dark and bright images, labelled so."""
    labels = torch.arange(n) % 2
    return TensorDataset(tiny_images(n, seed=seed) // 4 + 100 * labels.view(-1, 1, 1, 1).byte(), labels)


def classifier(freeze=True, dataset=None):
    torch.manual_seed(0)
    model = CombinedNet(TinyBackbone(), nn.Linear(16, 2))
    return LabelSupervisor(model, labelled() if dataset is None else dataset, freeze=freeze)


def test_a_frozen_backbone_moves_neither_weights_nor_statistics():
    supervisor = classifier()
    before = copy.deepcopy(supervisor.get_backbone().state_dict())
    head = supervisor.model.predictor.weight.clone()
    supervisor.supervise(lr=0.1, epochs=3, batch_size=8, name="run", progress=False)
    after = supervisor.get_backbone().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(supervisor.model.predictor.weight, head)
    assert len(supervisor.run.optimizer.param_groups[0]["params"]) == 2


def test_fine_tuning_moves_the_backbone():
    supervisor = classifier(freeze=False)
    before = copy.deepcopy(supervisor.get_backbone().state_dict())
    supervisor.supervise(lr=0.01, epochs=1, batch_size=8, name="run", progress=False)
    after = supervisor.get_backbone().state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("freeze", [True, False])
def test_learns_to_tell_the_classes(freeze):
    supervisor = classifier(freeze)
    supervisor.supervise(lr=0.03, epochs=15, batch_size=8, name="run", progress=False)
    assert supervisor.accuracy(labelled(seed=1)) > 0.9


def test_accuracy_counts_every_image_and_equals_a_slow_count():
    supervisor = classifier()
    images, labels = labelled(7).tensors
    with torch.no_grad(), evaluation_mode(supervisor):
        right = [
            supervisor.model(supervisor.preprocessing(i[None])).argmax().item() == t
            for i, t in zip(images, labels, strict=True)
        ]
    for batch_size in (3, 7, 100):
        assert supervisor.accuracy(labelled(7), batch_size) == pytest.approx(sum(right) / 7)
    assert supervisor.training


def test_takes_over_the_preprocessing_that_the_backbone_was_trained_with():
    trained = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), normalize=(0.3, 0.7))
    trained.supervise(epochs=1, batch_size=8, name="run", progress=False)
    model = CombinedNet(trained.get_backbone(), nn.Linear(16, 2))
    assert LabelSupervisor(model, labelled()).preprocessing == trained.preprocessing


def test_is_stored_and_loaded_with_its_model():
    supervisor = classifier()
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = LabelSupervisor(CombinedNet(TinyBackbone(), nn.Linear(16, 2)), labelled()).load("run")
    assert loaded.accuracy(labelled(seed=1)) == supervisor.accuracy(labelled(seed=1))


def test_images_without_labels_are_refused():
    supervisor = classifier(dataset=tiny_images())
    with pytest.raises(ValueError, match=r"has no targets.*\(image, target\)"):
        supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
