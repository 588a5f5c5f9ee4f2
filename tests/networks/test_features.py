"""What backbones of all kinds provide: features, maps, tokens, sizes, descriptions and fresh copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from superself.networks import (
    CombinedNet,
    EfficientFeatures,
    build_backbone,
    describe,
    feature_maps,
    feature_tokens,
    feature_width,
    fresh_copy,
    map_shape,
    pool_features,
    pooled_features,
    tile_width,
)


class Returns(nn.Module):
    """Gives whatever a function makes of the images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def small_backbone():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5))


def gives(output):
    return Returns(lambda images: output)


def test_features_pass_and_maps_and_tokens_are_averaged():
    output = torch.randn(2, 3)
    assert pool_features(output) is output
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])  # (1, 1, 2, 2)
    assert pool_features(maps).tolist() == [[3.0]]
    tokens = torch.tensor([[[1.0, 10.0], [3.0, 20.0]]])  # (1, 2 tokens, 2)
    assert pool_features(tokens).tolist() == [[2.0, 15.0]]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ((None, 3), r"returned a tuple without a tensor, but a floating-point tensor \(B, D\).*wrap the backbone"),
        ({}, "returned a dict without a tensor, but a floating-point tensor"),
        (None, "returned a NoneType, but"),
        (torch.zeros(2), r"tensor of shape \(2,\) and type torch.float32, but a floating-point tensor"),
        (torch.zeros(2, 3, 1, 1, 1), r"tensor of shape \(2, 3, 1, 1, 1\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "type torch.int64, but a floating-point tensor"),
    ],
)
def test_unusable_outputs_are_refused(output, said):
    with pytest.raises(ValueError, match=said):
        pool_features(output)
    with pytest.raises(ValueError, match=said):
        feature_width(Returns(lambda images: output), (3, 8, 8))


def test_width_is_found_for_maps_tokens_features_and_modules_without_parameters():
    assert feature_width(small_backbone(), (3, 8, 8)) == 5
    assert feature_width(nn.Flatten(), (2, 4, 6)) == 48
    assert feature_width(nn.Flatten(2), (2, 4, 6)) == 24  # two tokens
    assert feature_width(nn.LazyConv2d(7, 3), (4, 8, 8)) == 7


def test_width_is_found_in_the_type_of_the_parameters_and_nan_is_fine():
    assert feature_width(nn.Conv2d(3, 5, 3).double(), (3, 8, 8)) == 5
    assert feature_width(Returns(lambda images: images.flatten(1) / 0), (1, 2, 2)) == 4


def test_finding_the_width_leaves_modes_state_gradients_and_random_state_as_they_were():
    backbone = small_backbone().train()
    backbone[1].eval()
    backbone.append(Returns(lambda maps: maps + torch.rand(1)))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    random_state = torch.get_rng_state()
    feature_width(backbone, (3, 8, 8))
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_backbone_that_cannot_take_the_images_is_named_with_the_cause_and_keeps_its_mode():
    backbone = small_backbone().train()
    with pytest.raises(ValueError, match=r"Sequential failed on .* shape \(2, 4, 8, 8\).*takes 4 channels") as caught:
        feature_width(backbone, (4, 8, 8))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert all(module.training for module in backbone.modules())
    with pytest.raises(ValueError, match="images of 2 x 2, or another image_size"):
        feature_width(backbone, (3, 2, 2))


def test_an_output_without_one_row_for_each_image_is_refused():
    with pytest.raises(ValueError, match=r"returned shape \(1, 96\) for 2 images, but the first dimension must be"):
        feature_width(Returns(lambda images: images.reshape(1, -1)), (3, 4, 4))


def test_the_tensor_in_a_dict_or_tuple_is_found_by_the_documented_rule():
    first, second = torch.randn(2, 3), torch.randn(2, 4)
    assert pool_features((None, first, second)) is first
    assert pool_features([second, first]) is second
    for key in ("features", "x_norm_clstoken", "last_hidden_state", "out"):
        assert pool_features({"other": first, key: second}) is second
    assert pool_features({"out": first, "features": second}) is second
    assert pool_features({"loss": None, "other": first, "another": second}) is first


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CNNS = [
    "resnet18",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "convnext_tiny",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "timm:resnet18",
    "timm:convnext_atto",
    "timm:mobilenetv3_small_050",
    "timm:efficientnet_lite0",
]
NONLINEAR_AFTER_POOLING = ("mobilenet_v3", "mobilenetv3", "convnext")


def named(name, shape=(3, 32, 32)):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return build_backbone(name, shape)


@pytest.mark.parametrize("name", CNNS)
def test_maps_of_a_cnn_are_its_features_before_pooling_and_train_every_weight(name):
    backbone = named(name).eval()
    maps = feature_maps(backbone, IMAGES)
    width = feature_width(backbone, (3, 32, 32))
    assert maps.shape[:2] == (2, width) and map_shape(backbone, (3, 32, 32)) == maps.shape[1:]
    if not any(part in name for part in NONLINEAR_AFTER_POOLING):
        torch.testing.assert_close(maps.mean((2, 3)), pooled_features(backbone, IMAGES), rtol=1e-4, atol=1e-5)
    (maps * torch.randn_like(maps)).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_layers_after_the_pooling_see_each_place_as_if_it_were_the_whole_map():
    for name in ("mobilenet_v3_small", "convnext_tiny"):
        backbone = named(name, (3, 96, 96)).eval()
        unpooled = backbone.features(torch.randn(1, 3, 96, 96))
        assert unpooled.shape[2] > 1
        backbone.features = Returns(lambda images, unpooled=unpooled: unpooled)
        maps = feature_maps(backbone, torch.zeros(1, 3, 96, 96))
        for i in range(maps.shape[2]):
            for j in range(maps.shape[3]):
                cut = unpooled[:, :, i : i + 1, j : j + 1]
                backbone.features = Returns(lambda images, cut=cut: cut)
                torch.testing.assert_close(maps[:, :, i, j], backbone(torch.zeros(1, 3, 96, 96)))


def test_maps_with_channels_last_come_with_channels_first():
    timm = pytest.importorskip("timm")
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=(64, 32), num_classes=0, depths=(1, 1, 1, 1)
    ).eval()
    images = torch.randn(1, 3, 64, 32)
    maps = feature_maps(swin, images)
    torch.testing.assert_close(maps, swin.forward_features(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(maps.mean((2, 3)), swin(images))


def test_maps_of_efficient_features_are_its_own():
    backbone = EfficientFeatures().eval()
    assert torch.equal(feature_maps(backbone, IMAGES).flatten(1), backbone(IMAGES))
    assert map_shape(backbone, (3, 32, 32)) == (64, 7, 7)


def test_maps_of_custom_modules():
    maps = torch.randn(2, 5, 4, 3)
    assert feature_maps(gives(maps), IMAGES) is maps
    assert feature_maps(gives({"out": maps}), IMAGES) is maps
    vector = torch.randn(2, 5)
    assert torch.equal(feature_maps(gives(vector), IMAGES), vector[:, :, None, None])
    own = gives(vector)
    own.feature_maps = lambda images: maps
    assert feature_maps(own, IMAGES) is maps


@pytest.mark.parametrize(
    ("count", "size", "grid", "first"),
    [
        (16, (32, 32), (4, 4), 0),
        (17, (32, 32), (4, 4), 1),  # a class token
        (6, (48, 32), (3, 2), 0),
        (7, (48, 32), (3, 2), 1),
        (154, (225, 180), (14, 11), 0),
        (2, (32, 32), (1, 1), 1),
        (13, (32, 32), (13, 1), 0),  # no grid
    ],
)
def test_tokens_become_a_grid_in_the_proportions_of_the_image(count, size, grid, first):
    tokens = torch.randn(2, count, 5)
    maps = feature_maps(gives(tokens), torch.zeros(2, 3, *size))
    assert maps.shape == (2, 5, *grid)
    assert torch.equal(maps.flatten(2).transpose(1, 2), tokens[:, first:])
    assert torch.equal(feature_tokens(gives(tokens), torch.zeros(2, 3, *size)), tokens[:, first:])


def test_declared_prefix_tokens_are_left_out():
    tokens, backbone = torch.randn(2, 21, 5), gives(torch.zeros(1))
    backbone.function, backbone.num_prefix_tokens = lambda images: tokens, 5
    assert torch.equal(feature_tokens(backbone, IMAGES), tokens[:, 5:])
    assert torch.equal(feature_tokens(backbone, IMAGES, keep_prefix=True), tokens)
    assert feature_maps(backbone, IMAGES).shape == (2, 5, 4, 4)


def small_vit(kind, side=32):
    """A vision transformer with 16 patches, and the number of its prefix tokens."""
    torch.manual_seed(0)
    if kind == "torchvision":
        from torchvision.models import VisionTransformer

        network = VisionTransformer(side, 8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16)
        network.heads = nn.Identity()
        nn.init.normal_(network.class_token)
        return network.eval(), 1
    timm = pytest.importorskip("timm")
    options = {"timm": {}, "registers": {"reg_tokens": 4, "no_embed_class": True}, "average": {"global_pool": "avg"}}
    options["dynamic"] = {"dynamic_img_size": True}
    network = timm.models.VisionTransformer(
        side, 8, embed_dim=12, depth=2, num_heads=2, mlp_ratio=2, num_classes=0, **options[kind]
    )
    return network.eval(), 5 if kind == "registers" else 1


VITS = ["torchvision", "timm", "registers", "average", "dynamic"]


@pytest.mark.parametrize("kind", VITS)
def test_tokens_and_maps_of_a_vision_transformer_are_its_patches_without_class_token(kind):
    vit, prefix = small_vit(kind)
    tokens = feature_tokens(vit, IMAGES)
    assert tokens.shape == (2, 16, 12)
    kept = feature_tokens(vit, IMAGES, keep_prefix=True)
    assert kept.shape == (2, prefix + 16, 12) and torch.equal(kept[:, prefix:], tokens)
    assert torch.equal(feature_maps(vit, IMAGES), tokens.transpose(1, 2).reshape(2, 12, 4, 4))
    if kind != "average":
        torch.testing.assert_close(kept[:, 0], pooled_features(vit, IMAGES))


@pytest.mark.parametrize("kind", VITS)
def test_a_mask_that_hides_nothing_changes_nothing(kind):
    vit, _ = small_vit(kind)
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    for token in (None, torch.randn(12)):
        torch.testing.assert_close(feature_tokens(vit, IMAGES, nothing, token), feature_tokens(vit, IMAGES))


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("token", [None, torch.full((12,), 0.5)], ids=["dropped", "replaced"])
def test_hidden_patches_do_not_reach_the_output(kind, token):
    vit, _ = small_vit(kind)
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(1)).argsort(1) < 6
    pixels = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    first = feature_tokens(vit, IMAGES, mask, token)
    second = feature_tokens(vit, torch.where(pixels, torch.randn(1), IMAGES), mask, token)
    third = feature_tokens(vit, torch.where(pixels, IMAGES, torch.randn(1)), mask, token)
    assert first.shape == (2, 16 if token is not None else 10, 12)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, third)


@pytest.mark.parametrize("kind", VITS)
def test_visible_patches_keep_their_positions_and_order(kind):
    """With blocks that do nothing, a token depends only on its own patch and position."""
    vit, _ = small_vit(kind)
    blocks = vit.encoder.layers if kind == "torchvision" else vit.blocks
    for i in range(len(blocks)):
        blocks[i] = nn.Identity()
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(1)).argsort(1) < 6
    whole, visible = feature_tokens(vit, IMAGES), feature_tokens(vit, IMAGES, mask)
    replaced = feature_tokens(vit, IMAGES, mask, torch.zeros(12))
    for i in range(2):
        torch.testing.assert_close(visible[i], whole[i][~mask[i]])
        torch.testing.assert_close(replaced[i][~mask[i]], whole[i][~mask[i]])
        assert not torch.isclose(replaced[i][mask[i]], whole[i][mask[i]]).all(1).any()


def test_the_mask_token_gets_a_gradient():
    vit, _ = small_vit("timm")
    token = torch.zeros(12, requires_grad=True)
    feature_tokens(vit, IMAGES, torch.arange(16).expand(2, -1) < 4, token).square().sum().backward()
    assert token.grad.norm() > 0


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_masks_that_do_not_fit_are_refused(kind):
    vit, _ = small_vit(kind)
    with pytest.raises(
        ValueError, match=r"shape \(2, 9\) and type torch.bool, but the images have 16 patches; pass \(2, 16\)"
    ):
        feature_tokens(vit, IMAGES, torch.zeros(2, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="type torch.float32"):
        feature_tokens(vit, IMAGES, torch.zeros(2, 16))
    uneven = torch.arange(16) < torch.tensor([[4], [7]])
    with pytest.raises(ValueError, match="hides between 4 and 7 patches of an image; hide the same number"):
        feature_tokens(vit, IMAGES, uneven)
    assert feature_tokens(vit, IMAGES, uneven, torch.zeros(12)).shape == (2, 16, 12)


def test_networks_without_tokens_are_named_with_a_remedy():
    for backbone in (named("resnet18"), EfficientFeatures(), nn.Flatten()):
        with pytest.raises(ValueError, match=f"{type(backbone).__name__} has no tokens; use feature_maps.*'vit_b_16'"):
            feature_tokens(backbone, IMAGES)
    with pytest.raises(
        ValueError, match="ResNet cannot hide patches from itself; leave out the mask, or pass a vision"
    ):
        feature_tokens(named("resnet18"), IMAGES, torch.zeros(2, 16, dtype=torch.bool))


def test_a_module_may_hide_patches_by_a_method():
    class Own(nn.Module):
        num_prefix_tokens = 2

        def feature_tokens(self, images, mask, mask_token):
            return torch.cat([torch.ones(2, 2, 5), mask[:, :, None] * mask_token], 1)

    mask, token = torch.arange(4).expand(2, -1) < 1, torch.arange(5.0)
    assert torch.equal(feature_tokens(Own(), IMAGES, mask, token), mask[:, :, None] * token)


def test_tokens_of_other_timm_transformers_are_theirs():
    timm = pytest.importorskip("timm")
    beit = timm.create_model(
        "beit_base_patch16_224", img_size=32, embed_dim=12, depth=1, num_heads=2, num_classes=0
    ).eval()
    assert torch.equal(feature_tokens(beit, IMAGES, keep_prefix=True), beit.fc_norm(beit.forward_features(IMAGES)))
    with pytest.raises(ValueError, match="Beit cannot hide patches"):
        feature_tokens(beit, IMAGES, torch.zeros(2, 4, dtype=torch.bool))


def test_patch_tokens_in_a_dict_of_forward_features_are_found():
    """DINOv2 as its authors publish it: forward() gives the class token alone."""
    backbone, tokens = gives(torch.randn(2, 5)), torch.randn(2, 16, 5)
    backbone.forward_features = lambda images: {"x_norm_clstoken": torch.zeros(2, 5), "x_norm_patchtokens": tokens}
    assert torch.equal(feature_tokens(backbone, IMAGES), tokens)
    assert pooled_features(backbone, IMAGES).shape == (2, 5)


def test_custom_modules_are_described_by_class_and_width():
    assert describe(small_backbone()) == "Sequential"
    assert describe(small_backbone(), (3, 8, 8)) == "Sequential, 5 features"
    unrelated = small_backbone()
    unrelated.spec = {"depth": 3}
    assert describe(unrelated) == "Sequential"


def test_a_tile_that_the_backbone_cannot_take_is_named_with_the_remedy():
    assert tile_width(small_backbone(), (3, 32, 32), 8, "a larger tile") == 5
    with pytest.raises(
        ValueError, match="VisionTransformer takes images of 32 x 32 but no tiles of 8 x 8; pass a larger tile"
    ):
        tile_width(small_vit("torchvision")[0], (3, 32, 32), 8, "a larger tile")


def test_a_fresh_copy_has_other_weights_and_leaves_the_original_alone():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2)).eval()
    nn.init.normal_(backbone[1].weight)
    backbone[1].running_mean.fill_(3)
    before = copy.deepcopy(backbone.state_dict())
    fresh = fresh_copy(backbone)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert fresh.state_dict().keys() == before.keys() and not fresh.training
    assert torch.equal(fresh[1].weight, torch.ones(4)) and torch.equal(fresh[1].running_mean, torch.zeros(4))
    for key in ("0.weight", "0.bias", "2.in_proj_weight"):
        assert not torch.equal(fresh.state_dict()[key], before[key])


def test_a_seed_gives_the_same_fresh_copy():
    backbone = named("squeezenet1_1")
    copies = []
    for _ in range(2):
        torch.manual_seed(5)
        copies.append(fresh_copy(backbone).state_dict())
    assert all(torch.equal(copies[0][key], copies[1][key]) for key in copies[0])


def test_named_backbones_inside_a_module_are_built_again():
    """A vision transformer has parameters without reset_parameters(), so it can only be built again."""
    inner = named("vit_b_16")
    inner.class_token.data.fill_(7)
    fresh = fresh_copy(nn.Sequential(inner, nn.Linear(768, 4)))
    assert not torch.equal(fresh[0].class_token, inner.class_token)
    assert not torch.equal(fresh[0].conv_proj.weight, inner.conv_proj.weight)


def test_a_named_backbone_that_was_changed_is_reset_layer_by_layer():
    backbone = named("resnet18")
    backbone.fc = nn.Linear(512, 10)
    fresh = fresh_copy(backbone)
    assert fresh.fc.out_features == 10 and not torch.equal(fresh.fc.weight, backbone.fc.weight)
    assert not torch.equal(fresh.conv1.weight, backbone.conv1.weight)


def test_shared_modules_stay_shared_in_a_fresh_copy():
    layer = nn.Conv2d(3, 3, 3)
    fresh = fresh_copy(nn.Sequential(layer, layer))
    assert fresh[0] is fresh[1] is not layer


def test_parameters_that_cannot_be_reset_are_listed():
    backbone = small_backbone()
    backbone.append(nn.Module())
    backbone[3].position = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"parameters 3\.position cannot be reset.*no reset_parameters\(\); define it"):
        fresh_copy(backbone)


def test_width_of_a_combined_net_is_that_of_its_predictions():
    assert feature_width(CombinedNet(nn.Conv2d(3, 5, 3), nn.Linear(5, 2)), (3, 8, 8)) == 2
