"""What every algorithm must keep, whatever it computes. Each test runs once for each row of cases.py."""

from __future__ import annotations

import copy
import inspect
import os
import signal
from dataclasses import replace

import pytest
import torch

from superself import Batch, Supervisor
from superself.evaluation import feature_std, features

from cases import CASES, tiny_images

HOOKS = ("_load_pretrained", "_init_data_optimizer", "_epochs", "_forward", "_update")
pytestmark = pytest.mark.parametrize("case", CASES, ids=[case.algorithm.__name__ for case in CASES])


def one_batch(supervisor):
    return supervisor.images.load().batch(torch.arange(8))


def fixed_loss(supervisor):
    """The loss on one batch with every random source at the same place."""
    torch.manual_seed(1)
    supervisor.generator.manual_seed(1)
    return supervisor._forward(one_batch(supervisor))


def test_forward_gives_a_finite_scalar(case):
    loss = case.make()._forward(one_batch(case.make()))
    assert loss.shape == () and torch.isfinite(loss)


def test_every_trainable_parameter_is_optimised_and_receives_a_gradient(case):
    supervisor = case.make()
    seen = {}

    class Inspected(type(supervisor)):
        def _init_data_optimizer(self, *arguments):
            loader, optimizer, scheduler = super()._init_data_optimizer(*arguments)
            seen["optimised"] = {id(p) for group in optimizer.param_groups for p in group["params"]}
            return loader, optimizer, scheduler

    supervisor.__class__ = Inspected
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
    fixed_loss(supervisor).backward()
    for name, parameter in supervisor.named_parameters():
        assert (id(parameter) in seen["optimised"]) == parameter.requires_grad, name
        if not name.startswith(case.waiting):
            assert (parameter.grad is not None) == parameter.requires_grad, name


def test_one_update_changes_the_backbone(case):
    supervisor = case.make()
    before = copy.deepcopy(supervisor.get_backbone().state_dict())
    supervisor.supervise(lr=case.lr, epochs=1, batch_size=16, name="run", progress=False)
    after = supervisor.get_backbone().state_dict()
    trainable = [name for name, _ in supervisor.get_backbone().named_parameters()]
    assert all(not torch.equal(before[name], after[name]) for name in trainable)


def test_saved_and_loaded_anew_gives_the_same_loss(case):
    supervisor = case.make()
    supervisor.supervise(lr=case.lr, epochs=1, batch_size=16, name="run", progress=False)
    loaded = case.make().load("run")
    assert torch.equal(fixed_loss(loaded), fixed_loss(supervisor))


def test_loads_without_a_data_set(case):
    supervisor = case.make()
    supervisor.supervise(lr=case.lr, epochs=1, batch_size=16, name="run", progress=False)
    loaded = case.algorithm(backbone=case.backbone(), **case.arguments).load(name="run")
    for name, tensor in supervisor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_goes_on_from_the_weights_of_a_run_over_other_images_and_resumes_none(case):
    settings = {"lr": case.lr, "epochs": 1, "batch_size": 8, "progress": False}
    first = case.make().supervise(name="run", **settings)
    other = case.make(tiny_images(20, seed=5)).load("run")
    for name, tensor in first.get_backbone().state_dict().items():
        assert torch.equal(other.get_backbone().state_dict()[name], tensor), name
    other.supervise(name="other", pretrained="run", **settings)
    with pytest.raises(ValueError, match="images: was 16, is now 20"):
        other.supervise(name="run", resume=True, **settings)


def test_resumed_run_equals_uninterrupted_run(case):
    class Stopped(case.algorithm):
        def _after_step(self):
            super()._after_step()
            if self.step == 3:  # the fourth step: the first of the second epoch
                os.kill(os.getpid(), signal.SIGINT)

    settings = {"lr": case.lr, "epochs": 4, "batch_size": 8, "progress": False}
    whole = case.make(tiny_images(20)).supervise(name="whole", **settings)
    stopped = case.make(tiny_images(20))
    stopped.__class__ = Stopped
    with pytest.raises(KeyboardInterrupt):
        stopped.supervise(name="parts", **settings)
    resumed = case.make(tiny_images(20), seed=None).supervise(name="parts", resume=True, **settings)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_backbone_is_the_trained_module_and_gives_features(case):
    backbone = case.backbone()
    supervisor = case.make(backbone=backbone)
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
    assert (supervisor.get_backbone() is not backbone) == case.exports_average
    assert features(backbone, supervisor.images).features.shape == (16, 16)


def test_thirty_steps_lower_the_loss_and_features_stay_alive(case):
    supervisor = case.make()
    supervisor.train()
    before = fixed_loss(supervisor).item()
    supervisor.supervise(lr=case.lr, epochs=30, batch_size=16, name="run", progress=False)
    supervisor.train()
    assert fixed_loss(supervisor).item() < before or not case.loss_falls
    found = features(supervisor.get_backbone(), supervisor.images).features
    assert feature_std(found) > 0.02 / found.shape[1] ** 0.5


def test_hooks_keep_their_signatures(case):
    for hook in HOOKS:
        names = list(inspect.signature(getattr(case.algorithm, hook)).parameters)
        assert names == list(inspect.signature(getattr(Supervisor, hook)).parameters), hook
    assert "_epochs" not in vars(case.algorithm), "the loop is written once, in Supervisor"


def test_docstring_names_its_source(case):
    docstring = inspect.getdoc(case.algorithm)
    assert "Source: " in docstring and "Deviations: " in docstring
    assert "arXiv:" in docstring or "doi:" in docstring


def test_says_what_its_loss_means(case):
    supervisor = case.make()
    assert supervisor.loss_meaning != Supervisor.loss_meaning
    assert supervisor.chance_loss is None or supervisor.chance_loss >= 0  # 0 for minus a cosine
    assert case.algorithm.family in ("patch", "predictive", "generative", "contrastive", "clustering")


@pytest.mark.parametrize("shape", [(1, 16, 16), (4, 20, 16)], ids=["grey", "4 channels, not square"])
def test_takes_other_channels_and_shapes(case, shape):
    images = tiny_images(8, shape[0], shape[1:])
    if shape[0] not in case.channels:
        with pytest.raises(ValueError, match=f"{shape[0]} channel"):
            case.make(images)
        return
    supervisor = case.make(images, backbone=case.backbone(shape[0]))
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert features(supervisor.get_backbone(), images).features.shape == (8, 16)


@pytest.mark.parametrize("size", [(32, 32), (225, 180)], ids=["32", "225 x 180"])
def test_default_backbone_takes_small_and_large_images(case, size):
    supervisor = case.algorithm(tiny_images(4, size=size), seed=0, **case.arguments)
    loss = supervisor._forward(Batch(tiny_images(4, size=size), torch.arange(4)))
    assert torch.isfinite(loss) and supervisor.get_backbone().eval()(torch.zeros(1, 3, *size)).ndim in (2, 4)


def test_a_backbone_of_timm_trains(case):
    supervisor = case.algorithm(tiny_images(), backbone="timm:resnet10t", seed=0, **case.arguments)
    supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
    assert features(supervisor.get_backbone(), tiny_images(8)).features.shape[0] == 8


def test_features_are_those_of_the_image_alone_where_the_paper_says_so(case):
    if case.mixes_batch:
        pytest.skip("batch norm mixes the images of a batch in train mode")
    supervisor = case.make().train()
    images = supervisor.preprocessing(tiny_images())
    together = supervisor.model.features(images)
    assert torch.allclose(supervisor.model.features(images[:1]), together[:1], atol=1e-5)


def test_seed_repeats_the_run(case):
    runs = []
    for _ in range(2):
        supervisor = case.algorithm(tiny_images(), backbone="resnet9:width=0.25", seed=3, **case.arguments)
        supervisor.supervise(epochs=1, batch_size=16, name="run", progress=False)
        runs.append(supervisor.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_whatever_a_user_writes_as_update_averages_queues_and_banks_still_move(case):
    class Clipped(case.algorithm):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm=1.0)
            optimizer.step()
            lr_scheduler.step()

    moved = []
    for algorithm in (case.algorithm, Clipped):
        supervisor = replace(case, algorithm=algorithm).make()
        before = copy.deepcopy(supervisor.state_dict())
        supervisor.supervise(lr=case.lr, epochs=2, batch_size=8, name="run", progress=False)
        moved.append(
            {name for name, tensor in supervisor.state_dict().items() if not torch.equal(tensor, before[name])}
        )
    assert moved[0] == moved[1]


def sizes_seen(supervisor, **settings):
    """The sizes of what the backbone is given during an epoch; zeros only measure what it returns."""
    seen = set()

    def look(module, inputs):
        if inputs[0].any():
            seen.add(tuple(inputs[0].shape[2:]))

    hook = supervisor.trained_backbone.register_forward_pre_hook(look)
    supervisor.supervise(epochs=1, batch_size=8, progress=False, **settings)
    hook.remove()
    return seen


def test_a_run_continues_on_larger_images_and_its_views_follow(case):
    case.make().supervise(lr=case.lr, epochs=1, batch_size=8, name="small", progress=False)
    larger = tiny_images(size=(24, 24))
    continued = case.make(larger)
    if case.algorithm.fixed_image_size:
        with pytest.raises(ValueError, match="predicts images of 16 x 16 .* 24 x 24"):
            continued.supervise(epochs=1, batch_size=8, name="large", pretrained="small", progress=False)
        return
    seen = sizes_seen(continued, name="large", pretrained="small")
    assert seen == sizes_seen(case.make(larger), name="fresh")
    assert continued.preprocessing.shape == (3, 24, 24) and continued.network_shape == (3, 16, 16)
    assert case.algorithm(backbone=case.backbone(), **case.arguments).load("large").network_shape == (3, 16, 16)


def test_a_collapsed_embedding_is_named(case, capsys):
    if not case.embeds:
        pytest.skip("has no embeddings")

    class Collapses(case.algorithm):
        def embed(self, images):
            embeddings = super().embed(images)
            return embeddings if self.step == 0 else torch.ones_like(embeddings) + 1e-6 * embeddings

    replace(case, algorithm=Collapses).make().supervise(lr=case.lr, epochs=3, batch_size=8, name="run")
    printed = capsys.readouterr().out
    assert "embedding" in printed and "collapse" in printed and case.algorithm.likely_causes[0][:30] in printed


def test_load_keeps_seed_attached_objects_and_own_constructors(case):
    case.make().supervise(lr=case.lr, epochs=1, batch_size=16, name="run", progress=False)

    class Own(case.algorithm):
        def __init__(self, images):
            super().__init__(images, backbone=case.backbone(), seed=3, **case.arguments)

    supervisor = Own(tiny_images())
    supervisor.extra = torch.nn.Linear(2, 2)
    extra, weight, calls = supervisor.extra, supervisor.extra.weight.clone(), []
    backbone, generator = supervisor.get_backbone(), supervisor.generator
    backbone.register_forward_hook(lambda *_: calls.append(1))
    assert supervisor.load("run") is supervisor
    supervisor.get_backbone()(torch.zeros(2, 3, 16, 16))
    assert supervisor.seed == 3 and supervisor.extra is extra and torch.equal(extra.weight, weight)
    assert supervisor.get_backbone() is backbone and supervisor.generator is generator and calls == [1]


def test_the_network_is_given_normalised_views(case):
    if not case.normalizes:
        pytest.skip("gets RGB in [0, 1], or tiles that are standardised on their own")
    supervisor = case.make(normalize=(0.5, 0.001))
    seen = []
    supervisor.get_backbone().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().max().item()))
    supervisor._forward(one_batch(supervisor))
    assert seen and min(seen) > 20


def test_every_option_is_visible(case):
    for signature in (inspect.signature(case.algorithm), inspect.signature(case.algorithm.__init__)):
        names = list(signature.parameters)
        assert {"seed", "image_size", "view_size", "normalize", "augment"} <= set(names) and "options" not in names
    assert inspect.getdoc(case.algorithm.__init__) == inspect.getdoc(case.algorithm)


def test_a_plain_torch_loader_may_be_returned(case):
    class Own(case.algorithm):
        def _init_data_optimizer(self, *arguments):
            _, optimizer, schedule = super()._init_data_optimizer(*arguments)
            data = torch.utils.data.TensorDataset(tiny_images(), torch.arange(16))
            return torch.utils.data.DataLoader(data, batch_size=8), optimizer, schedule

    supervisor = replace(case, algorithm=Own).make()
    if case.algorithm.needs_index:
        with pytest.raises(ValueError, match="needs the position of each image"):
            supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
        return
    assert supervisor.supervise(epochs=2, batch_size=8, name="run", progress=False).step == 4


def test_progress_and_trackers_change_no_weight(case):
    class Bare(case.algorithm):
        def _trackers(self):
            return []

    watched = case.make().supervise(lr=case.lr, epochs=2, batch_size=8, name="watched", progress=True)
    bare = (
        replace(case, algorithm=Bare).make().supervise(lr=case.lr, epochs=2, batch_size=8, name="bare", progress=False)
    )
    for name, tensor in watched.state_dict().items():
        assert torch.equal(bare.state_dict()[name], tensor), name


def test_views_may_be_smaller_than_the_stored_images(case):
    supervisor = case.make(tiny_images(size=(24, 24)), view_size=16)
    supervisor.supervise(lr=case.lr, epochs=1, batch_size=8, name="run", progress=False)
    assert supervisor.network_shape == supervisor.preprocessing.shape == (3, 16, 16)
    assert sizes_seen(case.make(), name="other") == sizes_seen(supervisor, name="again")
