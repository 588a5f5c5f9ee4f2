"""Parameter groups from the names of parameters, and the optimizer over them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from superself.training.lars import LARS

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "lars": LARS}
Predicate = Callable[[str, nn.Parameter], bool]
Match = str | nn.Module | Predicate


class GroupRule:
    """Settings for some of the parameters: ``GroupRule("predictor", fixed_lr=True)``.

    Args:
        match: a module; the start of a name up to a dot ("predictor") or a glob pattern ("*.norm*"), as in
            ``named_parameters()``; or a function of (name, parameter) -> bool.
        lr_factor: multiplies the learning rate.
        decay_factor: multiplies the weight decay.
        fixed_lr: keep the learning rate during the run; schedules act on the other groups only.
        name: of the group; by default the pattern, or the class of the module.
        options: for the optimizer, for example ``betas=(0.5, 0.999)``.
    Raises:
        TypeError: if ``match`` is of another type, or an option has an argument of its own here.
        ValueError: if a factor is negative.
    """

    def __init__(
        self,
        match: Match,
        lr_factor: float = 1.0,
        decay_factor: float = 1.0,
        fixed_lr: bool = False,
        name: str | None = None,
        **options: Any,
    ) -> None:
        for factor, value in (("lr_factor", lr_factor), ("decay_factor", decay_factor)):
            if value < 0:
                raise ValueError(f"{factor}={value} must not be negative.")
        reserved = {"params", "lr", "weight_decay"} & set(options)
        if reserved:
            raise TypeError(
                f"GroupRule takes no {', '.join(sorted(reserved))}; use match=, lr_factor= and decay_factor= instead."
            )
        self.match, self.matches = match, _predicate(match)
        self.lr_factor, self.decay_factor, self.fixed_lr = lr_factor, decay_factor, fixed_lr
        default_name = match if isinstance(match, str) else getattr(match, "__name__", type(match).__name__)
        self.name = name or default_name
        self.options = options


def is_vector(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has fewer than two dimensions, as biases, norm layers and scalars do."""
    return parameter.ndim < 2


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float | None = None,
    no_decay: Match | Sequence[Match] = is_vector,
    rules: Sequence[GroupRule] = (),
) -> list[dict[str, Any]]:
    """Groups for an optimizer; frozen parameters are left out, shared ones occur once.

    Groups come in a fixed order: parameters without a rule, then the rules in their order; in each of them first those with
    weight decay. A group is a dict with "params", "lr", "name", the options of its rule, "weight_decay" unless that is None,
    and "fixed_lr" if it is True.

    Args:
        named_parameters: for example ``model.named_parameters()``.
        lr: learning rate, multiplied by the ``lr_factor`` of a rule.
        weight_decay: for example 1e-4 (SGD) or 0.05 (AdamW on transformers); None leaves it to the optimizer.
        no_decay: which parameters get no weight decay: as ``match`` of a rule, or several of these.
        rules: the last one that matches a parameter applies, alone.
    Raises:
        ValueError: if the pattern of a rule matches no parameter.
    """
    skips_decay = _predicate(no_decay)
    members: dict[tuple[int, float | None], list[nn.Parameter]] = {}
    seen, used, names = set(), set(), []
    for name, parameter in named_parameters:
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        names.append(name)
        matching = [i for i, rule in enumerate(rules) if rule.matches(name, parameter)]
        used.update(matching)
        if not parameter.requires_grad:
            continue
        which = matching[-1] if matching else -1
        decay = weight_decay
        if weight_decay is not None:
            factor = rules[which].decay_factor if matching else 1.0
            decay = 0.0 if skips_decay(name, parameter) else weight_decay * factor
        members.setdefault((which, decay), []).append(parameter)
    for i, rule in enumerate(rules):
        if isinstance(rule.match, str) and i not in used:
            starts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"GroupRule({rule.match!r}) matches no parameter; their names start with {starts}.")
    groups = []
    for which, decay in sorted(members, key=lambda key: (key[0], -(key[1] or 0.0))):
        rule = rules[which] if which >= 0 else GroupRule("", name="main")
        without_decay = bool(weight_decay) and decay == 0
        group = {"params": members[which, decay], "lr": lr * rule.lr_factor, **rule.options}
        group["name"] = rule.name + (", no decay" if without_decay else "")
        if decay is not None:
            group["weight_decay"] = decay
        if rule.fixed_lr:
            group["fixed_lr"] = True
        groups.append(group)
    return groups


def schedule_decay(groups: list[dict[str, Any]], start: float) -> None:
    """Prepares groups that were made with ``weight_decay=1`` for a schedule of the weight decay.

    Args:
        groups: keep their weight decay as "decay_factor", by which the value of each step is multiplied.
        start: the value of the first step.
    """
    for group in groups:
        group["decay_factor"] = group["weight_decay"]
        group["weight_decay"] *= start


def _predicate(match: Match | Sequence[Match]) -> Predicate:
    """``match`` as a function of (name, parameter)."""
    if isinstance(match, str):
        return lambda name, _: name == match or name.startswith(f"{match}.") or fnmatchcase(name, match)
    if isinstance(match, nn.Module):
        own = {id(p) for p in match.parameters()}
        return lambda _, parameter: id(parameter) in own
    if isinstance(match, (list, tuple)):
        parts = [_predicate(part) for part in match]
        return lambda name, parameter: any(part(name, parameter) for part in parts)
    if callable(match):
        return match
    raise TypeError(
        f"match is a {type(match).__name__}, but a module, the start of a parameter's name, a glob pattern or a function of "
        '(name, parameter) is needed; pass for example "predictor.*".'
    )


def can_fuse(optimizer: Callable[..., Optimizer], device: torch.device) -> bool:
    """Whether ``optimizer`` can update all parameters on ``device`` in one kernel, and the user has not chosen otherwise."""
    if device.type not in ("cpu", "cuda"):
        return False
    try:
        parameters = inspect.signature(optimizer).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False
    excluded = any(name in parameters and parameters[name].default for name in ("foreach", "differentiable"))
    return "fused" in parameters and parameters["fused"].default is None and not excluded


def check_optimizer(optimizer: str | Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Looks up a name, and checks that a class or function can be called; run it before any data is read.

    Args:
        optimizer: "adam", "adamw", "sgd" or "lars" in any case (with the defaults of the class, so "sgd" has no momentum); or
            anything called as ``optimizer(parameters, lr=lr)``: a class, a ``functools.partial`` of one, a function.
    Raises:
        ValueError: if the name is unknown.
        TypeError: if ``optimizer`` cannot be called like that, or its steps need a closure.
    """
    example = "pass a class such as torch.optim.AdamW, or functools.partial(torch.optim.SGD, momentum=0.9)"
    if isinstance(optimizer, str):
        if optimizer.lower() not in OPTIMIZERS:
            raise ValueError(f"optimizer={optimizer!r} is unknown; pass one of {', '.join(OPTIMIZERS)}, or a class.")
        return OPTIMIZERS[optimizer.lower()]
    if isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is an instance of {type(optimizer).__name__}, but supervise() creates the optimizer itself, because the "
            f"networks may not be built yet; {example}."
        )
    if not callable(optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, which cannot be called; {example}.")
    try:
        signature = inspect.signature(optimizer)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return optimizer
    try:
        signature.bind([], lr=0.1)
    except TypeError as error:
        raise TypeError(
            f"optimizer must be callable as optimizer(parameters, lr=lr), but its signature is {signature} ({error}); {example}."
        ) from error
    made_by = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    if inspect.isclass(made_by) and hasattr(made_by, "step"):
        if issubclass(made_by, torch.optim.SparseAdam):
            raise TypeError(
                "SparseAdam takes sparse gradients only, and those of images are dense; pass torch.optim.Adam."
            )
        _check_step(made_by.__name__, required_parameters(made_by.step)[1:])  # without self
    return optimizer


def check_made(made: Any, supervisor: str) -> tuple[Any, Optimizer, Any]:
    """What ``_init_data_optimizer`` returned, if it is three things; ``check_parts`` looks at each of them.

    Raises:
        TypeError: if it is anything else.
    """
    found = [type(part).__name__ for part in made] if isinstance(made, (tuple, list)) else type(made).__name__
    if not isinstance(found, list) or len(found) != 3:
        raise TypeError(
            f"{supervisor}._init_data_optimizer returned {found}, and three things are needed; return train_loader, optimizer, "
            "lr_scheduler, in this order."
        )
    return made


def _check_step(name: str, needed: list[str]) -> None:
    """Raises a TypeError if ``step()`` needs arguments, such as the closure of LBFGS."""
    if needed:
        raise TypeError(
            f"{name}.step() needs {', '.join(needed)}, but step() is called without arguments, once for each batch; pass an "
            "optimizer without it, such as torch.optim.Adam."
        )


def required_parameters(function: Callable[..., Any]) -> list[str]:
    """The names of the parameters without a default."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def callable_name(function: Callable[..., Any]) -> str:
    """The name of a class or function for messages, without the ``functools.partial`` around it; "f" for a lambda."""
    function = function.func if isinstance(function, functools.partial) else function
    name = getattr(function, "__name__", type(function).__name__)
    return "f" if name == "<lambda>" else name


def make_optimizer(
    optimizer: str | Callable[..., Optimizer], groups: list[dict[str, Any]], lr: float, device: torch.device
) -> Optimizer:
    """The optimizer over ``groups``, fused where the device allows it.

    Args:
        optimizer: see ``check_optimizer``.
        groups: from ``parameter_groups``. Groups whose learning rate is ``lr`` leave it to the optimizer, and a single group
            without options is passed as a plain list of parameters, so a function may choose its own values for them.
        lr: learning rate.
        device: where the parameters are.
    Raises:
        ValueError: if there is nothing to train.
        TypeError: if ``optimizer`` does not make an optimizer, or the optimizer does not have an option of a group.
    """
    factory = check_optimizer(optimizer)
    if not groups:
        raise ValueError(
            "No parameter requires a gradient, so there is nothing to train; unfreeze a part of the networks."
        )
    groups = [{k: v for k, v in group.items() if k != "lr" or v != lr} for group in groups]
    fused = {"fused": True} if can_fuse(factory, device) else {}
    is_plain = len(groups) == 1 and groups[0].keys() <= {"params", "name"}
    try:
        made = factory(groups[0]["params"] if is_plain else groups, lr=lr, **fused)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"optimizer={callable_name(factory)} could not be made from the parameters and lr={lr} ({error}); correct its "
            "arguments, for example functools.partial(torch.optim.SGD, momentum=0.9)."
        ) from error
    if not all(hasattr(made, name) for name in ("step", "zero_grad", "param_groups", "defaults", "state_dict")):
        given = "None" if made is None else f"a {type(made).__name__} object"
        raise TypeError(
            f"optimizer returned {given}; it must return an optimizer such as torch.optim.Adam(parameters, lr)."
        )
    _check_step(type(made).__name__, required_parameters(made.step))
    if is_plain and len(made.param_groups) == 1:
        made.param_groups[0].setdefault("name", groups[0].get("name"))
    known = {"params", "lr", "name", "fixed_lr", "decay_factor", *made.defaults}
    for group in groups:
        unknown = [option for option in group if option not in known]
        if unknown:
            raise TypeError(
                f"{type(made).__name__} has no option {unknown[0]!r}, which the group {group.get('name')!r} sets; leave it "
                f"out, or pass an optimizer that has it (options here: {', '.join(made.defaults)})."
            )
    return made
