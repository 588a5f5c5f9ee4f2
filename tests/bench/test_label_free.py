"""Correlation of label-free measures with accuracy: the statistics, and a complete run on tiny networks."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from bench import label_free, report
from bench.label_free import correlation_table, interval, random_network, spearman, within_methods
from superself import RotateNetSupervisor
from superself.data import Preprocessing, open_images

from cases import TinyBackbone, tiny_images


def row(run, method, linear, knn=0.0, **values):
    return {"run": run, "method": method, "values": {"linear": linear, "knn": knn, **values}}


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_spearman_is_that_of_scipy_also_with_ties():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, 20), generator.normal(size=20)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_interval_is_that_of_networks_drawn_one_by_one(monkeypatch):
    monkeypatch.setattr(label_free, "BOOTSTRAPS", 50)
    x, y = np.arange(9.0), np.array([2.0, 1, 4, 3, 5, 9, 7, 6, 8])
    drawn = np.random.default_rng(3).integers(9, size=(50, 9))
    slow = [stats.spearmanr(x[places], y[places]).statistic for places in drawn]
    assert interval(x, y, seed=3) == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))))
    low, high = interval(x, y, seed=3)
    assert low < spearman(x, y) < high


def test_within_methods_only_differences_from_the_mean_of_a_method_count():
    # Between methods the measure falls with accuracy, within each method it rises.
    rows = [
        row(f"{m}-{i}", m, 50 + 10 * place + i, rankme=-5 * place + i) for place, m in enumerate("ab") for i in range(4)
    ]
    rows += [
        row("c-0", "c", 99, rankme=99),
        row("random", "random", 1, rankme=99),
        row("random", "random", 2, rankme=0),
    ]
    assert within_methods(rows, "rankme", "linear") == (pytest.approx(1), 8)
    assert spearman(*zip(*[(r["values"]["rankme"], r["values"]["linear"]) for r in rows[:8]], strict=True)) < 0
    assert within_methods(rows[:3], "rankme", "linear")[1] == 0


def test_the_strongest_correlation_comes_first_and_values_that_do_not_exist_are_left_out():
    accuracy = [1.0, 2, 3, 4, 5, 6]
    noisy, missing = [2.0, 1, 3, 4, 6, 5], [1.0, math.nan, math.nan, 2, math.nan, 3]
    rows = [
        row(f"a-{i}", f"m{i}", accuracy[i], accuracy[i], rankme=noisy[i], lidar=-accuracy[i], alpha_req=missing[i])
        for i in range(6)
    ]
    lines = [cells(line) for line in correlation_table(rows).splitlines()[2:]]
    assert [line[0] for line in lines] == ["lidar", "rankme"]  # three values of alpha_req are too few
    assert lines[0][1:3] == ["6", "-1.00"] and lines[1][2] == f"{stats.spearmanr(noisy, accuracy).statistic:+.2f}"
    assert lines[1][4] == f"{stats.kendalltau(noisy, accuracy).statistic:+.2f}" and lines[0][6] == "-"


def test_a_random_network_has_other_weights_and_the_statistics_of_the_images():
    images = open_images(tiny_images(40)).load()
    backbone = TinyBackbone()
    backbone.preprocessing = Preprocessing.of(images)
    network = random_network(backbone, images, seed=1)
    assert not torch.equal(network.layers[0].weight, backbone.layers[0].weight)
    inputs = network.layers[0](network.preprocessing(images.sample(40)))
    torch.testing.assert_close(network.layers[1].running_mean, inputs.mean((0, 2, 3)).detach())
    assert backbone.layers[1].num_batches_tracked == 0 and network.training is backbone.training
    again, other = (random_network(backbone, images, seed).layers[0].weight for seed in (1, 2))
    assert torch.equal(again, network.layers[0].weight) and not torch.equal(other, network.layers[0].weight)


def test_stored_runs_are_measured_once_and_tabulated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    splits = [[(image, i % 3) for i, image in enumerate(tiny_images(60, seed=seed))] for seed in (0, 1)]
    splits = tuple(open_images(split).load() for split in splits)
    monkeypatch.setattr(label_free, "open_splits", lambda data, size: splits)
    supervisor = RotateNetSupervisor(tiny_images(64), backbone="resnet9:width=0.0625", seed=0)
    supervisor.supervise(epochs=1, batch_size=32, name=tmp_path / "rotatenet-0", progress=False)
    for copy in ("rotatenet-1", "other-0"):
        shutil.copy(tmp_path / "rotatenet-0.pt", tmp_path / f"{copy}.pt")
    (tmp_path / "broken-0.pt").write_bytes(b"nothing")
    command = f"--store {tmp_path} --images 40 --evaluate 60 --rows {tmp_path}/rows.jsonl --device cpu --write"
    label_free.main(command.split())
    captured = capsys.readouterr()
    assert "broken-0.pt is left out" in captured.err
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted(line["row"]["method"] for line in lines) == ["other", "random", "rotatenet", "rotatenet"]
    for line in lines:
        values = line["row"]["values"]
        assert set(label_free.MEASURES) < set(values) and all(0 <= values[name] <= 100 for name in ("linear", "knn"))
        assert values["alpha_req_from_1"] == pytest.approx(abs(values["alpha_req"] - 1), nan_ok=True)
    first = [line for line in (tmp_path / "RESULTS.md").read_text().splitlines() if line.startswith("|")]
    assert "95 % interval" in "".join(first) and sum("rankme" in line for line in first) == 2

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(label_free, "measured", fail)
    label_free.main(command.split())
    assert capsys.readouterr().out.split("\n\n", 1)[1] == captured.out.split("\n\n", 1)[1]


def test_a_folder_without_runs_says_so(tmp_path, monkeypatch):
    images = open_images([(image, 0) for image in tiny_images(4)]).load()
    monkeypatch.setattr(label_free, "open_splits", lambda data, size: (images, images))
    with pytest.raises(SystemExit, match="holds no run that can be loaded"):
        label_free.main(["--store", str(tmp_path), "--images", "40"])
