"""bench.probes: its features, its rows, and that both implementations measure the same."""

import pytest
import torch

from bench.probes import main, make_features, measure_all, parse


def test_both_implementations_agree_on_every_measure():
    options = parse(["--images", "300", "--test", "200", "--width", "12", "--classes", "3"])
    rows = {row[0]: row for row in measure_all(options, torch.device("cpu"))}
    for measure in options.measures:
        assert rows[measure][5] == pytest.approx(rows[measure][6], abs=3) and rows[measure][5] > 40
        assert rows[measure][4] == rows[measure][3] / rows[measure][1]
    together = [rows[measure] for measure in ("knn", "linear", "fractions")]
    assert rows["knn + linear + fractions"][1] == pytest.approx(sum(row[1] for row in together))
    assert rows["knn + linear + fractions"][3] == pytest.approx(sum(row[3] for row in together))


def test_features_are_the_same_at_every_call_and_correlated():
    train, test = make_features(2000, 10, 32, 3)
    assert torch.equal(make_features(2000, 10, 32, 3)[0].features, train.features)
    assert train.features.shape == (2000, 32) and test.features.shape == (10, 32) and train.features.min() == 0
    values = torch.linalg.eigvalsh(torch.corrcoef(train.features.T))
    assert values[-1] > 30 * values[0]


def test_without_peer_only_superself_is_timed(capsys):
    main(["--images", "60", "--test", "20", "--width", "4", "--classes", "2", "--measures", "centroid", "--no-peer"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| centroid") and last.count(" - ") == 3


def test_unknown_measures_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--measures", "forest"])
    assert "forest is unknown; pass some of knn, linear" in capsys.readouterr().err
