import pytest
import torch

from superself.evaluation import Features, choose_regularisation, linear, linear_accuracy


def blobs(images, classes=4, width=12, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    return Features(
        torch.randn(images, width, generator=generator) * spread + 2 * torch.eye(classes, width)[labels], labels
    )


def slow_accuracy(train, test, C):
    """The same objective, sum of cross-entropies + |W|^2 / 2C, minimised by Newton-like steps in float64."""
    x, y = train.features.double(), train.labels
    mean, std = x.mean(0), x.std(0, correction=0)
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logits = (x - mean) / std @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum") + weight.square().sum() / (2 * C)
        loss.backward()
        return loss

    optimizer.step(closure)
    predictions = ((test.features.double() - mean) / std @ weight.T + bias).argmax(1)
    return (predictions == test.labels).double().mean().item()


@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0])
def test_probe_equals_logistic_regression_written_out(C):
    train, test = blobs(80), blobs(200, seed=1)
    assert linear_accuracy(train, test, C) == pytest.approx(slow_accuracy(train, test, C), abs=0.0051)


def test_same_numbers_twice():
    train, test = blobs(80), blobs(40, seed=1)
    assert choose_regularisation(train) == choose_regularisation(train)
    assert linear_accuracy(train, test) == linear_accuracy(train, test)


def test_scale_and_offset_of_a_feature_do_not_matter():
    train, test = blobs(80), blobs(200, seed=1)
    scale, offset = torch.logspace(-3, 3, 12), torch.arange(12)
    moved = [Features(part.features * scale + offset, part.labels) for part in (train, test)]
    assert linear_accuracy(*moved, C=0.01) == pytest.approx(linear_accuracy(train, test, C=0.01), abs=0.0051)


def test_constant_features_give_a_number():
    train, test = blobs(40), blobs(40, seed=1)
    for part in (train, test):
        part.features[:, 1:] = 3.0
    assert linear_accuracy(train, test, C=1.0) > 0.25
    for part in (train, test):
        part.features[:] = 0.1
    assert linear_accuracy(train, test) == 0.25  # nothing to read: one class is guessed


def test_regularisation_is_the_best_on_a_fifth_of_each_class():
    train = blobs(100, spread=2.0)
    generator = torch.Generator().manual_seed(3)
    chosen = []
    for label in range(4):
        members = torch.tensor([place for place in range(100) if train.labels[place] == label])
        chosen += members[torch.randperm(25, generator=generator)][:5].tolist()
    rest = [place for place in range(100) if place not in chosen]
    parts = [Features(train.features[places], train.labels[places]) for places in (rest, chosen)]
    scores = {C: linear_accuracy(*parts, C=C) for C in linear.REGULARISATIONS}
    best = min(C for C, score in scores.items() if score == max(scores.values()))
    assert choose_regularisation(train, seed=3) == best


def test_few_images_of_a_class_can_choose_too():
    assert choose_regularisation(blobs(8)) in linear.REGULARISATIONS
    single = Features(blobs(9).features, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2]))
    assert choose_regularisation(single) in linear.REGULARISATIONS


def test_a_class_only_in_the_test_set_counts_as_wrong():
    train, test = blobs(80, spread=0.1), blobs(40, spread=0.1, seed=1)
    test.labels[:10] = 9
    assert linear_accuracy(train, test) == 0.75


def test_rows_of_unreadable_images_are_left_out():
    train, test = blobs(80), blobs(40, seed=1)
    less = Features(train.features[4:], train.labels[4:])
    expected = choose_regularisation(less), linear_accuracy(less, Features(test.features[1:], test.labels[1:]), C=0.1)
    train.features[:4], test.features[0] = float("nan"), float("nan")
    assert (choose_regularisation(train), linear_accuracy(train, test, C=0.1)) == expected


def test_one_class_is_an_error():
    train = Features(torch.randn(10, 3), torch.full((10,), 4))
    with pytest.raises(ValueError, match=r"labels \[4\], and a linear probe needs at least 2 classes"):
        linear_accuracy(train, train, C=1.0)


def test_no_class_with_two_images_is_an_error():
    train = Features(torch.randn(3, 3), torch.arange(3))
    with pytest.raises(ValueError, match="3 training images are all of different classes.*at least two images"):
        choose_regularisation(train)
