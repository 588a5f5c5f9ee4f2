"""The study of batch norm in BYOL: its variants, its table, and a complete run in a few seconds."""

import pytest
from torch import nn

from bench import byol_batch_norm, report
from bench.byol_batch_norm import RANDOM, STUDY, VARIANTS, Trial, parse, rows, summary
from superself.data import open_images
from superself.training import Schedule

from cases import tiny_images


def trial(name, *options):
    images = open_images([(image, i % 2) for i, image in enumerate(tiny_images(8))])
    return Trial(name, images, images, 3, parse(["--backbone", "mobilenet_v3_small", *options]))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != RANDOM])
def test_a_variant_has_the_norms_of_its_row(name):
    supervisor = trial(name).make(open_images(tiny_images(4)))
    kinds = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "group": nn.GroupNorm, "batch_renorm": nn.BatchNorm1d}
    for head, norm in (
        (supervisor.model.predictor, VARIANTS[name].projector),
        (supervisor.predictor, VARIANTS[name].predictor),
    ):
        found = [layer for layer in head if isinstance(layer, tuple(kinds.values()))]
        assert len(found) == (norm is not None) and all(isinstance(layer, kinds[norm]) for layer in found)
        assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [512, 128]
    assert supervisor.symmetric and supervisor.momentum == Schedule(0.996, 1.0) and supervisor.seed == 3


def test_the_study_has_the_six_configurations_and_random_weights():
    assert STUDY == ["xent", "base", "proj_only", "pred_only", "no_norm", "layer_norm", "random"]
    contrastive, base = (trial(name).make(open_images(tiny_images(4))) for name in ("xent", "base"))
    assert (contrastive.objective, contrastive.negatives) == ("ce", ("queue",)) and contrastive.queue_size == 4096
    assert (base.objective, base.negatives) == ("ip", ())


def test_the_learning_rate_is_scaled_by_the_batch():
    assert trial("base").optimization()["lr"] == pytest.approx(0.8 / 4)
    assert trial("xent", "--batch-size", "256").optimization()["lr"] == pytest.approx(0.02)
    assert trial("xent", "--lr", "0.4").optimization()["lr"] == pytest.approx(0.1)
    assert trial("xent", "--optimizer", "adam").optimization()["lr"] == 1e-3


def test_rows_are_means_and_deviations_over_the_seeds():
    found = {("base", seed): {"knn": 0.3 + 0.1 * seed, "positive_cosine": 0.5, "spread": 0.25} for seed in (0, 1)}
    (row,) = rows({**found, ("no_norm", 0): {"knn": 0.9}}, ["base"])
    assert row == ["base", "batch norm", "batch norm", "ip", 2, "35.0 (7.1)", None, "0.50 (0.00)", None, "25.0 (0.0)"]
    assert summary([{"linear": 0.456}], "linear") == "45.6"


def test_an_unknown_variant_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--variants", "base,instance_norm"])
    assert "there is no variant instance_norm; pass some of xent, base" in capsys.readouterr().err


def test_a_study_is_measured_written_and_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    images = open_images([(image, i % 2) for i, image in enumerate(tiny_images(24))]).load()
    monkeypatch.setattr(byol_batch_norm, "open_splits", lambda data, size: (images, images))
    accuracies = {"knn": 0.25, "linear": 0.5}
    monkeypatch.setattr(Trial, "compared", lambda self, backbone: (accuracies, {**accuracies, "knn": 0.75}))
    options = "--minutes 0.002 --backbone mobilenet_v3_small --batch-size 8 --device cpu"
    given = [*options.split(), "--variants", "no_norm,random", "--rows", str(tmp_path / "rows.jsonl")]
    byol_batch_norm.main([*given, "--seeds", "0", "--write"])
    text = (tmp_path / "RESULTS.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| no_norm", "| random"))]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in cells] == ["no_norm", "random"] and "batch norm in BYOL, mobilenet_v3_small" in text
    assert [row[5:7] for row in cells] == [["75.0", "50.0"], ["25.0", "50.0"]]
    assert all(-1 <= float(cell) <= 1 for cell in cells[0][7:9]) and float(cells[0][9]) > 0
    assert cells[1][7:] == ["-", "-", "-"]
    monkeypatch.setattr(Trial, "measure", lambda self: pytest.fail("measured again"))
    byol_batch_norm.main([*given, "--seeds", "0"])
