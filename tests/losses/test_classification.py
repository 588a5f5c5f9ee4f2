import pytest
import torch
from torch.nn.functional import cross_entropy

from superself.losses.classification import NO_CLASS, known_cross_entropy

from tensors import noise


def test_images_without_a_class_do_not_count():
    logits, classes = noise(5, 3), torch.tensor([0, NO_CLASS, 2, NO_CLASS, 1])
    known = [0, 2, 4]
    assert known_cross_entropy(logits, classes).item() == pytest.approx(
        cross_entropy(logits[known], classes[known]).item()
    )


def test_a_batch_without_any_class_has_loss_and_gradient_zero():
    logits = noise(4, 3).requires_grad_()
    loss = known_cross_entropy(logits, torch.full((4,), NO_CLASS))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_half_precision_is_computed_in_float32():
    logits, classes = noise(5, 3).bfloat16(), torch.tensor([0, 1, 2, 0, 1])
    loss = known_cross_entropy(logits, classes)
    assert loss.dtype == torch.float32 and torch.equal(loss, known_cross_entropy(logits.float(), classes))
