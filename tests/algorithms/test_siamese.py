"""Siamese: its presets are the methods they are named after, and every part can be exchanged."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, BYOLSupervisor, MomentumContrastSupervisor, SiameseSupervisor, create
from superself.networks import BatchRenorm1d
from superself.networks.norms import StandardizedLinear
from superself.training import Schedule, cosine

from cases import TinyBackbone, tiny_images

NO_NEGATIVES = {"objective": "ip", "negatives": ()}
VIC = {"objective": "vic", "negatives": (), "momentum": None, "normalize_embeddings": False}


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def siamese(n=16, algorithm=SiameseSupervisor, **arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, **arguments}
    if algorithm is SiameseSupervisor:
        given.setdefault("queue_size", 12)
    return algorithm(tiny_images(n), **given)


def preset(name, **arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, **arguments}
    return create(name, tiny_images(), **given)


def batch():
    return Batch(tiny_images(), torch.arange(16))


def views(supervisor):
    return [supervisor.preprocessing(view / 255) for view in two_views(tiny_images().float())]


def copy_weights(source, target, names):
    """Copies the modules of one supervisor into those of another; ``names`` of theirs by the names of its."""
    for own, other in names.items():
        source.get_submodule(own).load_state_dict(target.get_submodule(other).state_dict())


def loss_and_gradients(supervisor):
    supervisor.train()
    supervisor.generator.manual_seed(3)
    loss = supervisor._forward(batch())
    loss.backward()
    return loss.item(), {name: p.grad for name, p in supervisor.named_parameters() if p.grad is not None}


def assert_same(first, second):
    """Equal loss and gradients of two supervisors."""
    (loss, gradients), (other, others) = map(loss_and_gradients, (first, second))
    assert loss == pytest.approx(other, rel=1e-6)
    assert gradients.keys() == others.keys() and gradients
    assert all(torch.allclose(gradients[name], others[name], rtol=1e-4, atol=1e-7) for name in gradients)


# ---- presets ---------------------------------------------------------------------------------------------------------


def test_byol_from_parts_has_the_loss_and_the_gradient_of_byol():
    parts = preset("siamese-byol")
    heads = {"projector": {"out_features": 128, "hidden": 512}, "predictor": {"hidden": 512}}
    whole = siamese(algorithm=BYOLSupervisor, **heads)
    copy_weights(parts, whole, {"model": "model", "predictor": "predictor", "target": "target"})
    assert_same(parts, whole)
    assert parts.chance_loss == whole.chance_loss == 4


def test_byol_from_parts_moves_its_second_network_as_byol_does():
    moved = []
    heads = {
        "projector": {"out_features": 128, "hidden": 512, "norm": "batch"},
        "predictor": {"hidden": 512, "norm": "batch"},
    }
    parts, whole = preset("siamese-byol", **heads), siamese(algorithm=BYOLSupervisor, **heads)
    for supervisor in (parts, whole):
        copy_weights(supervisor, whole, {"model": "model", "predictor": "predictor", "target": "target"})
        supervisor.supervise(epochs=2, batch_size=8, optimizer="sgd", lr=0.1, name="run", progress=False)
        moved.append([p.clone() for p in supervisor.target.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*moved, strict=True))


@pytest.mark.parametrize("splits", [1, 4])
def test_moco_from_parts_has_the_loss_and_the_gradient_of_moco(splits):
    shared = {"queue_size": 12, "momentum": 0.9, "splits": splits}
    parts = preset("siamese-moco", projector={"hidden": 16}, **shared)
    whole = siamese(algorithm=MomentumContrastSupervisor, **shared)
    for network in (whole.key_encoder, parts.target):
        for p in network.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)))
    copy_weights(parts, whole, {"model": "model", "target": "key_encoder", "queue": "queue"})
    parts.queue.enqueue(torch.ones(2, 128), torch.tensor([0, 5]))  # two images of the batch are in the queue
    whole.queue.load_state_dict(parts.queue.state_dict())
    assert_same(parts, whole)
    assert parts.chance_loss == whole.chance_loss == pytest.approx(math.log(13))
    for supervisor in (parts, whole):
        supervisor.queue.commit()
    assert torch.equal(parts.queue.features, whole.queue.features) and torch.equal(
        parts.queue.places, whole.queue.places
    )


def test_simclr_from_parts_equals_a_slow_loop():
    supervisor = preset("siamese-simclr").train()
    z = [normalize(supervisor.model(view), dim=1) for view in views(supervisor)]
    slow = 0.0
    for q, k in (z, z[::-1]):
        k = k.detach()
        for i in range(16):
            total = sum(math.exp((q[i] @ k[j]).item() / 0.2) for j in range(16))
            slow -= ((q[i] @ k[i]).item() / 0.2 - math.log(total)) / 16
    assert supervisor._forward(batch()).item() == pytest.approx(slow, rel=1e-4)
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    pairs = zip(supervisor.model.parameters(), supervisor.target.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)  # after each step, the keys come from the same weights
    assert supervisor.chance_loss == pytest.approx(2 * math.log(8))


def test_vicreg_from_parts_equals_a_slow_loop():
    supervisor = preset(
        "siamese-vicreg-cifar10", projector={"layers": 3, "hidden": 8, "out_features": 6, "norm": "batch"}
    )
    supervisor.train()
    pair = [supervisor.model(view).detach().double() for view in views(supervisor)]
    a, b = pair
    slow = 25 * sum(((a[i, d] - b[i, d]) ** 2).item() for i in range(16) for d in range(6)) / (16 * 6)
    for z in pair:
        centred = [[(z[i, d] - z[:, d].mean()).item() for d in range(6)] for i in range(16)]
        covariance = [[sum(row[d] * row[e] for row in centred) / 15 for e in range(6)] for d in range(6)]
        slow += 25 * sum(max(0.0, 1 - math.sqrt(covariance[d][d] + 1e-4)) for d in range(6)) / 6
        slow += sum(covariance[d][e] ** 2 for d in range(6) for e in range(6) if d != e) / 6
    assert supervisor._forward(batch()).item() == pytest.approx(slow, rel=1e-4)
    assert supervisor.chance_loss is None and supervisor.compares_images
    assert supervisor.augmentation is not None and supervisor.target is None


def test_the_terms_of_vicreg_worked_by_hand():
    """z = (0, 0), (2, 2) and z' = (0, 0), (0, 2): variances 2, 2 and 0, 2; covariances 2 and 0."""
    supervisor = siamese(**VIC, vic_weights=(1, 10, 100))
    invariance, variance, covariance = supervisor.loss.terms(
        torch.tensor([[0.0, 0], [2, 2]]), torch.tensor([[0.0, 0], [0, 2]])
    )
    assert invariance.item() == pytest.approx(1)  # 4 / 4
    assert variance.item() == pytest.approx(10 * 0.99 / 2)  # 1 - sqrt(0.0001) for one value of four
    assert covariance.item() == pytest.approx(100 * (4 + 4) / 2)


def test_presets_make_the_networks_and_views_of_that_system():
    byol = create("siamese-byol", tiny_images(), backbone=TinyBackbone())
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in byol.model.predictor] == [type(layer) for layer in byol.predictor] == kinds
    assert byol.momentum == Schedule(0.996, 1.0) and byol.loss_factor == 2
    vicreg = create("siamese-vicreg-cifar10", tiny_images(), backbone=TinyBackbone())
    assert [layer.out_features for layer in vicreg.model.predictor if isinstance(layer, nn.Linear)] == [2048] * 3
    assert create("siamese-moco", tiny_images(), backbone=TinyBackbone()).queue.features.shape == (65536, 128)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_the_loss_factor_and_both_directions_multiply_the_loss():
    torch.manual_seed(0)
    once = siamese(**NO_NEGATIVES)
    both = siamese(**NO_NEGATIVES, symmetric=True, loss_factor=3.0)
    flipped = siamese(**NO_NEGATIVES, augment=lambda images: two_views(images)[::-1])
    first, second, total = (supervisor._forward(batch()).item() for supervisor in (once, flipped, both))
    assert total == pytest.approx(3 * (first + second), rel=1e-5)
    assert both.chance_loss == 6 * once.chance_loss == 6


def test_negatives_of_batch_and_queue_are_used_together():
    supervisor = siamese(negatives=("batch", "queue"))
    seen = []
    supervisor.loss.register_forward_pre_hook(lambda _, given: seen.append(given))
    supervisor.queue.enqueue(torch.ones(1, 128), torch.tensor([3]))
    supervisor.train()._forward(batch())
    query, key, negatives, exclude = seen[0]
    assert negatives.shape == (28, 128) and torch.allclose(negatives.norm(dim=1), torch.ones(28), atol=1e-5)
    assert torch.allclose(negatives[:16], normalize(key, dim=1))
    assert torch.equal(exclude[:, :16], torch.eye(16, dtype=torch.bool))  # its own key is the positive
    assert exclude[3, 16] and exclude[:, 16:].sum() == 1  # and an older key of the same image is neither


def test_an_image_that_is_twice_in_a_batch_is_not_its_own_negative():
    supervisor = siamese(negatives=("batch",))
    _, exclude = supervisor._candidates(torch.eye(3), torch.tensor([5, 6, 5]))
    assert exclude.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    _, exclude = supervisor._candidates(torch.eye(3), None)
    assert torch.equal(exclude, torch.eye(3, dtype=torch.bool))


def test_a_batch_without_index_has_all_rows_of_the_queue_as_negatives():
    supervisor = siamese()
    assert not supervisor._candidates(torch.eye(4, 128), None)[1].any()


def keys_seen(supervisor):
    seen = []
    supervisor.loss.register_forward_pre_hook(lambda _, given: seen.append(given))
    supervisor.train()._forward(batch())
    return seen[0]


def test_without_a_second_network_keys_pass_the_predictor_and_have_a_gradient():
    supervisor = siamese(**NO_NEGATIVES, momentum=None, predictor={"norm": "batch"})
    query, key = keys_seen(supervisor)
    expected = supervisor.predictor(supervisor.model(views(supervisor)[1]))
    assert key.requires_grad and torch.allclose(key, expected, atol=1e-5) and supervisor.target is None


def test_with_stop_gradient_keys_are_embeddings_without_a_gradient():
    supervisor = siamese(**NO_NEGATIVES, momentum=None, stop_gradient=True, predictor={"norm": "batch"})
    query, key = keys_seen(supervisor)
    expected = supervisor.model(views(supervisor)[1])
    assert query.requires_grad and not key.requires_grad and torch.allclose(key, expected, atol=1e-5)


def test_the_second_network_has_no_predictor_and_follows_the_schedule():
    moved = []

    class Observed(SiameseSupervisor):
        def _after_step(self):
            old = copy.deepcopy(list(self.target.parameters()))
            super()._after_step()
            momentum = cosine(0.9, 1.0, self.step / 4)
            for before, after, online in zip(old, self.target.parameters(), self.model.parameters(), strict=True):
                assert torch.allclose(after, momentum * before + (1 - momentum) * online, atol=1e-7)
            moved.append(momentum)

    supervisor = siamese(algorithm=Observed, momentum=Schedule(0.9, 1.0), predictor={}, queue_size=8)
    assert {n.removeprefix("average.") for n, _ in supervisor.target.named_parameters()} == {
        n for n, _ in supervisor.model.named_parameters()
    }
    supervisor.supervise(epochs=2, batch_size=8, name="run", progress=False)
    assert len(moved) == 4 and moved[0] == 0.9


def test_heads_are_described_by_depth_width_norm_and_standardised_weights():
    heads = {"layers": 3, "hidden": 24, "norm": "group", "weight_standardization": True}
    supervisor = siamese(projector=heads, predictor={"layers": 1})
    hidden = [StandardizedLinear, nn.GroupNorm, nn.ReLU]
    assert [type(layer) for layer in supervisor.model.predictor] == [*hidden, *hidden, nn.Linear]
    assert [type(layer) for layer in supervisor.predictor] == [nn.Linear]
    renormalised = siamese(projector={"norm": "batch_renorm"}, predictor={"norm": "layer"})
    assert [type(module) for module in (renormalised.model.predictor[1], renormalised.predictor[1])] == [
        BatchRenorm1d,
        nn.LayerNorm,
    ]
    own = nn.Linear(128, 128)
    assert siamese(predictor=own).predictor is own


def test_embeddings_that_are_not_normalised_are_compared_by_inner_product():
    supervisor = siamese(**NO_NEGATIVES, normalize_embeddings=False).eval()
    q, k = (supervisor.model(view) for view in views(supervisor))
    assert supervisor._forward(batch()).item() == pytest.approx((1 - (q * k).sum(1)).mean().item(), rel=1e-4)


def test_binary_cross_entropy_equals_that_of_torch_over_all_candidates():
    supervisor = siamese(objective="bce", temperature=0.5).train()
    q, k = (normalize(supervisor.model(view), dim=1) for view in views(supervisor))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ supervisor.queue.features.T], 1) / 0.5
    labels = torch.zeros_like(logits).index_fill_(1, torch.tensor([0]), 1.0)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, labels) * logits.shape[1]
    assert supervisor._forward(batch()).item() == pytest.approx(expected.item(), rel=1e-4)
    assert supervisor.chance_loss == pytest.approx(13 * math.log(2))


def test_with_alpha_the_chance_level_is_that_of_alpha_negatives():
    assert siamese(alpha=100.0).loss.alpha == 100
    assert siamese(alpha=100.0).chance_loss == pytest.approx(math.log(101))


def test_compares_images_only_where_the_loss_of_an_image_depends_on_its_batch():
    assert not siamese().compares_images and not siamese(**NO_NEGATIVES).compares_images
    assert siamese(negatives=("batch",)).compares_images and siamese(**VIC).compares_images
    with pytest.raises(ValueError, match="accumulate"):
        siamese(negatives=("batch",)).supervise(epochs=1, batch_size=8, accumulate=2, name="run", progress=False)


def test_batch_norm_sees_parts_of_the_batch():
    whole, parts = siamese(splits=1).train(), siamese(splits=4).train()
    norm = parts.target.average.backbone.layers[1]
    whole._forward(batch()), parts._forward(batch())
    assert norm.num_batches_tracked == 4 and whole.target.average.backbone.layers[1].num_batches_tracked == 1


def test_notes_cosines_and_how_often_the_key_is_found():
    noted = {}

    class Noting(SiameseSupervisor):
        def note(self, name, value):
            noted[name] = torch.as_tensor(value, dtype=torch.float).mean().item()

    supervisor = siamese(algorithm=Noting, queue_size=12).train()
    supervisor._forward(batch())
    z, k = (normalize(supervisor.model(view), dim=1) for view in views(supervisor))
    cosines = z @ k.T
    assert noted["positive_cosine"] == pytest.approx(cosines.diagonal().mean().item(), abs=1e-5)
    off = cosines[~torch.eye(16, dtype=torch.bool)]
    assert noted["negative_cosine"] == pytest.approx(off.mean().item(), abs=1e-5)
    rest = z @ supervisor.queue.features.T
    assert noted["top1"] == pytest.approx((cosines.diagonal() > rest.amax(1)).float().mean().item())
    fifth = rest.topk(5).values[:, -1]
    assert noted["top5"] == pytest.approx((cosines.diagonal() > fifth).float().mean().item())
    assert noted["queue_filled"] == 0
    noted.clear()
    siamese(algorithm=Noting, **VIC)._forward(batch())
    assert noted.keys() == {"positive_cosine", "negative_cosine", "invariance", "variance", "covariance"}


def test_a_custom_loss_is_given_what_the_objective_is_given():
    seen = []

    def loss(*given):
        seen.append([x.shape for x in given])
        return given[0].square().mean()

    siamese(loss=loss)._forward(batch())
    siamese(**NO_NEGATIVES, loss=loss)._forward(batch())
    assert seen == [[(16, 128), (16, 128), (12, 128), (16, 12)], [(16, 128), (16, 128)]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": ()}, 'objective="ce" finds the key among negatives'),
        (
            {"objective": "vic", "normalize_embeddings": False},
            'objective="vic" compares the two views without negatives',
        ),
        ({"objective": "vic", "negatives": ()}, "pass normalize_embeddings=False"),
        ({"normalize_embeddings": False}, "the queue holds vectors of unit length"),
        ({**NO_NEGATIVES, "alpha": 3.0}, "alpha=3.0 weights the negatives of objective=\"ce\", not of 'ip'"),
        ({"stop_gradient": True}, "stop_gradient=True is for keys of the first network"),
        ({**NO_NEGATIVES, "symmetric": True, "momentum": None}, "computes the same loss twice"),
        ({**VIC, "symmetric": True}, "computes the same loss twice"),
        ({"objective": "l2"}, "objective='l2' is unknown; pass 'ce', 'ip', 'bce' or 'vic'"),
        ({"negatives": ("bank",)}, "negatives=.* are not sources of negatives"),
        ({"negatives": ("queue", "queue")}, "negatives=.* are not sources of negatives"),
        ({"negatives": "queue"}, "negatives='queue' are not sources of negatives"),
        ({"vic_weights": (1, 2)}, r"vic_weights=\(1, 2\) must be three numbers"),
        ({"vic_weights": (1, 2, -3)}, "vic_weights must be a number of at least 0, got -3"),
        ({"loss_factor": 0}, "loss_factor must be a number above 0, got 0"),
        ({"alpha": 0}, "alpha must be a number above 0, got 0"),
        ({"momentum": 1.5}, r"momentum must be a number in \[0, 1\], got 1.5"),
        ({"splits": 0}, "splits must be an integer of at least 1, got 0"),
        ({"predictor": {"widht": 3}}, "has the key 'widht'"),
    ],
)
def test_values_and_combinations_without_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        siamese(**arguments)


def test_a_predictor_of_another_width_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"query \(16, 64\) and key \(16, 128\) differ in shape"):
        siamese(predictor={"out_features": 64})._forward(batch())
    wrong = siamese(**VIC | {"momentum": 0.9}, predictor={"out_features": 64})
    with pytest.raises(ValueError, match=r"have shapes \(16, 64\) and \(16, 128\)"):
        wrong._forward(batch())


def test_the_run_of_a_preset_is_loaded_without_a_data_set():
    preset("siamese-byol").supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = SiameseSupervisor(backbone=TinyBackbone(), augment=two_views).load("run")
    assert (loaded.objective, tuple(loaded.negatives), loaded.momentum) == ("ip", (), Schedule(0.996, 1.0))
    assert loaded.predictor[1].num_features == 512 and loaded.queue is None


def test_after_a_step_the_queue_holds_the_keys_of_both_directions_image_by_image():
    supervisor = siamese(symmetric=True, momentum=None, stop_gradient=True, queue_size=40).train()
    supervisor._forward(batch())
    assert supervisor.queue.enqueued == 0
    supervisor._after_step()
    first, second = (normalize(supervisor.model(view), dim=1) for view in views(supervisor))
    assert torch.equal(supervisor.queue.places[:32], torch.arange(16).repeat_interleave(2))
    assert torch.allclose(supervisor.queue.features[:32:2], second, atol=1e-5)  # keys of the first direction
    assert torch.allclose(supervisor.queue.features[1:32:2], first, atol=1e-5)


@pytest.mark.parametrize(("ahead", "top1", "top5"), [(0, 1, 1), (1, 0, 1), (4, 0, 1), (5, 0, 0)])
def test_a_key_is_among_the_top_five_while_fewer_than_five_negatives_are_nearer(ahead, top1, top5):
    noted = {}
    supervisor = siamese(algorithm=type("Noting", (SiameseSupervisor,), {"note": lambda _, k, v: noted.update({k: v})}))
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    negatives = torch.tensor([[1.0, 0.0]] * (ahead + 1) + [[0.0, 1.0]] * 9)
    exclude = torch.zeros(1, len(negatives), dtype=torch.bool)
    exclude[0, 0] = True  # the image itself does not count
    supervisor._note_similarities(query, query, key, negatives, exclude)
    assert (noted["top1"].item(), noted["top5"].item()) == (top1, top5)


@pytest.mark.parametrize("parts", [{"momentum": None, "negatives": ("batch",)}, {"negatives": ("batch",)}])
def test_a_run_with_fewer_parts_is_loaded_into_a_supervisor_that_was_built_with_all(parts):
    stored = siamese(**parts).supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = siamese().load("run")
    assert loaded.state_dict().keys() == stored.state_dict().keys()
    assert all(torch.equal(value, stored.state_dict()[name]) for name, value in loaded.state_dict().items())
