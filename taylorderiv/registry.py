"""The one dictionary of rules: how each op acts on jets.

A rule is called with the arguments of the torch function, at least one of them a
:class:`~taylorderiv.jet.Jet`, and returns what the function returns. It is found by the op's canonical name,
so that ``torch.sin``, ``torch.Tensor.sin`` and ``torch.ops.aten.sin.default`` share one rule.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch._library.custom_ops import CustomOpDef

Rule = Callable[..., Any]

_RULES: dict[str, Rule] = {}

# Modules whose Python functions are named like the ATen op of the same meaning and arguments.
_PLAIN_MODULES = ("torch", "torch._tensor", "torch.functional", "torch._C")

# Dunder methods whose arguments are those of the op, in order.
_DUNDER_NAMES = {
    "truediv": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "invert": "bitwise_not",
}


class Found(NamedTuple):
    """What :func:`find` returns: the canonical name, the rule if any, and whether to write in place."""

    name: str
    rule: Rule | None
    in_place: bool


def canonical(func: Any) -> str:
    """The name under which the rule of a function is kept.

    ATen ops, torch functions and tensor methods have the name of the ATen op; Python functions elsewhere
    in torch have their path below ``torch``; custom ops are called ``namespace::name``; a string is its own
    name.
    """
    if isinstance(func, str):
        return func
    if isinstance(func, torch._ops.OpOverload):
        func = func.overloadpacket
    if isinstance(func, torch._ops.OpOverloadPacket):
        namespace, name = func._qualified_op_name.split("::")
        return name if namespace == "aten" else f"{namespace}::{name}"
    if isinstance(func, CustomOpDef):
        return func._qualname
    name = getattr(func, "__name__", None) or type(func).__name__
    if isinstance(func, types.FunctionType) and func.__module__ not in _PLAIN_MODULES:
        module = func.__module__.removeprefix("torch.")
        # Functions that dispatch on a Boolean argument are all defined in one place.
        return f"nn.functional.{name}" if module == "_jit_internal" else f"{module}.{name}"
    if name.startswith("__") and name.endswith("__"):
        stem = name[2:-2]
        return name if stem in ("getitem", "setitem") else _DUNDER_NAMES.get(stem, stem)
    return name


_FOUND: dict[Any, Found] = {}


def find(func: Any) -> Found:
    """Look up the rule of a function that was called with a jet."""
    if torch.compiler.is_compiling():  # What was found isn't a fact to compile for: later calls add to it.
        return _find(_traced_name(func))
    found = _FOUND.get(func)
    if found is None:
        found = _FOUND[func] = _find(canonical(func))
    return found


def _traced_name(func: Any) -> str:
    return canonical(func)


# A compiler can't trace how a function is called: it runs this while it traces. (As marked by
# torch.compiler.assume_constant_result, without its import of the whole compiler.)
_traced_name._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _find(name: str) -> Found:
    rule = _RULES.get(name)
    if rule is None:
        # In-place variants: add_, and __iadd__, which has become iadd.
        if name.endswith("_") and not name.endswith("__"):
            base = name[:-1]
        elif name[0] == "i" and name[1:] in ("add", "sub", "mul", "div", "truediv", "pow"):
            base = _DUNDER_NAMES.get(name[1:], name[1:])
        else:
            base = name
        if base != name:
            return Found(base, _RULES.get(base), True)
    return Found(name, rule, False)


def register(*funcs: Any) -> Callable[[Rule], Rule]:
    """A decorator: the function under it becomes the rule of ``funcs``, functions or canonical names."""

    def decorate(rule: Rule) -> Rule:
        for func in funcs:
            _RULES[canonical(func)] = rule
        _FOUND.clear()
        return rule

    return decorate


_REFUSED: set[str] = set()


def refuse(name: str, reason: str) -> None:
    """Have an op raise a NotImplementedError with the reason, instead of losing derivatives silently."""

    def rule(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"'{name}' can't be applied to a jet: {reason}")

    register(name)(rule)
    _REFUSED.add(name)


def supported_ops() -> list[str]:
    """The canonical names of all ops with a rule. Others are decomposed where PyTorch knows how."""
    return sorted(name for name in _RULES if not name.startswith("_") and name not in _REFUSED)


def missing_rule(name: str, reason: str = "") -> NotImplementedError:
    """The error for an op that can't be applied to a jet."""
    detail = f" ({reason})" if reason else ""
    return NotImplementedError(
        f"taylorderiv has no rule for '{name}' and can't decompose it{detail}. "
        f"Register one with taylorderiv.register_rule(function, rule)."
    )


def _no_fallback(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise missing_rule(name)


_fallback = _no_fallback


def set_fallback(function: Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Set what is called, as ``function(func, name, args, kwargs)``, for a function without a rule."""
    global _fallback
    _fallback = function


def fall_back(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a function without a rule to jets."""
    return _fallback(func, name, args, kwargs)
