"""Loading a stored run: what a supervisor takes of it, and what it keeps."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from superself import InstanceDiscriminationSupervisor, PIRLSupervisor, RotateNetSupervisor, Supervisor
from superself.training import read_checkpoint

from cases import TinyBackbone, tiny_images

SHORT = {"epochs": 1, "batch_size": 8, "progress": False}


def rotatenet(images=None, **arguments):
    images = tiny_images() if images is None else images
    return RotateNetSupervisor(images, **{"backbone": TinyBackbone(), "seed": 0, **arguments})


def weights_of(supervisor):
    return {name: tensor.clone() for name, tensor in supervisor.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# ---- a load that fails -----------------------------------------------------------------------------------------------


def spoiled(**changes):
    """Writes the run "spoiled": a run with other rotations, in which some parts are replaced."""
    rotatenet(rotations=(0, 180)).supervise(name="spoiled", **SHORT)
    torch.save(read_checkpoint("spoiled") | changes, "spoiled.pt")


def with_other_weights():
    RotateNetSupervisor(tiny_images(), backbone="squeezenet1_1", rotations=(0, 180)).supervise(name="spoiled", **SHORT)


def with_impossible_preprocessing():
    spoiled(preprocessing={"shape": [3, 16, 16], "dtype": "uint8", "mean": [0.5], "std": [0.5]})


def with_impossible_rotations():
    spoiled(arguments={"rotations": 7})


def with_other_channels():
    rotatenet(tiny_images(channels=1), backbone=TinyBackbone(1)).supervise(name="spoiled", **SHORT)


@pytest.mark.parametrize(
    "spoil", [with_other_weights, with_impossible_preprocessing, with_impossible_rotations, with_other_channels]
)
def test_a_load_that_fails_leaves_the_supervisor_as_it_was(spoil):
    spoil()
    supervisor = rotatenet().supervise(name="run", **SHORT)
    supervisor.extra = nn.Linear(2, 2)
    weights, attributes = weights_of(supervisor), dict(vars(supervisor))
    modules, preprocessing = dict(supervisor.named_modules()), supervisor.preprocessing
    with pytest.raises((TypeError, ValueError)):
        supervisor.load("spoiled")
    assert_same(weights_of(supervisor), weights)
    assert supervisor.rotations == (0, 90, 180, 270) and supervisor.preprocessing == preprocessing
    assert dict(supervisor.named_modules()) == modules and vars(supervisor).keys() == attributes.keys()
    assert supervisor.supervise(name="again", **SHORT).step == 2


@pytest.mark.parametrize("key", ["lineage", "arguments", "attached", "data", "preprocessing", "step"])
def test_a_file_without_a_needed_part_is_refused(key):
    rotatenet().supervise(name="run", **SHORT)
    stored = read_checkpoint("run")
    del stored[key]
    torch.save(stored, "run.pt")
    with pytest.raises(ValueError, match=f"The file of 'run' has no {key}, so another version of superself wrote it"):
        rotatenet().load("run")


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], {"algorithm": "RotateNetSupervisor"}], ids=str)
def test_a_file_of_something_else_is_refused(content):
    torch.save(content, "other.pt")
    with pytest.raises(ValueError, match="other.pt is not a checkpoint of superself"):
        rotatenet().load("other")


# ---- hyper-parameters ------------------------------------------------------------------------------------------------


def test_the_second_file_replaces_what_was_adopted_from_the_first():
    for name, rotations, normalize in (("a", (0, 180), (0.4, 0.2)), ("b", (0, 90, 180), (0.3, 0.1))):
        rotatenet(rotations=rotations, normalize=normalize, augment=None).supervise(name=name, **SHORT)
    rotatenet().supervise(name="defaults", **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        supervisor = RotateNetSupervisor(backbone=TinyBackbone()).load("a")
        assert supervisor.rotations == (0, 180)
        supervisor.load("b")
        assert supervisor.rotations == (0, 90, 180) and supervisor.normalize == (0.3, 0.1)
        supervisor.load("defaults")
        assert supervisor.rotations == (0, 90, 180, 270) and supervisor.augment == "crop-flip"
        assert supervisor.normalize is None


class Weighted(RotateNetSupervisor):
    def __init__(self, *args, weights=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights = weights

    def _build(self):
        super()._build()
        self.loss = nn.CrossEntropyLoss(self.weights)


def test_tensors_as_hyper_parameters_are_stored_resumed_and_loaded():
    def make(**changes):
        tensors = {"normalize": (torch.full((3,), 0.5), torch.full((3,), 0.25)), "weights": torch.arange(1.0, 5.0)}
        return Weighted(tiny_images(), backbone=TinyBackbone(), seed=0, **tensors | changes)

    trained = make().supervise(name="run", **SHORT)
    loaded = Weighted(backbone=TinyBackbone()).load("run")
    assert torch.equal(loaded.weights, torch.arange(1.0, 5.0)) and loaded.preprocessing == trained.preprocessing
    assert torch.equal(loaded.loss.weight, loaded.weights)
    assert make().supervise(name="run", resume=True, **SHORT | {"epochs": 2}).step == 4
    with pytest.raises(ValueError, match=r"weights: was tensor.*, is now tensor\(\[1.0, 1.0, 1.0, 1.0\]\)"):
        make(weights=torch.ones(4)).supervise(name="run", resume=True, **SHORT | {"epochs": 3})


@pytest.mark.parametrize("resume", [True, "auto"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": None}, "augment: was 'crop-flip', is now None"),
        ({"augment": nn.Identity()}, "augment: was 'crop-flip', is now torch.nn.modules.linear.Identity"),
        ({"normalize": (0.5, 0.25)}, r"normalize: was None, is now \(0.5, 0.25\)"),
        ({"view_size": 12}, r"view_size: was None, is now \(12, 12\)"),
        ({"rotations": (0, 90, 180, 300)}, r"rotations: was \(0, 90, 180, 270\), is now \(0, 90, 180, 300\)"),
    ],
    ids=str,
)
def test_resume_refuses_other_hyper_parameters_with_both_values(changes, message, resume):
    rotatenet().supervise(name="run", **SHORT)
    with pytest.raises(ValueError, match=message):
        rotatenet(**changes).supervise(name="run", resume=resume, **SHORT | {"epochs": 2})
    assert read_checkpoint("run")["epoch"] == 1


def test_resume_refuses_a_name_or_none_where_a_function_was_passed():
    def make(**arguments):
        return RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), **arguments)

    make(augment=nn.Identity(), loss=nn.CrossEntropyLoss(label_smoothing=0.1)).supervise(name="run", **SHORT)
    with pytest.raises(
        ValueError, match="loss: was .*CrossEntropyLoss, is now None; augment: was .*Identity, is now 'crop-flip'"
    ):
        make().supervise(name="run", resume=True, **SHORT | {"epochs": 2})


def test_a_resumption_that_is_refused_leaves_the_supervisor_as_it_was():
    rotatenet(seed=1).supervise(name="run", **SHORT)
    supervisor = rotatenet().supervise(name="other", **SHORT)
    weights = weights_of(supervisor)
    with pytest.raises(ValueError, match="lr: was 0.001, is now 0.01"):
        supervisor.supervise(name="run", lr=0.01, resume=True, **SHORT)
    assert_same(weights_of(supervisor), weights)
    assert supervisor.seed == 0 and supervisor.run.name == "other"


class Quarters(Supervisor):
    """Another algorithm, with the networks of RotateNet."""

    def __init__(self, dataset=None, backbone=None, **options):
        super().__init__(None, dataset, **options)
        self.given.backbone = backbone

    def _build(self):
        self.model = RotateNetSupervisor(tiny_images(), backbone=self.given.backbone).model

    def _forward(self, data):
        (images,) = self.views(data)
        return self.model(images).square().mean()


@pytest.mark.parametrize("resume", [True, "auto"])
def test_resume_refuses_another_temperature_seed_or_algorithm_whose_weights_fit(resume):
    bank = InstanceDiscriminationSupervisor(tiny_images(), backbone=TinyBackbone(), temperature=0.2, seed=0)
    bank.supervise(name="bank", **SHORT)
    rotatenet().supervise(name="run", **SHORT)
    longer = SHORT | {"epochs": 2, "resume": resume}
    with pytest.raises(ValueError, match="temperature: was 0.2, is now 0.1"):
        InstanceDiscriminationSupervisor(tiny_images(), backbone=TinyBackbone(), temperature=0.1).supervise(
            name="bank", **longer
        )
    with pytest.raises(ValueError, match="seed: was 0, is now 5"):
        rotatenet().supervise(name="run", seed=5, **longer)
    with pytest.raises(ValueError, match="algorithm: was RotateNetSupervisor, is now Quarters"):
        Quarters(tiny_images(), backbone=TinyBackbone()).supervise(name="run", **longer)


# ---- banks -----------------------------------------------------------------------------------------------------------


def trained_on(seed, name):
    supervisor = InstanceDiscriminationSupervisor(tiny_images(seed=seed), backbone=TinyBackbone(), seed=seed)
    return supervisor.supervise(name=name, **SHORT)


@pytest.mark.parametrize("how", ["trained", "copied", "pickled", "loaded"])
def test_a_bank_is_reset_when_a_run_over_other_images_is_loaded(how):
    trained_on(1, "other")
    supervisor = trained_on(0, "run")
    if how == "copied":
        supervisor = copy.deepcopy(supervisor)
    if how == "pickled":
        supervisor = pickle.loads(pickle.dumps(supervisor))
    if how == "loaded":
        supervisor = InstanceDiscriminationSupervisor(tiny_images(seed=0), backbone=TinyBackbone()).load("run")
    before = supervisor.bank.features.clone()
    assert supervisor.bank.filled
    supervisor.load("other")
    assert not supervisor.bank.filled and not torch.equal(supervisor.bank.features, before)


def test_an_untrained_supervisor_keeps_its_networks_when_a_run_over_other_images_is_loaded():
    trained_on(1, "other")
    supervisor = InstanceDiscriminationSupervisor(tiny_images(seed=0), backbone=TinyBackbone())
    network = supervisor.model
    assert supervisor.load("other").model is network


@pytest.mark.parametrize("algorithm", [InstanceDiscriminationSupervisor, PIRLSupervisor])
def test_a_run_from_the_weights_of_other_images_fills_its_own_bank(algorithm):
    algorithm(tiny_images(seed=1), backbone=TinyBackbone()).supervise(name="other", **SHORT)
    supervisor = algorithm(tiny_images(seed=0), backbone=TinyBackbone())
    supervisor.supervise(name="run", pretrained="other", **SHORT)
    assert supervisor.bank.filled and supervisor.step == 2
