import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torchvision.models import VisionTransformer

from superself import Batch, MoCoV3Supervisor, create
from superself.data import to_float
from superself.networks import patch_projection
from superself.training import cosine

from cases import TinyBackbone, tiny_images

SMALL = {"projector": {"hidden": 24, "out_features": 8}, "predictor": {"hidden": 24}}


def moco_v3(**arguments):
    return MoCoV3Supervisor(
        tiny_images(), **{"backbone": TinyBackbone(), "seed": 0, "augment": two_views, **SMALL, **arguments}
    )


def tiny_vit():
    network = VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=12, mlp_dim=16)
    network.heads = nn.Identity()
    return network


def two_views(images):
    """The image, and the image upside down: no randomness."""
    return [images, images.flip(2)]


def batch(n=16):
    return Batch(tiny_images(n), torch.arange(n))


class Constant(nn.Module):
    """Image i gets row i of a table."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x):
        return self.rows[: len(x)]


def test_loss_equals_a_double_loop_over_the_keys_of_the_batch():
    supervisor = moco_v3(temperature=0.3)
    first, second = (supervisor.preprocessing(view) for view in two_views(to_float(tiny_images())))
    slow = 0.0
    with torch.no_grad():
        for view, other in ((first, second), (second, first)):
            q = normalize(supervisor.predictor(supervisor.model(view)), dim=1)
            k = normalize(supervisor.key_encoder(other), dim=1)
            for i in range(16):
                total = sum(math.exp(q[i] @ k[j] / 0.3) for j in range(16))
                slow -= 2 * 0.3 * math.log(math.exp(q[i] @ k[i] / 0.3) / total) / 16
    assert supervisor._forward(batch()).item() == pytest.approx(slow, rel=1e-4)


def test_loss_equals_a_number_worked_by_hand():
    """Two orthogonal images whose queries are their keys, t = 1/2: in each direction -ln(e^2 / (e^2 + 1)) times 2 t = 1."""
    supervisor = moco_v3(projector=Constant([[1.0, 0.0], [0.0, 3.0]]), predictor=nn.Identity(), temperature=0.5)
    assert supervisor._forward(batch(2)).item() == pytest.approx(2 * math.log(1 + math.exp(-2)))


def test_chance_is_the_loss_when_all_keys_are_alike():
    supervisor = moco_v3(projector=Constant([[1.0, 0.0]] * 8), predictor=nn.Identity(), temperature=0.2)
    assert supervisor._forward(batch(8)).item() == pytest.approx(0.8 * math.log(8))
    assert supervisor.chance_loss is None  # not known before the size of a batch is
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    assert supervisor.chance_loss == pytest.approx(0.8 * math.log(8))


def test_the_size_of_the_gradient_hardly_depends_on_a_large_temperature():
    """The factor 2 t: without it, the gradient would be a tenth at ten times the temperature."""
    norms = []
    for temperature in (10.0, 100.0):
        supervisor = moco_v3(temperature=temperature)
        supervisor._forward(batch()).backward()
        norms.append(supervisor.predictor[-1].weight.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_key_encoder_starts_equal_has_no_predictor_and_gets_no_gradient():
    supervisor = moco_v3()
    names = {name.removeprefix("average.") for name, _ in supervisor.key_encoder.named_parameters()}
    assert names == {name for name, _ in supervisor.model.named_parameters()}
    for name, p in supervisor.model.named_parameters():
        assert torch.equal(supervisor.key_encoder.get_parameter(f"average.{name}"), p)
    supervisor._forward(batch()).backward()
    assert all(p.grad is None for p in supervisor.key_encoder.parameters())
    assert all(p.grad is not None for p in [*supervisor.model.parameters(), *supervisor.predictor.parameters()])


def test_key_encoder_moves_after_the_step_by_a_momentum_that_rises_to_one():
    seen = []

    class Observed(MoCoV3Supervisor):
        def _update(self, *arguments):
            self.old = copy.deepcopy(list(self.key_encoder.parameters()))
            super()._update(*arguments)
            assert all(torch.equal(a, b) for a, b in zip(self.old, self.key_encoder.parameters(), strict=True))

        def _after_step(self):
            super()._after_step()
            momentum = cosine(0.9, 1.0, self.step / 4)
            for old, new, online in zip(self.old, self.key_encoder.parameters(), self.model.parameters(), strict=True):
                assert torch.allclose(new, momentum * old + (1 - momentum) * online, atol=1e-7)
            seen.append(momentum)

    supervisor = Observed(tiny_images(), augment=two_views, backbone=TinyBackbone(), momentum=0.9, **SMALL)
    supervisor.supervise(epochs=2, batch_size=8, name="run", progress=False)
    assert seen[0] == 0.9 and len(seen) == 4 and seen == sorted(seen)


def kinds(head):
    return [type(layer) for layer in head]


def test_heads_are_those_of_the_authors_code():
    """Of ResNets: two layers each, batch norm without scale at the end of the projector. Of transformers: three and two, both."""
    linear, norm, relu = nn.Linear, nn.BatchNorm1d, nn.ReLU
    resnet, vit = moco_v3(projector=None, predictor=None), moco_v3(projector=None, predictor=None, backbone=tiny_vit())
    assert kinds(resnet.model.predictor) == [linear, norm, relu, linear, norm]
    assert kinds(resnet.predictor) == [linear, norm, relu, linear]
    assert kinds(vit.model.predictor) == [linear, norm, relu, linear, norm, relu, linear, norm]
    assert kinds(vit.predictor) == [linear, norm, relu, linear, norm]
    assert not any(head[-1].affine for head in (resnet.model.predictor, vit.model.predictor, vit.predictor))
    linears = [
        layer
        for s in (resnet, vit)
        for head in (s.model.predictor, s.predictor)
        for layer in head
        if isinstance(layer, linear)
    ]
    assert all(layer.bias is None for layer in linears)
    assert {layer.out_features for layer in linears} == {4096, 256}


def test_the_patch_projection_of_a_transformer_stays_at_its_random_weights_while_the_rest_is_trained():
    backbone = tiny_vit()
    before = copy.deepcopy(backbone.state_dict())
    supervisor = moco_v3(backbone=backbone)
    supervisor.supervise(epochs=1, batch_size=8, name="run", progress=False)
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("conv_proj") for name in changed)
    assert not backbone.conv_proj.weight.requires_grad and not backbone.conv_proj.bias.requires_grad
    assert {name.split(".")[0] for name in changed} == {"class_token", "encoder"}
    for name, value in supervisor.key_encoder.average.backbone.conv_proj.named_parameters():
        assert torch.equal(value, backbone.conv_proj.get_parameter(name))


def test_the_patch_projection_is_trained_on_request():
    backbone = tiny_vit()
    moco_v3(backbone=backbone, freeze_patch_projection=False)
    assert all(p.requires_grad for p in backbone.parameters())


def test_other_networks_are_trained_whole():
    backbone = TinyBackbone()
    assert patch_projection(backbone) is None
    moco_v3(backbone=backbone)
    assert all(p.requires_grad for p in backbone.parameters())


def test_the_patch_projection_of_timm_is_found_also_inside_another_module():
    timm = pytest.importorskip("timm")
    network = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=0
    )
    assert patch_projection(network) is network.patch_embed.proj
    assert patch_projection(nn.Sequential(network)) is network.patch_embed.proj
    moco_v3(backbone=network)
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == [
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    ]


def test_a_stem_of_several_convolutions_is_trained():
    backbone = tiny_vit()
    backbone.conv_proj = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU(), nn.Conv2d(4, 12, 2, stride=2))
    supervisor = moco_v3(backbone=backbone, projector=None)
    assert all(p.requires_grad for p in backbone.parameters())
    assert len(supervisor.model.predictor) == 8  # the heads are those of transformers


def test_noted_metrics_equal_numbers_worked_by_hand():
    noted = []

    class Noting(MoCoV3Supervisor):
        def note(self, name, value):
            noted.append((name, value.tolist()))

    rows = [[1.0, 0.0], [0.0, 2.0]]
    turn = nn.Linear(2, 2, bias=False)
    turn.weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # every query points at the first image's key
    Noting(
        tiny_images(), augment=two_views, backbone=TinyBackbone(), projector=Constant(rows), predictor=turn
    )._forward(batch(2))
    assert noted == [("top1", [1, 0]), ("positive_cosine", [1, 0])] * 2


def test_presets_have_the_temperatures_of_the_authors_code():
    temperatures = [create(name, backbone=TinyBackbone()).temperature for name in ("moco-v3-vit", "moco-v3-resnet")]
    assert temperatures == [0.2, 1.0] and create("moco_v3").momentum == 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, r"temperature must be a number above 0, got 0 \(it divides similarities\)"),
        ({"momentum": 1.5}, r"momentum must be a number in \[0, 1\], got 1.5 \(it is the fraction of the key encoder"),
        ({"predictor": {"widht": 3}}, "predictor=.* has the key 'widht'; the arguments are out_features, hidden"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        moco_v3(**arguments)


def test_freeze_patch_projection_must_be_a_truth_value():
    with pytest.raises(TypeError, match="freeze_patch_projection must be True or False, got 1"):
        moco_v3(freeze_patch_projection=1)
