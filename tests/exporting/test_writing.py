"""Exported files: complete or absent, without side effects, of the format that was asked for, or refused with a reason."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from superself import RotateNetSupervisor, export_backbone, load_backbone
from superself.exporting import writing

from cases import TinyBackbone, tiny_images
from exported import as_trained, built, features_of, raw_images


def test_exporting_changes_nothing_of_the_backbone(tiny):
    tiny.train()
    before, random = copy.deepcopy(tiny.state_dict()), torch.get_rng_state()
    tiny.layers[1].weight.requires_grad_(False)
    for ending in (".pth", ".ts"):
        export_backbone(tiny, f"x{ending}")
    assert all(torch.equal(before[key], value) for key, value in tiny.state_dict().items())
    assert all(module.training for module in tiny.modules()) and torch.equal(torch.get_rng_state(), random)
    assert [parameter.requires_grad for parameter in tiny.parameters()].count(False) == 1
    assert tiny.preprocessing is not None


def test_weights_are_contiguous_and_have_memory_of_their_own():
    safetensors = pytest.importorskip("safetensors.torch")
    backbone = TinyBackbone().to(memory_format=torch.channels_last)
    backbone.tied = backbone.layers[0]
    assert not backbone.layers[0].weight.is_contiguous()
    with pytest.raises((RuntimeError, ValueError)):
        safetensors.save(backbone.state_dict())
    export_backbone(as_trained(backbone, (3, 16, 16)), "x.safetensors")
    export_backbone(backbone, "x.pth")
    for state in (safetensors.load_file("x.safetensors"), torch.load("x.pth", weights_only=True)):
        assert all(value.is_contiguous() for value in state.values())
        assert torch.equal(state["tied.weight"], backbone.layers[0].weight)


def test_manifest_of_safetensors_is_readable_without_superself(tiny):
    safetensors = pytest.importorskip("safetensors")
    export_backbone(built("resnet9:width=0.1", (3, 16, 16)), "x.safetensors")
    with safetensors.safe_open("x.safetensors", "pt") as file:
        metadata = file.metadata()
    manifest = json.loads(metadata["superself"])
    assert metadata["format"] == "pt" and manifest["features"] == 48
    assert (manifest["architecture"], manifest["arguments"]["shape"]) == ("resnet9:width=0.1", [3, 16, 16])
    assert manifest["stem"] == {
        "name": "conv1",
        "in_channels": 3,
        "kernel_size": [3, 3],
        "stride": [1, 1],
        "for_small_images": True,
    }
    assert manifest["preprocessing"]["std"] == [0.25] * 3


def test_failed_export_leaves_the_earlier_file(tiny, monkeypatch):
    export_backbone(tiny, "x.pth")
    before = Path("x.pth").read_bytes()

    def fail(state, file):
        file.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(writing.torch, "save", fail)
    with pytest.raises(OSError, match="disk is full"):
        export_backbone(tiny, "x.pth")
    assert Path("x.pth").read_bytes() == before and len(list(Path().iterdir())) == 1


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("x.pt", None, r"\.pt, which are the files of runs; pass a path ending in \.pth"),
        ("x", None, "ends in nothing, which is not the ending of a format"),
        ("x.pth", "keras", "format='keras' is unknown; pass 'state_dict', .* or 'onnx'"),
    ],
)
def test_unknown_formats_are_refused(tiny, path, format, message):
    with pytest.raises(ValueError, match=message):
        export_backbone(tiny, path, format)


def test_folder_is_made_and_is_not_a_file(tiny):
    assert Path(export_backbone(tiny, "new/folder/x.pth")).is_file()
    with pytest.raises(IsADirectoryError, match=r"pass the path of a file, for example .*backbone\.pth"):
        export_backbone(tiny, "new/folder", "state_dict")


def test_what_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match="pass a module, for example supervisor.get_backbone"):
        export_backbone("resnet18", "x.pth")


def test_graphs_need_a_preprocessing():
    for name in ("x.ts", "x.onnx"):
        with pytest.raises(ValueError, match="take raw images, and the preprocessing of this TinyBackbone is unknown"):
            export_backbone(TinyBackbone(), name)
    export_backbone(TinyBackbone(), "x.pth")  # weights do not


def test_diverged_weights_are_refused(tiny):
    with torch.no_grad():
        tiny.layers[3].bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.3\.bias is not finite, so the run had diverged"):
        export_backbone(tiny, "x.pth")
    assert not Path("x.pth").exists()


class DependsOnValues(TinyBackbone):
    """Takes another way for dark images, which a trace does not keep."""

    def forward(self, images):
        return super().forward(images if len(images) > 1 else 2 * images)


def test_network_whose_operations_depend_on_the_batch_is_refused_as_a_graph():
    backbone = as_trained(DependsOnValues(), (3, 16, 16))
    with pytest.raises(ValueError, match="DependsOnValues cannot be traced for TorchScript .*depend on the images"):
        export_backbone(backbone, "x.ts")
    assert not Path("x.ts").exists()


def test_traced_network_refuses_sizes_that_it_would_compute_wrongly():
    fixed, free = built(None, (3, 32, 32)), built("resnet9:width=0.1", (3, 16, 16))
    export_backbone(fixed, "fixed.ts")  # its padding depends on the size of the images
    export_backbone(free, "free.ts")
    images = raw_images((3, 32, 32))
    torch.testing.assert_close(torch.jit.load("fixed.ts")(images), features_of(fixed, images))
    with pytest.raises(torch.jit.Error, match="exported for images of"):
        torch.jit.load("fixed.ts")(raw_images((3, 33, 35)))
    images = raw_images((3, 21, 24))
    torch.testing.assert_close(torch.jit.load("free.ts")(images), features_of(free, images))


def test_torchscript_takes_bytes_and_floats_alike(tiny):
    export_backbone(tiny, "x.ts")
    network, images = torch.jit.load("x.ts"), raw_images((3, 16, 16))
    torch.testing.assert_close(network(images.float() / 255), network(images))
    torch.testing.assert_close(network(images.to(torch.uint16) * 257), network(images))


def test_missing_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for name in ("x.safetensors", "x.onnx"):
        with pytest.raises(ImportError, match=r'pip install "superself\[export\]"'):
            export_backbone(tiny, name)
    assert not Path("x.safetensors").exists()


def test_onnx_says_what_it_is(tiny):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    exported = export_backbone(tiny, "x.onnx")
    model = onnx.load("x.onnx")
    onnx.checker.check_model(model)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    manifest = json.loads(properties["superself"])
    opset = model.opset_import[0].version
    assert f"opset {opset}" in str(exported) and manifest["opset"] == opset
    assert [value.name for value in model.graph.output] == ["features"]
    (images,) = model.graph.input
    assert images.name == "images" and images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, 16, 16]


def test_supervisor_that_was_not_built_says_so():
    with pytest.raises(TypeError, match="pass a data set so that it can be built"):
        RotateNetSupervisor().export("x.pth")


def test_supervisor_returns_what_it_wrote():
    supervisor = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone())
    exported = supervisor.export("x.pth")
    assert str(exported).startswith(
        "x.pth (state_dict): TinyBackbone, 16 features; superself.load_backbone('x.pth', into="
    )
    assert isinstance(load_backbone(exported, into=TinyBackbone()), nn.Module)
