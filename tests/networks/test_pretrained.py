"""Weights to start from: by name without a network, and from files of all kinds."""

from __future__ import annotations

import urllib.request
import warnings
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from superself import BYOLSupervisor, LabelSupervisor, RotateNetSupervisor
from superself.networks import CombinedNet, build_backbone, describe, fresh_copy, load_weights
from superself.networks.pretrained import read_weights

from cases import CASES, tiny_images

NAME = "resnet9:width=0.125"  # fast
HEADS = {"projector": {"hidden": 16, "out_features": 16}, "predictor": {"hidden": 16}}  # of BYOL
SHAPE = (3, 72, 72)  # above 64 pixels: the usual stem


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(state, path="weights.pth"):
    torch.save(state, path)
    return path


def same_weights(first, second, leave_out=()):
    ours, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours if key not in leave_out)


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.fixture
def source():
    return build_backbone(NAME, SHAPE)


WRAPPED = {
    "a plain state dict": lambda state: state,
    "with a classifier": lambda state: {**state, "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)},
    "of DistributedDataParallel": lambda state: prefixed("module.", state),
    "of lightly": lambda state: {
        "epoch": 3,
        "state_dict": {**prefixed("backbone.", state), **prefixed("momentum.", state)},
    },
    "of MoCo": lambda state: {"state_dict": prefixed("module.encoder_q.", state), "optimizer": {"state": {}}},
    "of DINO": lambda state: {"teacher": prefixed("module.backbone.", state), "args": None},
    "in half precision": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_files_of_all_kinds_are_understood(source, kind):
    state = WRAPPED[kind](source.state_dict())
    loaded = build_backbone(f"{NAME}@{write(state)}", SHAPE)
    if kind == "in half precision":
        source.load_state_dict(state)
    assert same_weights(loaded, source) and loaded.conv1.weight.dtype == torch.float32
    report = loaded.loaded_weights
    assert report.missing == () and report.matched == tuple(source.state_dict())
    assert report.unexpected == (("fc.weight", "fc.bias") if kind == "with a classifier" else report.unexpected)
    assert describe(loaded).endswith("64 features, from the weights of weights.pth")


def test_the_first_of_equally_good_networks_is_taken(source):
    momentum = {key: torch.zeros_like(value) for key, value in source.state_dict().items()}
    file = write({**prefixed("encoder_q.", source.state_dict()), **prefixed("encoder_k.", momentum)})
    assert same_weights(build_backbone(f"{NAME}@{file}", SHAPE), source)
    report = load_weights(build_backbone(NAME, SHAPE), file)
    assert "encoder_k.conv1.weight" in report.unexpected
    assert str(report).startswith(
        f"{len(report.matched)} of {len(report.matched)} tensors from weights.pth; not used: enc"
    )


def test_argument_and_spelling_in_the_name_and_a_module_are_the_same(source):
    file = write(source.state_dict())
    assert same_weights(build_backbone(NAME, SHAPE, weights=Path(file)), source)
    assert same_weights(build_backbone(build_backbone(NAME, SHAPE), weights=file), source)
    default = build_backbone(None, (3, 32, 32))
    write(default.state_dict(), "default.pt")
    assert same_weights(build_backbone("@default", (3, 32, 32)), default)  # .pt may be left out, as in names of runs


@pytest.mark.filterwarnings("ignore:weights of")
def test_every_algorithm_starts_from_the_weights_of_its_backbone(source):
    write(source.state_dict())
    for case in CASES:
        supervisor = case.algorithm(tiny_images(4, size=SHAPE[1:]), backbone=f"{NAME}@weights.pth")
        found = [value for key, value in supervisor.state_dict().items() if key.endswith("layer2.0.conv2.weight")]
        assert found and all(torch.equal(value, source.layer2[0].conv2.weight) for value in found), case.algorithm


def test_a_run_of_superself_gives_its_backbone_to_another_method(source):
    images = tiny_images(8, size=SHAPE[1:])
    first = RotateNetSupervisor(images, backbone=NAME, seed=1)
    first.supervise(epochs=1, batch_size=4, name="store/first", progress=False)
    second = BYOLSupervisor(images, backbone=f"{NAME}@store/first", seed=2, **HEADS)
    assert same_weights(second.get_backbone(), first.get_backbone())


def test_a_run_is_loaded_and_resumed_without_the_file_it_started_from(source):
    images = tiny_images(8, size=SHAPE[1:])
    write(source.state_dict())
    trained = BYOLSupervisor(images, backbone=f"{NAME}@weights.pth", seed=0, **HEADS)
    trained.supervise(epochs=1, batch_size=4, name="run", progress=False, precision="32-true")
    Path("weights.pth").unlink()
    loaded = BYOLSupervisor().load("run")
    assert same_weights(loaded.get_backbone(), trained.get_backbone())
    assert describe(loaded.get_backbone()) == describe(trained.get_backbone())
    options = {"batch_size": 4, "name": "run", "progress": False, "precision": "32-true"}
    BYOLSupervisor(images, seed=0, **HEADS).supervise(epochs=2, resume=True, **options)
    with pytest.raises(
        FileNotFoundError, match="weights='weights.pth' is not an existing file; pass the path of a file"
    ):
        BYOLSupervisor(images, backbone=f"{NAME}@weights.pth")


def test_the_baseline_of_a_pretrained_network_is_random(source):
    loaded = build_backbone(f"{NAME}@{write(source.state_dict())}", SHAPE)
    fresh = fresh_copy(loaded)
    assert not any(
        torch.equal(*pair) for pair in zip(fresh.parameters(), source.parameters(), strict=True) if pair[0].ndim > 1
    )
    assert "weights" not in describe(fresh) and not hasattr(fresh, "loaded_weights")
    assert same_weights(loaded, source)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_see_the_sum_of_the_weights(source, channels):
    file = write(source.state_dict())
    with pytest.warns(
        UserWarning, match=f"its first convolution conv1 takes 3 channels and this network's {channels}: each"
    ):
        loaded = build_backbone(f"{NAME}@{file}", (channels, 72, 72)).eval()
    assert same_weights(loaded, source, leave_out=("conv1.weight",))
    grey = torch.rand(2, 1, 72, 72)
    torch.testing.assert_close(loaded(grey.expand(-1, channels, -1, -1)), source.eval()(grey.expand(-1, 3, -1, -1)))


def test_the_stem_for_small_images_stays_random_and_is_named(source):
    file = write(source.state_dict())
    with pytest.warns(
        UserWarning, match="convolution conv1 is 7 x 7 and this network's is 3 x 3, which keeps its random"
    ):
        loaded = build_backbone(f"{NAME}@{file}", (3, 32, 32))
    assert loaded.loaded_weights.missing == ("conv1.weight",)
    assert same_weights(loaded, source, leave_out=("conv1.weight",))
    small = build_backbone(NAME, (3, 32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_weights(build_backbone(f"{NAME}@{write(small.state_dict())}", (3, 40, 40)), small)


@pytest.mark.parametrize("name", ["resnet18:width=0.125", "resnet9:width=0.25", "resnet50:width=0.125", "alexnet_bn"])
def test_weights_of_another_network_are_refused(source, name):
    file = write(build_backbone(name, SHAPE).state_dict())
    with pytest.raises(
        ValueError, match=r"weights of weights.pth are not those of resnet9:width=0.125: \d+ of \d+ tensors fit"
    ):
        build_backbone(f"{NAME}@{file}", SHAPE)


def test_what_is_missing_is_listed(source):
    state = source.state_dict()
    for key in ("layer1.0.conv1.weight", "bn1.running_mean"):
        del state[key]
    with pytest.raises(ValueError, match=r"not in it: bn1.running_mean, layer1.0.conv1.weight\)"):
        load_weights(build_backbone(NAME, SHAPE), state)


def test_layer_norm_takes_scale_and_shift_of_the_batch_norm(source):
    source.bn1.weight.data.fill_(3)
    with pytest.warns(UserWarning, match="no batch norm, so its norm layers take scale and shift only"):
        loaded = build_backbone(f"{NAME}@{write(source.state_dict())}", SHAPE, norm="layer")
    assert loaded.bn1.weight.unique().item() == 3 and torch.equal(loaded.conv1.weight, source.conv1.weight)


def test_names_of_torchvision_load_from_its_cache(tmp_path):
    theirs = torchvision.models.squeezenet1_1()
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2])
    for weights in ("imagenet", "IMAGENET1K_V1"):
        loaded = build_backbone(f"squeezenet1_1@{weights}", (3, 80, 80))
        assert torch.equal(loaded.features[0].weight, theirs.features[0].weight)
        assert loaded.loaded_weights.unexpected == ("classifier.1.weight", "classifier.1.bias")
        assert describe(loaded).endswith(f"from the weights of {weights}")


def test_a_failing_download_names_the_local_file_as_remedy():
    with pytest.raises(
        OSError, match=r"imagenet of squeezenet1_1 could not be downloaded \(.*no network.*squeezenet1_1@PATH"
    ):
        build_backbone("squeezenet1_1@imagenet", SHAPE)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        FileNotFoundError, match=r"'V9' is not .* weights of resnet50 \(imagenet, IMAGENET1K_V1, IMAGENET1K_V2\)"
    ):
        build_backbone("resnet50@V9", SHAPE)
    with pytest.raises(FileNotFoundError, match="'imagenet' is not an existing file; pass the path of a file"):
        build_backbone("resnet9@imagenet", SHAPE)


def test_position_embeddings_are_interpolated_to_another_grid():
    small = build_backbone("timm:vit_tiny_patch16_224", (3, 64, 64)) if _has_timm() else pytest.skip("needs timm")
    small.pos_embed.data[:, 1:] = torch.arange(16.0).view(1, 16, 1)
    with pytest.warns(UserWarning, match=r"position embeddings were interpolated to this network's grid \(pos_embed\)"):
        large = build_backbone("timm:vit_tiny_patch16_224", (3, 96, 96), weights=write(small.state_dict()))
    assert torch.equal(large.pos_embed[:, 0], small.pos_embed[:, 0])
    rows = large.pos_embed[0, 1:, 0].view(6, 6)
    assert (
        (rows.diff(dim=0) > 0).all()
        and (rows.diff(dim=1) > 0).all()
        and rows.mean().item() == pytest.approx(7.5, abs=0.1)
    )


def _has_timm():
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    "name", ["timm:resnet10t@imagenet", "timm:resnet10t@c3_in1k", "timm:resnet10t.c3_in1k@imagenet"]
)
def test_names_of_timm_load_what_its_hub_gives(monkeypatch, name):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet10t")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *a, **k: theirs.state_dict())
    loaded = build_backbone(name, (3, 80, 80))
    assert torch.equal(loaded.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight)
    assert loaded.loaded_weights.unexpected == ("fc.weight", "fc.bias")


def test_a_failing_download_of_timm_names_the_local_file_too(monkeypatch):
    timm = pytest.importorskip("timm")

    def fail(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    with pytest.raises(OSError, match=r'could not be downloaded \(offline\).*pass backbone="timm:resnet10t@PATH"'):
        build_backbone("timm:resnet10t@imagenet", SHAPE)
    with pytest.raises(FileNotFoundError, match=r"weights of timm:resnet10t \(imagenet, c3_in1k\)"):
        build_backbone("timm:resnet10t@a9", SHAPE)


class Harmful:
    pass


def test_files_with_other_objects_are_not_read(source):
    with pytest.raises(ValueError, match="is not a file of tensors .*; write one with torch.save"):
        read_weights(write({"state_dict": source.state_dict(), "args": Harmful()}))
    Path("text.pth").write_text("not weights")
    with pytest.raises(ValueError, match="text.pth is not a file of tensors"):
        build_backbone(f"{NAME}@text.pth", SHAPE)


def test_a_probe_trains_on_pretrained_features(source):
    backbone = build_backbone(f"{NAME}@{write(source.state_dict())}", SHAPE)
    model = CombinedNet(backbone, nn.Linear(64, 2))
    images = (tiny_images(8, size=SHAPE[1:]), torch.arange(8) % 2)
    LabelSupervisor(model, images).supervise(epochs=1, batch_size=4, name="probe", progress=False)
    assert torch.equal(backbone.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files_are_named(source, zipped):
    torch.save(source.state_dict(), "whole.pth", _use_new_zipfile_serialization=zipped)
    content = Path("whole.pth").read_bytes()
    for size in (4, 30, 70, 200, len(content) // 2, len(content) - 40):
        Path("cut.pth").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut.pth is not a file of tensors"):
            read_weights("cut.pth")


def test_networks_that_refuse_tensors_without_a_version_take_a_file():
    write(torchvision.models.mnasnet0_5().state_dict())
    backbone = build_backbone("mnasnet0_5@weights.pth", SHAPE)
    assert not backbone.loaded_weights.missing
