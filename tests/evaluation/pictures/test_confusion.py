import numpy as np
import pytest
import torch
from PIL import Image

from superself.evaluation import ConfusionFigure, show_confusion
from superself.evaluation.classification import Classification
from superself.evaluation.pictures import confusion
from superself.evaluation.subject import Subject

from cases import TinyBackbone, tiny_images


@pytest.fixture
def texts(monkeypatch):
    """All texts that are written on sheets."""
    written, write = [], confusion.Sheet.text

    def record(sheet, x, y, text, *args, **options):
        written.append(text)
        return write(sheet, x, y, text, *args, **options)

    monkeypatch.setattr(confusion.Sheet, "text", record)
    return written


def predictions(true, predicted, classes):
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float(), torch.tensor(true)


def test_numbers_are_percent_of_the_true_class(tmp_path, texts):
    given = predictions([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], 2)
    path = show_confusion(Classification(*given, ["cat", "dog"], "fitted to 5 images."), tmp_path / "new" / "a.png")
    assert path.exists() and " ".join(texts).startswith("83.3% of 6 images are classified right ")
    assert [text for text in texts if text.isdigit()] == ["75", "25", "100"]  # no number for what never happens
    assert "fitted to 5 images." in " ".join(texts) and texts.count("cat") == texts.count("dog") == 2


def test_larger_shares_are_darker(tmp_path):
    given = predictions([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1], 2)
    sheet = np.asarray(Image.open(show_confusion(Classification(*given), tmp_path / "a.png"))).astype(int)
    colours = [np.array([int(confusion._shade(share)[k : k + 2], 16) for k in (1, 3, 5)]) for share in (0.25, 0.75, 1)]
    counts = [(sheet == colour).all(2).sum() for colour in colours]
    assert min(counts) > 1000 and colours[0].sum() > colours[1].sum() > colours[2].sum()


def test_of_many_classes_the_most_frequent_confusions_are_listed(tmp_path, texts):
    true = [k for k in range(30) for _ in range(10)]
    predicted = list(true)
    predicted[50:57] = [20] * 7  # class 5 as 20, seven times
    predicted[110:113] = [2] * 3  # class 11 as 2, three times
    names = [f"species {k}" for k in range(30)]
    show_confusion(Classification(*predictions(true, predicted, 30), names), tmp_path / "a.png")
    assert texts[0] == "96.7% of 300 images are classified right"
    assert texts[texts.index("taken for") + 1 :] == [
        "species 5",
        "species 20",
        "7 of 10 (70%)",
        "species 11",
        "species 2",
        "3 of 10 (30%)",
    ]


def test_perfect_predictions_and_none(tmp_path, texts):
    given = predictions(list(range(25)), list(range(25)), 25)
    show_confusion(Classification(*given), tmp_path / "a.png")
    assert "no confusions" in texts
    with pytest.raises(ValueError, match="with at least one image"):
        show_confusion(Classification(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), tmp_path / "a.png")


def test_the_evaluator_classifies_the_features_and_draws(tmp_path):
    train, test = (torch.utils.data.TensorDataset(tiny_images(n), torch.arange(n) % 2) for n in (8, 6))
    seen = []

    def classify(known, asked):
        seen.append((len(known), len(asked)))
        return Classification(torch.nn.functional.one_hot(asked.labels).float(), asked.labels)

    subject, evaluator = Subject(TinyBackbone()), ConfusionFigure(classify, train, test)
    evaluator.open(subject)
    assert evaluator.evaluate(subject) == {} and evaluator.figure(subject, tmp_path / "a.png").exists()
    assert seen == [(8, 6)]
