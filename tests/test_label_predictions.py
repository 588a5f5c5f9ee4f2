"""LabelSupervisor: the head it makes, what it predicts, and the learning rates of its two parts."""

import copy
import csv
import math

import pytest
import torch
from test_labels import folder_of, labelled
from torch import nn
from torch.utils.data import Subset

from superself import CombinedNet, LabelSupervisor, RotateNetSupervisor
from superself.data import Images, open_images
from superself.data.sources import TensorSource
from superself.labels import multilabel_loss
from superself.networks.modes import evaluation_mode

from cases import TinyBackbone, tiny_images

RUN = {"lr": 0.03, "batch_size": 8, "name": "run", "progress": False}


def named(names=("dark", "bright"), n=40, seed=0):
    """The images of ``labelled`` with names for their classes, which are numbered in the order of ``names``."""
    images, labels = labelled(n, seed).tensors
    places = torch.tensor([names.index("dark"), names.index("bright")])
    return Images(TensorSource(images, places[labels], list(names)))


def multi_hot(n=40, seed=0):
    """Two properties of an image: bright, and red."""
    images, bright = labelled(n, seed).tensors
    images, red = images.clone(), torch.arange(n) % 4 > 1
    images[red, 0] = 255
    return open_images((images, torch.stack([bright, red.long()], 1).float()))


@pytest.mark.parametrize("dataset", [labelled, named, lambda: open_images(labelled().tensors)])
def test_the_head_is_made_for_the_classes_of_the_data_set(dataset):
    supervisor = LabelSupervisor(backbone=TinyBackbone(), dataset=dataset())
    assert supervisor.model.predictor.weight.shape == (2, 16)
    assert supervisor.chance_loss == pytest.approx(math.log(2))
    assert supervisor.supervise(epochs=15, **RUN).accuracy(labelled(seed=1)) > 0.9


def test_class_folders_give_names_to_predictions(tmp_path):
    folder = folder_of(tmp_path / "images", 16)
    supervisor = LabelSupervisor(backbone="resnet9", dataset=f"imagefolder:{folder}", seed=0)
    assert supervisor.classes == ["class0", "class1"]
    found = supervisor.predict(folder)
    assert found.classes == supervisor.classes and len(found) == 12
    assert [found.classes[label] for label in found.labels] == found.names
    assert found.paths == [str(path) for path in open_images(folder).paths]


def test_probabilities_are_those_of_the_network():
    supervisor = LabelSupervisor(backbone=TinyBackbone(), dataset=named())
    images = labelled(7).tensors[0]
    found = supervisor.predict(images, batch_size=3)
    with torch.no_grad(), evaluation_mode(supervisor):
        slow = torch.stack([supervisor.model(supervisor.preprocessing(image[None]))[0].softmax(0) for image in images])
    assert torch.allclose(found.probabilities, slow, atol=1e-6)
    assert found.labels.tolist() == slow.argmax(1).tolist() and found.paths is None
    assert supervisor.training


def test_names_are_restored_with_the_run_and_need_no_data():
    supervisor = LabelSupervisor(backbone=TinyBackbone(), dataset=named()).supervise(epochs=1, **RUN)
    loaded = LabelSupervisor(backbone=TinyBackbone()).load("run")
    assert loaded.classes == ["dark", "bright"] and not loaded.has_data
    images = labelled(seed=1).tensors[0]
    assert loaded.predict(images).names == supervisor.predict(images).names
    assert torch.equal(loaded.predict(images).probabilities, supervisor.predict(images).probabilities)
    joined = LabelSupervisor(CombinedNet(TinyBackbone(), nn.Linear(16, 2))).load("run")
    assert joined.predict(images).names == supervisor.predict(images).names


def test_a_named_backbone_is_restored_with_the_run():
    supervisor = LabelSupervisor(backbone="resnet9:width=0.1", dataset=named()).supervise(epochs=1, **RUN)
    loaded = LabelSupervisor().load("run")
    images = labelled(seed=1).tensors[0]
    assert torch.equal(loaded.predict(images).probabilities, supervisor.predict(images).probabilities)


def test_a_run_whose_network_was_a_module_asks_for_it():
    LabelSupervisor(backbone=TinyBackbone(), dataset=named()).supervise(epochs=1, **RUN)
    with pytest.raises(ValueError, match=r"'run' was trained with a network that was passed as a module.*backbone="):
        LabelSupervisor().load("run")


def test_evaluation_matches_classes_by_name():
    supervisor = LabelSupervisor(backbone=TinyBackbone(), dataset=named()).supervise(epochs=15, **RUN)
    test, turned = named(n=31, seed=1), named(("bright", "dark"), 31, seed=1)
    found, again = supervisor.evaluate(test), supervisor.evaluate(turned)
    assert found.classes == ["dark", "bright"] and torch.equal(found.labels, again.labels)
    right = (found.scores.argmax(1) == found.labels).float().mean().item()
    assert right > 0.9 and supervisor.accuracy(test) == supervisor.accuracy(turned) == pytest.approx(right)
    assert "frozen backbone" in found.protocol and "31 images" in found.protocol
    with pytest.raises(ValueError, match=r"test has the classes \['grey'\]"):
        supervisor.evaluate(named(("grey", "bright", "dark")))
    with pytest.raises(ValueError, match="test has no labels"):
        supervisor.evaluate(tiny_images())


def test_images_with_several_classes():
    supervisor = LabelSupervisor(backbone=TinyBackbone(), dataset=multi_hot(), classes=["bright", "red"], freeze=False)
    assert supervisor.multilabel and supervisor.loss is multilabel_loss and supervisor.chance_loss is None
    supervisor.supervise(epochs=15, **RUN)
    test = multi_hot(seed=1)
    assert supervisor.accuracy(test) > 0.9
    loaded = LabelSupervisor(backbone=TinyBackbone()).load("run")
    found = loaded.predict(test.batch(range(4)).images)
    assert torch.equal(found.labels, found.probabilities > 0.5) and found.labels.shape == (4, 2)
    assert found.names == [[], ["bright"], ["red"], ["bright", "red"]]
    with pytest.raises(ValueError, match=r"labels \(40, 2\).*one class for each image; see accuracy"):
        supervisor.evaluate(test)


def test_labels_that_are_vectors_have_no_classes_to_predict():
    model = CombinedNet(TinyBackbone(), nn.Linear(16, 2))
    supervisor = LabelSupervisor(model, (tiny_images(8), torch.rand(8, 2)), loss=nn.MSELoss())
    with pytest.raises(ValueError, match=r"labels that are not classes; call model\(preprocessing\(images\)\)"):
        supervisor.predict(tiny_images())


def test_few_labels_are_a_subset_of_the_data():
    """The semi-supervised protocol: features from all images, a head from a tenth of the labels."""
    trained = RotateNetSupervisor(labelled(), backbone=TinyBackbone(), seed=0)
    trained.supervise(epochs=1, batch_size=8, name="rotations", progress=False)
    few = Subset(labelled(), [3, 8, 21, 30])
    supervisor = LabelSupervisor(backbone=trained.get_backbone(), dataset=few, seed=0)
    assert supervisor.preprocessing == trained.preprocessing  # of all images, not of the four
    supervisor.supervise(lr=0.1, epochs=40, batch_size=4, name="few", progress=False)
    assert supervisor.accuracy(labelled(seed=1)) > 0.9


def test_the_backbone_learns_at_a_rate_of_its_own():
    supervisor = LabelSupervisor(backbone=TinyBackbone(), dataset=labelled(), freeze=False, backbone_lr=0.001)
    supervisor.supervise(epochs=1, lr_scheduler="cosine", **RUN)
    groups = {group["name"]: group for group in supervisor.run.optimizer.param_groups}
    assert groups["main"]["initial_lr"] == 0.03 and groups["backbone"]["initial_lr"] == pytest.approx(0.001)
    assert {id(p) for p in groups["backbone"]["params"]} == {id(p) for p in supervisor.get_backbone().parameters()}
    assert len(groups["main"]["params"]) == 2


def test_a_slow_backbone_moves_less_than_the_head():
    moved = {}
    for rate in (1e-6, 1e-2):
        backbone = TinyBackbone()
        before = copy.deepcopy(backbone.state_dict())
        made = LabelSupervisor(backbone=backbone, dataset=labelled(), freeze=False, backbone_lr=rate, seed=0)
        made.supervise(epochs=1, **RUN)
        moved[rate] = (backbone.layers[0].weight - before["layers.0.weight"]).abs().mean().item()
    assert moved[1e-2] > 1000 * moved[1e-6] > 0


def test_what_contradicts_itself_is_refused():
    with pytest.raises(TypeError, match="model is a TinyBackbone without a head; pass it as backbone="):
        LabelSupervisor(TinyBackbone(), labelled())
    with pytest.raises(ValueError, match="pass only one of them"):
        LabelSupervisor(CombinedNet(TinyBackbone(), nn.Linear(16, 2)), labelled(), backbone=TinyBackbone())
    with pytest.raises(ValueError, match=r"backbone_lr=0\.1 is for a backbone that is trained; pass freeze=False"):
        LabelSupervisor(backbone=TinyBackbone(), dataset=labelled(), backbone_lr=0.1)
    with pytest.raises(ValueError, match="the number of classes is unknown"):
        LabelSupervisor(backbone=TinyBackbone(), dataset=tiny_images())
    with pytest.raises(TypeError, match="LabelSupervisor has no network: pass backbone="):
        LabelSupervisor(dataset=labelled()).predict(tiny_images())
    with pytest.raises(TypeError, match="classes='dark' is one name"):
        LabelSupervisor(backbone=TinyBackbone(), dataset=labelled(), classes="dark")


def test_predictions_are_one_line_and_a_csv_file(tmp_path):
    folder = folder_of(tmp_path / "images", 16)
    found = LabelSupervisor(backbone="resnet9:width=0.1", dataset=f"imagefolder:{folder}").predict(folder)
    assert str(found) == repr(found) == "12 predictions over 2 classes, with paths, 0 skipped"
    rows = list(csv.reader(found.to_csv("new/x.csv").read_text().splitlines()))
    assert rows[0] == ["path", "label", "class0", "class1"] and len(rows) == 13
    assert [row[:2] for row in rows[1:]] == [list(pair) for pair in zip(found.paths, found.names, strict=True)]
    assert torch.allclose(torch.tensor([[float(p) for p in row[2:]] for row in rows[1:]]), found.probabilities)


def test_exporting_says_that_the_head_stays_behind():
    assert "backbone only; the head" in str(
        LabelSupervisor(backbone="resnet9:width=0.1", dataset=named()).export("x.pth")
    )
