import copy
import inspect
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from superself import CombinedNet, LabelSupervisor, RotateNetSupervisor, Supervisor
from superself.data import Batch, Images, open_images
from superself.data.sources import TensorSource
from superself.labels import _hits, multilabel_loss
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


def folder_of(path, side):
    """Two class folders of images with this side."""
    for number in range(12):
        file = path / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side, 3), 100 * (number % 2) + number, dtype=np.uint8)).save(file)
    return path


def probe(backbone, dataset=None, freeze=True):
    return LabelSupervisor(CombinedNet(backbone, nn.Linear(16, 2)), dataset or labelled(), freeze=freeze)


def test_a_probe_leaves_the_requires_grad_flags_alone():
    backbone = TinyBackbone()
    next(backbone.parameters()).requires_grad_(False)  # the user's choice
    flags = [parameter.requires_grad for parameter in backbone.parameters()]
    supervisor = probe(backbone)
    assert [parameter.requires_grad for parameter in backbone.parameters()] == flags
    supervisor.supervise(lr=0.1, epochs=1, batch_size=8, name="run", progress=False)
    assert [parameter.requires_grad for parameter in backbone.parameters()] == flags
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_fine_tuning_after_a_probe_moves_the_backbone():
    backbone = TinyBackbone()
    probe(backbone).supervise(epochs=1, batch_size=8, name="probe", progress=False)
    before = copy.deepcopy(backbone.state_dict())
    probe(backbone, freeze=False).supervise(lr=0.01, epochs=1, batch_size=8, name="tuned", progress=False)
    assert all(not torch.equal(before[name], after) for name, after in backbone.state_dict().items())


def test_self_supervised_training_goes_on_after_a_probe():
    trained = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0)
    trained.supervise(epochs=1, batch_size=8, name="run", progress=False)
    before = copy.deepcopy(trained.get_backbone().state_dict())
    probe(trained.get_backbone()).supervise(epochs=1, batch_size=8, name="probe", progress=False)
    assert all(torch.equal(before[name], after) for name, after in trained.get_backbone().state_dict().items())
    trained.supervise(epochs=2, batch_size=8, name="run", resume=True, progress=False)
    uninterrupted = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0)
    uninterrupted.supervise(epochs=2, batch_size=8, name="other", progress=False)
    for a, b in zip(trained.state_dict().values(), uninterrupted.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_resumed_run_equals_an_uninterrupted_one(freeze):
    whole, parts = classifier(freeze), classifier(freeze)
    arguments = {"lr": 0.01, "batch_size": 8, "progress": False, "seed": 1}
    whole.supervise(epochs=2, name="whole", **arguments)
    parts.supervise(epochs=1, name="parts", **arguments)
    parts = classifier(freeze)
    parts.supervise(epochs=2, name="parts", resume=True, **arguments)
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_backbone_without_trainable_parameters_cannot_be_fine_tuned():
    supervisor = probe(TinyBackbone().requires_grad_(False), freeze=False)
    with pytest.raises(ValueError, match=r"all of its 8 parameters have requires_grad=False.*requires_grad_\(True\)"):
        supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_modes_are_restored_after_training(freeze, training):
    supervisor = classifier(freeze)
    supervisor.model.backbone.train(training)
    supervisor.model.backbone.layers[1].train(not training)
    modes = [module.training for module in supervisor.modules()]
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert [module.training for module in supervisor.modules()] == modes


def test_supervise_has_the_arguments_of_the_base_class():
    assert inspect.signature(LabelSupervisor.supervise) == inspect.signature(Supervisor.supervise)
    with pytest.raises(TypeError, match="epoch"):
        classifier().supervise(epoch=3)


def test_files_are_opened_at_the_size_that_the_backbone_was_trained_on(tmp_path):
    trained = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone())
    backbone = trained.get_backbone()
    folder = folder_of(tmp_path, side=20)
    files = sorted(folder.glob("*/*.png"))
    for dataset in (f"imagefolder:{folder}", str(folder), folder, files, [str(file) for file in files]):
        assert probe(backbone, dataset).images.shape == (3, 16, 16)
    model = CombinedNet(backbone, nn.Linear(16, 2))
    assert LabelSupervisor(model, folder, image_size=12).images.shape == (3, 12, 12)
    assert probe(backbone, open_images(folder)).images.shape == (3, 20, 20)


def test_multilabel_loss_leaves_unknown_labels_out():
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.5, 0.1, -0.7]], requires_grad=True)
    labels = torch.tensor([[1.0, math.nan, 0.0], [math.nan, math.nan, 1.0]])
    # -log of the probability given to the label: sigmoid(0.3), 1 - sigmoid(2), sigmoid(-0.7)
    slow = [math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(2.0)), math.log(1 + math.exp(0.7))]
    loss = multilabel_loss(logits, labels)
    assert loss.item() == pytest.approx(sum(slow) / 3)
    loss.backward()
    assert (logits.grad == 0).tolist() == labels.isnan().tolist()
    assert multilabel_loss(logits, torch.full((2, 3), math.nan)) == 0


@pytest.mark.parametrize(
    ("loss", "labels"), [(multilabel_loss, [[1, math.nan], [0, 1]]), (nn.MSELoss(), [[0.3, 2], [1, 0]])]
)
def test_labels_can_be_vectors(loss, labels):
    supervisor = LabelSupervisor(CombinedNet(TinyBackbone(), nn.Linear(16, 2)), labelled(), loss=loss)
    images, targets = labelled().tensors[0][:2], torch.tensor(labels)
    value = supervisor._forward(Batch(images, target=targets))
    with evaluation_mode(supervisor):
        predictions = supervisor.model(supervisor.preprocessing(images))
    assert torch.equal(value, loss(predictions, targets)) and value.isfinite()
    value.backward()
    assert supervisor.model.predictor.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in supervisor.get_backbone().parameters())


def test_multilabel_accuracy_counts_known_labels():
    logits = torch.tensor([[0.3, -1.0], [0.5, 0.1], [-0.2, 0.0]])
    labels = torch.tensor([[1, math.nan], [0, 1], [0, 1]])
    assert _hits(logits, labels).tolist() == [True, False, True, True, False]
    with pytest.raises(ValueError, match=r"labels of shape \(3, 1\).*no accuracy with 2 logits.*classes \(B,\)"):
        _hits(logits, torch.tensor([[0.3], [2.0], [1.0]]))


def test_accuracy_leaves_stand_ins_of_unreadable_images_out(monkeypatch):
    monkeypatch.setattr("superself.data.images.BROKEN_SHARE", 0.5)

    class Broken(TensorDataset):
        def __getitem__(self, place):
            if place == 2:
                raise OSError("bad sector")
            return super().__getitem__(place)

    supervisor = classifier()
    images, labels = labelled(7).tensors
    labels[3] = 1 - supervisor.model(supervisor.preprocessing(images)).argmax(1)[3]  # would stand in for image 2
    kept = [0, 1, 3, 4, 5, 6]
    expected = supervisor.accuracy(TensorDataset(images[kept], labels[kept]))
    assert supervisor.accuracy(Broken(images, labels)) == expected


def test_images_without_labels_are_refused():
    supervisor = classifier(dataset=tiny_images())
    with pytest.raises(ValueError, match=r"has no targets.*\(image, target\)"):
        supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)


@pytest.mark.parametrize("classes", [None, ["third", "second", "first"], 3])
def test_class_names_decide_whatever_their_order(classes):
    images = Images(TensorSource(levels(30), torch.arange(30) % 3, ["first", "second", "third"]))
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    supervisor = LabelSupervisor(dataset=images, backbone=backbone, classes=classes, seed=0)
    supervisor.supervise(lr=0.1, epochs=30, batch_size=10, name="run", progress=False)
    few = Images(TensorSource(levels(30)[1::3], torch.zeros(10, dtype=torch.int64), ["second"]))
    assert supervisor.evaluate(images).top1 == supervisor.accuracy(images) == 1.0
    assert supervisor.evaluate(few).top1 == 1.0 and set(supervisor.predict(few).names) == {"second"}


def test_classes_that_do_not_fit_the_data_set_are_refused():
    images = Images(TensorSource(levels(6), torch.arange(6) % 2, ["cat", "dog"]))
    with pytest.raises(ValueError, match="classes=3, and the data set has the 2 classes"):
        LabelSupervisor(dataset=images, backbone="resnet9:width=0.25", classes=3)
    with pytest.raises(ValueError, match="'dog'.*not among classes"):
        LabelSupervisor(dataset=images, backbone="resnet9:width=0.25", classes=["cat", "cow"])


def levels(count):
    """Grey images (N, 3, 8, 8) of three levels in turn."""
    return (torch.arange(count) % 3 * 100).byte()[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
