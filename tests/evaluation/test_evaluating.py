"""Evaluators on a backbone, without a run."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import superself
from superself.data import open_images
from superself.evaluation import (
    KNN,
    Evaluator,
    HeldOutLoss,
    Subject,
    evaluate,
    features,
    knn_accuracy,
    random_twin,
    subject_of,
)
from superself.evaluation.evaluating import Panel
from superself.evaluation.pictures.canvas import new_figure, save_figure
from superself.evaluation.twin import before_training

from cases import TinyBackbone, tiny_images


def labelled(n=24, seed=0, size=(16, 16)):
    return TensorDataset(tiny_images(n, seed=seed, size=size), torch.arange(n) % 2)


def simclr(images=None, **arguments):
    images = tiny_images(20) if images is None else images
    return superself.SimCLRSupervisor(images, backbone=TinyBackbone(), seed=0, **arguments)


class Counting(TinyBackbone):
    """Counts the images that go through."""

    seen = 0

    def forward(self, images):
        Counting.seen += len(images)
        return super().forward(images)


class Mean(Evaluator):
    """The mean feature; it has a picture."""

    name, higher_is_better = "mean", None

    def __init__(self, dataset, every=1):
        super().__init__(every)
        self.dataset = dataset

    def open(self, subject):
        self.images = subject.open(self.dataset)

    def evaluate(self, subject):
        return {"mean": subject.features(self.images).features.mean().item(), "draw": torch.rand(()).item()}

    def figure(self, subject, path):
        return save_figure(new_figure(1, 1), path)


def test_evaluators_of_the_same_images_share_one_pass():
    data, Counting.seen = labelled(24), 0
    subject = Subject(Counting())
    panel = Panel([KNN(data, data, k=3), KNN(data, data, k=5), Mean(data)])
    panel.open(subject)
    assert len({id(subject.open(data)), *(id(images) for images in subject.opened)}) == 1
    panel.measure(subject)
    assert Counting.seen == 24
    subject.forget()
    panel.measure(subject)
    assert Counting.seen == 48


def test_values_and_labels_of_the_same_name_are_numbered():
    first, second = labelled(24), labelled(24, seed=1)
    subject = Subject(TinyBackbone())
    panel = Panel([KNN(first, first), KNN(second, second)])
    panel.open(subject)
    assert list(panel.measure(subject)) == ["knn", "knn_2"] == list(panel.evaluators)
    assert list(panel.measure(subject)) == ["knn", "knn_2"]  # and stay the same


def test_the_trained_and_the_random_network_stand_side_by_side_with_the_protocol():
    train, test = labelled(24), labelled(20, seed=1)
    supervisor = simclr()
    result = supervisor.evaluate(train, test, seed=3)
    backbone = supervisor.get_backbone()
    assert result.rows["trained"]["knn"] == knn_accuracy(features(backbone, train), features(backbone, test))
    images = open_images(train)
    twin, origin = random_twin(backbone, images, backbone.preprocessing, seed=3)
    twin.preprocessing = backbone.preprocessing
    assert result.rows["random initialised"]["knn"] == knn_accuracy(features(twin, train), features(twin, test))
    text = str(result)
    assert origin in text and "kNN: vote of the 20 training images" in text
    assert f"{result.rows['trained']['knn']:.1%}" in text and f"{100 * result.gain['knn']:+.1f}" in text
    assert repr(result) == text
    assert supervisor.evaluate(train, test, seed=3).rows == result.rows


def test_without_labels_the_supervisors_own_images_are_measured():
    result = simclr().evaluate()
    assert {"std", "rankme"} <= result.rows["trained"].keys() == result.rows["random initialised"].keys()


def test_evaluating_changes_no_weight_mode_or_random_state():
    supervisor = simclr()
    supervisor.train()
    before = {name: value.clone() for name, value in supervisor.state_dict().items()}
    states = torch.get_rng_state(), supervisor.generator.get_state()
    found = supervisor.evaluate(labelled(), labelled(), [Mean(tiny_images(8)), HeldOutLoss(tiny_images(12))])
    assert {"knn", "mean", "held_out_loss"} <= found.rows["trained"].keys()
    after = supervisor.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(module.training for module in supervisor.modules())
    assert torch.equal(states[0], torch.get_rng_state()) and torch.equal(states[1], supervisor.generator.get_state())


def test_what_an_evaluator_draws_depends_on_the_seed_alone():
    data = tiny_images(8)

    def draws(backbone, *others, seed=0):
        return evaluate(backbone, evaluators=[*others, Mean(data)], seed=seed).rows["trained"]["draw"]

    class Draws(Evaluator):
        def evaluate(self, subject):
            return {"other": torch.rand(7).mean().item()}

    first = draws(TinyBackbone())
    torch.rand(5)
    assert draws(TinyBackbone()) == draws(TinyBackbone(), Draws()) == first != draws(TinyBackbone(), seed=1)


def test_a_backbone_without_method_has_no_held_out_loss_and_a_supervisor_has():
    with pytest.raises(ValueError, match="^held_out_loss: HeldOutLoss needs the method"):
        evaluate(TinyBackbone(), evaluators=[HeldOutLoss(tiny_images())])
    result = simclr().evaluate(evaluators=[HeldOutLoss(tiny_images(12, seed=1))])
    assert math.isfinite(result.rows["trained"]["held_out_loss"])
    assert "held_out_loss" not in result.rows["random initialised"] and result.gain == {}
    assert str(result).splitlines()[1].split() == [
        "held_out_loss",
        "-",
        f"{result.rows['trained']['held_out_loss']:.4g}",
        "-",
    ]


def test_a_backbone_that_cannot_be_initialised_again_is_measured_alone():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, images):
            return images.mean((2, 3)) * self.weight

    result = evaluate(Fixed(), labelled(), labelled())
    assert list(result.rows) == ["trained"] and "not measured: the parameters weight cannot be reset" in str(result)


def test_pictures_are_written_where_asked(tmp_path):
    result = evaluate(TinyBackbone(), evaluators=[Mean(tiny_images(8))], figures=tmp_path / "new")
    assert result.figures == {"mean": tmp_path / "new" / "mean.png"} and result.figures["mean"].is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": labelled()}, ValueError, "test= is missing"),
        ({}, ValueError, "no images to evaluate the backbone on"),
        ({"evaluators": [KNN]}, TypeError, "pass a list of instances of Evaluator"),
        ({"evaluators": KNN(labelled(), labelled())}, TypeError, "pass a list of instances of Evaluator"),
        ({"train": tiny_images(8), "test": labelled()}, ValueError, "^knn: train has no labels"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        evaluate(TinyBackbone(), **arguments)


def test_the_subject_of_a_supervisor_has_views_and_embeddings():
    supervisor = simclr()
    subject, state = subject_of(supervisor), supervisor.generator.get_state()
    torch.manual_seed(0)
    first = subject.views(tiny_images(4))
    second = subject.views(tiny_images(4))
    torch.manual_seed(0)
    assert (
        len(first) == 2 and first[0].shape == (4, 3, 16, 16) and torch.equal(first[0], subject.views(tiny_images(4))[0])
    )
    assert not torch.equal(first[0], second[0])
    assert torch.equal(state, supervisor.generator.get_state())
    assert subject.embed is not None and subject.images is supervisor.images
    rotatenet = superself.RotateNetSupervisor(tiny_images(), backbone=TinyBackbone())
    assert subject_of(rotatenet).embed is None


def test_before_training_batch_norms_get_statistics_unless_they_have_some():
    images, backbone = open_images(tiny_images(32)), TinyBackbone()
    preprocessing = superself.data.Preprocessing.of(images)
    measured = before_training(backbone, images, preprocessing)
    assert measured is not backbone and not backbone.layers[1].running_mean.any()
    with torch.no_grad():
        expected = backbone.layers[0](preprocessing(images.sample(32))).mean((0, 2, 3))
    torch.testing.assert_close(measured.layers[1].running_mean, expected)
    assert before_training(measured, images, preprocessing) is measured
    assert before_training(nn.Flatten(), images, preprocessing) is not None
    larger = open_images(tiny_images(4, size=(20, 20)))
    before_training(nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.BatchNorm1d(4)), larger, preprocessing)


def test_an_evaluator_keeps_the_result_of_the_trained_network():
    train, test = labelled(24), labelled(20, seed=1)
    probe = KNN(train, test)
    rows = simclr().evaluate(evaluators=[probe], seed=2).rows
    assert probe.result.top1 == rows["trained"]["knn"] != rows["random initialised"]["knn"]
