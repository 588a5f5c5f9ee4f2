"""The Python code in a report that runs the same again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEFT_OUT = ("resume", "evaluators", "trackers", "probe", "testdata")  # are named in a comment


def repeating_code(facts: Mapping[str, Any]) -> str:
    """Python that runs the same again, as far as NAME.yaml can say it; what is only described stands in comments."""
    algorithm = facts.get("algorithm", "Supervisor")
    arguments, settings = facts.get("arguments") or {}, facts.get("settings") or {}
    given = facts.get("dataset")
    own = str(facts.get("module", "superself.")).startswith("superself.")
    body = [f"# {facts.get('data', 'unknown data')}"]
    body += [
        f"dataset = {given!r}" if isinstance(given, str) else "dataset = ...  # was passed as an object, not as a name"
    ]
    body += ["", f"supervisor = {algorithm}(", "    dataset,", f"    seed={facts.get('seed')!r},"]
    body += [_argument(key, value) for key, value in (facts.get("reading") or {}).items()]
    body += [_argument(key, value) for key, value in arguments.items() if value is not None]
    body += [")", "supervisor.supervise("]
    settings = {key: value for key, value in settings.items() if value not in (None, False, [])}
    body += [_argument(key, value) for key, value in settings.items() if key not in LEFT_OUT]
    body += [f"    # {key}: {settings[key]}" for key in LEFT_OUT if key in settings and key != "resume"]
    code = "\n".join([*body, ")"])
    imports = [f"from superself import {algorithm}" if own else f"# {algorithm} is a class of {facts['module']}"]
    imports += ["from superself.training import Schedule"] if "=Schedule(" in code else []
    imports += ["import torch"] if "=torch." in code else []
    return "\n".join([*sorted(imports, reverse=True), "", code])


def _argument(key: str, value: Any) -> str:
    """One line of a call; a comment if the value is only a description."""
    if isinstance(value, str) and value.startswith("torch.optim."):
        return f"    {key}=torch.optim.{value.rsplit('.', 1)[1]},"
    if isinstance(value, str) and value.startswith("Schedule("):
        return f"    {key}={value},"
    is_text = isinstance(value, str) and key in ("name", "augment", "backbone", "notes") and " object" not in value
    return f"    {key}={value!r}," if is_text or _is_literal(value) else f"    # {key}: {value}"


def _is_literal(value: Any) -> bool:
    """Whether a list or dictionary holds numbers, flags and short texts only."""
    if isinstance(value, dict):
        return all(map(_is_literal, value.values()))
    if isinstance(value, list):
        return all(map(_is_literal, value))
    return (
        value is None
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and not set(value) & set(" ."))
    )
