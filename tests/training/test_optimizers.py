import functools

import pytest
import torch
from torch import nn

from superself.training import (
    LARS,
    GroupRule,
    can_fuse,
    check_optimizer,
    make_lr_scheduler,
    make_optimizer,
    parameter_groups,
)

CPU = torch.device("cpu")
NORM = ["model.backbone.1.weight", "model.backbone.1.bias"]


class Networks(nn.Module):
    """A backbone, a predictor and a discriminator."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))})
        self.predictor = nn.Linear(4, 4)
        self.discriminator = nn.Linear(4, 1)
        self.temperature = nn.Parameter(torch.tensor(0.0))


@pytest.fixture
def networks():
    return Networks()


def members(networks, groups):
    """{group name: names of its parameters}"""
    names = {id(p): name for name, p in networks.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}


# ---- groups ------------------------------------------------------------------------------------------------------------


def test_without_weight_decay_there_is_one_group(networks):
    (group,) = parameter_groups(networks.named_parameters(), lr=0.1)
    assert group.keys() == {"params", "lr", "name"} and group["lr"] == 0.1
    assert [id(p) for p in group["params"]] == [id(p) for p in networks.parameters()]


def test_biases_norms_and_scalars_get_no_weight_decay(networks):
    networks.predictor.bias.requires_grad_(False)
    decayed, free = parameter_groups(networks.named_parameters(), lr=0.1, weight_decay=0.1)
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    assert members(networks, [decayed, free]) == {
        "main": ["model.backbone.0.weight", "predictor.weight", "discriminator.weight"],
        "main, no decay": ["temperature", "model.backbone.0.bias", *NORM, "discriminator.bias"],
    }


@pytest.mark.parametrize("no_decay", ["predictor", ["predictor.weight", "*.bias"], lambda name, p: "predictor" in name])
def test_no_decay_can_be_chosen_by_name(networks, no_decay):
    groups = parameter_groups(networks.named_parameters(), lr=0.1, weight_decay=0.1, no_decay=no_decay)
    spared = members(networks, groups)["main, no decay"]
    assert "predictor.weight" in spared and "model.backbone.1.weight" not in spared and "temperature" not in spared


def test_equal_weight_decay_makes_no_second_group(networks):
    assert [g["weight_decay"] for g in parameter_groups(networks.named_parameters(), lr=1, weight_decay=0.0)] == [0.0]
    rules = [GroupRule("discriminator", decay_factor=0)]
    groups = parameter_groups(networks.named_parameters(), lr=1, weight_decay=0.1, rules=rules)
    assert [g["name"] for g in groups] == ["main", "main, no decay", "discriminator, no decay"]


@pytest.mark.parametrize("kind", ["prefix", "pattern", "module", "predicate"])
def test_rules_match_by_name_module_or_function(networks, kind):
    match = {
        "prefix": "model.backbone",
        "pattern": "model.*",
        "module": networks.model,
        "predicate": lambda name, parameter: "backbone" in name,
    }[kind]
    rule = GroupRule(match, lr_factor=0.1, decay_factor=2.0, name="slow", betas=(0.5, 0.9))
    groups = parameter_groups(networks.named_parameters(), lr=0.4, weight_decay=0.1, rules=[rule])
    assert [g["name"] for g in groups] == ["main", "main, no decay", "slow", "slow, no decay"]
    assert [g["lr"] for g in groups] == pytest.approx([0.4, 0.4, 0.04, 0.04])
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.2, 0.0]
    assert [g.get("betas") for g in groups] == [None, None, (0.5, 0.9), (0.5, 0.9)]
    assert members(networks, groups)["slow"] == ["model.backbone.0.weight"]


def test_a_prefix_ends_at_a_dot():
    networks = nn.ModuleDict({"head": nn.Linear(1, 1), "head2": nn.Linear(1, 1)})
    groups = parameter_groups(networks.named_parameters(), lr=1, rules=[GroupRule("head", lr_factor=2)])
    assert members(networks, groups) == {"main": ["head2.weight", "head2.bias"], "head": ["head.weight", "head.bias"]}


def test_the_last_matching_rule_applies_alone(networks):
    rules = [GroupRule("*", lr_factor=0.1), GroupRule("predictor", decay_factor=0.5)]
    groups = parameter_groups(networks.named_parameters(), lr=1.0, weight_decay=0.2, no_decay="none", rules=rules)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [("*", 0.1, 0.2), ("predictor", 1.0, 0.1)]


def test_shared_parameters_occur_once_frozen_ones_never_and_empty_groups_are_dropped(networks):
    networks.discriminator.requires_grad_(False)
    twice = [*networks.named_parameters(), *networks.named_parameters()]
    groups = parameter_groups(twice, lr=1, rules=[GroupRule("discriminator"), GroupRule(nn.Identity())])
    assert [g["name"] for g in groups] == ["main"]
    expected = [p for p in networks.parameters() if p.requires_grad]
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in expected]


def test_a_pattern_without_a_match_is_an_error(networks):
    with pytest.raises(
        ValueError, match=r"GroupRule\('predictr'\) matches no parameter; .* start with temperature, model"
    ):
        parameter_groups(networks.named_parameters(), lr=1, rules=[GroupRule("predictr")])


def test_rules_are_validated():
    with pytest.raises(TypeError, match="match is a int, but a module"):
        GroupRule(3)
    with pytest.raises(ValueError, match="lr_factor=-1 must not be negative"):
        GroupRule("a", lr_factor=-1)
    with pytest.raises(TypeError, match="GroupRule takes no lr, weight_decay; use match=, lr_factor="):
        GroupRule("a", lr=1, weight_decay=0)


# ---- optimizers --------------------------------------------------------------------------------------------------------


def test_predictor_keeps_its_rate_while_the_others_follow_the_schedule(networks):
    """As in SimSiam, arXiv:2011.10566."""
    groups = parameter_groups(
        networks.named_parameters(), lr=0.1, weight_decay=1e-4, rules=[GroupRule(networks.predictor, fixed_lr=True)]
    )
    optimizer = make_optimizer(functools.partial(torch.optim.SGD, momentum=0.9), groups, 0.1, CPU)
    scheduler = make_lr_scheduler("cosine", optimizer, total_steps=4, steps_per_epoch=2)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.0, 0.0, 0.1, 0.1])


def test_two_players_are_two_groups_of_one_optimizer(networks):
    rule = GroupRule(networks.discriminator, lr_factor=0.5, betas=(0.5, 0.999), name="discriminator")

    def prepared():
        groups = parameter_groups(networks.named_parameters(), lr=0.1, weight_decay=0.01, rules=[rule])
        optimizer = make_optimizer("adam", groups, 0.1, CPU)
        return optimizer, make_lr_scheduler("cosine", optimizer, total_steps=4, steps_per_epoch=2)

    optimizer, scheduler = prepared()
    for p in networks.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.025, 0.025])
    assert [g["betas"][0] for g in optimizer.param_groups] == [0.9, 0.9, 0.5, 0.5]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0, 0.01, 0.0]
    assert all(g["fused"] for g in optimizer.param_groups)
    restored, _ = prepared()
    restored.load_state_dict(optimizer.state_dict())
    assert [g["name"] for g in restored.param_groups] == [g["name"] for g in optimizer.param_groups]
    assert torch.equal(
        restored.state[networks.discriminator.weight]["exp_avg"],
        optimizer.state[networks.discriminator.weight]["exp_avg"],
    )


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        (torch.optim.Adam, True),
        (functools.partial(torch.optim.SGD, momentum=0.9), True),
        (functools.partial(torch.optim.Adam, fused=False), False),
        (functools.partial(torch.optim.Adam, foreach=True), False),
        (functools.partial(torch.optim.Adam, differentiable=True), False),
        (torch.optim.Rprop, False),
        (LARS, False),
        (lambda parameters, lr: torch.optim.Adam(parameters, lr), False),
    ],
)
def test_fused_where_the_optimizer_can_and_the_user_has_not_chosen(networks, optimizer, fused):
    assert can_fuse(optimizer, CPU) == fused
    assert not can_fuse(optimizer, torch.device("meta"))
    made = make_optimizer(optimizer, parameter_groups(networks.named_parameters(), lr=0.1), 0.1, CPU)
    assert bool(made.param_groups[0].get("fused")) == fused


@pytest.mark.parametrize(
    ("name", "cls"),
    [("adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD), ("LARS", LARS)],
)
def test_names(name, cls):
    assert check_optimizer(name) is cls


def test_a_function_chooses_its_own_values(networks):
    def half(parameters, lr):
        assert all(isinstance(p, nn.Parameter) for p in parameters)
        return torch.optim.SGD(parameters, lr=lr / 2)

    made = make_optimizer(half, parameter_groups(networks.named_parameters(), lr=0.1), 0.1, CPU)
    assert made.param_groups[0]["lr"] == 0.05 and made.param_groups[0]["name"] == "main"


class NotAnOptimizer:
    def __init__(self, parameters, lr):
        pass


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        ("adamm", ValueError, "optimizer='adamm' is unknown; pass one of adam, adamw, sgd, lars"),
        (torch.optim.Adam([nn.Parameter(torch.ones(1))]), TypeError, "is an instance of Adam, but supervise.. creates"),
        (3, TypeError, "optimizer is a int, which cannot be called; pass a class such as"),
        (None, TypeError, "optimizer is a NoneType, which cannot be called"),
        (torch.optim.LBFGS, TypeError, r"LBFGS.step\(\) needs closure"),
        (functools.partial(torch.optim.LBFGS, max_iter=3), TypeError, r"LBFGS.step\(\) needs closure"),
        (lambda parameters: None, TypeError, r"must be callable as optimizer\(parameters, lr=lr\), but its signature"),
    ],
)
def test_optimizers_are_checked_before_there_are_parameters(optimizer, error, message):
    with pytest.raises(error, match=message):
        check_optimizer(optimizer)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda parameters, lr: None, "optimizer returned None; it must return an optimizer"),
        (NotAnOptimizer, "optimizer returned a NotAnOptimizer object"),
        (lambda parameters, lr: torch.optim.LBFGS(parameters, lr), r"LBFGS.step\(\) needs closure"),
    ],
)
def test_what_is_made_must_be_an_optimizer(networks, optimizer, message):
    with pytest.raises(TypeError, match=message):
        make_optimizer(optimizer, parameter_groups(networks.named_parameters(), lr=0.1), 0.1, CPU)


def test_an_option_that_the_optimizer_lacks_is_an_error(networks):
    groups = parameter_groups(networks.named_parameters(), lr=0.1, rules=[GroupRule("discriminator", betas=(0.5, 0.9))])
    with pytest.raises(TypeError, match="SGD has no option 'betas', which the group 'discriminator' sets; .*momentum"):
        make_optimizer(torch.optim.SGD, groups, 0.1, CPU)


def test_nothing_to_train_is_an_error(networks):
    networks.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter requires a gradient"):
        make_optimizer("adam", parameter_groups(networks.named_parameters(), lr=0.1), 0.1, CPU)
