import copy
import math
import os
import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from superself import Batch, DINOSupervisor
from superself.networks import MLP
from superself.training import Schedule, cosine

from cases import TinyBackbone, tiny_images


def crops(images):
    """Two large views and two small ones, without randomness."""
    return [images, images.flip(2), images[..., :8, :8], images[..., 8:, 8:]]


def dino(n=16, cls=DINOSupervisor, **arguments):
    given = {"backbone": TinyBackbone(), "seed": 0, "augment": crops, "out_dim": 24, "projector": {"hidden": 16}}
    given |= arguments
    return cls(tiny_images(n), **given)


def batch(n=16):
    return Batch(tiny_images(n), torch.arange(n))


def run(supervisor, **settings):
    return supervisor.supervise(**{"batch_size": 8, "epochs": 1, "name": "run", "progress": False, **settings})


def noted(supervisor):
    found = {}
    supervisor.note = lambda name, value: found.update({name: float(value)})
    return supervisor._forward(batch()).item(), found


def test_loss_is_the_mean_over_pairs_of_different_views_with_the_teacher_on_the_large_ones():
    supervisor = dino(teacher_temperature=0.05, projector={"hidden": 8}).eval()
    supervisor.loss.center.copy_(torch.linspace(-0.1, 0.1, 24))
    with torch.no_grad():
        for parameter in supervisor.teacher.parameters():
            parameter.mul_(1.1)  # the two networks differ
    views = [supervisor.preprocessing(view) for view in crops(tiny_images().float() / 255)]
    directions = normalize(supervisor.last_layer.weight, dim=1)
    student = [normalize(supervisor.model(view), dim=1) @ directions.T for view in views]
    teacher = [normalize(supervisor.teacher(view), dim=1) @ directions.T for view in views[:2]]
    terms = []
    for i, g in enumerate(teacher):
        q = ((g - supervisor.loss.center) / 0.05).softmax(1)
        terms += [-(q * (f / 0.1).log_softmax(1)).sum(1).mean().item() for v, f in enumerate(student) if v != i]
    assert len(terms) == 6
    loss, found = noted(supervisor)
    assert loss == pytest.approx(sum(terms) / 6, rel=1e-4)
    assert found["kl"] == pytest.approx(loss - found["teacher_entropy"], abs=1e-5) and found["kl"] > 0


def test_the_teacher_sees_large_views_only_and_each_network_all_views_of_a_size_together():
    supervisor, seen = dino(), []
    supervisor._forward(batch())  # the first one also looks whether the backbone takes small views
    for name, network in (("student", supervisor.model.backbone), ("teacher", supervisor.teacher.average.backbone)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen.append((name, *inputs[0].shape)))
    supervisor._forward(batch())
    assert seen == [("student", 32, 3, 16, 16), ("student", 32, 3, 8, 8), ("teacher", 32, 3, 16, 16)]


def test_the_head_is_that_of_lightly():
    lightly = pytest.importorskip("lightly.models.modules.heads")
    supervisor = dino(use_bn=True, projector=None)
    head = lightly.DINOProjectionHead(16, 2048, 256, 24, batch_norm=True)
    ours = [type(layer) for layer in supervisor.model.predictor if not isinstance(layer, nn.Identity)]
    assert ours == [type(layer) for layer in head.layers if not isinstance(layer, nn.Identity)]
    state = head.layers.state_dict()
    supervisor.model.predictor.load_state_dict(
        {name: state[name] for name in supervisor.model.predictor.state_dict()}, strict=True
    )
    with torch.no_grad():
        supervisor.last_layer.weight.copy_(head.last_layer.weight_v)
    features = torch.randn(8, 16)
    assert torch.allclose(supervisor.last_layer(supervisor.model.predictor(features)), head(features), atol=1e-5)


def test_linear_layers_of_the_own_projector_start_small_and_a_given_one_is_unchanged():
    layers = [layer for layer in dino(projector=None).model.predictor if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [2048, 2048, 256]
    assert all(layer.weight.std().item() == pytest.approx(0.02, rel=0.1) for layer in layers)
    assert all(layer.bias is None or not layer.bias.any() for layer in layers)
    given = MLP(16, 8)
    kept = copy.deepcopy(given.state_dict())
    supervisor = dino(projector=given)
    assert supervisor.model.predictor is given
    assert all(torch.equal(given.state_dict()[name], value) for name, value in kept.items())
    assert supervisor.last_layer.weight.shape == (24, 8)


def test_the_teacher_starts_equal_gets_no_gradient_and_is_not_optimised():
    supervisor = dino()
    for teacher, student in (
        (supervisor.teacher, supervisor.model),
        (supervisor.teacher_last_layer, supervisor.last_layer),
    ):
        assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    supervisor._forward(batch()).backward()
    frozen = [*supervisor.teacher.parameters(), *supervisor.teacher_last_layer.parameters()]
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None for p in [*supervisor.model.parameters(), *supervisor.last_layer.parameters()])


def test_teacher_and_centre_move_only_after_the_optimizer_step_and_by_the_schedule():
    seen = []

    class Observed(DINOSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            super()._update(loss, optimizer, lr_scheduler)
            self.old = copy.deepcopy([*self.teacher.parameters(), *self.teacher_last_layer.parameters()])
            self.old_center, self.outputs = self.loss.center.clone(), self.loss.pending

        def _after_step(self):
            super()._after_step()
            momentum = cosine(0.9, 1.0, self.step / 6)
            teacher = [*self.teacher.parameters(), *self.teacher_last_layer.parameters()]
            student = [*self.model.parameters(), *self.last_layer.parameters()]
            for old, new, online in zip(self.old, teacher, student, strict=True):
                assert torch.allclose(new, momentum * old + (1 - momentum) * online, atol=1e-6)
            mean_output = self.outputs[0] / self.outputs[1]
            assert torch.allclose(self.loss.center, 0.9 * self.old_center + 0.1 * mean_output, atol=1e-6)
            seen.append((momentum, bool(self.old_center.any())))

    run(dino(cls=Observed, momentum=0.9), epochs=3)
    assert [momentum for momentum, _ in seen] == sorted(momentum for momentum, _ in seen) and len(seen) == 6
    assert [moved for _, moved in seen] == [False] + [True] * 5


def test_the_last_layer_is_frozen_at_first_with_every_bit():
    seen = []

    class Observed(DINOSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            super()._update(loss, optimizer, lr_scheduler)
            seen.append(self.last_layer.weight.detach().clone())

    supervisor = dino(cls=Observed, freeze_last_layer="1 epochs")
    start = supervisor.last_layer.weight.detach().clone()
    run(supervisor, epochs=2, optimizer="adamw", weight_decay=0.4, clip=3.0)
    assert [torch.equal(weight, start) for weight in seen] == [True, True, False, False]


def test_the_frozen_layer_counts_for_the_norm_that_is_clipped():
    norms = []

    class Observed(DINOSupervisor):
        def _update(self, loss, optimizer, lr_scheduler):
            optimizer.zero_grad()
            loss.backward()
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
            optimizer.step()
            lr_scheduler.step()

        def note(self, name, value):
            if name == "gradient_norm":
                assert value.item() == pytest.approx(norms[-1], rel=1e-5)
                norms.append("clipped")

    run(dino(cls=Observed), clip=3.0)
    assert norms[1::2] == ["clipped", "clipped"]


def test_the_temperature_of_the_teacher_rises_by_default_and_continues_in_a_resumed_run():
    assert DINOSupervisor(tiny_images(), backbone=TinyBackbone()).teacher_temperature == Schedule(
        0.07, shape="constant", warmup="30 epochs", warmup_start=0.04
    )
    temperatures = []

    def loss(student, teacher, temperature):
        temperatures.append(temperature)
        return student[0].mean()

    class Stopped(DINOSupervisor):
        def _after_step(self):
            super()._after_step()
            if self.step == 3 and not self.run.continues:
                os.kill(os.getpid(), signal.SIGINT)

    rising = Schedule(0.07, shape="constant", warmup="2 epochs", warmup_start=0.02)
    given = {"cls": Stopped, "teacher_temperature": rising, "loss": loss}
    with pytest.raises(KeyboardInterrupt):
        run(dino(**given), epochs=3)
    run(dino(**given), epochs=3, resume=True)
    assert temperatures == pytest.approx([0.03, 0.04, 0.05, 0.06, 0.07, 0.07])


def test_the_teachers_backbone_is_exported_and_can_be_trained_further():
    backbone = TinyBackbone()
    supervisor = dino(backbone=backbone)
    exported = supervisor.get_backbone()
    assert exported is supervisor.teacher.average.backbone and supervisor.trained_backbone is backbone
    assert all(parameter.requires_grad for parameter in exported.parameters())
    before = copy.deepcopy(exported.state_dict())
    run(supervisor, lr=1e-2)  # although its parameters require a gradient, only the student's are in the optimizer
    in_optimizer = {id(p) for group in supervisor.run.optimizer.param_groups for p in group["params"]}
    assert not in_optimizer & {id(p) for p in supervisor.teacher.parameters()}
    assert all(not torch.equal(before[name], value) for name, value in exported.named_parameters())
    images = supervisor.preprocessing(tiny_images())
    assert torch.equal(supervisor.eval().embed(images), supervisor.teacher(images))


def test_layers_that_a_user_has_frozen_stay_frozen_in_the_exported_backbone():
    backbone = TinyBackbone()
    backbone.layers[0].requires_grad_(False)
    exported = dino(backbone=backbone).get_backbone()
    assert [p.requires_grad for p in exported.parameters()] == [p.requires_grad for p in backbone.parameters()]


def test_a_backbone_that_gets_a_gradient_is_not_reported_as_untrained(capsys):
    run(dino(), progress=True)
    assert "does not change the backbone" not in capsys.readouterr().out


class Constant(nn.Module):
    """Every image gets the same embedding."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.linspace(-1, 1, 256))

    def forward(self, features):
        return self.values.expand(len(features), -1)


def test_both_ways_to_collapse_are_visible():
    _, alive = noted(dino(teacher_temperature=0.05))
    assert 0.1 < alive["teacher_entropy"] < 0.99 * math.log(24) and alive["kl"] > 0.01
    uniform = dino(projector=Constant(), teacher_temperature=1e4, student_temperature=1e4)
    loss, found = noted(uniform)
    assert found["teacher_entropy"] == pytest.approx(math.log(24)) == uniform.chance_loss == pytest.approx(loss)
    assert found["kl"] == pytest.approx(0, abs=1e-5)
    _, found = noted(dino(projector=Constant(), teacher_temperature=1e-4))
    assert found["teacher_entropy"] == pytest.approx(0, abs=1e-3)


def test_a_custom_loss_moves_no_centre_and_notes_nothing():
    supervisor = dino(loss=lambda student, teacher, temperature: student[0].mean())
    assert noted(supervisor)[1] == {}
    run(supervisor)


def test_the_presets():
    paper = DINOSupervisor(tiny_images(), backbone=TinyBackbone(), **DINOSupervisor.presets["dino-paper"])
    assert paper.last_layer.weight.shape == (65536, 256) and len(paper.views(batch())) == 10
    small = DINOSupervisor(tiny_images(), backbone=TinyBackbone(), **DINOSupervisor.presets["dino-small"])
    assert any(isinstance(layer, nn.BatchNorm1d) for layer in small.model.predictor)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"out_dim": 1}, "out_dim must be .*at least 2, got 1"),
        ({"momentum": 1.5}, "momentum must be .*, got 1.5"),
        ({"teacher_temperature": 0}, "teacher_temperature must be .*, got 0"),
        ({"teacher_temperature": Schedule(0.0, 1.0)}, "teacher_temperature must be .*, got 0.0 .*its lowest value"),
        ({"student_temperature": -1}, "student_temperature must be .*, got -1"),
        ({"center_momentum": 2}, "center_momentum must be .*, got 2"),
        ({"freeze_last_layer": "soon"}, "freeze_last_layer='soon' is not a duration"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        dino(**arguments)
