import copy
import pickle

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import Dataset

import superself
from superself import Batch, DetConSupervisor
from superself.augment import Compose, RandomHorizontalFlip, Resize, Views
from superself.data import Segmenter, open_images
from superself.networks import feature_maps
from superself.networks.segments import downsampled

from cases import TinyBackbone, tiny_images


def quarters(n=8):
    """Images with four plain quarters of different brightness."""
    base = torch.tensor([[20, 90], [160, 230]], dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    return (base + torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)).expand(n, 3, 16, 16).contiguous()


QUARTERS = Segmenter("grid", grid=2).grid_map(16, 16)  # (16, 16)
STILL = Views(Compose([Resize(16)]), 2)  # two views that are the image


def detcon(images=None, **arguments):
    images = quarters() if images is None else images
    small = {"backbone": TinyBackbone(), "seed": 0, "num_samples": 4, "scale": 20.0, "projector": {"hidden": 16}}
    return DetConSupervisor(images, **{**small, **arguments})


def batch(images=None, mask=None):
    images = quarters() if images is None else images
    return Batch(images, torch.arange(len(images)), mask=mask)


class Masked(Dataset):
    def __init__(self, images, masks):
        self.images, self.masks = images, masks

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return {"image": self.images[place], "mask": self.masks[place]}


# ---- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_loss_equals_segments_pooled_and_compared_one_by_one(momentum):
    supervisor = detcon(momentum=momentum, segments="grid", grid=2).eval()
    for weight in supervisor.target.parameters() if momentum else ():  # as if the online network had moved
        weight.data += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    supervisor.generator.manual_seed(1)
    loss = supervisor._forward(batch()).item()
    supervisor.generator.manual_seed(1)
    views, masks = supervisor.views_and_masks(batch(mask=QUARTERS.expand(8, -1, -1)))
    ids = supervisor._draw(QUARTERS.expand(8, -1, -1))
    network, target = supervisor.model, supervisor.target.average if momentum else supervisor.model
    queries, keys, names = [], [], []
    for v in range(2):
        maps, target_maps = feature_maps(network.backbone, views[v]), feature_maps(target.backbone, views[v])
        owner = downsampled(masks[v], maps.shape[2:])
        for b in range(8):
            for s in ids[b].unique().tolist():
                cells = (owner[b] == s).nonzero().flatten()
                if len(cells):
                    feature = maps[b].flatten(1)[:, cells].mean(1, keepdim=True).T
                    query = network.predictor(feature)
                    queries.append(normalize(supervisor.predictor(query) if momentum else query)[0])
                    target_feature = target_maps[b].flatten(1)[:, cells].mean(1, keepdim=True).T
                    keys.append(normalize(target.predictor(target_feature))[0])
                    names.append((b, s, v))
    copies = {(b, s): (ids[b] == s).sum().item() for b, s, _ in names}
    losses = []
    for query, (b, s, v) in zip(queries, names, strict=True):
        if (b, s, 1 - v) in names:
            positive = (query @ keys[names.index((b, s, 1 - v))] / 0.1).exp()
            others = [
                copies[name[:2]] * (query @ key / 0.1).exp()
                for key, name in zip(keys, names, strict=True)
                if name[:2] != (b, s)
            ]
            losses.append(-(positive / (positive + sum(others))).log())
    assert len(losses) > 16 and loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_images_of_one_segment_still_train():
    flat = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 16, 16) * 30
    supervisor = detcon(flat.contiguous(), segments="felzenszwalb", augment=STILL)
    assert supervisor._segment_maps(batch(flat)).unique().tolist() == [1]
    loss = supervisor._forward(batch(flat))
    assert torch.isfinite(loss) and loss > 0


def test_a_batch_without_any_segment_has_loss_0_and_finite_gradients():
    supervisor = detcon(Masked(quarters(), torch.zeros(8, 16, 16).byte()), segments="dataset")
    loss = supervisor._forward(batch(mask=torch.zeros(8, 16, 16).byte()))
    loss.backward()
    assert loss == 0 and all(torch.isfinite(p.grad).all() for p in supervisor.parameters())


# ---- what is drawn -----------------------------------------------------------------------------------------------------


def test_ids_are_drawn_by_area_and_0_never():
    maps = torch.zeros(2, 10, 10).byte()
    maps[0, :, :6], maps[0, :, 6:8], maps[0, 0, 8] = 5, 255, 7  # 60, 20 and 1 of 81 pixels
    maps[1, 3, 3] = 1
    ids = detcon(num_samples=8100)._draw(maps)
    counts = ids[0].bincount(minlength=256)
    assert counts[[5, 255, 7]].tolist() == pytest.approx([6000, 2000, 100], rel=0.15, abs=40)
    assert counts.sum() == counts[[5, 255, 7]].sum() and (ids[1] == 1).all()


def test_images_without_segments_draw_0_and_the_largest_number_is_in_range():
    supervisor = detcon()
    supervisor.generator = None
    maps = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 255)]).byte()
    original, torch.rand = torch.rand, lambda *shape, **_: torch.full(shape, 1 - 2**-24)
    try:
        assert supervisor._draw(maps).tolist() == [[0] * 4, [255] * 4]
    finally:
        torch.rand = original


def test_both_views_are_asked_for_the_same_ids():
    supervisor, asked = detcon(), []
    supervisor.model.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[2]))
    supervisor._forward(batch())
    assert len(asked) == 2 and torch.equal(*asked)


def test_masks_move_with_their_views():
    supervisor = detcon(augment=Views([Compose([Resize(16)]), Compose([Resize(16), RandomHorizontalFlip(1.0)])]))
    found = []
    supervisor.model.register_forward_pre_hook(lambda _, inputs: found.append(inputs[1]))
    supervisor._forward(batch())
    assert torch.equal(found[0].flip(2), found[1]) and not torch.equal(*found)


def test_a_segment_that_a_view_lost_is_reported_as_lost():
    class LeftHalf(Resize):
        def warp(self, warp, numbers):
            return warp.crop(torch.tensor([0.0, 0, 8, 16]).expand(len(numbers), 4), self.size)

    supervisor = detcon(augment=Views([Compose([Resize(16)]), Compose([LeftHalf(16)])]), segments="grid", grid=2)
    found = []
    supervisor.model.register_forward_hook(lambda *given: found.append(given[2][1]))
    supervisor._forward(batch())
    assert (found[0] > 0).all() and torch.equal(
        found[1], torch.where(found[0] % 2 == 1, found[0], 0)
    )  # 1 and 3 are left


def test_a_function_of_a_batch_cannot_move_masks():
    supervisor = detcon(augment=lambda images: [images, images])
    with pytest.raises(ValueError, match="masks were passed, but a function says nothing about how it moves pixels"):
        supervisor._forward(batch())


# ---- where segments come from ------------------------------------------------------------------------------------------


def test_segments_are_found_once_for_data_in_memory_also_over_several_runs(monkeypatch):
    supervisor, calls, original = detcon(), [], Segmenter.segment
    monkeypatch.setattr(Segmenter, "segment", lambda self, *given: calls.append(1) or original(self, *given))
    for _ in range(2):
        supervisor.supervise(epochs=2, batch_size=4, name="run", progress=False)
    assert len(calls) == 8
    assert torch.equal(supervisor.images.batch([3]).mask, supervisor._segment_maps(one(3)))


def one(place):
    return Batch(quarters()[place : place + 1], torch.tensor([place]))


def test_two_supervisors_on_the_same_images_keep_their_own_segments():
    images = open_images(quarters())
    first, second = detcon(images), detcon(images, segments="felzenszwalb", scale=5000.0)
    for name, supervisor in (("a", first), ("b", second)):
        supervisor.supervise(epochs=1, batch_size=4, name=name, progress=False)
    assert first.images.batch([0]).mask.max() == 4 and second.images.batch([0]).mask.max() == 1
    assert images.batch([0]).mask is None


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_do_not_fit_into_memory_get_the_same_segments_from_the_loader(tmp_path, workers):
    for number, image in enumerate(quarters()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    states, brought = [], []
    for limit in (0, 2**30):
        supervisor = detcon(str(tmp_path), memory_limit=limit)
        find = supervisor._segment_maps
        supervisor._segment_maps = lambda data, find=find: brought.append(data.mask is not None) or find(data)
        supervisor.supervise(epochs=2, batch_size=4, name=f"run{limit}", progress=False, num_workers=workers)
        assert supervisor.images.in_memory == (limit > 0)
        states.append(supervisor.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len(brought) == 8 and all(brought)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_masks_of_the_data_set_are_the_segments(dtype):
    masks = QUARTERS.expand(8, -1, -1).to(dtype)
    supervisor = detcon(Masked(quarters(), masks), segments="dataset")
    found = []
    supervisor.model.register_forward_pre_hook(lambda _, inputs: found.extend(inputs[1:2]))
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert found[0].dtype == torch.uint8 and found[0].max() == 4


def test_felzenszwalb_ignores_the_masks_of_the_data_set():
    supervisor = detcon(Masked(quarters(), torch.ones(8, 16, 16).byte()))
    supervisor.supervise(epochs=1, batch_size=4, name="run", progress=False)
    assert supervisor.images.batch([0]).mask.max() == 4
    before_any_run = detcon()._segment_maps(batch(mask=torch.ones(8, 16, 16).byte()))
    assert before_any_run.amax() == 4


def test_a_data_set_without_masks_is_refused_where_they_are_needed():
    with pytest.raises(ValueError, match='segments="dataset" needs a map of integers .* has no mask'):
        detcon(segments="dataset").supervise(epochs=1, batch_size=4, name="run", progress=False)


def test_a_collate_function_of_a_user_gets_segments_all_the_same():
    def halved(items):
        return torch.stack([item.image for item in items]) // 2

    supervisor = detcon(collate_fn=halved)
    supervisor.supervise(epochs=1, batch_size=4, name="run", progress=False)
    assert supervisor.step == 2


# ---- variants ----------------------------------------------------------------------------------------------------------


def test_detcon_s_has_no_target_and_detcon_b_a_slow_one_without_predictor():
    assert not hasattr(detcon(), "target") and not hasattr(detcon(), "predictor")
    supervisor = superself.create(
        "detcon-b", quarters(), backbone=TinyBackbone(), seed=0, scale=20.0, num_samples=4, momentum=0.5
    )
    assert isinstance(supervisor.model.predictor[1], nn.BatchNorm1d)
    assert not any("predictor.3" in name for name, _ in supervisor.target.named_parameters() if "average" not in name)
    before, online = copy.deepcopy(supervisor.target.state_dict()), copy.deepcopy(supervisor.model.state_dict())
    name = "backbone.layers.0.weight"
    assert torch.equal(before[f"average.{name}"], online[name])
    supervisor.supervise(lr=1e-2, epochs=1, batch_size=8, name="run", progress=False)
    moved = supervisor.target.state_dict()[f"average.{name}"]
    assert torch.allclose(moved, 0.5 * before[f"average.{name}"] + 0.5 * supervisor.model.state_dict()[name], atol=1e-6)
    with pytest.raises(
        ValueError, match=r"only DetCon-B, with a target network, has a predictor; pass momentum=0\.996"
    ):
        detcon(predictor={"hidden": 8})


def test_backbone_may_be_a_vision_transformer():
    class Tokens(nn.Module):
        num_prefix_tokens = 1

        def __init__(self):
            super().__init__()
            self.embed, self.prefix = nn.Conv2d(3, 6, 4, 4), nn.Parameter(torch.zeros(1, 1, 6))

        def forward(self, images):
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            return torch.cat([self.prefix.expand(len(tokens), -1, -1), tokens], 1)

    supervisor = detcon(backbone=Tokens())
    assert torch.isfinite(supervisor._forward(batch()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segments": "watershed"}, "segments"),
        ({"scale": (5.0, 2.0)}, r"scale=\(5.0, 2.0\) is not \(low, high\)"),
        ({"scale": -1.0}, "scale"),
        ({"grid": 16}, "grid"),
        ({"num_samples": 0}, "num_samples"),
        ({"beta": -1.0}, "beta"),
        ({"momentum": 1.5}, "momentum"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        detcon(**arguments)


# ---- pictures ----------------------------------------------------------------------------------------------------------


def test_show_inputs_draws_views_with_masks_and_reports_on_segments(tmp_path, capsys, drawn):
    supervisor = detcon(num_samples=8)
    state = supervisor.generator.get_state()
    assert supervisor.show_inputs(tmp_path / "new" / "inputs.png").exists()
    printed = capsys.readouterr().out
    assert "images: 8, segments per image: 4, drew a segment twice: 8, lost a segment:" in printed
    columns, titles = drawn[0]
    assert titles == ["image", "segments", "view 1", "its segments", "view 2", "its segments"]
    assert [column.shape for column in columns] == [(5, 3, 16, 16)] * 6
    assert torch.equal(supervisor.generator.get_state(), state)
    still = detcon(num_samples=1, augment=STILL).segment_report()
    assert still["lost_a_segment"] == still["lost_all_segments"] == still["drew_a_segment_twice"] == 0


def test_show_inputs_takes_a_data_set_that_is_open(tmp_path):
    supervisor = detcon()
    assert supervisor.show_inputs(tmp_path / "a.png", open_images(quarters()[:4]), count=2).exists()


def test_show_inputs_takes_other_images_with_their_masks(tmp_path):
    masks = QUARTERS.expand(8, -1, -1)
    supervisor = detcon(Masked(quarters(), masks), segments="dataset")
    assert supervisor.show_inputs(tmp_path / "a.png", Masked(tiny_images(4), masks), count=2).exists()
    assert supervisor.segment_report(Masked(tiny_images(4), masks))["segments_per_image"] == 4


def test_a_trained_supervisor_can_be_copied_and_pickled():
    supervisor = detcon()
    supervisor.supervise(epochs=1, batch_size=4, name="run", progress=False)
    for again in (copy.deepcopy(supervisor), pickle.loads(pickle.dumps(supervisor))):
        assert torch.equal(again.images.batch([0]).mask, supervisor.images.batch([0]).mask)
