"""Validation errors of params.yaml as lines that name the key, the value and what is allowed."""

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from exp_tools.errors import did_you_mean


def explain_errors(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line per key that is wrong; `root` is the model of the whole file.

    A value that fits neither branch of a union (a number or `auto`) is two faults to pydantic, one to a person.
    """
    lines: dict[str, str] = {}
    for fault in error.errors():
        path = [part for part in fault["loc"] if not _is_branch(part)]
        key = ".".join(str(part) for part in path)
        if key not in lines:
            lines[key] = _explain(fault, path, root)
        elif fault["type"] == "literal_error":
            lines[key] += f", or {fault['ctx']['expected']}"
    return list(lines.values())


def _explain(fault: Any, path: list[Any], root: type[BaseModel]) -> str:
    """One fault of pydantic's list as one line."""
    key = ".".join(str(part) for part in path)
    value, kind, context = fault["input"], fault["type"], fault.get("ctx", {})
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        known = _keys_of_section(path, root)
        return f"{key} is unknown; known here: {', '.join(known)}{did_you_mean(str(path[-1]), known)}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return f"{key} is {value!r}; choose one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
    if kind == "value_error":
        return f"{key}: {context['error']}"
    message = fault["msg"].removeprefix("Input ")
    return f"{key} is {value!r}; it {message}"


def _is_branch(part: Any) -> bool:
    """Whether a part of an error's place is a branch of a union (`literal['auto']`, `constrained-int`), no key."""
    return isinstance(part, str) and ("[" in part or part in {"constrained-int", "constrained-float"})


def _keys_of_section(path: list[Any], root: type[BaseModel]) -> list[str]:
    """The keys of the section that the last part of `path` was looked for in."""
    section: Any = root
    for part in path[:-1]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[part].annotation
        else:  # list[Section] or dict[str, Section]
            section = get_args(section)[-1]
    return list(section.model_fields)
