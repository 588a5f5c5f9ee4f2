import numpy as np
import pytest
import torch
from PIL import Image
from sheets import areas
from torch import nn

from superself.basics.random import preserve_random_state
from superself.evaluation import KernelsFigure, show_kernels
from superself.evaluation.pictures.kernels import first_kernels
from superself.evaluation.subject import Subject
from superself.networks import fresh_copy

from cases import TinyBackbone


def network_of(weight):
    """One convolution with the given kernels."""
    network = nn.Sequential(nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False))
    network[0].weight.data = weight
    return network


def test_kernels_are_shown_in_colour_with_zero_as_grey(tmp_path):
    weight = torch.zeros(2, 3, 2, 2)
    weight[0, 0] = 1.5  # red alone: the most, and 0 for the others
    weight[1] = torch.tensor([-2.0, 1.0, 2.0]).view(3, 1, 1)
    sheet = Image.open(show_kernels(network_of(weight), tmp_path / "new" / "a.png", random=False))
    (red,), (mixed,) = areas(sheet, (255, 128, 128)), areas(sheet, (0, 191, 255))
    assert red[1] == mixed[1] and red[0] < mixed[0] and red[2] - red[0] == red[3] - red[1] >= 50


def test_kernels_of_other_channels_have_a_grey_picture_for_each(tmp_path):
    weight = torch.tensor([1.0, -1.0, 0.5, 0.0]).view(1, 4, 1, 1).expand(1, 4, 2, 2).contiguous()
    sheet = Image.open(show_kernels(network_of(weight), tmp_path / "a.png", random=False))
    boxes = [areas(sheet, (grey,) * 3)[0] for grey in (0, 191, 128)]
    assert boxes[0][0] < boxes[1][0] < boxes[2][0] and len({box[1] for box in boxes}) == 1


def test_random_kernels_stand_next_to_the_trained_ones(tmp_path):
    network = TinyBackbone()
    state, weights = torch.get_rng_state(), network.layers[0].weight.clone()
    one, two, again = (
        np.asarray(Image.open(show_kernels(network, tmp_path / "a.png", random=random)))
        for random in (None, True, True)
    )
    assert two.shape[1] > one.shape[1] and np.array_equal(two, again)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(network.layers[0].weight, weights)
    other = TinyBackbone()
    other.layers[0].weight.data.neg_()
    given = np.asarray(Image.open(show_kernels(network, tmp_path / "a.png", random=other)))
    assert given.shape == two.shape and not np.array_equal(given, two)


def test_a_dead_kernel_is_grey_and_few_are_shown(tmp_path):
    weight = torch.zeros(9, 3, 3, 3)
    sheet = Image.open(show_kernels(network_of(weight), tmp_path / "a.png", random=False, count=4))
    assert len(areas(sheet, (127, 127, 127)) + areas(sheet, (128, 128, 128))) == 4


def test_a_network_needs_a_convolution(tmp_path):
    with pytest.raises(ValueError, match="Linear has no 2-D convolution, whose kernels could be shown"):
        show_kernels(nn.Linear(3, 4), tmp_path / "a.png")
    with pytest.raises(ValueError, match="Linear has no 2-D convolution"):
        KernelsFigure().open(Subject(nn.Linear(3, 4)))
    assert first_kernels(TinyBackbone()).shape == (8, 3, 3, 3)


def test_a_network_that_cannot_be_initialised_again_is_an_error(tmp_path):
    class Odd(nn.Conv2d):
        reset_parameters = _reset_parameters = None

        def __init__(self):
            nn.Module.__init__(self)
            self.weight = nn.Parameter(torch.ones(2, 3, 2, 2))

    with pytest.raises(ValueError, match="weight cannot be reset.* Or pass random=False"):
        show_kernels(Odd(), tmp_path / "a.png")


def test_the_evaluator_draws_and_computes_nothing(tmp_path):
    subject, evaluator = Subject(TinyBackbone()), KernelsFigure()
    evaluator.open(subject)
    assert evaluator.evaluate(subject) == {}
    drawn = evaluator.figure(subject, tmp_path / "a.png")
    assert drawn.read_bytes() == show_kernels(subject.backbone, tmp_path / "b.png").read_bytes()


def captions_of(monkeypatch, network, path, **options):
    """All texts of the picture, joined."""
    texts = []
    sheet = "superself.evaluation.pictures.kernels.Sheet."
    monkeypatch.setattr(sheet + "text", lambda self, x, y, text, *args, **more: texts.append(text))
    monkeypatch.setattr(sheet + "heading", lambda self, *both: texts.extend(both) or 0)
    show_kernels(network, path, **options)
    return " ".join(texts)


def test_the_caption_says_what_the_kernels_are_compared_with_and_how_far_they_moved(tmp_path, monkeypatch):
    torch.manual_seed(5)
    network = TinyBackbone()
    initial = fresh_copy_with(network, seed=3)
    other = TinyBackbone()
    first = next(module for module in initial.modules() if isinstance(module, nn.Conv2d))
    weights = first.weight.detach().clone()
    first.weight.data += 0.12 * weights
    said = captions_of(monkeypatch, initial, tmp_path / "a.png", seed=3)
    assert "initial weights (seed 3)" in said and "Relative change of all weights: 12%." in said
    said = captions_of(monkeypatch, initial, tmp_path / "a.png", seed=4)
    assert "random weights (seed 4)" in said and "initial" not in said
    said = captions_of(monkeypatch, other, tmp_path / "a.png", random=other)
    assert "compared with" in said and "weights: 0%" in said and "random" not in said
    for random in (network_of(torch.ones(4, 3, 2, 2)), network_of(torch.zeros_like(weights)), None):
        assert "Relative" not in captions_of(monkeypatch, other, tmp_path / "a.png", random=random)


def fresh_copy_with(network, seed):
    """The network with the fresh weights of a seed."""
    with preserve_random_state(seed):
        return fresh_copy(network)
