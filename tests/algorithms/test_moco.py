import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, CombinedNet, MomentumContrastSupervisor, create
from superself.data import to_float

from cases import TinyBackbone, tiny_images


def moco(n=16, **arguments):
    arguments = {"backbone": TinyBackbone(), "seed": 0, "augment": two_views, "queue_size": 12, **arguments}
    return MomentumContrastSupervisor(tiny_images(n), **arguments)


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch(n=16):
    return Batch(tiny_images(n), torch.arange(n))


def views_of(supervisor, n=16):
    return [supervisor.preprocessing(v) for v in two_views(to_float(tiny_images(n)))]


def slow_loss(queries, keys, negatives, same_image, temperature):
    """For each image a sum over its key and the rows of the queue that show other images."""
    total = 0.0
    queries, keys = queries.detach(), keys.detach()
    for i, (q, k) in enumerate(zip(normalize(queries, dim=1), normalize(keys, dim=1), strict=True)):
        others = sum(
            math.exp(q @ n / temperature) for n, same in zip(negatives, same_image[i], strict=True) if not same
        )
        positive = math.exp(q @ k / temperature)
        total -= math.log(positive / (positive + others)) / len(queries)
    return total


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_equals_a_double_loop(symmetric):
    supervisor = moco(splits=1, symmetric=symmetric, temperature=0.3)
    supervisor.queue.enqueue(torch.randn(5, 128), torch.tensor([3, 90, 4, 3, 91]))
    first, second = views_of(supervisor)
    same_image = [[index == row for row in supervisor.queue.places] for index in range(16)]
    slow = [
        slow_loss(supervisor.model(q), supervisor.key_encoder(k), supervisor.queue.features, same_image, 0.3)
        for q, k in ([(first, second), (second, first)] if symmetric else [(first, second)])
    ]
    assert supervisor._forward(batch()).item() == pytest.approx(sum(slow) / len(slow), rel=1e-4)


def test_loss_equals_a_number_worked_by_hand():
    """Query and key are the same direction, the queue's two rows are orthogonal to it: -ln(e^2 / (e^2 + 1 + 1))."""
    supervisor = moco(projector=Constant([1.0, 0.0, 0.0]), queue_size=2, temperature=0.5)
    supervisor.queue.enqueue(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 4.0]]))
    assert supervisor._forward(batch()).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))


class Constant(nn.Module):
    """Every image gets the same embedding."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, x):
        return self.values.expand(len(x), -1)


def test_chance_is_the_loss_when_all_keys_are_alike():
    supervisor = moco(projector=Constant([1.0, 0.0]), queue_size=12)
    supervisor.queue.enqueue(torch.tensor([[1.0, 0.0]]).expand(12, 2))
    assert supervisor._forward(batch()).item() == pytest.approx(math.log(13)) == supervisor.chance_loss


def test_keys_enter_the_queue_after_the_optimizer_step_and_are_not_their_own_negatives():
    class Observed(MomentumContrastSupervisor):
        def _forward(self, data):
            before = self.queue.features.clone()
            loss = super()._forward(data)
            assert torch.equal(before, self.queue.features)
            return loss

        def _update(self, *arguments):
            before = self.queue.features.clone()
            super()._update(*arguments)
            assert torch.equal(before, self.queue.features)

        def _after_step(self):
            before, keys = self.queue.features.clone(), normalize(self.queue._pending[0].float(), dim=1)
            super()._after_step()
            first = self.step * 8 % 12
            rows = [(first + i) % 12 for i in range(8)]
            others = [i for i in range(12) if i not in rows]
            assert torch.allclose(self.queue.features[rows], keys, atol=1e-6)
            assert torch.equal(self.queue.features[others], before[others])

    supervisor = Observed(tiny_images(), augment=two_views, backbone=TinyBackbone(), queue_size=12, splits=1)
    supervisor.supervise(epochs=3, batch_size=8, name="run", progress=False)
    assert supervisor.queue.enqueued.item() == 6 * 8


def test_older_keys_of_an_image_are_excluded_from_its_negatives():
    supervisor = moco(queue_size=64, splits=1)  # holds the keys of four epochs
    supervisor.supervise(epochs=4, batch_size=8, name="run", progress=False)
    supervisor.train()
    assert torch.equal(supervisor.queue.same_image(torch.arange(16)).sum(1), torch.full((16,), 4))
    loss = supervisor._forward(batch())
    supervisor.queue.places.fill_(-1)  # now every row is a negative
    assert supervisor._forward(batch()) > loss


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_queue_knows_which_image_each_key_shows(symmetric):
    supervisor = moco(queue_size=32, symmetric=symmetric)
    supervisor._forward(Batch(tiny_images()[:4], torch.tensor([9, 2, 7, 5])))
    keys, index = supervisor.queue._pending
    assert index.tolist() == ([9, 9, 2, 2, 7, 7, 5, 5] if symmetric else [9, 2, 7, 5]) and len(keys) == len(index)


@pytest.mark.parametrize("symmetric", [False, True])
def test_batches_without_index_are_trained_on_and_their_keys_are_negatives_for_all(symmetric):
    supervisor = moco(symmetric=symmetric, splits=1)
    known = supervisor._forward(batch()).item()  # no key of an image is in the queue yet
    assert supervisor._forward(Batch(tiny_images())).item() == pytest.approx(known, rel=1e-5)
    supervisor.queue.commit()
    assert supervisor.queue.places.eq(-1).all() and not supervisor.queue.same_image(torch.arange(16)).any()


def test_a_plain_loader_without_index_trains_whole_epochs():
    class WithLoader(MomentumContrastSupervisor):
        def _init_data_optimizer(self, *arguments):
            _, optimizer, schedule = super()._init_data_optimizer(*arguments)
            return torch.utils.data.DataLoader(tiny_images(), batch_size=8), optimizer, schedule

    supervisor = WithLoader(tiny_images(), augment=two_views, backbone=TinyBackbone(), queue_size=12, seed=0)
    supervisor.supervise(epochs=2, batch_size=8, name="run", progress=False)
    assert supervisor.step == 4 and supervisor.queue.enqueued == 32


def test_key_encoder_starts_equal_and_gets_no_gradient():
    supervisor = moco()
    for name, p in supervisor.model.named_parameters():
        assert torch.equal(supervisor.key_encoder.get_parameter(f"average.{name}"), p)
    supervisor._forward(batch()).backward()
    assert all(p.grad is None for p in supervisor.key_encoder.parameters())
    assert all(p.grad is not None for p in supervisor.model.parameters())


def test_key_encoder_moves_only_after_the_optimizer_step_by_a_fixed_momentum():
    seen = []

    class Observed(MomentumContrastSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            self.old = copy.deepcopy(list(self.key_encoder.parameters()))
            super()._update(loss, optimizer, lr_scheduler)
            assert all(torch.equal(a, b) for a, b in zip(self.old, self.key_encoder.parameters(), strict=True))

        def _after_step(self):
            super()._after_step()
            for old, new, query in zip(self.old, self.key_encoder.parameters(), self.model.parameters(), strict=True):
                assert torch.allclose(new, 0.9 * old + 0.1 * query, atol=1e-7)
            seen.append(self.step)

    supervisor = Observed(tiny_images(), augment=two_views, backbone=TinyBackbone(), momentum=0.9, queue_size=12)
    supervisor.supervise(epochs=2, batch_size=8, name="run", progress=False)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("network", ["model", "key_encoder"])
def test_what_is_computed_split_batch_norm_comes_back_in_order(network):
    supervisor = moco(splits=3)
    network = getattr(supervisor, network).eval()  # batch norm by running averages: parts change nothing
    view = views_of(supervisor)[1]
    assert supervisor.training
    assert torch.allclose(supervisor._split_batch_norm(network, view), network(view), atol=1e-6)


def images_in_the_same_part(supervisor, network, view, seed):
    """The images that change the embedding of image 0 when they change."""
    found, before = set(), None
    for changed in (None, *range(1, 16)):
        images = view.clone()
        if changed is not None:
            images[changed] += 1
        supervisor.generator.manual_seed(seed)
        after = supervisor._split_batch_norm(network, images)[0]
        before = after if changed is None else before
        if not torch.equal(before, after):
            found.add(changed)
    return found


@pytest.mark.parametrize("network", ["model", "key_encoder"])
@pytest.mark.parametrize(("splits", "others"), [(1, 15), (2, 7), (4, 3), (100, 1)])
def test_queries_and_keys_are_normalised_by_a_random_part_of_the_batch_alone(network, splits, others):
    supervisor = moco(splits=splits)
    parts = [
        images_in_the_same_part(supervisor, getattr(supervisor, network), views_of(supervisor)[1], seed)
        for seed in range(3)
    ]
    assert all(len(part) == others for part in parts)
    assert splits == 1 or len(set(map(frozenset, parts))) > 1


def test_queries_and_keys_are_split_into_different_parts():
    class Observed(MomentumContrastSupervisor):
        def _split_batch_norm(self, network, views):
            marked = torch.arange(len(views)).view(-1, 1, 1, 1) + 0 * views
            hook = network.register_forward_pre_hook(
                lambda _, inputs: parts.append([set(part[:, 0, 0, 0].tolist()) for part in inputs[0].chunk(4)])
            )
            found = super()._split_batch_norm(network, marked)
            hook.remove()
            return found

    parts = []
    supervisor = Observed(tiny_images(), augment=two_views, backbone=TinyBackbone(), queue_size=12, seed=0)
    supervisor._forward(batch())
    keys, queries = parts
    assert [len(part) for part in keys] == [len(part) for part in queries] == [4, 4, 4, 4]
    assert not any(part in keys for part in queries)


def test_split_batch_norm_equals_a_call_of_the_network_for_each_part():
    supervisor, slow = moco(splits=3), moco(splits=3)
    view = views_of(supervisor)[1]
    found = supervisor._split_batch_norm(supervisor.model, view)
    order = torch.randperm(16, generator=slow.generator)
    expected = torch.cat([slow.model(part) for part in view[order].tensor_split(3)])[order.argsort()]
    assert torch.allclose(found, expected, atol=1e-5)
    for embeddings in (found, expected):
        (embeddings * torch.arange(16.0).sin()[:, None]).sum().backward()
    for a, b in zip(supervisor.model.parameters(), slow.model.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-5)
    for a, b in zip(supervisor.model.buffers(), slow.model.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_network_without_batch_norm_is_not_split():
    supervisor = moco(backbone=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), splits=4)
    sizes = []
    supervisor.model.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    supervisor._split_batch_norm(supervisor.model, views_of(supervisor)[1])
    assert sizes == [16]


def test_in_evaluation_mode_keys_do_not_depend_on_the_batch():
    supervisor = moco().eval()
    view = views_of(supervisor)[1]
    assert torch.allclose(
        supervisor._split_batch_norm(supervisor.key_encoder, view)[:3], supervisor.key_encoder(view[:3]), atol=1e-6
    )


@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_small_batch_have_at_least_two_images(size):
    supervisor = moco(splits=4, backbone=nn.Sequential(TinyBackbone(), nn.AdaptiveAvgPool2d(2)))
    assert torch.isfinite(supervisor._forward(batch(size)))


def test_the_first_version_has_a_linear_projector_and_a_temperature_of_0_07():
    supervisor = create("moco-v1", tiny_images(), backbone=TinyBackbone(), queue_size=12)
    assert [type(m) for m in supervisor.model.predictor] == [nn.Linear]
    assert supervisor.loss.temperature == 0.07
    assert torch.isfinite(supervisor._forward(batch()))
    second = moco()
    assert [type(m) for m in second.model.predictor] == [nn.Linear, nn.ReLU, nn.Linear]
    assert second.loss.temperature == 0.2


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_noted_metrics_equal_numbers_worked_by_hand_in_any_precision(precision):
    noted = {}

    class Noting(MomentumContrastSupervisor):
        def note(self, name, value):
            noted[name] = torch.as_tensor(value).float().mean().item()

    arguments = {"augment": two_views, "backbone": TinyBackbone(), "queue_size": 4}
    supervisor = Noting(tiny_images(), projector=Constant([1.0, 0.0]), **arguments)
    near = [math.cos(0.01), math.sin(0.01)]  # cosine 0.99995, which bfloat16 rounds to 1
    supervisor.queue.features[:] = torch.tensor([near, [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        supervisor._forward(batch())
    assert noted == {"top1": 1, "queue_filled": 0, "positive_cosine": 1}
    supervisor.queue.enqueue(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([3, 99]))
    supervisor._forward(batch())
    assert noted == {"top1": 1 / 16, "queue_filled": 0.5, "positive_cosine": 1}  # only image 3 may not count row 0


def test_loss_falls_once_the_queue_is_full():
    supervisor = moco(momentum=0.9, queue_size=16)
    supervisor.supervise(lr=1e-9, epochs=1, batch_size=8, name="run", progress=False)
    full = supervisor._forward(batch()).item()
    assert full == pytest.approx(supervisor.chance_loss, rel=0.15)
    supervisor.supervise(lr=1e-3, epochs=20, batch_size=8, name="run", progress=False, lr_scheduler="constant")
    assert supervisor._forward(batch()).item() < 0.8 * full


def test_queue_and_key_encoder_are_in_the_checkpoint():
    supervisor = moco()
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    loaded = MomentumContrastSupervisor(backbone=TinyBackbone()).load("run")
    assert torch.equal(loaded.queue.features, supervisor.queue.features)
    assert (
        torch.equal(loaded.queue.places, supervisor.queue.places) and loaded.queue.enqueued == supervisor.queue.enqueued
    )
    for a, b in zip(
        loaded.key_encoder.state_dict().values(), supervisor.key_encoder.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_custom_projector_sets_the_width_of_the_queue():
    supervisor = moco(projector=nn.Linear(16, 5))
    assert supervisor.queue.features.shape == (12, 5) and isinstance(supervisor.model, CombinedNet)


@pytest.mark.parametrize("loss", [None, torch.nn.MSELoss()], ids=["own loss", "custom loss"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"momentum": -0.1},
            r"momentum must be a number in \[0, 1\], got -0.1 \(it is the fraction of the key encoder",
        ),
        ({"splits": 0}, r"splits must be an integer of at least 1, got 0 \(it is the number of parts of a batch\)"),
        ({"projector": "mpl"}, "projector='mpl' is not a head; pass 'linear', 'mlp', an instance"),
        ({"projector": {"depth": 3}}, "projector=.* has the key 'depth'; the arguments are out_features, hidden"),
        ({"temperature": 0}, r"temperature must be a number above 0, got 0 \(it divides similarities\)"),
        ({"temperature": -5}, r"temperature must be a number above 0, got -5 \(it divides similarities\)"),
        (
            {"queue_size": 0},
            r"queue_size must be an integer of at least 1, got 0 \(it is the number of keys in the queue\)",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message, loss):
    with pytest.raises(ValueError, match=message):
        moco(loss=loss, **arguments)
