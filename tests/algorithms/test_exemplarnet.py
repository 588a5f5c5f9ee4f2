import math

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from superself import Batch, ExemplarNetSupervisor
from superself.augment import RandomAffine

from cases import TinyBackbone, tiny_images


def exemplarnet(images=None, cls=ExemplarNetSupervisor, **arguments):
    images = tiny_images() if images is None else images
    return cls(images, **{"backbone": TinyBackbone(), "seed": 0, "augment": same, **arguments})


def same(images):
    """The view is the image."""
    return images


def both(logits, classes):
    return logits, classes


class Recording(ExemplarNetSupervisor):
    """Records the batch of every step."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = []

    def _forward(self, data):
        self.seen.append(data)
        return super()._forward(data)


def test_loss_equals_the_cross_entropy_of_the_class_of_the_image_by_a_loop():
    supervisor = exemplarnet().eval()
    logits = supervisor.model(supervisor.preprocessing(tiny_images())).detach()
    slow = sum(-math.log(logits[i].softmax(0)[supervisor.classes[i]]) for i in range(16)) / 16
    assert supervisor._forward(Batch(tiny_images(), torch.arange(16))).item() == pytest.approx(slow, rel=1e-5)


def test_loss_equals_a_number_worked_by_hand():
    class Constant(nn.Linear):
        """The same logits for every image."""

        def forward(self, y):
            return y.new_tensor([2.0, 0.0]).expand(len(y), 2) + 0 * super().forward(y)

    supervisor = exemplarnet(tiny_images(2), predictor=Constant(16, 2))
    losses = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]  # of class 0 and of class 1
    for index, loss in zip(supervisor.classes.argsort().split(1), losses, strict=True):
        data = Batch(tiny_images(2)[index], index)
        assert supervisor.eval()._forward(data).item() == pytest.approx(loss, rel=1e-5)
    assert supervisor.chance_loss == pytest.approx(math.log(2))


@pytest.mark.parametrize(("n_classes", "expected"), [(5, 5), (16, 16), (8000, 16), (None, 16)])
def test_head_has_a_class_for_each_chosen_image_and_no_image_is_chosen_twice(n_classes, expected):
    supervisor = exemplarnet(n_classes=n_classes)
    classes = supervisor.classes[supervisor.classes >= 0]
    assert sorted(classes.tolist()) == list(range(expected)) and len(supervisor.classes) == 16
    assert supervisor.model.predictor[-1].out_features == expected
    assert supervisor.chance_loss == pytest.approx(math.log(expected))


def test_only_the_chosen_images_are_trained_on_and_all_of_them_in_every_epoch():
    supervisor = exemplarnet(cls=Recording, n_classes=7, augment="exemplar")
    chosen = (supervisor.classes >= 0).nonzero().flatten().tolist()
    supervisor.supervise(epochs=3, batch_size=3, name="run", progress=False)
    epochs = [torch.cat([data.index for data in supervisor.seen[i : i + 3]]) for i in (0, 3, 6)]
    assert len(supervisor.seen) == 9 and all(sorted(set(epoch.tolist())) == chosen for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("shuffle", [True, False])
def test_class_belongs_to_the_image_whatever_the_order(shuffle):
    images = tiny_images(20)
    part = Subset(TensorDataset(images, torch.arange(20)), list(range(3, 20)))
    supervisor = exemplarnet(part, cls=Recording, n_classes=9)
    supervisor.supervise(epochs=2, batch_size=4, shuffle=shuffle, name="run", progress=False)
    pairs = {(d.images[i].sum().item(), int(supervisor.classes[d.index[i]])) for d in supervisor.seen for i in range(4)}
    assert len(pairs) == 9 and {c for _, c in pairs} == set(range(9))
    assert all(torch.equal(data.images, images[3 + data.index]) for data in supervisor.seen)


def test_the_seed_chooses_the_images_and_a_resumed_run_keeps_the_choice():
    chosen = [exemplarnet(n_classes=7, seed=seed).classes for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])
    exemplarnet(n_classes=7).supervise(epochs=1, batch_size=7, name="run", progress=False)
    resumed = exemplarnet(n_classes=7, seed=None, cls=Recording)
    resumed.supervise(epochs=2, batch_size=7, name="run", resume=True, progress=False)
    assert torch.equal(resumed.classes, chosen[0])
    assert all((chosen[0][data.index] >= 0).all() for data in resumed.seen)
    loaded = Recording(backbone=TinyBackbone()).load("run")
    assert torch.equal(loaded.classes, chosen[0]) and loaded.n_classes == loaded.class_count == 7


def test_views_are_drawn_again_every_time_from_the_generator_of_the_run():
    supervisor = exemplarnet(augment="exemplar")
    draws = []
    for seed in (3, 3, None):
        if seed is not None:
            supervisor.generator.manual_seed(seed)
        torch.rand(5)
        draws.append(supervisor.views(Batch(tiny_images()))[0])
    assert torch.equal(draws[0], draws[1]) and draws[0].shape == tiny_images().shape
    assert all(not torch.equal(a, b) for a, b in zip(draws[1], draws[2], strict=True))


def test_images_that_were_not_chosen_change_neither_loss_nor_accuracy():
    supervisor = exemplarnet(n_classes=6).eval()
    chosen = (supervisor.classes >= 0).nonzero().flatten()
    logits = supervisor.model(supervisor.preprocessing(tiny_images()))
    supervisor.classes[chosen[:3]] = logits[chosen[:3]].argmax(1)  # so that at least three are recognised
    noted = {}
    supervisor.note = noted.__setitem__
    alone = supervisor._forward(Batch(tiny_images()[chosen], chosen))
    accuracy = noted["accuracy"]
    assert supervisor._forward(Batch(tiny_images(), torch.arange(16))).item() == pytest.approx(alone.item(), rel=1e-5)
    assert noted["accuracy"] == accuracy >= 0.5
    assert exemplarnet(n_classes=6, loss=both)._forward(Batch(tiny_images(), torch.arange(16)))[1].min() == -1


def test_learns_to_recognise_new_views_of_its_images():
    images = torch.rand(16, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 255
    images = images.repeat_interleave(8, 2).repeat_interleave(8, 3).byte()  # four colours each
    supervisor = exemplarnet(images, augment=RandomAffine(20, translate=(0.2, 0.2), scale=(0.7, 1.4), fill=None))
    supervisor.supervise(lr=1e-2, epochs=60, batch_size=16, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        assert supervisor._forward(Batch(images, torch.arange(16))) < 0.5 * supervisor.chance_loss


def test_chance_level_is_unknown_before_the_images_are():
    assert ExemplarNetSupervisor(backbone=TinyBackbone()).chance_loss is None


def test_weights_of_other_images_are_taken_without_their_classes():
    exemplarnet().supervise(epochs=1, batch_size=16, name="run", progress=False)
    other = exemplarnet(tiny_images(20, seed=5), n_classes=12)
    classes, head = other.classes.clone(), other.model.predictor[-1].weight.clone()
    other.supervise(epochs=1, batch_size=12, lr=1e-12, name="other", pretrained="run", progress=False)
    assert torch.equal(other.classes, classes) and torch.allclose(other.model.predictor[-1].weight, head, atol=1e-6)


def test_arguments_that_cannot_be_trained_with_are_refused():
    with pytest.raises(ValueError, match="n_classes must be an integer of at least 2, got 1 "):
        exemplarnet(n_classes=1)
    with pytest.raises(ValueError, match="makes 2 views of an image, 1 are needed"):
        exemplarnet(augment="byol")
    with pytest.raises(ValueError, match=r"batch_size=8 .*\(5 of 16 images are trained on\).*pass batch_size <= 5"):
        exemplarnet(n_classes=5).supervise(batch_size=8, name="run", progress=False)
