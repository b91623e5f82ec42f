"""Products: Cauchy products of the coefficients where both operands are jets, linear where one is."""

from __future__ import annotations

import cmath
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch

from taylorderiv import chain, kernels
from taylorderiv.registry import canonical, missing_rule, register
from taylorderiv.rules.engine import (
    AnyJet,
    align,
    bilinear,
    cast,
    check_same_device,
    coefficientwise,
    compose,
    constant,
    first_jet,
    is_jet,
    is_tensor,
    primals,
    promote,
    result_dtype,
    with_primal,
)
from taylorderiv.rules.unary import apply_unary

# Elementwise.


def _aligned(a: Any, b: Any) -> tuple[Any, Any]:
    """The coefficients of the jets among two operands, broadcastable; constants as they are."""
    ndim = max(value.ndim if is_tensor(value) else 0 for value in (a, b))
    x, y = (align(value.coefficients, ndim) if is_jet(value) else value for value in (a, b))
    return x, y


@register("mul", "multiply")
def _mul(input: Any, other: Any) -> AnyJet:
    if is_jet(input) != is_jet(other):
        jet, factor = (input, other) if is_jet(input) else (other, input)
        value = chain.scaled(jet.value, factor)
        if value is not None:
            return jet.with_value(value)
    input, other = promote(input, other)
    x, y = _aligned(input, other)
    if not (is_jet(input) and is_jet(other)):
        return first_jet(input, other).with_coefficients(x * y)
    shape = torch.broadcast_shapes(x.shape, y.shape)
    return input.with_coefficients(kernels.cauchy(x.expand(shape), y.expand(shape), input.coefficient_layout))


@register("div", "divide", "true_divide")
def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:  # Piecewise constant.
        return torch.div(*primals((input, other)), rounding_mode=rounding_mode)
    input, other = promote(input, other)
    if is_jet(other):
        inverse = apply_unary("reciprocal", other)
        return inverse if not is_tensor(input) and input == 1 else _mul(input, inverse)
    x, y = _aligned(input, other)
    return input.with_coefficients(x / y)


@register("floor_divide")
def _floor_divide(input: Any, other: Any) -> Any:
    return _div(input, other, rounding_mode="floor")


def _remainder_rule(func: Callable[..., Any], rounding_mode: str) -> Callable[..., Any]:
    def rule(input: Any, other: Any) -> AnyJet:
        result = input - other * _div(input, other, rounding_mode=rounding_mode)
        return with_primal(result, func(*primals((input, other))))

    return rule


register("remainder")(_remainder_rule(torch.remainder, "floor"))
register("fmod")(_remainder_rule(torch.fmod, "trunc"))


def _reflected(rule: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input, other: rule(other, input)


register("rdiv", "rtruediv")(_reflected(_div))
register("rfloordiv")(_reflected(_floor_divide))


@register("addcmul")
def _addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    return torch.add(input, torch.mul(tensor1, tensor2), alpha=value)


@register("addcdiv")
def _addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    return torch.add(input, torch.div(tensor1, tensor2), alpha=value)


@register("lerp")
def _lerp(input: Any, end: Any, weight: Any) -> Any:
    return input + weight * (end - input)


@register("hypot")
def _hypot(input: Any, other: Any) -> Any:
    return torch.sqrt(torch.square(input) + torch.square(other))


@register("atan2", "arctan2")
def _atan2(input: Any, other: Any) -> AnyJet:
    # Turned by its own angle, the point lies on the positive axis, where the angle is the arctangent of a
    # quotient.
    input, other = promote(input, other)
    y, x = primals((input, other))
    radius = torch.hypot(y, x)
    cosine, sine = x / radius, y / radius
    along = other * cosine + input * sine
    across = input * cosine - other * sine
    across = across - primals(across)
    return apply_unary("atan", across / along) + torch.atan2(y, x)


# Powers.


@register("pow")
def _pow(input: Any, exponent: Any) -> Any:
    if is_jet(input) and is_jet(exponent):
        return _jet_to_jet(input, exponent)
    if is_jet(exponent):
        return _constant_to_jet(input, exponent)
    if is_tensor(exponent) or isinstance(exponent, complex):
        return _jet_to_constants(input, exponent)
    if exponent == 0.5:
        return apply_unary("sqrt", input)
    if exponent == -0.5:
        return apply_unary("rsqrt", input)
    if float(exponent).is_integer():
        return _integer_power(input, int(exponent))
    return apply_unary("pow", input, float(exponent))


register("rpow")(_reflected(_pow))


@register("float_power")
def _float_power(input: Any, exponent: Any) -> Any:
    def double(value: Any) -> Any:
        if not is_tensor(value):
            return value
        return cast(value, torch.complex128 if value.is_complex() else torch.float64)

    return _pow(double(input), double(exponent))


def _integer_power(x: AnyJet, exponent: int) -> AnyJet:
    """By multiplication: exact at 0, where a recurrence with a quotient isn't."""
    if exponent == 0:
        return constant(torch.ones_like(x.primal), x)
    if exponent < 0:  # Singular at 0 in any case: the recurrence gives the infinities, products would mix them.
        return apply_unary("reciprocal", x) if exponent == -1 else apply_unary("pow", x, float(exponent))
    base, result = x, None
    while True:
        if exponent & 1:
            result = base if result is None else _mul(result, base)
        exponent >>= 1
        if not exponent:
            assert result is not None
            return result
        base = apply_unary("square", base)


def _jet_to_constants(x: AnyJet, exponent: Any) -> AnyJet:
    """``x ** p`` for a tensor of exponents, integers among them, by the binomial series at the primal."""
    dtype = result_dtype(x, exponent)
    x = cast(x, dtype)
    if not is_tensor(exponent):
        exponent = torch.tensor(exponent, dtype=dtype, device=x.device)
    p = cast(exponent, dtype)
    shape = torch.broadcast_shapes(x.shape, p.shape)
    x, p = x.expand(shape), p.expand(shape)
    base = x.primal
    expansion = [torch.pow(base, p)]
    binomial = torch.ones_like(p)
    for m in range(1, x.order + 1):
        binomial = binomial * ((p - (m - 1)) / m)
        # Where the exponent is an integer below m the term is 0, even if the power is infinite.
        vanishes = (binomial == 0) & (base == 0)
        power = torch.pow(torch.where(vanishes, 1.0, base), p - m)
        expansion.append(torch.where(vanishes, 0.0, binomial * power))
    return compose(expansion, x)


def _constant_to_jet(base: Any, exponent: AnyJet) -> AnyJet:
    """``b ** (e_0 + h) = b ** e_0 · exp(h log b)``; a base of 0 is taken to be constant, as PyTorch does."""
    base, exponent = promote(base, exponent)
    if is_tensor(base):
        log = torch.where(base == 0, 0.0, torch.log(torch.where(base == 0, 1.0, base)))
    elif base == 0:
        log = 0.0
    elif isinstance(base, complex):
        log = cmath.log(base)
    else:
        log = math.log(base) if base > 0 else math.nan
    return apply_unary("exp", _mul(exponent - exponent.primal, log)) * torch.pow(base, exponent.primal)


def _jet_to_jet(base: AnyJet, exponent: AnyJet) -> AnyJet:
    """``b ** (e_0 + h) = b ** e_0 · exp(h log b)``."""
    base, exponent = promote(base, exponent)
    zero = base.primal == 0
    log = torch.where(zero, 0.0, torch.log(torch.where(zero, 1.0, base)))
    return _jet_to_constants(base, exponent.primal) * torch.exp((exponent - exponent.primal) * log)


@register("xlogy", "special_xlogy")
def _xlogy(input: Any, other: Any) -> Any:
    # 0 log 0 is 0, and so are its derivatives, as in PyTorch.
    x, y = primals((input, other))
    return input * torch.log(torch.where((x == 0) & (y == 0), 1.0, other))


# Matrix products.


@register("matmul", "_sparse_mm")
def _matmul(input: Any, other: Any) -> AnyJet:
    input, other = promote(input, other)
    if any(not is_jet(value) and value.layout is not torch.strided for value in (input, other)):
        return _sparse_matmul(input, other)
    if input.ndim == 0 or other.ndim == 0:
        raise RuntimeError("both arguments to matmul need to be at least 1D, but they are 0D")
    check_same_device("matmul", input, other, "the second factor")
    a = input.unsqueeze(0) if input.ndim == 1 else input
    b = other.unsqueeze(-1) if other.ndim == 1 else other
    x, y = _aligned(a, b)
    out = _matrix_cauchy(x, y, a) if is_jet(a) and is_jet(b) else torch.matmul(x, y)
    if other.ndim == 1:
        out = out.squeeze(-1)
    if input.ndim == 1:
        out = out.squeeze(-1 if other.ndim == 1 else -2)
    return first_jet(a, b).with_coefficients(out)


def _sparse_matmul(input: Any, other: Any) -> AnyJet:
    """The product of a sparse matrix and a jet, a matrix or vector, on either side."""
    if is_jet(input):
        return _sparse_matmul(other.t(), input.t()).t()
    if other.ndim == 1:
        return _sparse_matmul(input, other.unsqueeze(-1)).squeeze(-1)
    # All coefficients side by side, as columns of one matrix.
    c = other.coefficients.transpose(0, 1)
    product = input @ c.reshape(c.shape[0], c.shape[1] * c.shape[2])
    return other.with_coefficients(product.reshape(input.shape[0], *c.shape[1:]).transpose(0, 1))


def _matrix_cauchy(x: Any, y: Any, like: AnyJet) -> Any:
    """Each coefficient of the product as one product over a concatenated inner dimension."""
    outputs = []
    for terms in like.coefficient_layout.products():
        left = [x[i] if weight == 1 else x[i] * weight for i, _, weight in terms]
        right = [y[j] for _, j, _ in terms]
        if len(terms) == 1:
            outputs.append(torch.matmul(left[0], right[0]))
        else:
            outputs.append(torch.matmul(torch.cat(left, -1), torch.cat(right, -2)))
    return torch.stack(outputs)


register("rmatmul")(_reflected(_matmul))


def _checked_matmul(name: str, ndims: tuple[int, int]) -> None:
    @register(name)
    def rule(input: Any, other: Any, out_dtype: torch.dtype | None = None) -> AnyJet:
        if (input.ndim, other.ndim) != ndims:
            raise RuntimeError(f"{name} expects {ndims[0]}D and {ndims[1]}D operands, got {input.ndim}D, {other.ndim}D")
        return _matmul(input, other)


for _name, _ndims in {"mm": (2, 2), "bmm": (3, 3), "mv": (2, 1), "dot": (1, 1)}.items():
    _checked_matmul(_name, _ndims)


@register("vdot")
def _vdot(input: Any, other: Any) -> AnyJet:
    return _matmul(input.conj(), other)


@register("inner")
def _inner(input: Any, other: Any) -> Any:
    if input.ndim == 0 or other.ndim == 0:
        return input * other
    return _tensordot(input, other, ([-1], [-1]))


@register("outer", "ger")
def _outer(input: Any, vec2: Any) -> Any:
    return input.unsqueeze(1) * vec2


@register("linalg_vecdot")
def _vecdot(x: Any, y: Any, *, dim: int = -1) -> Any:
    return (x.conj() * y).sum(dim)


@register("linalg_multi_dot")
def _multi_dot(tensors: Sequence[Any]) -> Any:
    result = tensors[0]
    for factor in tensors[1:]:
        result = torch.matmul(result, factor)
    return result


@register("chain_matmul")
def _chain_matmul(*matrices: Any) -> Any:
    return _multi_dot(matrices)


def _plus_product(product: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The rule of ``beta * input + alpha * product(a, b)``."""

    def rule(input: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
        term = product(a, b)
        term = term if alpha == 1 else term * alpha
        if beta == 0:  # input is ignored, NaN included
            return term
        input = cast(input, term.dtype)  # autocast computes in another dtype
        return term + (input if beta == 1 else input * beta)

    return rule


register("addmm", "addmv")(_plus_product(torch.matmul))
register("baddbmm")(_plus_product(torch.bmm))
register("addr")(_plus_product(torch.outer))
register("addbmm")(_plus_product(lambda a, b: torch.bmm(a, b).sum(0)))


@register("tensordot", "functional.tensordot")
def _tensordot(a: Any, b: Any, dims: Any = 2, out: None = None) -> Any:
    if is_tensor(dims):
        dims = dims.tolist()
    if isinstance(dims, int):
        dims = (list(range(a.ndim - dims, a.ndim)), list(range(dims)))
    a_dims = [d % a.ndim for d in ([dims[0]] if isinstance(dims[0], int) else dims[0])]
    b_dims = [d % b.ndim for d in ([dims[1]] if isinstance(dims[1], int) else dims[1])]
    for a_dim, b_dim in zip(a_dims, b_dims, strict=True):  # Axes of length 1 broadcast.
        if a.shape[a_dim] != b.shape[b_dim]:
            a = a.sum(a_dim, keepdim=True) if b.shape[b_dim] == 1 else a
            b = b.sum(b_dim, keepdim=True) if a.shape[a_dim] == 1 else b
    a_free = [d for d in range(a.ndim) if d not in a_dims]
    b_free = [d for d in range(b.ndim) if d not in b_dims]
    inner = math.prod(a.shape[d] for d in a_dims)
    left = a.permute([*a_free, *a_dims]).reshape(math.prod(a.shape[d] for d in a_free), inner)
    right = b.permute([*b_dims, *b_free]).reshape(inner, math.prod(b.shape[d] for d in b_free))
    return torch.matmul(left, right).reshape([*[a.shape[d] for d in a_free], *[b.shape[d] for d in b_free]])


# einsum.


def _einsum_terms(equation: str) -> tuple[list[str], str]:
    """The subscripts of the operands and those of the output."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = left.replace(".", "").replace(",", "")
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        output = ("..." if "..." in left else "") + "".join(once)
    return left.split(","), output


@register("einsum")
def _einsum(equation: str, *operands: Any) -> Any:
    values = operands[0] if isinstance(operands[0], (list, tuple)) else operands
    inputs, output = _einsum_terms(equation)
    places = [i for i, value in enumerate(values) if is_jet(value)]
    if len(places) > 2:
        # Contract the first two jets, keeping every letter that is needed later.
        i, j = places[:2]
        rest = [k for k in range(len(values)) if k not in (i, j)]
        needed = set("".join(inputs[k] for k in rest) + output)
        dots = "..." if "..." in inputs[i] + inputs[j] else ""
        kept = dots + "".join(sorted(set(inputs[i] + inputs[j]) & needed - {"."}))
        product = _einsum(f"{inputs[i]},{inputs[j]}->{kept}", values[i], values[j])
        terms = ",".join([kept, *[inputs[k] for k in rest]])
        return _einsum(f"{terms}->{output}", product, *[values[k] for k in rest])
    free = next(letter for letter in string.ascii_letters if letter not in "".join(inputs) + output)
    like = values[places[0]]
    promoted = promote(*values)
    if len(places) == 1:
        inputs[places[0]] = free + inputs[places[0]]
        stacks = [value.coefficients if is_jet(value) else value for value in promoted]
        return like.with_coefficients(torch.einsum(f"{','.join(inputs)}->{free}{output}", *stacks))
    # Two jets: the sum over products of coefficients is one more index to contract.
    for place in places:
        inputs[place] = free + inputs[place]
    extended = f"{','.join(inputs)}->{output}"
    outputs = []
    for terms in like.coefficient_layout.products():
        stacks = list(promoted)
        left, right = (promoted[place].coefficients for place in places)
        stacks[places[0]] = torch.stack([left[i] if w == 1 else left[i] * w for i, _, w in terms])
        stacks[places[1]] = torch.stack([right[j] for _, j, _ in terms])
        outputs.append(torch.einsum(extended, *stacks))
    return like.with_coefficients(torch.stack(outputs))


# Other bilinear functions: the products of coefficients one by one.


def _bilinear_rule(func: Callable[..., Any]) -> Callable[..., Any]:
    def rule(input: Any, other: Any, *args: Any, **kwargs: Any) -> Any:
        if any(is_jet(value) for value in (*args, *kwargs.values())):
            raise missing_rule(canonical(func), "it is only known for jets as its first two arguments")
        input, other = promote(input, other)
        if is_jet(input) and is_jet(other):
            return bilinear(lambda a, b: func(a, b, *args, **kwargs), input, other)
        return coefficientwise(func, input, other, *args, **kwargs)

    return rule


for _func in (torch.kron, torch.cross, torch.linalg.cross):
    register(_func)(_bilinear_rule(_func))


@register("bilinear")
def _bilinear_layer(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    out = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else out + bias
