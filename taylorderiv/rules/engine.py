"""What the families of rules share: how coefficients are shaped, broadcast, promoted and mapped over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from taylorderiv import kernels
from taylorderiv.jet import Jet, constant
from taylorderiv.layout import Layout

AnyJet = Any
"""A jet, in the signatures of rules: torch functions take one, but their type stubs know tensors only."""


def is_jet(value: Any) -> bool:
    """Whether a leaf is a jet."""
    return isinstance(value, Jet)


def is_tensor(value: Any) -> bool:
    """Whether a leaf is a tensor or a jet."""
    return isinstance(value, (Tensor, Jet))


def first_jet(*values: Any) -> Jet:
    """The first jet among the leaves of the arguments."""
    return next(value for value in pytree.tree_leaves(values) if isinstance(value, Jet))


def plain(value: Any) -> Any:
    """The tensor under a jet or a jet of jets (its innermost primal); anything else as it is."""
    while isinstance(value, Jet):
        value = value.primal
    return value


def primals(value: Any) -> Any:
    """A pytree with every jet replaced by its primal."""
    return pytree.tree_map(lambda leaf: leaf.primal if isinstance(leaf, Jet) else leaf, value)


def align(coefficients: Any, ndim: int) -> Any:
    """Coefficients ``(C, *shape)`` with axes of length 1 put behind C until ``shape`` has ``ndim`` axes."""
    missing = ndim + 1 - coefficients.ndim
    if missing <= 0:
        return coefficients
    return coefficients.reshape(coefficients.shape[0], *[1] * missing, *coefficients.shape[1:])


def wrap_dim(dim: int, ndim: int) -> int:
    """``dim`` counted from 0, with PyTorch's check; a 0-dimensional tensor has one axis here.

    Raises:
        IndexError: ``dim`` is out of range.
    """
    length = max(ndim, 1)
    if not -length <= dim < length:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-length}, {length - 1}], but got {dim})"
        )
    return dim % length


def shift_dims(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The axes of coefficients that are the axes ``dim`` of the value; all of them for None and ``()``."""
    if isinstance(dim, int):
        dim = (dim,)
    if dim is None or len(dim) == 0:
        return tuple(range(1, ndim + 1))
    if ndim == 0:
        for d in dim:
            wrap_dim(d, 0)
        return ()
    return tuple(wrap_dim(d, ndim) + 1 for d in dim)


def result_dtype(*operands: Any) -> torch.dtype:
    """The dtype that torch promotes the operands (jets, tensors, numbers) to."""
    values = [plain(operand) for operand in operands]
    dtype = torch.result_type(values[0], values[1]) if len(values) > 1 else values[0].dtype
    for value in values[2:]:
        dtype = torch.promote_types(dtype, value.dtype if isinstance(value, Tensor) else dtype)
    return dtype


def promote(*operands: Any) -> tuple[Any, ...]:
    """The tensors and jets among the operands in the dtype that torch promotes all of them to."""
    tensors = [operand for operand in operands if is_tensor(operand)]
    numbers = [operand for operand in operands if not is_tensor(operand)]
    if all(t.dtype == tensors[0].dtype for t in tensors) and not any(isinstance(n, complex) for n in numbers):
        return operands
    dtype = result_dtype(*operands)
    return tuple(cast(operand, dtype) if is_tensor(operand) else operand for operand in operands)


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """A tensor or jet in another dtype, itself if it has that dtype already."""
    if dtype is None or value.dtype == dtype:
        return value
    if isinstance(value, Jet):
        return value.with_coefficients(value.coefficients.to(dtype))
    return value.to(dtype)


def check_same_device(op: str, input: Any, other: Any, name: str) -> None:
    """Raise unless both are on one device.

    PyTorch checks it, too, but (2.13) takes the product with a matrix on ``meta`` to be numbers.

    Raises:
        ValueError: they aren't.
    """
    if other.device != input.device:
        raise ValueError(f"{op}: {name} is on {other.device}, expected {input.device} as its input")


def lift(values: Sequence[Any], like: Jet | None = None) -> tuple[list[Jet], Jet]:
    """The tensors among ``values`` as constant jets, and one of the jets."""
    like = first_jet(values) if like is None else like
    return [value if isinstance(value, Jet) else constant(value, like) for value in values], like


def add_to_primal(coefficients: Any, value: Any) -> Any:
    """Add a constant to the jet: it changes the primal only. Both broadcast."""
    if is_tensor(value):
        coefficients = align(coefficients, value.ndim)
    primal = coefficients[:1] + value
    if primal.shape[1:] != coefficients.shape[1:]:
        coefficients = coefficients.expand(-1, *primal.shape[1:])
    if coefficients.shape[0] == 1:
        return primal
    return torch.cat([primal, coefficients[1:]])


def coefficientwise(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A function that is linear in the jets among its arguments: each coefficient by itself."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Jet)]
    like = leaves[places[0]]

    def call(*coefficients: Any) -> Any:
        filled = list(leaves)
        for place, coefficient in zip(places, coefficients, strict=True):
            filled[place] = coefficient
        call_args, call_kwargs = pytree.tree_unflatten(filled, spec)
        return func(*call_args, **call_kwargs)

    stacks = [leaves[place].coefficients for place in places]
    # torch.vmap takes an axis of a 0-dimensional value for one that isn't there.
    if all(isinstance(stack, Tensor) and stack.ndim > 1 for stack in stacks):
        result = torch.vmap(call)(*stacks)
    else:
        results = [call(*[stack[c] for stack in stacks]) for c in range(like.coefficient_layout.size)]
        result = pytree.tree_map(lambda *parts: torch.stack(parts), *results)
    return pytree.tree_map(like.with_coefficients, result)


def bilinear(product: Callable[[Any, Any], Any], a: Jet, b: Jet) -> Jet:
    """A bilinear function of two jets: sums of products of their coefficients."""
    terms = a.coefficient_layout.products()
    pairs = [(n, *term) for n, products in enumerate(terms) for term in products]
    left, right = [i for _, i, _, _ in pairs], [j for _, _, j, _ in pairs]
    if isinstance(a.coefficients, Tensor) and isinstance(b.coefficients, Tensor):
        products = torch.vmap(product)(a.coefficients[left], b.coefficients[right])
    else:
        products = [product(a.coefficients[i], b.coefficients[j]) for i, j in zip(left, right, strict=True)]
    outputs: list[Any] = [None] * a.coefficient_layout.size
    for (n, _, _, weight), value in zip(pairs, products, strict=True):
        value = value if weight == 1 else weight * value
        outputs[n] = value if outputs[n] is None else outputs[n] + value
    return a.with_coefficients(torch.stack(outputs))


def with_primal(x: AnyJet, primal: Any) -> AnyJet:
    """The jet with another value, of the same shape and dtype, and the same derivatives."""
    return x.with_coefficients(torch.cat([primal[None], x.coefficients[1:]]))


def compose(expansion: Sequence[Any], x: Jet) -> Jet:
    """An elementwise ``φ(x)`` from its Taylor coefficients ``φ^(m)(x_0) / m!`` at the primal, m = 0 … order.

    Where a coefficient of φ is infinite but that of the power ``(x - x_0)^m`` it multiplies is 0, the term is
    0.
    """
    h = with_primal(x, torch.zeros_like(x.primal)).coefficients
    result, power = constant(expansion[0], x).coefficients, h
    for m in range(1, x.order + 1):
        factor = torch.where((power == 0) & ~torch.isfinite(expansion[m]), 0.0, expansion[m])
        result = result + factor * power
        if m < x.order:
            power = kernels.cauchy(power, h, x.coefficient_layout)
    return x.with_coefficients(result)


Formula = Callable[[list[Jet], list[Jet]], Sequence[Any]]


def integrate(values: Sequence[Any], inputs: Sequence[Jet], formula: Formula) -> list[Any]:
    """The jets of functions ``y`` of jets ``x`` from ``y'(t) = formula(x(t), x'(t))``.

    Args:
        values: the outputs at the primals; those that aren't floating-point or complex tensors are constant.
        inputs: the jets x, of one layout.
        formula: called for each direction with ``x`` and ``x'`` as jets one order lower; returns for each
            output its derivative as such a jet, or None if it is 0.

    Returns:
        For each output its jet, or the constant.
    """
    like = inputs[0]
    layout = like.coefficient_layout
    columns: list[list[Any]] = [[] for _ in values]
    tops: list[Any] = [None] * len(values)
    for r, order in enumerate(layout.orders):
        series = [_along(x, r) for x in inputs]
        lower = Layout((order - 1,) if order > 1 else ())
        positions = [Jet(torch.stack(s[:-1]), lower, like.level) for s in series]
        velocities = [Jet(torch.stack([j * s[j] for j in range(1, order + 1)]), lower, like.level) for s in series]
        for i, derivative in enumerate(formula(positions, velocities)):
            if not _varies(values[i]):
                continue
            rates = torch.zeros_like(values[i]).expand(order, *values[i].shape)
            if derivative is not None:
                rates = derivative.coefficients
            terms = [rates[k - 1] / k for k in range(1, order + 1)]
            stored = layout.stored(r)
            columns[i] += terms[:stored]
            if stored < order:
                assert layout.weights is not None
                top = layout.weights[r] * terms[-1]
                tops[i] = top if tops[i] is None else tops[i] + top
    results = []
    for value, column, top in zip(values, columns, tops, strict=True):
        terms = [value, *column] if top is None else [value, *column, top]
        results.append(like.with_coefficients(torch.stack(terms)) if _varies(value) else value)
    return results


Evolution = Callable[[list[Jet], list[Jet], list[Jet]], Sequence[Any]]


def evolve(values: Sequence[Any], inputs: Sequence[Jet], formula: Evolution) -> list[Any]:
    """The jets of functions ``y`` of jets ``x`` from the differential equation ``y'(t) = formula(x, y, x')``.

    As :func:`integrate`, with a formula that also gets the outputs, as jets one order lower.
    """

    def rates(positions: list[Jet], velocities: list[Jet]) -> Sequence[Any]:
        return formula(positions, evolve(values, positions, formula), velocities)

    return integrate(values, inputs, rates)


def _varies(value: Any) -> bool:
    return is_tensor(value) and (value.is_floating_point() or value.is_complex())


def _along(x: Jet, r: int) -> list[Any]:
    """All coefficients along direction r. The first collapsed one stands for all, as in reference.unary."""
    layout, c = x.coefficient_layout, x.coefficients
    terms = [c[layout.index(k, r)] for k in range(layout.stored(r) + 1)]
    if r in layout.collapsed_directions:
        assert layout.weights is not None
        first = r == layout.collapsed_directions[0]
        terms.append(c[-1] / layout.weights[r] if first else torch.zeros_like(c[0]))
    return terms
