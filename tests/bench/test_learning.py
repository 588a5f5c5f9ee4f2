"""Learning: the plan that fills the time, and a complete run in a second."""

import pytest

from bench import learning, peers, report
from bench.learning import means, pace
from superself.data import open_images

from cases import tiny_images


def test_pace_separates_steps_from_the_time_between_epochs():
    ticks = [(0.0, False), (2.0, False), (4.0, True), (11.0, False), (13.0, False), (15.0, True)]
    assert pace(ticks) == (2.0, 5.0)


def test_mean_and_deviation_are_over_the_seeds_of_a_contestant():
    rows = [
        ["byol", who, seed, "1", "2", "3", knn, "50.0", None]
        for who, seed, knn in (("a", 0, "10"), ("a", 1, "20"), ("b", 0, "5"))
    ]
    assert [row[:3] + row[6:7] for row in means(rows)] == [
        ["byol", "a", "mean of 2", "15.0 ± 7.1"],
        ["byol", "b", "mean of 1", "5.0 ± 0.0"],
    ]


@pytest.mark.parametrize("algorithm", ["byol-cifar10", "deep_cluster_v2", "rotatenet"])
def test_an_algorithm_is_trained_and_measured_without_lightly(algorithm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "has_lightly", lambda: False)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    options = "--minutes 0.01 --size 16 --backbone mobilenet_v3_small --batch-size 8 --evaluate 64 --device cpu --write"
    learning.main(["--algorithm", algorithm, *options.split()])
    assert peers.MISSING in capsys.readouterr().out
    lines = [line for line in (tmp_path / "RESULTS.md").read_text().splitlines() if line.startswith(f"| {algorithm}")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[1] for row in cells] == ["random initialised", "superself"]
    assert all(0 <= float(row[i]) <= 100 for row in cells for i in (6, 7))
    assert int(cells[1][4].replace(",", "")) % 8 == 0 and "(chance " in cells[1][8]


def test_a_preset_is_trained_with_its_arguments_and_those_of_the_command_line():
    options = learning.parse(
        ["--algorithm", "byol-cifar10", "--backbone", "mobilenet_v3_small", "--set", "byol-cifar10.projector=None"]
    )
    images = open_images([(image, 0) for image in tiny_images(4)])
    made = learning.Race("byol-cifar10", images, images, 3, options).make(images)
    assert type(made).__name__ == "BYOLSupervisor" and (made.momentum, made.seed) == (0.99, 3)


def test_an_unknown_name_is_answered_with_those_of_algorithms_and_presets(capsys):
    with pytest.raises(SystemExit):
        learning.parse(["--algorithm", "boyl"])
    message = capsys.readouterr().err
    assert "there is no algorithm boyl" in message and "rotatenet" in message and "byol-cifar10" in message
