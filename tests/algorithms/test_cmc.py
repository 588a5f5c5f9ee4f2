import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, ContrastiveMultiviewCodingSupervisor
from superself.networks import LabHalves, PerHalf

from cases import TinyBackbone, tiny_images


def cmc(n=16, **arguments):
    backbone = LabHalves(TinyBackbone(1), TinyBackbone(2))
    given = {"backbone": backbone, "seed": 0, "augment": unchanged, **arguments}
    return ContrastiveMultiviewCodingSupervisor(tiny_images(n), **given)


def unchanged(images):
    return images


def batch(*index):
    index = torch.tensor(index)
    return Batch(tiny_images()[index], index)


def slow_loss(anchors, positives, bank, index):
    """The softmax over the positive and every other image's row, as a double loop."""
    losses = []
    for anchor, positive, i in zip(anchors, positives, index, strict=True):
        own = math.exp((anchor @ positive).item() / 0.07)
        others = sum(math.exp((anchor @ row).item() / 0.07) for j, row in enumerate(bank) if j != i)
        losses.append(-math.log(own / (own + others)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("contrast", ["bank", "batch"])
def test_loss_equals_a_double_loop_in_both_directions(contrast):
    supervisor = cmc(contrast=contrast).eval()
    data = batch(3, 0, 9)
    lightness, colour = (normalize(z, dim=1) for z in supervisor.model(data.images / 255))
    if contrast == "bank":
        l_rows, ab_rows = supervisor.l_bank.features, supervisor.ab_bank.features
        slow = slow_loss(lightness, ab_rows[data.index], ab_rows, data.index)
        slow += slow_loss(colour, l_rows[data.index], l_rows, data.index)
    else:
        slow = slow_loss(lightness, colour, colour, range(3)) + slow_loss(colour, lightness, lightness, range(3))
    assert supervisor._forward(data).item() == pytest.approx(slow, rel=1e-4)


class Fixed(nn.Module):
    """The same embedding for every image."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, output):
        return self.values.expand(len(output), -1)


def test_loss_equals_a_number_worked_by_hand():
    supervisor = cmc(n=2, projector=PerHalf(Fixed([1.0, 0.0]), Fixed([1.0, 0.0])), temperature=1.0)
    for bank in (supervisor.l_bank, supervisor.ab_bank):
        bank.features[:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = supervisor._forward(Batch(tiny_images(2)[:1], torch.tensor([0])))
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-1)))  # 1 to its own row, 0 to the other image's


def test_each_half_is_compared_with_the_bank_of_the_other_half():
    seen = []

    def keep(*given):
        seen.append(given)
        return given[0].sum()

    supervisor, data = cmc(loss=keep).eval(), batch(5, 2)
    supervisor._forward(data)
    lightness, colour = supervisor.model(data.images / 255)
    for given, anchor, bank in zip(seen, (lightness, colour), (supervisor.ab_bank, supervisor.l_bank), strict=True):
        assert torch.equal(given[0], anchor)
        assert torch.equal(given[1], bank.features[data.index])
        assert given[2] is bank.features
        assert given[3].nonzero().tolist() == [[0, 5], [1, 2]]  # an image's own row is not a negative


def test_both_banks_are_written_after_the_optimizer_step_in_the_rows_of_the_batch():
    class Observed(ContrastiveMultiviewCodingSupervisor):
        def _update(self, *arguments):
            before = [bank.features.clone() for bank in (self.l_bank, self.ab_bank)]
            super()._update(*arguments)
            assert torch.equal(self.l_bank.features, before[0]) and torch.equal(self.ab_bank.features, before[1])

        def _after_step(self):
            banks = self.l_bank, self.ab_bank
            old = [bank.features.clone() for bank in banks]
            pending = [bank._pending for bank in banks]
            super()._after_step()
            for bank, before, (embeddings, index) in zip(banks, old, pending, strict=True):
                others = torch.ones(16, dtype=torch.bool)
                others[index] = False
                mixed = normalize(0.25 * before[index] + 0.75 * normalize(embeddings, dim=1), dim=1)
                assert torch.allclose(bank.features[index], mixed, atol=1e-6)
                assert torch.equal(bank.features[others], before[others])
            assert not torch.equal(pending[0][0], pending[1][0])

    backbone = LabHalves(TinyBackbone(1), TinyBackbone(2))
    supervisor = Observed(tiny_images(), backbone=backbone, momentum=0.25)
    supervisor.supervise(epochs=2, batch_size=4, name="run", progress=False)
    assert supervisor.step == 8


def test_both_encoders_and_both_heads_are_trained_and_stored_with_both_banks():
    supervisor = cmc()
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    stored = torch.load("run.pt", weights_only=True)["model"]
    for part in (
        "model.backbone.lightness.",
        "model.backbone.colour.",
        "model.predictor.lightness.",
        "model.predictor.colour.",
    ):
        assert any(name.startswith(part) for name in stored)
        assert all(p.grad is not None for name, p in supervisor.named_parameters() if name.startswith(part))
    for name in ("l_bank.features", "ab_bank.features"):
        assert torch.allclose(stored[name].norm(dim=1), torch.ones(16))


def test_lab_is_computed_from_the_augmented_rgb_view():
    seen = []

    def darker(images):
        seen.append(images.clone())
        return images / 2

    supervisor = cmc(augment=darker).eval()
    fed = []
    supervisor.model.backbone.lightness.register_forward_pre_hook(lambda module, given: fed.append(given[0]))
    data = batch(1, 2)
    supervisor._forward(data)
    assert torch.allclose(seen[0], data.images / 255)  # the augmentation is given RGB in [0, 1]
    assert torch.allclose(fed[0], LabHalves.lab(data.images / 510)[:, :1] / 25 - 2, atol=1e-5)


def test_halves_see_the_same_crop():
    fed = {}
    supervisor = cmc(augment=True)
    for name, half in (("L", supervisor.model.backbone.lightness), ("ab", supervisor.model.backbone.colour)):
        half.register_forward_pre_hook(lambda module, given, name=name: fed.update({name: given[0]}))
    images = torch.zeros(16, 3, 16, 16, dtype=torch.uint8)
    images[:, 0, :, 8:] = 255  # black to the left, red to the right
    supervisor._forward(Batch(images, torch.arange(16)))
    half_red = LabHalves.lab(torch.tensor([0.5, 0, 0]).view(1, 3, 1, 1))[0, :2].flatten()  # halfway from black
    red = fed["L"][:, 0] > half_red[0] / 25 - 2
    assert torch.equal(red, fed["ab"][:, 0] > half_red[1] / 15) and 0.2 < red.float().mean() < 0.8
    assert len({view.sum().item() for view in red}) > 3  # and the crops differ


def test_default_views_are_random_crops_and_flips_that_keep_the_colours():
    supervisor = ContrastiveMultiviewCodingSupervisor(
        tiny_images(), backbone=LabHalves(TinyBackbone(1), TinyBackbone(2))
    )
    steps = [type(step).__name__ for step in supervisor.augmentation.transforms[0].transforms]
    assert steps == ["RandomResizedCrop", "RandomHorizontalFlip"]
    (view,) = supervisor.views(batch(*range(16)))
    assert view.shape == (16, 3, 16, 16) and view.min() >= 0 and view.max() <= 1
    assert (view.amax(1) - view.amin(1)).amax((1, 2)).min() > 0.02  # none became grey


def test_features_of_both_halves_or_of_the_lightness_alone():
    images = tiny_images() / 255
    both, only = cmc().eval(), cmc(features="L").eval()
    assert both.get_backbone()(images).shape == (16, 32)
    assert torch.equal(only.get_backbone()(images), only.model.backbone.features(images)[0])
    only.train().supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert all(p.grad is not None for p in only.model.backbone.colour.parameters())
    backbone = LabHalves(TinyBackbone(1), TinyBackbone(2))
    loaded = ContrastiveMultiviewCodingSupervisor(backbone=backbone).load("run")
    assert loaded.get_backbone()(images).shape == (16, 16)


@pytest.mark.parametrize(("n", "negatives", "candidates"), [(16, 16384, 16), (16, 5, 6), (16, 15, 16)])
def test_chance_level_counts_the_rows_of_the_bank(n, negatives, candidates):
    supervisor = cmc(n, negatives=negatives)
    assert supervisor.chance_loss == pytest.approx(2 * math.log(candidates))


def test_chance_level_within_the_batch_is_known_once_the_batch_size_is():
    supervisor = cmc(contrast="batch")
    assert supervisor.chance_loss is None
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert supervisor.chance_loss == pytest.approx(2 * math.log(8))


def test_an_image_that_comes_twice_in_a_batch_is_not_its_own_negative():
    heads = PerHalf(Fixed([1.0, 0.0]), Fixed([1.0, 0.0]))
    supervisor = cmc(projector=heads, contrast="batch")
    assert supervisor._forward(batch(4, 4, 4)).item() == pytest.approx(0)
    assert supervisor._forward(batch(4, 4, 5)).item() == pytest.approx(2 * (2 * math.log(2) + math.log(3)) / 3)


def test_equal_embeddings_of_all_images_give_the_chance_level():
    supervisor = cmc(projector=PerHalf(Fixed([1.0, 2.0]), Fixed([3.0, 1.0])))
    for bank, row in ((supervisor.l_bank, [1.0, 2.0]), (supervisor.ab_bank, [3.0, 1.0])):
        bank.features[:] = normalize(torch.tensor([row]), dim=1)
    assert supervisor._forward(batch(0, 1, 2)).item() == pytest.approx(supervisor.chance_loss, rel=1e-5)


def test_negatives_are_drawn_from_the_generator():
    supervisor = cmc(negatives=4).eval()
    losses = []
    for seed in (3, 3, 4):
        supervisor.generator.manual_seed(seed)
        losses.append(supervisor._forward(batch(0, 1)).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("contrast", ["bank", "batch"])
def test_finds_the_other_half_of_images_it_was_not_trained_on(contrast):
    """Colour depends on brightness in these images, and what was learnt holds for others."""
    supervisor = ContrastiveMultiviewCodingSupervisor(
        shaded(64), backbone=LabHalves(TinyBackbone(1), TinyBackbone(2)), augment=unchanged, contrast=contrast, seed=0
    )
    supervisor.supervise(lr=1e-2, epochs=20, batch_size=16, name="run", progress=False)
    supervisor.eval()
    with torch.no_grad():
        lightness, colour = (normalize(z, dim=1) for z in supervisor.model(shaded(32, seed=1) / 255))
    nearer = (lightness @ colour.T) > (lightness * colour).sum(1, keepdim=True)  # than the other half of the same image
    assert nearer.sum(1).float().mean() < 5  # chance level: 15.5


def shaded(n, seed=0):
    """Images of one colour each: the brighter, the redder."""
    level = torch.rand(n, 1, 1, generator=torch.Generator().manual_seed(seed)) * 200
    return torch.stack([30 + level, 20 + level / 2, 60 - level / 4], 1).expand(-1, -1, 16, 16).to(torch.uint8)


def test_the_losses_of_both_directions_are_noted():
    noted = {}

    class Noting(ContrastiveMultiviewCodingSupervisor):
        def note(self, name, value):
            noted[name] = value.item()

    supervisor = Noting(tiny_images(), backbone=LabHalves(TinyBackbone(1), TinyBackbone(2)))
    assert supervisor._forward(batch(3, 4)).item() == pytest.approx(noted["loss_L_to_ab"] + noted["loss_ab_to_L"])


def test_embeddings_of_both_halves_are_watched_for_collapse():
    supervisor = cmc().eval()
    images = supervisor.preprocessing(tiny_images())
    assert torch.equal(supervisor.embed(images), torch.cat(supervisor.model(images), 1))
    assert supervisor.embed(images).shape == (16, 256)


@pytest.mark.parametrize("loss", [None, nn.MSELoss()], ids=["own loss", "custom loss"])
@pytest.mark.parametrize("has_data", [True, False], ids=["data", "no data"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"negatives": 0},
            r"negatives must be an integer of at least 1, got 0 \(it is the number of rows drawn for each step\)",
        ),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), got 1.0 "),
        ({"temperature": 0}, r"temperature must be a number above 0, got 0 \(it divides similarities\)"),
        ({"temperature": -5}, r"temperature must be a number above 0, got -5 \(it divides similarities\)"),
        ({"features": "ab"}, "features='ab' is unknown; pass 'both' or 'L'"),
        ({"contrast": "queue"}, "contrast='queue' is unknown; pass 'bank' or 'batch'"),
        ({"normalize": (0.5, 0.5)}, "normalize=.* leave it out"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message, has_data, loss):
    with pytest.raises(ValueError, match=message):
        ContrastiveMultiviewCodingSupervisor(tiny_images() if has_data else None, loss=loss, **arguments)


def test_a_custom_projector_sets_the_width_of_the_banks():
    heads = (nn.Linear(16, 24) for _ in range(2))
    supervisor = cmc(projector=PerHalf(*heads))
    assert supervisor.l_bank.features.shape == supervisor.ab_bank.features.shape == (16, 24)


def test_a_projector_given_as_arguments_of_mlp_is_made_for_both_halves():
    supervisor = cmc(projector={"layers": 2, "out_features": 24})
    heads = supervisor.model.predictor
    assert [type(layer) for layer in heads.lightness] == [type(layer) for layer in heads.colour]
    assert len(heads.lightness) == 3 and heads.lightness[0].weight is not heads.colour[0].weight
    assert supervisor.ab_bank.features.shape == (16, 24)
