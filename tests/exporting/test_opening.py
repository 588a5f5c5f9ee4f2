"""Weights of others, files that are not what they seem, and what the messages say."""

import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from superself import RotateNetSupervisor, export_backbone, load_backbone
from superself.networks import build_backbone

from cases import TinyBackbone, tiny_images
from exported import built


def weights(scale=1.0):
    return {name: value * scale for name, value in TinyBackbone().state_dict().items()}


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


FOREIGN = {  # content -> prefix that is removed
    "plain": (weights(2), ""),
    "DistributedDataParallel": (prefixed("module.", weights(2)), "module."),
    "MoCo": (
        {"epoch": 3, "state_dict": {**prefixed("module.encoder_q.", weights(2)), "module.queue": torch.zeros(4)}},
        "state_dict.module.encoder_q.",
    ),
    "lightly": ({"state_dict": prefixed("backbone.", weights(2))}, "state_dict.backbone."),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_weights_of_others_load_without_their_prefix(kind):
    content, prefix = FOREIGN[kind]
    torch.save(content, "x.pth")
    loaded = load_backbone("x.pth", into=TinyBackbone())
    torch.testing.assert_close(loaded.layers[0].weight, 2 * TinyBackbone().layers[0].weight)
    report = str(loaded.loaded_weights)
    assert "from x.pth" in report and (not prefix or f"the prefix '{prefix}' was removed" in report)


def test_student_and_teacher_are_told_apart():
    content = {"student": prefixed("module.backbone.", weights(2)), "teacher": prefixed("backbone.", weights(3))}
    torch.save(content, "x.pth")
    with pytest.warns(UserWarning, match=r"'teacher\.backbone\.' fits equally well; pass it as prefix="):
        student = load_backbone("x.pth", into=TinyBackbone())
    teacher = load_backbone("x.pth", into=TinyBackbone(), prefix="teacher.")
    torch.testing.assert_close(student.layers[0].weight, 2 * TinyBackbone().layers[0].weight)
    torch.testing.assert_close(teacher.layers[0].weight, 3 * TinyBackbone().layers[0].weight)


def test_torchvision_weights_load_by_architecture():
    network = torchvision.models.mnasnet0_5()
    torch.save(network.state_dict(), "x.pth")
    loaded = load_backbone("x.pth", architecture="mnasnet0_5")
    assert torch.equal(loaded.layers[0].weight, network.layers[0].weight) and not loaded.training
    assert set(loaded.loaded_weights.unexpected) == {"classifier.1.weight", "classifier.1.bias"}
    assert not loaded.loaded_weights.missing


def test_classifier_that_is_missing_gives_a_warning():
    export_backbone(built("mnasnet0_5", (3, 72, 72)), "x.pth")
    network = torchvision.models.mnasnet0_5(num_classes=5)
    with pytest.warns(UserWarning, match=r"not in it: classifier\.1\.weight, classifier\.1\.bias"):
        loaded = load_backbone("x.pth", into=network)
    assert loaded is network and loaded.preprocessing is not None


def test_too_few_matching_tensors_are_refused():
    torch.save({"other.weight": torch.zeros(3)}, "none.pth")
    with pytest.raises(
        ValueError, match=r"none\.pth does not hold the weights of this TinyBackbone: 0 of 12 .* at least 90%"
    ):
        load_backbone("none.pth", into=TinyBackbone())
    half = dict(list(weights(2).items())[:6])
    torch.save(half, "half.pth")
    network = TinyBackbone()
    with pytest.raises(ValueError, match="needed are at least 90%"):
        load_backbone("half.pth", into=network)
    assert torch.equal(network.layers[0].weight, TinyBackbone().layers[0].weight)
    with pytest.warns(UserWarning, match="not in it"):
        load_backbone("half.pth", into=network, share=0.5)
    assert torch.equal(network.layers[0].weight, half["layers.0.weight"])


def test_tensors_of_another_shape_do_not_match():
    torch.save(TinyBackbone(width=24).state_dict(), "x.pth")
    with pytest.raises(ValueError, match=r"layers\.3\.weight has another shape"):
        load_backbone("x.pth", into=TinyBackbone())


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


def test_no_code_in_a_file_is_run():
    for name in ("x.pth", "x.ts", "x.safetensors", "x.onnx"):
        if name == "x.safetensors":
            pytest.importorskip("safetensors")
        if name == "x.onnx":
            pytest.importorskip("onnxruntime")
        Path(name).write_bytes(pickle.dumps(Harmful()))
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_backbone(name, into=TinyBackbone() if name not in ("x.ts", "x.onnx") else None)
    torch.save({"weights": Harmful()}, "zip.pth")
    with pytest.raises(ValueError, match="not a file of tensors"):
        load_backbone("zip.pth", into=TinyBackbone())
    assert not Path("harmed").exists()


def test_plain_weights_need_to_be_told_their_network():
    torch.save(weights(), "x.pth")
    with pytest.raises(ValueError, match=r"does not say which network .* pass into=YOUR_MODULE, or architecture="):
        load_backbone("x.pth")
    with pytest.raises(ValueError, match="pass one of them"):
        load_backbone("x.pth", into=TinyBackbone(), architecture="resnet18")
    with pytest.raises(TypeError, match="into=.* is not a network"):
        load_backbone("x.pth", into="resnet18")
    with pytest.raises(TypeError, match="path=3 is not a path"):
        load_backbone(3)


def test_runs_and_missing_files_are_named():
    RotateNetSupervisor(tiny_images(), backbone=TinyBackbone()).supervise(
        epochs=1, batch_size=16, name="run", progress=False
    )
    with pytest.raises(ValueError, match=r"is a run, not an exported backbone; load it with RotateNetSupervisor\(\)"):
        load_backbone("run.pt")
    with pytest.raises(FileNotFoundError, match="it is the name of a run"):
        load_backbone("run")
    torch.save(weights(), "other.pth")
    with pytest.raises(FileNotFoundError, match=r"There is no file 'missing\.pth'; .*other\.pth"):
        load_backbone("missing.pth")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_backbone(".")


def test_manifest_of_a_newer_version_is_refused(tiny):
    export_backbone(tiny, "x.pth")
    state = torch.load("x.pth", weights_only=True)
    state._metadata["superself"]["manifest"] = 2
    torch.save(state, "x.pth")
    with pytest.raises(ValueError, match="reads up to 1; upgrade superself"):
        load_backbone("x.pth", into=TinyBackbone())


def test_changed_network_of_a_known_name_is_custom():
    backbone = build_backbone("resnet9:width=0.1", (3, 16, 16))
    backbone.layer4 = nn.Sequential(*backbone.layer4, nn.Conv2d(48, 5, 1))
    assert export_backbone(backbone, "x.pth").manifest["architecture"] == "custom"


def test_graphs_take_no_module(tiny):
    export_backbone(tiny, "x.ts")
    with pytest.raises(ValueError, match="holds a graph and no weights by name"):
        load_backbone("x.ts", into=TinyBackbone())


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_flipped_bit_is_noticed(ending, tmp_path):
    backbone = build_backbone("resnet9:width=0.25", (3, 16, 16)).eval()
    path = export_backbone(backbone, tmp_path / f"x.{ending}").path
    value = backbone.state_dict()
    name = next(name for name, tensor in value.items() if tensor.numel() > 100)
    whole = path.read_bytes()
    at = whole.index(value[name].contiguous().numpy().tobytes()) + 41
    if ending == "pth":  # whose own sums are of the archive
        content = torch.load(path, weights_only=True)
        content[name].view(-1).view(torch.uint8)[41] ^= 64
        torch.save(content, path)
    else:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="is damaged: its tensors are not those"):
        load_backbone(path)


def test_another_stem_does_not_stay_random(tmp_path):
    path = export_backbone(build_backbone("resnet18", (3, 32, 32)).eval(), tmp_path / "x.pth").path
    for shape in ((3, 128, 128), (1, 32, 32)):
        with pytest.raises(ValueError, match="conv1.weight of this ResNet would stay random"):
            load_backbone(path, into=build_backbone("resnet18", shape))


def test_a_graph_says_which_file_it_is_from(tiny):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_backbone(tiny, "m.onnx")
    assert repr(load_backbone("m.onnx")) == "OnnxBackbone('m.onnx', 16 features)"
