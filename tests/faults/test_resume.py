"""A resumed run is the run that was stored: whatever else determines its weights is refused, whatever does not may change."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from superself import BiGanSupervisor, InstanceDiscriminationSupervisor, MomentumContrastSupervisor, RotateNetSupervisor
from superself.augment import ColorJitter
from superself.networks import CombinedNet
from superself.training import Tracker, read_checkpoint, warmup_cosine
from superself.training.hyper_parameters import declared

from cases import CASES, TinyBackbone, tiny_images

SHORT = {"epochs": 1, "batch_size": 8, "progress": False}
LONGER = SHORT | {"epochs": 2, "resume": True}
BY_CLASS = {case.algorithm: case for case in CASES}
FOUR = [RotateNetSupervisor, MomentumContrastSupervisor, InstanceDiscriminationSupervisor, BiGanSupervisor]


class OtherBackbone(TinyBackbone):
    """The same weights and shapes, in another class."""


class Scaled(TinyBackbone):
    """A number that is neither a weight nor shown by repr."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.calls = factor, 0

    def forward(self, images):
        self.calls += 1  # state, which a resumed run need not share
        return self.factor * super().forward(images)


def stack(items):
    return torch.stack([item.image for item in items])


def mirrored(items):
    return torch.stack([item.image.flip(-1) for item in items])


def scheduler(gamma):
    return lambda optimizer: StepLR(optimizer, 1, gamma)


def sgd(momentum):
    return lambda parameters, lr: SGD(parameters, lr, momentum=momentum)


def weighted(weight):
    def loss(*arguments):
        return weight * arguments[0].square().mean()

    return loss


def view(factor):
    return lambda images: images * factor


def names_of(value):
    return ",".join(value) or "default" if isinstance(value, dict) else ""


def make(algorithm, dataset=None, **arguments):
    """A supervisor on the CPU; what has weights is copied, so that no test trains a network of the tables."""
    if algorithm.n_views == 2 and "collate_fn" in arguments:
        arguments["collate_fn"] = functools.partial(twice, arguments["collate_fn"])
    return BY_CLASS[algorithm].make(dataset, **copy.deepcopy(arguments))


def twice(collate_fn, items):
    return {"image": [collate_fn(items)] * 2}


# ---- what a resumed run must share -----------------------------------------------------------------------------------

ARGUMENTS = [  # of the constructor: as they were, as they are now, what the message says
    ({}, {"normalize": (0.5, 0.2)}, r"normalize: was None, is now \(0.5, 0.2\)"),
    ({}, {"view_size": 12}, r"view_size: was None, is now \(12, 12\)"),
    ({}, {"image_size": 12}, r"image_size: was \(16, 16\), is now \(12, 12\)"),
    ({}, {"seed": 1}, "seed: was 0, is now 1"),
    ({}, {"augment": "plain"}, "augment: was .*, is now 'plain'"),
    ({}, {"augment": ColorJitter(0.5)}, "augment: was .*, is now superself.augment.colour.ColorJitter"),
    ({}, {"backbone": OtherBackbone()}, "backbone: was cases.TinyBackbone, is now .*OtherBackbone"),
    ({}, {"backbone": TinyBackbone().requires_grad_(False)}, "backbone.layers.0.frozen: was 'not set', is now"),
    ({}, {"loss": weighted(2.0)}, "loss: was None, is now the function loss"),
    ({}, {"collate_fn": stack}, "collate_fn: was None, is now .*stack"),
    ({}, {"dataset": tiny_images(seed=1)}, r"data set: different images \(same number, 16\)"),
    ({}, {"dataset": tiny_images().flip(0)}, r"data set: different images \(same number, 16\)"),
    ({}, {"dataset": tiny_images(20)}, "images: was 16, is now 20"),
    (
        {"augment": ColorJitter(0.4), "loss": weighted(1.0), "collate_fn": stack, "backbone": Scaled(1.0)},
        {"augment": ColorJitter(0.5), "loss": weighted(2.0), "collate_fn": mirrored, "backbone": Scaled(2.0)},
        "augment.factors: was .*; backbone.factor: was 1.0, is now 2.0; loss.weight: was 1.0, is now 2.0; "
        "collate_fn.*: was the function .*stack, is now the function .*mirrored",
    ),
    ({"augment": view(1.0)}, {"augment": view(0.5)}, "augment.factor: was 1.0, is now 0.5"),
    (
        {"augment": lambda images: images.flip(2)},
        {"augment": lambda images: images.flip(3)},
        "augment: the code of the function .*<lambda> has changed",
    ),
]
SETTINGS = [
    ({}, {"lr": 2e-3}, "lr: was 0.001, is now 0.002"),
    ({}, {"batch_size": 4}, "batch_size: was 8, is now 4"),
    ({}, {"shuffle": False}, "shuffle: was True, is now False"),
    ({}, {"weight_decay": 0.1}, "weight_decay: was None, is now 0.1"),
    ({}, {"optimizer": "adamw"}, "optimizer: was torch.optim.adam.Adam, is now torch.optim.adamw.AdamW"),
    ({}, {"lr_scheduler": "cosine"}, "lr_scheduler.end: was None, is now 0.0; lr_scheduler.shape: was 'constant', is now"),
    ({}, {"precision": "bf16-mixed"}, "precision: was '32-true', is now 'bf16-mixed'"),
    ({}, {"accumulate": 2}, "accumulate: was 1, is now 2"),
    ({}, {"micro_batch": 4}, "micro_batch: was None, is now 4"),
    ({}, {"clip": 1.0}, "clip: was None, is now 1.0"),
    ({}, {"average": 0.9}, "average: was None, is now 0.9"),
    ({}, {"sync_batchnorm": True}, "sync_batchnorm: was False, is now True"),
    ({}, {"seed": 1}, "seed: was 0, is now 1"),
    (
        {"optimizer": functools.partial(SGD, momentum=0.9), "lr_scheduler": warmup_cosine(0.1)},
        {"optimizer": functools.partial(SGD, momentum=0.5), "lr_scheduler": warmup_cosine(0.2)},
        "optimizer.arguments.momentum: was 0.9, is now 0.5; lr_scheduler.warmup: was 0.1, is now 0.2",
    ),
    (
        {"optimizer": functools.partial(SGD, momentum=0.9), "lr_scheduler": functools.partial(StepLR, step_size=1)},
        {"optimizer": SGD, "lr_scheduler": functools.partial(StepLR, step_size=2)},
        r"optimizer: was torch.optim.sgd.SGD\(momentum=0.9\), is now torch.optim.sgd.SGD; lr_scheduler.*: was 1, is now 2",
    ),
    (
        {"optimizer": sgd(0.9), "lr_scheduler": scheduler(0.1)},
        {"optimizer": sgd(0.5), "lr_scheduler": scheduler(0.2)},
        "optimizer.momentum: was 0.9, is now 0.5; lr_scheduler.gamma: was 0.1, is now 0.2",
    ),
    (
        {"optimizer": lambda parameters, lr: SGD(parameters, lr, momentum=0.9)},
        {"optimizer": lambda parameters, lr: SGD(parameters, lr, momentum=0.5)},
        "optimizer: the code of the function .*<lambda> has changed",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Trains the runs that tests try to resume: each once, however many do."""
    made = {}

    def name_of(algorithm, arguments, settings):
        key = (algorithm, str(arguments), str(settings))
        if key not in made:
            made[key] = str(tmp_path_factory.mktemp("runs") / "run")
            make(algorithm, **arguments).supervise(name=made[key], **SHORT | {"precision": "32-true"} | settings)
        return made[key]

    return name_of


@pytest.mark.parametrize(("was", "now", "message"), ARGUMENTS, ids=names_of)
@pytest.mark.parametrize("algorithm", FOUR)
def test_resume_refuses_other_arguments_of_the_constructor(algorithm, was, now, message, stored):
    name = stored(algorithm, was, {})
    with pytest.raises(ValueError, match="cannot be resumed with other settings") as error:
        make(algorithm, **now).supervise(name=name, **LONGER, precision="32-true")
    assert all(re.search(part, str(error.value)) for part in message.split("; ")), error.value
    assert read_checkpoint(name)["epoch"] == 1


@pytest.mark.parametrize(("was", "now", "message"), SETTINGS, ids=names_of)
@pytest.mark.parametrize("algorithm", FOUR)
def test_resume_refuses_other_settings(algorithm, was, now, message, stored):
    name = stored(algorithm, {}, was)
    with pytest.raises(ValueError, match=f"cannot be resumed with other settings .*{message}"):
        make(algorithm).supervise(name=name, **LONGER | {"precision": "32-true"} | now)
    assert read_checkpoint(name)["epoch"] == 1


# ---- every hyper-parameter of every algorithm ------------------------------------------------------------------------

OTHER_VALUES = {
    "augment": "plain",
    "freeze_last_layer": 0,
    "small_crops": 0,
    "freeze_prototypes": 0,
    "normalize": (0.5, 0.2),
    "view_size": 12,
    "rotations": (0, 180),
    "features": "both",
    "contrast": "batch",
    "region": "center",
    "overlap": 1,
    "noise": "gaussian",
    "patch_size": 5,
    "stride": 1,
    "projector": "linear",
    "eqco_alpha": 9,
    "mochi": (4, 2, 1),
    "negatives": 5,
    "tile": 4,
    "turns": (1, 2),
    "tile_augment": "plain",
    "alpha": 50.0,
    "vic_weights": (1.0, 2.0, 3.0),
    "w_size": 3,
    "weight": 0.2,
    "segments": "grid",
    "min_size": 5,
}
OTHER_OBJECTIVES = {"SiameseSupervisor": "bce", "SimCLRSupervisor": "dcl"}
NOT_ALONE = {"SiameseSupervisor-stop_gradient", "SiameseSupervisor-normalize_embeddings"}  # contradict the row's others


def hyper_parameters():
    for case in CASES:
        for name in declared(case.make()):
            is_fixed = name in ("normalize", "sobel") and not case.normalizes
            given = f"{case.algorithm.__name__}-{name}"
            if name in inspect.signature(case.algorithm).parameters and not is_fixed and given not in NOT_ALONE:
                yield pytest.param(case, name, id=given)


def other_value(case, name, old):
    """A valid value of a hyper-parameter that differs from ``old``: of a network, the same one in another class."""
    if name == "loss":
        return weighted(1.0)
    supervisor = case.make()
    if name in vars(supervisor.given) and not isinstance(old, str) and name != "features":
        built = (
            supervisor.model.backbone if name == "backbone" else getattr(supervisor, name, supervisor.model.predictor)
        )
        return nn.Sequential(built) if name == "predictor" else in_another_class(built)
    if name == "objective":
        return OTHER_OBJECTIVES[case.algorithm.__name__]
    if name == "negatives" and isinstance(old, tuple):
        return ("batch", "queue")
    if name in OTHER_VALUES and (name != "tile" or old is None):
        return OTHER_VALUES[name]
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return old - 1 if old > 2 else old + 1
    return old / 2 + 0.03


def in_another_class(module):
    module.__class__ = type("Other", (type(module),), {})
    return module


@pytest.mark.parametrize(("case", "name"), hyper_parameters())
def test_resume_refuses_another_value_of_every_hyper_parameter(case, name, stored):
    run = stored(case.algorithm, {}, {})
    old = declared(case.make())[name]
    changed = case.make(**{name: other_value(case, name, old)})
    with pytest.raises(ValueError, match=rf"cannot be resumed with other settings .*\b{name}\S*: was .*, is now "):
        changed.supervise(name=run, **LONGER, precision="32-true")


# ---- files -----------------------------------------------------------------------------------------------------------


def grey(path):
    return np.asarray(Image.open(path).convert("L"))


def inverted(path):
    return 255 - np.asarray(Image.open(path).convert("L"))


def folder_of_images(name, count=16):
    Path(name).mkdir()
    for place, image in enumerate(tiny_images(count)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"{name}/{place:02}.png")
    return name


def test_resume_refuses_another_function_that_reads_the_files():
    def rotatenet(read):
        return RotateNetSupervisor("images", backbone=TinyBackbone(1), read=read, seed=0)

    folder_of_images("images")
    rotatenet(grey).supervise(name="run", **SHORT)
    with pytest.raises(ValueError, match="read: was the function .*grey, is now the function .*inverted"):
        rotatenet(inverted).supervise(name="run", **LONGER)


def test_resume_refuses_other_planes_of_a_stack():
    import tifffile

    def rotatenet(planes):
        return RotateNetSupervisor("stacks", backbone=TinyBackbone(1), planes=planes, seed=0)

    Path("stacks").mkdir()
    for place, image in enumerate(tiny_images(8)):
        tifffile.imwrite(f"stacks/{place}.tif", image.numpy(), photometric="minisblack")
    rotatenet(0).supervise(name="run", **SHORT)
    with pytest.raises(ValueError, match=r"planes: was \(0,\), is now \(1,\)|planes: was 0, is now 1"):
        rotatenet(1).supervise(name="run", **LONGER)


class Squares(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 16

    def __getitem__(self, place):
        return self.transform(tiny_images()[place].float() / 255)


def test_resume_refuses_a_data_set_with_another_transform():
    from torchvision.transforms import RandomErasing  # the images are random, so only their number could be compared

    def rotatenet(scale):
        images = torch.utils.data.Subset(Squares(RandomErasing(scale=scale)), range(8))
        return RotateNetSupervisor(images, backbone=TinyBackbone(), seed=0)

    rotatenet((0.1, 0.2)).supervise(name="run", **SHORT)
    with pytest.raises(ValueError, match=r"transform.scale: was \(0.1, 0.2\), is now \(0.1, 0.3\)"):
        rotatenet((0.1, 0.3)).supervise(name="run", **LONGER)


# ---- what may change -------------------------------------------------------------------------------------------------


def weights_of(supervisor):
    return {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Silent(Tracker):
    def epoch(self, row):
        pass


MAY_CHANGE = [
    ({}, {"num_workers": 1}),
    ({}, {"progress": True}),
    ({}, {"trackers": [Silent()]}),
    ({}, {"probe": ((tiny_images(), torch.arange(16) % 2),) * 2, "probe_every": 2}),
    ({}, {"devices": 1}),
    ({}, {"save_every": None}),
    ({}, {"save_every": 30.0}),
    ({}, {"on_nan": "skip"}),
    ({}, {"compile": True}),
    ({"memory_limit": 10**6, "on_bad_image": "raise"}, {}),
    ({"seed": None}, {}),
    ({"seed": None}, {"seed": 0}),
    ({"image_size": 16}, {}),  # the size that the images have
    ({"rotations": [0, 90, 180, 270]}, {"lr_scheduler": "constant", "optimizer": "Adam"}),  # as by default
]


@pytest.mark.parametrize(("arguments", "settings"), MAY_CHANGE, ids=names_of)
def test_what_does_not_determine_the_run_may_change(arguments, settings, stored, monkeypatch, tmp_path):
    monkeypatch.setattr(nn.Module, "compile", lambda *_: None)  # takes a minute
    longer = SHORT | {"epochs": 2, "precision": "32-true"}
    whole = make(RotateNetSupervisor).supervise(name="whole", **longer)
    name = stored(RotateNetSupervisor, {}, {})
    copy_run(name, "moved/to")  # the name may change, too
    resumed = make(RotateNetSupervisor, **arguments).supervise(name="moved/to", resume=True, **longer | settings)
    assert_same(weights_of(resumed), weights_of(whole))


def copy_run(name, to):
    Path(to).parent.mkdir(exist_ok=True)
    for ending in (".pt", ".csv", ".yaml"):
        shutil.copy(f"{name}{ending}", f"{to}{ending}")


def test_a_folder_of_images_may_move():
    def rotatenet(folder):
        return RotateNetSupervisor(folder, backbone=TinyBackbone(), seed=0)

    rotatenet(folder_of_images("here")).supervise(name="run", **SHORT)
    os.rename("here", "there")
    assert rotatenet("there").supervise(name="run", **LONGER).step == 4


def made_again(place):
    """Objects that were made in two places of two scripts and act alike."""
    if place == "first":
        return {"augment": view(0.5), "loss": weighted(2.0)}, {"optimizer": sgd(0.9), "lr_scheduler": scheduler(0.5)}
    return {"augment": view(0.5), "loss": weighted(2.0)}, {"optimizer": sgd(0.9), "lr_scheduler": scheduler(0.5)}


def test_functions_and_modules_that_are_made_again_are_the_same():
    for place, changes in (("first", {}), ("second", {"epochs": 2, "resume": True})):
        arguments, settings = made_again(place)
        backbone = Scaled(0.5)
        nn.init.normal_(backbone.layers[0].weight)  # other weights at the start, which come from the file
        supervisor = RotateNetSupervisor(tiny_images(), backbone=backbone, seed=0, **arguments)
        supervisor.supervise(name="run", **SHORT | settings | changes)
    assert supervisor.step == 4 and backbone.calls > 0


def test_a_supervisor_resumes_its_own_run_whatever_its_objects_count():
    supervisor = RotateNetSupervisor(tiny_images(), backbone=Scaled(0.5), seed=0).supervise(name="run", **SHORT)
    assert supervisor.supervise(name="run", **LONGER).step == 4
    fresh = RotateNetSupervisor(tiny_images(), backbone=Scaled(0.5), seed=0)
    assert fresh.supervise(name="run", **LONGER | {"epochs": 3}).step == 6


def test_all_differences_are_listed_at_once():
    make(RotateNetSupervisor).supervise(name="run", **SHORT)
    other = make(RotateNetSupervisor, tiny_images(20), rotations=(0, 180), seed=1, backbone=OtherBackbone())
    with pytest.raises(ValueError) as error:
        other.supervise(lr=0.1, batch_size=4, name="run", resume=True, progress=False)
    found = re.findall(r"(\w+): was", str(error.value))
    assert set(found) == {"lr", "batch_size", "rotations", "backbone", "seed", "images"}


class Deeper(RotateNetSupervisor):
    """Its networks depend on something that is not an argument."""

    layer = nn.ReLU

    def _build(self):
        super()._build()
        self.model = CombinedNet(self.model.backbone, nn.Sequential(self.layer(), self.model.predictor))


def test_resume_refuses_a_network_that_a_users_class_builds_in_another_way(monkeypatch):
    def deeper():
        return Deeper(tiny_images(), backbone=TinyBackbone(), seed=0)

    deeper().supervise(name="run", **SHORT)
    monkeypatch.setattr(Deeper, "layer", nn.Tanh)
    with pytest.raises(ValueError, match=r"model.predictor.0: was torch.*ReLU, is now torch.*Tanh"):
        deeper().supervise(name="run", **LONGER)
