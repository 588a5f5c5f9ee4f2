"""A backbone that is exported and loaded gives the same features on the same raw images: every kind, every format."""

import pytest
import torch

from superself import export_backbone, load_backbone
from superself.data import Reading
from superself.evaluation import features
from superself.networks import LabHalves, build_backbone, describe

from cases import CASES, TinyBackbone, tiny_halves
from exported import as_trained, built, features_of, raw_images

WEIGHTS = (".pth", ".safetensors")
SMALL = "resnet9:width=0.1"
KINDS = {  # name -> backbone, shape of raw images
    "resnet9, 1 channel": lambda: (built(SMALL, (1, 16, 16)), (1, 16, 16)),
    "resnet9, 4 channels, not square": lambda: (built(SMALL, (4, 16, 24)), (4, 16, 24)),
    "resnet18, large stem": lambda: (built("resnet18:width=0.1", (3, 72, 72)), (3, 72, 72)),
    "standardised weights": lambda: (built("ws_resnet18:width=0.1", (3, 16, 16)), (3, 16, 16)),
    "layer norm": lambda: (built(SMALL, (3, 16, 16), norm="layer"), (3, 16, 16)),
    "EfficientNet, the default": lambda: (built(None, (3, 32, 32)), (3, 32, 32)),
    "Sobel derivatives": lambda: (built(SMALL, (3, 16, 16), sobel=True), (3, 16, 16)),
    "norm and num_channels": lambda: (
        built(SMALL, (3, 16, 16), dtype="uint16", reading=Reading(10_000, 3)),
        (4, 16, 16),
    ),
    "single_channel": lambda: (built(SMALL, (3, 16, 16), reading=Reading(single_channel=True)), (1, 16, 16)),
    "vit of timm": lambda: (built("timm:vit_tiny_patch16_224", (3, 32, 32)), (3, 32, 32)),
    "halves in Lab": lambda: (
        as_trained(
            LabHalves(build_backbone(SMALL, (1, 16, 16)), build_backbone(SMALL, (2, 16, 16))),
            (3, 16, 16),
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
        ),
        (3, 16, 16),
    ),
    "torchvision, channels last": lambda: (
        built("mnasnet0_5", (3, 32, 32)).to(memory_format=torch.channels_last),
        (3, 32, 32),
    ),
}


def of_raw(kind):
    backbone, shape = KINDS[kind]()
    norm = getattr(backbone.preprocessing.reading, "norm", None)
    return backbone, raw_images(shape, dtype=torch.uint16 if norm else torch.uint8)


@pytest.mark.parametrize("ending", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_with_the_same_features(kind, ending):
    if ending == ".safetensors":
        pytest.importorskip("safetensors")
    if "timm" in kind:
        pytest.importorskip("timm")
    backbone, images = of_raw(kind)
    random = torch.get_rng_state()
    loaded = load_backbone(export_backbone(backbone, f"x{ending}"))
    assert torch.equal(torch.get_rng_state(), random)
    assert loaded is not backbone and not loaded.training
    assert describe(loaded) == describe(backbone) and not loaded.loaded_weights.missing
    assert loaded.preprocessing == backbone.preprocessing
    torch.testing.assert_close(features_of(loaded, images), features_of(backbone, images), rtol=1e-5, atol=1e-6)


def with_preprocessing(backbone, preprocessing):
    backbone.preprocessing = preprocessing
    return backbone.eval()


TINY = ("Sobel derivatives", "norm and num_channels", "single_channel")


@pytest.mark.parametrize("kind", ["resnet9, 1 channel", *TINY, "halves in Lab"])
def test_torchscript_takes_raw_images(kind):
    backbone, images = of_raw(kind)
    exported = export_backbone(backbone, "x.ts")
    expected = features_of(backbone, images)
    torch.testing.assert_close(torch.jit.load("x.ts")(images), expected)
    loaded = load_backbone(exported)
    torch.testing.assert_close(features_of(loaded, images), expected)
    assert loaded.preprocessing == backbone.preprocessing


LARGER = ("standardised weights", "EfficientNet, the default", "layer norm", "vit of timm", "single_channel")
THOROUGH = [pytest.param(kind, marks=pytest.mark.thorough) for kind in LARGER]


@pytest.mark.parametrize("kind", ["resnet9, 1 channel", "halves in Lab", *TINY[:2], *THOROUGH])
def test_onnx_takes_raw_images_in_any_number(kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    backbone, images = of_raw(kind)
    if kind in TINY:  # the preprocessing is what is tested
        backbone = with_preprocessing(TinyBackbone(), backbone.preprocessing)
    elif kind == "halves in Lab":
        backbone = with_preprocessing(tiny_halves(), backbone.preprocessing)
    reading = backbone.preprocessing.reading
    if reading is not None and reading.num_channels:
        images = images[:, : reading.num_channels]
    exported = export_backbone(backbone, "x.onnx")
    expected = features_of(backbone, images)
    session = onnxruntime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        found = session.run(["features"], {"images": batch.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), expected[: len(batch)], atol=2e-5, rtol=1e-4)
    loaded = load_backbone(exported)
    torch.testing.assert_close(features_of(loaded, images), expected, atol=2e-5, rtol=1e-4)
    assert loaded.preprocessing == backbone.preprocessing


@pytest.mark.parametrize("ending", [".pth", ".ts"])
def test_features_of_a_data_set_are_those_of_the_original(ending):
    backbone, images = of_raw("norm and num_channels")
    loaded = load_backbone(export_backbone(backbone, f"x{ending}"))
    torch.testing.assert_close(features(loaded, images).features, features(backbone, images).features)


@torch.no_grad()
def change_weights(backbone):
    generator = torch.Generator().manual_seed(4)
    for parameter in backbone.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@pytest.mark.parametrize("case", CASES, ids=[case.algorithm.__name__ for case in CASES])
def test_every_algorithm_exports_its_backbone(case):
    pytest.importorskip("safetensors")
    supervisor = case.make()
    backbone, images = supervisor.get_backbone().eval(), supervisor.images.batch(torch.arange(8)).images
    change_weights(backbone)  # as training does: those of two tiny backbones are equal
    supervisor.export("x.safetensors")
    loaded = load_backbone("x.safetensors", into=case.make().get_backbone()).eval()
    assert loaded.preprocessing == backbone.preprocessing
    torch.testing.assert_close(features_of(loaded, images), features_of(backbone, images), rtol=1e-5, atol=1e-6)


def test_custom_module_needs_into_and_is_recognised_by_its_features(tiny):
    export_backbone(tiny, "x.pth")
    with pytest.raises(ValueError, match=r"custom module, .*TinyBackbone; make one and pass it as into="):
        load_backbone("x.pth")
    other = TinyBackbone()
    change_weights(other)
    images = raw_images((3, 16, 16))
    loaded = load_backbone("x.pth", into=other)
    assert loaded is other and torch.equal(features_of(loaded.eval(), images), features_of(tiny, images))

    class Doubled(TinyBackbone):
        def forward(self, images):
            return 2 * super().forward(images)

    with pytest.raises(ValueError, match=r"features of a test image differ from those at export by .*verify=False"):
        load_backbone("x.pth", into=Doubled())
    doubled = load_backbone("x.pth", into=Doubled(), verify=False).eval()
    torch.testing.assert_close(features_of(doubled, images), 2 * features_of(tiny, images))


def test_halves_of_custom_modules_are_custom():
    halves = as_trained(tiny_halves(), (3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert export_backbone(halves, "x.pth").manifest["architecture"] == "custom"


def test_average_of_the_weights_is_exported_when_asked_for():
    case = next(case for case in CASES if case.algorithm.__name__ == "RotateNetSupervisor")
    supervisor = case.make()
    supervisor.supervise(epochs=1, batch_size=8, average=0.9, progress=False)
    supervisor.export("last.pth")
    supervisor.export("average.pth", averaged=True)
    last, average = torch.load("last.pth", weights_only=True), torch.load("average.pth", weights_only=True)
    assert all(torch.equal(last[key], value) for key, value in supervisor.get_backbone().state_dict().items())
    assert all(torch.equal(average[key], value) for key, value in supervisor.averaged_weights.items())
    assert not torch.equal(last["layers.0.weight"], average["layers.0.weight"])
