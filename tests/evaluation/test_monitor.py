import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from superself import CombinedNet
from superself.data import Preprocessing, open_images
from superself.evaluation import effective_rank, feature_std, features, knn_accuracy
from superself.evaluation.monitor import FeatureMonitor

from cases import TinyBackbone, tiny_images

CAUSES = ("the first cause", "the second cause")


def measured(**probe):
    images = tiny_images(24)
    model = CombinedNet(TinyBackbone(), nn.Identity())
    preprocessing = Preprocessing.of(open_images(images))
    return FeatureMonitor(images, **probe), model, preprocessing


def test_measures_features_normalised_by_the_statistics_of_the_batch():
    watch, model, preprocessing = measured()
    row = watch.measure(model, preprocessing, 1)
    with torch.no_grad():  # in train mode the backbone does the same, but moves its running averages too
        y = copy.deepcopy(model).train().features(preprocessing(watch.images))
    assert row == {"feature_std": feature_std(y), "even_std": 1 / math.sqrt(16), "effective_rank": effective_rank(y)}


def test_leaves_weights_modes_statistics_and_random_state_alone():
    labelled = TensorDataset(tiny_images(24), torch.arange(24) % 2)
    watch, model, preprocessing = measured(probe=(labelled, labelled))
    model.train()
    before, state = [t.clone() for t in model.state_dict().values()], torch.get_rng_state()
    watch.measure(model, preprocessing, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_probes_every_so_many_epochs_with_the_knn_of_the_package():
    train = TensorDataset(tiny_images(24), torch.arange(24) % 2)
    test = TensorDataset(tiny_images(24, seed=1), torch.arange(24) % 2)
    watch, model, preprocessing = measured(probe=(train, test), probe_every=2)
    assert "knn" not in watch.measure(model, preprocessing, 1)
    found = [features(model.backbone, part, preprocessing=preprocessing) for part in (train, test)]
    assert watch.measure(model, preprocessing, 2)["knn"] == knn_accuracy(*found)


def row(loss=1.0, std=0.2, chance=1.386):
    return {"loss": loss, "chance_loss": chance, "feature_std": std, "even_std": 0.25}


def test_a_healthy_run_is_left_in_peace():
    assert measured()[0].verdicts(row(), 0.5, CAUSES) == []


def test_collapse_is_said_once():
    watch = measured()[0]
    (sentence,) = watch.verdicts(row(std=0.0001), 0.5, CAUSES)
    assert "The features collapse" in sentence and "the first cause; the second cause" in sentence
    assert watch.verdicts(row(std=0.0001), 0.6, CAUSES) == []


def test_chance_is_said_after_a_share_of_the_run():
    watch = measured()[0]
    assert watch.verdicts(row(loss=1.38), 0.1, CAUSES) == []
    (sentence,) = watch.verdicts(row(loss=1.38), 0.35, CAUSES)
    assert "the loss is 1.380, where knowing nothing gives 1.386" in sentence


@pytest.mark.parametrize("chance", [None, 1.386])
def test_a_loss_below_chance_or_without_chance_is_not_called_stuck(chance):
    assert measured()[0].verdicts(row(loss=1.2, chance=chance), 0.9, CAUSES) == []
