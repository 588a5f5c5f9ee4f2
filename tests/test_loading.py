"""open_backbone: whatever holds a backbone gives it, and what holds none says what to pass instead."""

import pytest
import torch

from superself import LabelSupervisor, RotateNetSupervisor, export_backbone
from superself.loading import open_backbone

from cases import TinyBackbone, tiny_images
from exported import built, features_of, raw_images


def test_modules_supervisors_runs_and_files():
    supervisor = RotateNetSupervisor(tiny_images(), backbone="resnet9:width=0.1", seed=0)
    assert open_backbone(supervisor) is supervisor.get_backbone()
    module = TinyBackbone()
    assert open_backbone(module) is module
    supervisor.supervise(epochs=1, batch_size=16, name="store/run", progress=False)
    supervisor.export("x.pth")
    supervisor.export("x.ts")
    supervisor.export("graph.pt", format="torchscript")
    images = raw_images((3, 16, 16))
    expected = features_of(supervisor.get_backbone().eval(), images)
    for given in ("store/run", "store/run.pt", "x.pth", "x.ts", "graph.pt"):
        torch.testing.assert_close(features_of(open_backbone(given).eval(), images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("byol", ValueError, "'byol' is the name of an algorithm, .*train it first, supervise.name='store/byol'"),
        ("moco-v1", ValueError, "'moco-v1' is the name of a preset"),
        ("resnet18", ValueError, "'resnet18' is the name of a network without trained weights; pass build_backbone"),
        ("timm:resnet10t", ValueError, "name of a network without trained weights"),
        ("missing.pth", FileNotFoundError, r"There is no file 'missing\.pth'"),
        (".", IsADirectoryError, "is a folder"),
        ("store/none", FileNotFoundError, "There is no run 'store/none'"),
        (3, TypeError, "3 holds no backbone; pass a module, a supervisor, the name of a run, or an exported file"),
    ],
)
def test_what_holds_no_backbone_is_refused_with_a_remedy(given, error, message):
    with pytest.raises(error, match=message):
        open_backbone(given)


def test_run_may_have_the_name_of_a_method():
    backbone = "resnet9:width=0.1"
    RotateNetSupervisor(tiny_images(), backbone=backbone).supervise(
        epochs=1, batch_size=16, name="byol", progress=False
    )
    assert open_backbone("byol").spec.name == backbone


def test_custom_module_in_a_file_asks_for_the_module():
    export_backbone(built("resnet9:width=0.1", (3, 16, 16)), "known.pth")
    assert open_backbone("known.pth").spec.name == "resnet9:width=0.1"
    export_backbone(TinyBackbone(), "custom.pth")
    with pytest.raises(ValueError, match="pass it as into="):
        open_backbone("custom.pth")


def test_runs_with_labels_hold_a_backbone_too():
    run = {"epochs": 1, "batch_size": 16, "progress": False}
    labelled = (tiny_images(), torch.arange(len(tiny_images())) % 2)
    network = built("resnet9:width=0.1", (3, 16, 16))
    trained = LabelSupervisor(backbone=network, dataset=labelled, freeze=False).supervise(name="classifier", **run)
    images = raw_images((3, 16, 16))
    expected = features_of(trained.get_backbone().eval(), images)
    torch.testing.assert_close(features_of(open_backbone("classifier").eval(), images), expected)
    assert torch.equal(LabelSupervisor().load("classifier").predict(images).labels, trained.predict(images).labels)
    LabelSupervisor(backbone=TinyBackbone(), dataset=labelled).supervise(name="custom", **run)
    with pytest.raises(ValueError, match=r"LabelSupervisor\(backbone=YOUR_MODULE\)\.load\('custom'\)"):
        open_backbone("custom")
