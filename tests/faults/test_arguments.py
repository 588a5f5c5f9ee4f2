"""Wrong arguments: each is refused where it enters, with what was given, what is needed and what to do."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import re
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader

from superself import (
    BiGanSupervisor,
    BYOLSupervisor,
    ContrastivePredictiveCodingSupervisor,
    MomentumContrastSupervisor,
    PIRLSupervisor,
    RotateNetSupervisor,
    SplitBrainNetSupervisor,
    Supervisor,
)
from superself.networks import CombinedNet

from cases import CASES, TinyBackbone, tiny_images

SHORT = {"epochs": 1, "batch_size": 8, "progress": False, "precision": "32-true"}


def rotatenet(dataset=None, cls=RotateNetSupervisor, **arguments):
    dataset = tiny_images() if dataset is None else dataset
    return cls(dataset, **{"backbone": TinyBackbone(), "seed": 0, **arguments})


def assert_raised_by_the_package(error):
    """A traceback that ends inside torch or Python's library would not have said what to do."""
    assert "superself" in traceback.extract_tb(error.tb)[-1].filename


class WithoutStep:
    def state_dict(self):
        return {}

    load_state_dict = state_dict


# ---- supervise() -----------------------------------------------------------------------------------------------------

SETTINGS = [
    ("lr", "a", "lr='a' must be a number"),
    ("lr", None, "lr=None must be a number"),
    ("lr", True, "lr=True must be a number"),
    ("lr", float("nan"), "lr=nan must be finite and not negative"),
    ("lr", float("inf"), "lr=inf must be finite and not negative"),
    ("lr", -1, "lr=-1 must be finite and not negative"),
    ("lr", 0, "lr=0 trains nothing"),
    ("optimizer", "adamx", "optimizer='adamx' is unknown; pass one of adam, adamw, sgd, lars"),
    ("optimizer", Adam([nn.Parameter(torch.zeros(1))]), "is an instance of Adam.*pass a class"),
    ("optimizer", lambda parameters, lr: None, "optimizer returned None; it must return an optimizer"),
    ("optimizer", torch.optim.LBFGS, r"LBFGS.step\(\) needs closure.*pass an optimizer without it"),
    ("optimizer", torch.optim.SparseAdam, "SparseAdam takes sparse gradients only.*pass torch.optim.Adam"),
    ("optimizer", torch.optim.Optimizer, "must be callable as optimizer"),
    ("optimizer", None, "optimizer is a NoneType, which cannot be called; pass a class"),
    ("optimizer", functools.partial(SGD, momentum=-1), r"optimizer=SGD could not be made .*Invalid momentum value: -1"),
    (
        "optimizer",
        functools.partial(Adam, foo=1),
        "optimizer=Adam could not be made .*unexpected keyword argument 'foo'",
    ),
    ("epochs", 1.5, "epochs=1.5 must be a whole number of at least 1"),
    ("epochs", "3", "epochs='3' must be a whole number of at least 1"),
    ("epochs", 0, "epochs=0 must be a whole number of at least 1"),
    ("batch_size", 2.5, "batch_size=2.5 must be a whole number of at least 1"),
    ("batch_size", 17, r"batch_size=17 is larger than the data set \(16 images\)"),
    ("shuffle", 1, "shuffle=1 must be True or False"),
    ("num_workers", -1, "num_workers=-1 must be a whole number of at least 0"),
    ("name", 3, "name=3 must be a path without an extension"),
    ("name", "", "name='' must be a path without an extension"),
    ("name", None, "name=None must be a path without an extension"),
    ("name", "a\0b", r"name='a\\x00b' cannot be the name of a file; pass one without NUL"),
    ("name", "x" * 300, "name='xxx.* cannot be the name of a file.*at most 230 bytes"),
    ("pretrained", 3, "pretrained=3 must be True, False, or the name of a run"),
    ("pretrained", "missing", "There is no run 'missing'"),
    ("lr_scheduler", 3, "lr_scheduler is a int object.*pass a class or a function of the optimizer"),
    ("lr_scheduler", "cosin", "lr_scheduler='cosin' is unknown; pass one of constant, cosine"),
    ("lr_scheduler", lambda optimizer: None, r"lr_scheduler=f returned None, which has no step\(\)"),
    ("lr_scheduler", lambda optimizer: 3, r"lr_scheduler=f returned a int object, which has no step\(\)"),
    ("lr_scheduler", lambda optimizer: WithoutStep(), r"a WithoutStep object, which has no step\(\)"),
    ("lr_scheduler", torch.optim.lr_scheduler.ReduceLROnPlateau, r"whose step\(\) needs metrics"),
    ("precision", 16.5, "precision=16.5 is unknown; pass one of"),
    ("devices", -1, "devices=-1 must be .*a number of devices or processes"),
    ("devices", 0, "devices=0 must be .*a number of devices or processes"),
    ("devices", True, "devices=True must be"),
    ("devices", "gpu", "devices='gpu' must be \"auto\""),
    ("devices", 1.5, "devices=1.5 must be"),
    ("devices", [], r"devices=\[\] must be .*pass the positions of the devices"),
    ("devices", [-1], r"devices=\[-1\] must be"),
    ("devices", [0, 0], r"devices=\[0, 0\] must be .*pass each device once"),
    ("strategy", "foo", "strategy='foo' is unknown; pass 'auto', 'ddp', 'fsdp' or 'dp'"),
    ("num_nodes", 0, "num_nodes=0 must be a whole number of at least 1"),
    ("accumulate", 0, "accumulate=0 must be a whole number of at least 1"),
    ("accumulate", 3, "accumulate=3 does not divide batch_size=8"),
    ("micro_batch", 0, "micro_batch=0 must be a whole number of at least 1"),
    ("clip", -1, "clip must be a number above 0, got -1"),
    ("clip", "a", "clip must be a number above 0, got 'a' of type str"),
    ("average", 1, r"average must be a number in \[0, 1\), got 1"),
    ("average", 2, r"average must be a number in \[0, 1\), got 2"),
    ("on_nan", "x", "on_nan='x' is unknown; pass 'stop', 'skip' or 'rollback'"),
    ("probe", 3, "probe is a int, but a pair .* is needed"),
    ("probe", (tiny_images(),), "probe is a tuple, but a pair .* is needed"),
    ("probe", (tiny_images(), tiny_images()), "probe: train has no labels"),
    ("probe_every", 0, "probe_every=0 must be a whole number of at least 1"),
    ("trackers", [3], "trackers has 3, which is not a Tracker"),
    ("compile", "yes", "compile='yes' must be True or False"),
    ("weight_decay", -1, "weight_decay=-1 must be finite and not negative"),
    ("seed", -1, "seed must be an integer of at least 0, got -1"),
    ("seed", "a", "seed must be an integer of at least 0, got 'a' of type str"),
    ("seed", 2**70, "seed must be an integer of at most 4611686018427387904"),
    ("batchsize", 8, "has no argument 'batchsize' .*did you mean 'batch_size'"),
    ("zzz", 3, "has no argument 'zzz' .*the known ones are lr, optimizer"),
]


@pytest.mark.parametrize(
    ("name", "value", "message"), SETTINGS, ids=[f"{name}={value!s:.20}" for name, value, _ in SETTINGS]
)
def test_a_wrong_setting_is_refused_before_anything_is_written(name, value, message):
    with pytest.raises((TypeError, ValueError, OSError), match=message) as error:
        rotatenet().supervise(**{"name": "run", **SHORT, name: value})
    assert_raised_by_the_package(error)
    assert not list(Path().rglob("*.pt"))


def test_what_is_passed_by_position_in_excess_or_in_another_order_is_refused():
    with pytest.raises(TypeError, match="positional arguments but 11 were given"):
        rotatenet().supervise(1e-3, Adam, 1, 8, True, 0, "run", False, None, True)
    with pytest.raises(TypeError, match="lr=<class 'torch.optim.adam.Adam'> must be a number"):
        rotatenet().supervise(Adam, 1e-3)


# ---- constructors ----------------------------------------------------------------------------------------------------


class Returns(nn.Module):
    """A backbone whose feature maps go through a function."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, images):
        return self.function(self.layer(images))


OF_EVERY_ALGORITHM = [
    ("seed", -1, "seed must be an integer of at least 0, got -1"),
    ("seed", "a", "seed must be an integer of at least 0, got 'a' of type str"),
    ("seed", 2**70, "seed must be an integer of at most 4611686018427387904"),
    ("image_size", 0, "image_size=0 is not a size; pass one number of pixels"),
    ("view_size", -3, "view_size=-3 is not a size; pass one number of pixels"),
    ("loss", 3, "loss=3 cannot be called; pass a function or a module"),
    ("loss", "mse", "loss='mse' cannot be called; pass a function or a module"),
    ("loss", nn.MSELoss, r"loss=<class .*MSELoss'> is a class; pass an instance, MSELoss\(...\)"),
    ("collate_fn", 3, "collate_fn=3 cannot be called; pass a function or a module"),
    (
        "collate_fn",
        lambda: None,
        "collate_fn is called with a list of items, and the signature .*pass a function that takes",
    ),
    ("augment", 3, "augment=3 is not an augmentation; pass a transform"),
    ("augment", "unknown", "augment='unknown' is not a recipe; .*recipes are 'simclr'"),
    ("augment", {"x": 1}, "augment={'x': 1} has no \"name\""),
    ("augment", {"name": "simclr", "x": 1}, "the recipe 'simclr' has no argument 'x'; it takes strength, blur"),
    ("augment", {"name": "simclr", "strength": "a"}, "the recipe 'simclr' cannot be made with {'strength': 'a'}"),
    ("augment", nn.ReLU, "augment=<class .*ReLU'> is not an augmentation"),
    ("augment", lambda x, y: x, "augment is called with a batch of images, and the signature"),
    ("on_bad_image", "x", "on_bad_image='x' is unknown; pass 'skip' or 'raise'"),
    ("memory_limit", "a", "memory_limit must be a number of at least 0, got 'a'"),
    ("memory_limit", -1, "memory_limit must be a number of at least 0, got -1"),
    ("read", 3, "read=3 cannot be called"),
    ("read", lambda: 3, "read is called with a path, and the signature"),
    ("read", lambda path: path, "read= is for files, and this data set is a Tensor"),
    ("dataset", 3, "a int has no length or no items by number; pass a folder"),
    ("dataset", TinyBackbone(), "dataset is a TinyBackbone, which is a network; pass images, and it as backbone="),
    ("dataset", [], "the data set has no images"),
    ("dataset", "nothere", "'nothere' is neither an existing path nor the name of a data set"),
    ("dataset", DataLoader(tiny_images()), "a DataLoader has no length or no items by number; pass its .dataset"),
    ("image_sise", 3, "has no argument 'image_sise' .*did you mean 'image_size'"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.algorithm.__name__)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    OF_EVERY_ALGORITHM,
    ids=[f"{name}={value!s:.20}" for name, value, _ in OF_EVERY_ALGORITHM],
)
def test_a_wrong_argument_is_refused_by_every_algorithm(case, name, value, message):
    arguments = {"dataset": None, name: value}
    with pytest.raises((TypeError, ValueError, OSError), match=message) as error:
        case.make(arguments.pop("dataset"), **arguments)
    assert_raised_by_the_package(error)


ARGUMENTS = [
    ("normalize", 1, r"normalize=1 must be \(mean, std\)"),
    ("normalize", (0.5, 0), "needs finite values and stds larger than 0"),
    ("normalize", ((0.5,) * 2, (0.1,) * 2), "normalize has 2 means and 2 stds for images of 3 channels"),
    ("view_size", 64, r"a crop of \(64, 64\) does not fit into images of \(16, 16\)"),
    ("backbone", "resnet1000", r"No backbone is called 'resnet1000' \(nearest: resnet101"),
    ("backbone", 3, "backbone is a int; pass an instance of nn.Module"),
    ("backbone", TinyBackbone, "backbone is the class TinyBackbone; pass an instance of nn.Module"),
    ("backbone", lambda images: images, "backbone is a function; pass an instance of nn.Module"),
    ("backbone", Returns(lambda maps: "features"), "The backbone returned a str, but .* is needed"),
    ("backbone", Returns(lambda maps: {"a": 1}), "The backbone returned a dict without a tensor"),
    ("backbone", Returns(lambda maps: None), "The backbone returned a NoneType"),
    ("backbone", Returns(lambda maps: maps.flatten()), r"The backbone returned a tensor of shape \(1568,\)"),
    ("backbone", Returns(lambda maps: maps.mean(0)), "the first dimension must be the image"),
    ("backbone", TinyBackbone(1), "pass a backbone that takes 3 channels"),
    ("backbone", TinyBackbone().half(), r"layers.0.weight of backbone is in float16, .*call backbone.float\(\)"),
    ("backbone", TinyBackbone().bfloat16(), r"layers.0.weight of backbone is in bfloat16, .*call backbone.float\(\)"),
    ("backbone", TinyBackbone().double(), r"layers.0.weight of backbone is in float64, .*call backbone.float\(\)"),
    ("backbone", TinyBackbone().to("meta"), 'layers.0.weight of backbone is on the device "meta".*to_empty'),
    ("backbone", nn.DataParallel(TinyBackbone()), "backbone is wrapped in DataParallel; pass backbone.module"),
    ("backbone", torch.compile(TinyBackbone(), backend="eager"), "compiled by torch.compile.*pass the network itself"),
    ("predictor", 3, "predictor is a int; pass an instance of nn.Module"),
    ("predictor", "mlp", "predictor is a str; pass an instance of nn.Module"),
    ("predictor", nn.Linear, "predictor is the class Linear; pass an instance of nn.Module"),
    ("predictor", nn.Linear(3, 4), "gives features of width 16, but the predictor starts with a linear layer for 3"),
    ("predictor", nn.Linear(16, 4).double(), "the parameter weight of predictor is in float64"),
    ("predictor", nn.Linear(16, 4, device="meta"), 'the parameter weight of predictor is on the device "meta"'),
    ("augment", lambda images: None, "the augmentation returned a NoneType, but views .* are needed"),
    ("augment", lambda images: images.mean(), "the augmentation returned a scalar, but views .* are needed"),
    ("augment", lambda images: images[:2], r"made views of \[2\] images from a batch of 8"),
    ("collate_fn", lambda items: None, "a batch must be images .*, got a NoneType; change what .* collate_fn returns"),
    ("collate_fn", lambda items: [], r"a batch must be images .*, got a list of \[\]; change what"),
    ("collate_fn", lambda items: torch.zeros(0, 3, 16, 16), "collate_fn returned a batch without images"),
    (
        "collate_fn",
        lambda items: torch.zeros(8, 4, 16, 16),
        "the batch has 4 channels, the preprocessing was made for 3",
    ),
    ("rotations", TinyBackbone(), "rotations=TinyBackbone.* must be several angles"),
]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    ARGUMENTS,
    ids=[f"{name}={value!s:.20}".replace("\n", "") for name, value, _ in ARGUMENTS],
)
def test_a_wrong_argument_is_refused_with_what_is_needed(name, value, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        rotatenet(**{name: value}).supervise(name="run", **SHORT)
    assert_raised_by_the_package(error)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("algorithm", "arguments", "message"),
    [
        (MomentumContrastSupervisor, {"projector": 3}, "projector=3 is not a head; pass 'linear', 'mlp', an instance"),
        (MomentumContrastSupervisor, {"temperature": 0}, "temperature must be a number above 0, got 0"),
        (MomentumContrastSupervisor, {"momentum": 2}, r"momentum must be a number in \[0, 1\], got 2"),
        (MomentumContrastSupervisor, {"queue_size": 0}, "queue_size must be an integer of at least 1, got 0"),
        (BYOLSupervisor, {"projector": 3}, "projector=3 is not a head; pass an instance of nn.Module, a dictionary"),
        (BYOLSupervisor, {"predictor": nn.Linear}, "predictor=.*Linear.* is not a head; pass an instance"),
        (BiGanSupervisor, {"decoder": 3}, "decoder is a int; pass an instance of nn.Module"),
        (BiGanSupervisor, {"discriminator": nn.Linear}, "discriminator is the class Linear; pass an instance"),
        (PIRLSupervisor, {"jigsaw_head": 3}, "jigsaw_head is a int; pass an instance of nn.Module"),
        (ContrastivePredictiveCodingSupervisor, {"context": 3}, "context is a int; pass an instance of nn.Module"),
        (SplitBrainNetSupervisor, {"ab_step": "x"}, "ab_step must be a finite number, got 'x' of type str"),
        (SplitBrainNetSupervisor, {"l_step": True}, "l_step must be a finite number, got True of type bool"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument_of_one_algorithm_is_refused(algorithm, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        algorithm(tiny_images(), backbone=None if algorithm is SplitBrainNetSupervisor else TinyBackbone(), **arguments)
    assert_raised_by_the_package(error)


@pytest.mark.parametrize(
    "value", ["x", -1, float("nan"), [], object()], ids=["text", "negative", "nan", "list", "object"]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.algorithm.__name__)
def test_no_hyper_parameter_of_an_algorithm_ends_in_a_foreign_error(case, value):
    for name in inspect.signature(case.algorithm).parameters:
        if name in ("dataset", "planes"):
            continue
        with pytest.raises((TypeError, ValueError, OSError)) as error:
            case.make(**{name: value})
        assert_raised_by_the_package(error)


def test_a_frozen_backbone_is_trained_around_with_a_warning():
    rotatenet(backbone=TinyBackbone().requires_grad_(False)).supervise(name="run", **SHORT)
    assert "all of its parameters are frozen" in str(yaml.safe_load(Path("run.yaml").read_text())["warnings"])


# ---- sizes -----------------------------------------------------------------------------------------------------------

SIZES = [(1, 1), (2, 2), (3, 3), (8, 8), (15, 15), (3, 40)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.algorithm.__name__)
def test_tiny_images_work_or_are_refused_with_what_would_work(case, size):
    images = tiny_images(8, size=size)
    try:
        supervisor = case.make(images)
    except ValueError as error:
        assert re.search(r"at least \d+ x \d+ pixels|and \d+ x \d+ is the least", str(error)), error
    else:
        assert supervisor.supervise(name="run", **SHORT).step == 1


@pytest.mark.parametrize("size", [1, (1, 5), (5, 1)], ids=str)
def test_images_are_resized_to_a_single_pixel(size):
    assert rotatenet(image_size=size, augment=None).supervise(name="run", **SHORT).step == 2


# ---- hooks of users --------------------------------------------------------------------------------------------------


def with_loss(function):
    class Custom(RotateNetSupervisor):
        def _forward(self, data):
            return function(super()._forward(data))

    return Custom


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda loss: None, "_forward returned NoneType, but a scalar loss is needed"),
        (lambda loss: loss.repeat(3), r"_forward returned a tensor of shape \(3,\), but a scalar loss is needed"),
        (lambda loss: 1.0, "_forward returned float, but a scalar loss is needed"),
        (lambda loss: (loss, loss), "_forward returned tuple, but a scalar loss is needed"),
        (lambda loss: loss.detach(), r"from which no gradient flows to the networks; leave out detach\(\)"),
        (lambda loss: loss.long(), r"a loss \(torch.int64\) from which no gradient flows"),
        (lambda loss: loss * 1j, r"a loss \(torch.complex64\) from which no gradient flows"),
    ],
)
@pytest.mark.parametrize("progress", [False, True])
def test_a_loss_that_cannot_be_used_is_refused(function, message, progress):
    with pytest.raises(TypeError, match=message) as error:
        rotatenet(cls=with_loss(function)).supervise(name="run", **SHORT | {"progress": progress})
    assert_raised_by_the_package(error)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_refused(context):
    with context(), pytest.raises(TypeError, match=r"no gradient flows .*torch.no_grad\(\).* around supervise"):
        rotatenet().supervise(name="run", **SHORT)


def test_a_loss_without_gradient_is_allowed_where_the_user_updates():
    class Closed(with_loss(torch.Tensor.detach)):
        def _update(self, loss, optimizer, lr_scheduler):
            pass

    assert rotatenet(cls=Closed).supervise(name="run", **SHORT).step == 2


def test_an_update_that_never_steps_is_reported():
    class Forgets(RotateNetSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            loss.backward()

    rotatenet(cls=Forgets).supervise(name="run", **SHORT)
    assert "_update() never called optimizer.step()" in str(yaml.safe_load(Path("run.yaml").read_text())["warnings"])
    rotatenet().supervise(name="fine", **SHORT)
    assert yaml.safe_load(Path("fine.yaml").read_text())["warnings"] == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda made: made[:2], r"\['BatchLoader', 'Adam'\]"),
        (lambda made: None, "NoneType"),
        (lambda made: (*made, None), r"\['BatchLoader', 'Adam', 'LambdaLR', 'NoneType'\]"),
    ],
)
def test_what_init_data_optimizer_must_return_is_said(change, found):
    class Custom(RotateNetSupervisor):
        def _init_data_optimizer(self, *arguments):
            return change(super()._init_data_optimizer(*arguments))

    with pytest.raises(TypeError, match=f"_init_data_optimizer returned {found}, and three things are needed; return"):
        rotatenet(cls=Custom).supervise(name="run", **SHORT)


def test_a_constructor_that_does_not_call_that_of_its_base_is_refused():
    class Forgets(RotateNetSupervisor):
        def __init__(self, dataset=None):
            pass

    with pytest.raises(TypeError, match=r"Forgets.__init__ did not call super\(\).__init__"):
        Forgets(tiny_images())


def test_a_supervisor_without_forward_or_model_says_what_to_write():
    network = CombinedNet(TinyBackbone(), nn.Linear(16, 2))
    with pytest.raises(TypeError, match=r"Supervisor defines no _forward\(data\) -> loss; write one"):
        Supervisor(network, tiny_images()).supervise(name="run", **SHORT)
    with pytest.raises(TypeError, match="Supervisor has no self.model; pass a data set"):
        Supervisor(None, tiny_images()).supervise(name="run", **SHORT)


# ---- copies ----------------------------------------------------------------------------------------------------------


def through_torch_save(supervisor):
    file = io.BytesIO()
    torch.save(supervisor, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.algorithm.__name__)
def test_a_copied_or_pickled_supervisor_trains_as_the_original(case):
    supervisor = case.make()
    copied = through_torch_save(copy.deepcopy(supervisor))
    for each, name in ((supervisor, "run"), (copied, "copy")):
        each.supervise(name=name, **SHORT | {"batch_size": 16})
    trained = [
        copied,
        copy.deepcopy(supervisor),
        pickle.loads(pickle.dumps(supervisor)),
        through_torch_save(supervisor),
    ]
    for other in trained:
        for name, value in supervisor.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name


# ---- load() ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of RotateNet, one with another backbone, and one of another algorithm."""
    folder = tmp_path_factory.mktemp("runs")
    rotatenet().supervise(name=folder / "run", **SHORT)
    rotatenet(backbone="squeezenet1_1").supervise(name=folder / "other", **SHORT)
    rotatenet(cls=BiGanSupervisor, latent=4).supervise(name=folder / "bigan", **SHORT)
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("name", [3, None, b"run", ["run"], True], ids=str)
def test_a_name_of_another_type_is_refused_by_load(name):
    with pytest.raises(TypeError, match="is not the name of a run; pass what was given to supervise"):
        rotatenet().load(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run.yaml", "is the record of a run; pass the run, '.*/run'"),
        ("run.csv", "is the record of a run; pass the run, '.*/run'"),
        ("empty", "is a folder; pass the name of a run, such as '.*empty/base'"),
        ("missing", "There is no run .*runs in this folder: .*run"),
        ("bigan", "a run of BiGanSupervisor and not of RotateNetSupervisor, does not fit this model"),
        ("other", r"backbone=.*TinyBackbone was passed and the file has backbone='squeezenet1_1'\), does not fit"),
    ],
)
@pytest.mark.parametrize("how", ["load", "pretrained"])
def test_a_file_that_cannot_be_loaded_is_refused_with_what_to_do(name, message, how, runs):
    supervisor = rotatenet()
    with pytest.raises((ValueError, OSError), match=message) as error:
        if how == "load":
            supervisor.load(runs / name)
        else:
            supervisor.supervise(name="new", pretrained=runs / name, **SHORT)
    assert_raised_by_the_package(error)
    assert str(error.value).count("\n") <= 22
