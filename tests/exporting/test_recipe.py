"""What a user of plain torchvision or timm does with an exported file, without superself."""

import warnings

import pytest
import torch
import torchvision
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from superself import export_backbone
from superself.data import Reading

from exported import built, features_of, raw_images


def run(recipe):
    """What a recipe defines, in a process that knows nothing else."""
    assert "superself" not in recipe
    names = {}
    exec(compile(recipe, "recipe", "exec"), names)
    return names["network"], names["preprocess"]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_recipe_for_small_images_gives_the_features_in_plain_torchvision(ending):
    if ending == ".safetensors":
        pytest.importorskip("safetensors")
    backbone, images = built("resnet18", (3, 32, 32)), raw_images((3, 32, 32))
    exported = export_backbone(backbone, f"x{ending}")
    assert exported.recipe.strip() in str(exported)
    for edit in ("network.conv1 = torch.nn.Conv2d(3, 64, 3, ", "network.maxpool = ", "network.fc = "):
        assert edit in exported.recipe
    network, preprocess = run(exported.recipe)
    assert type(network) is torchvision.models.ResNet
    with torch.no_grad():
        torch.testing.assert_close(network(preprocess(images)), features_of(backbone, images), rtol=1e-5, atol=1e-6)


CASES = {  # name -> shape of raw images, options of the preprocessing
    "mobilenet_v3_small": ((4, 32, 40), {}),
    "squeezenet1_1": ((3, 72, 72), {}),
    "timm:resnet10t": ((1, 32, 32), {"reading": Reading(single_channel=True)}),
    "timm:vit_tiny_patch16_224": ((5, 32, 32), {"reading": Reading(norm=1000.0, num_channels=4)}),
}


@pytest.mark.parametrize("name", CASES)
def test_recipes_of_other_networks_give_the_features(name):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    shape, options = CASES[name]
    reading = options.get("reading")
    channels = shape[0] if reading is None else reading.channels(shape[0])
    backbone, images = built(name, (channels, *shape[1:]), **options), raw_images(shape)
    network, preprocess = run(export_backbone(backbone, "x.pth").recipe)
    with torch.no_grad():
        found = network(preprocess(images))
    torch.testing.assert_close(found, features_of(backbone, images), rtol=1e-5, atol=1e-6)


def test_file_of_larger_images_loads_into_the_plain_network_as_torchvision_users_expect():
    backbone, images = built("resnet18", (3, 72, 72)), raw_images((3, 72, 72))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_backbone(backbone, "x.pth", format="torchvision")
    network = torchvision.models.resnet18(num_classes=7)
    loaded = network.load_state_dict(torch.load("x.pth"), strict=False)
    assert loaded.missing_keys == ["fc.weight", "fc.bias"] and loaded.unexpected_keys == []
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        found = network.eval()(backbone.preprocessing(images))
    torch.testing.assert_close(found, features_of(backbone, images), rtol=1e-5, atol=1e-6)
    detector = resnet_fpn_backbone(backbone_name="resnet18", weights=None)  # what Faster R-CNN of torchvision takes
    loaded = detector.body.load_state_dict(torch.load("x.pth"), strict=False)
    assert loaded.missing_keys == loaded.unexpected_keys == []


def test_stem_for_small_images_is_not_hidden_from_torchvision_users():
    backbone = built("resnet18:width=0.1", (3, 32, 32))
    with pytest.raises(ValueError, match="not a network of torchvision, but resnet18:width=0.1"):
        export_backbone(backbone, "x.pth", format="torchvision")
    backbone, images = built("mnasnet0_5", (3, 32, 32)), raw_images((3, 32, 32))
    with pytest.warns(UserWarning, match="plain network of torchvision refuses its weights or gives other features"):
        exported = export_backbone(backbone, "x.pth", format="torchvision")
    network, _ = run(exported.recipe)
    plain = torchvision.models.mnasnet0_5()
    plain.load_state_dict(torch.load("x.pth"), strict=False)  # its 3 x 3 stem has the same shape, and another stride
    plain.classifier = torch.nn.Identity()
    with torch.no_grad():
        found = [model.eval()(backbone.preprocessing(images)) for model in (network, plain)]
    torch.testing.assert_close(found[0], features_of(backbone, images), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[1], found[0], rtol=0.1)


def test_other_library_and_layer_norm_are_refused():
    with pytest.raises(ValueError, match="not a network of timm"):
        export_backbone(built("mnasnet0_5", (3, 72, 72)), "x.pth", format="timm")
    with pytest.raises(ValueError, match="not a network of torchvision, but mnasnet0_5 .*layer norm"):
        export_backbone(built("mnasnet0_5", (3, 72, 72), norm="layer"), "x.pth", format="torchvision")


def test_network_of_torchvision_that_the_user_made_has_its_names_already():
    network = torchvision.models.mnasnet0_5()
    assert export_backbone(network, "x.pth", format="torchvision").recipe is None
    torchvision.models.mnasnet0_5().load_state_dict(torch.load("x.pth"))
