"""Rules of the elementwise ops in the table of unary ops, and how a user adds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taylorderiv import chain, kernels, registry
from taylorderiv.registry import register
from taylorderiv.rules.engine import Jet
from taylorderiv.unary_ops import UNARY_OPS, UnaryOp


def apply_unary(name: str, x: Jet, *params: float) -> Jet:
    """The op ``name`` of the table, with its parameters, on a jet."""
    value = chain.activation(x.value, name, params)
    if value is not None:
        return x.with_value(value)
    return x.with_coefficients(kernels.unary(name, x.coefficients, x.coefficient_layout, params))


def _rule(op: UnaryOp) -> registry.Rule:
    def rule(input: Jet, *args: Any, **kwargs: Any) -> Jet:
        return apply_unary(op.name, input, *op.params(*args, **kwargs))

    return rule


for _op in UNARY_OPS.values():
    register(*(_op.keys or (_op.name,)))(_rule(_op))


@register("gelu")
def _gelu(input: Jet, approximate: str = "none") -> Jet:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return apply_unary("gelu" if approximate == "none" else "gelu_tanh", input)


def register_rule(func: Any, rule: registry.Rule | None = None, *, slope: Callable[..., Any] | None = None) -> Any:
    """Teach Taylor mode a function.

    Args:
        func: a torch function, tensor method, ATen op or custom op; or its canonical name.
        rule: called with the arguments of ``func``, at least one of them a :class:`Jet`; returns what
            ``func`` returns. It is written with torch functions of jets, or with ``jet.coefficients`` and
            ``jet.with_coefficients``. Without ``rule`` and ``slope``, a decorator is returned.
        slope: instead of a rule, for an elementwise ``y = func(x, *params)``: its derivative
            ``slope(x, y, *params)``, written with arithmetic, functions of the table of unary ops and
            ``torch.where``. It may use ``y``, but not call ``func``.

    Raises:
        ValueError: both ``rule`` and ``slope`` are given.

    Example:
        >>> register_rule(torch.special.entr, slope=lambda x, y: -torch.log(x) - 1)
    """
    if rule is not None and slope is not None:
        raise ValueError("register_rule takes a rule or a slope, not both")
    if slope is not None:
        name = registry.canonical(func)
        UNARY_OPS[name] = UnaryOp(name, func, slope)
        rule = lambda input, *params: apply_unary(name, input, *params)  # noqa: E731
    if rule is None:
        return register(func)
    return register(func)(rule)
