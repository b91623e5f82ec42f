"""Unbiased estimates of differential operators in many dimensions, from a few random directions.

For ``v`` with independent components of mean 0 and variance 1, ``E (v·∂)^2 = Δ`` (Hutchinson); if they are
normal, ``E (v·∂)^(2m) = (2m - 1)!! Δ^m``, which signs don't give beyond m = 1. Sampling the terms of an
operator instead gives every operator (stochastic dimension gradient descent; stochastic Taylor derivative
estimator, STDE). (M. F. Hutchinson 1989; Z. Hu, Z. Shi, G. E. Karniadakis, K. Kawaguchi 2024; Z. Shi, Z.
Hu, M. Lin, K. Kawaguchi 2024.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taylorderiv.evaluation import check_output, check_points
from taylorderiv.jet import Jet, nested_level
from taylorderiv.operators import LinearOperator, scaled
from taylorderiv.planner.lattice import monomial_directions
from taylorderiv.planner.polynomial import LAPLACIAN, Monomial, Polynomial, degree, expand, monomial, power_of
from taylorderiv.planner.quadratic import matrix_of

METHODS = ("rademacher", "normal", "coordinates")


class Estimate(NamedTuple):
    """An estimate and how far it's expected to be off.

    Attributes:
        value: the estimate, shaped like ``f(x)``.
        standard_error: an estimate of its standard deviation, shaped like the value and detached: 0 if
            nothing was left to chance, not a number from a single sample; None if it wasn't asked for.
        primal: ``f(x)``, which the same pass computes.
    """

    value: Tensor
    standard_error: Tensor | None
    primal: Tensor


@dataclasses.dataclass(frozen=True)
class _Share:
    """What one family of directions contributes to the estimate of one term.

    ``values[s] = sum over the family's directions d of sample s of factors[s, d] * (v_d·∂)^order``.
    """

    coefficients: tuple[Any, ...]
    order: int
    family: int
    factors: Tensor
    shrinkage: float = 1.0


@dataclasses.dataclass
class _Family:
    """Random directions, ``(samples, directions per sample, D)``, and the order they're needed to."""

    directions: Tensor
    order: int


def estimate(
    operator: LinearOperator,
    f: Callable[[Any], Any],
    x: Tensor,
    samples: int,
    generator: torch.Generator | None = None,
    *,
    method: str | None = None,
    standard_error: bool = True,
) -> Estimate:
    """An unbiased estimate of an operator applied to a function, from a few directions in any dimension.

    Parts of order 0 and 1 are exact. The directions are common to all points, and independent from call to
    call.

    Args:
        operator: what to estimate.
        f: a function or module that acts on each point by itself.
        x: points ``(…, D)``.
        samples: how many samples to take. Memory is that of ``samples`` directions (several for some
            operators).
        generator: where random numbers come from; torch's own by default.
        method: ``"rademacher"`` (random signs; operators of order 2), ``"normal"`` (operators of order 2,
            and powers of them such as ``bilaplacian``), or ``"coordinates"`` (a random choice of the
            operator's terms; any operator). By default the first of these that fits.
        standard_error: whether to estimate it. Without, the samples' highest coefficients are summed in
            one, which takes up to half the time.

    Raises:
        TypeError: ``x`` isn't a floating-point tensor, or ``samples`` not an int.
        ValueError: ``samples`` isn't positive, ``method`` is unknown or would be biased for this operator,
            or ``x`` has another number of variables than the operator.

    Example:
        >>> import torch
        >>> from taylorderiv import estimate, laplacian
        >>> x = torch.randn(2, 1000, dtype=torch.float64)
        >>> estimate(laplacian, lambda x: (x**2).sum(-1), x, samples=4).value
        tensor([2000., 2000.], dtype=torch.float64)
    """
    if not isinstance(x, Tensor | Jet):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    dimension = check_points(x, None if operator.variables is None else len(operator.variables))
    if type(samples) is not int:
        raise TypeError(f"samples must be an int, got {type(samples).__name__}")
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    draw = _Draw(samples, dimension, x.dtype, x.device, generator)
    exact, random = _split(operator)
    families, shares = [], []
    for chosen in METHODS if method is None else (method,):
        try:
            families, shares = _plan(random, chosen, draw)
            break
        except _Unfit as error:
            if method is not None or chosen == METHODS[-1]:
                raise ValueError(str(error)) from None
    return _evaluate(f, x, exact, families, shares, dimension, samples, standard_error)


class _Unfit(Exception):
    """A method that would be biased for an operator."""


_Part = tuple[tuple[Any, ...], int, Polynomial]


def _split(operator: LinearOperator) -> tuple[list[_Part], list[_Part]]:
    """The homogeneous parts ``(coefficients, order, form)`` of orders 0 and 1, and those of higher orders."""
    exact, random = [], []
    for term in operator.terms:
        if term.inner is not None:
            raise ValueError("a composition with coefficients inside can't be estimated: multiply it out")
        by_order: dict[int, dict[Monomial, Any]] = {}
        for key, value in term.symbol.terms.items():
            order = sum(power * (2 if variable == LAPLACIAN else 1) for variable, power in key)
            by_order.setdefault(order, {})[key] = value
        for order, terms in by_order.items():
            (exact if order < 2 else random).append((term.coefficients, order, Polynomial(terms)))
    return exact, random


def _plan(parts: Sequence[_Part], method: str, draw: _Draw) -> tuple[list[_Family], list[_Share]]:
    families: list[_Family] = []
    shares: list[_Share] = []
    isotropic: dict[Polynomial, int] = {}
    for coefficients, order, form in parts:
        if method == "coordinates":
            directions, factors, shrinkage = draw.terms(form, order)
            shares.append(_Share(coefficients, order, len(families), factors, shrinkage))
            families.append(_Family(directions, order))
            continue
        root = _even_root(form, order, draw.dimension)
        if root is None:
            raise _Unfit(
                f"method {method!r} doesn't fit a part of order {order} that isn't a power of an operator of "
                f"order 2: use method='coordinates'"
            )
        scale, square = root
        if order > 2 and method == "rademacher":
            raise _Unfit(f"random signs give a biased estimate of an operator of order {order}: use method='normal'")
        blocks = _square_root(square, draw.dimension)
        if order > 2 and len(blocks) > 1:
            raise _Unfit(
                f"method 'normal' doesn't fit a part of order {order} that's a power of an indefinite "
                f"operator: use method='coordinates'"
            )
        if square not in isotropic:
            isotropic[square] = len(families)
            families.append(_Family(draw.vectors(blocks, method), 0))
        family = families[isotropic[square]]
        family.order = max(family.order, order)
        moment = math.prod(range(1, order, 2))
        signs = [scale * block.sign ** (order // 2) / moment for block in blocks]
        factors = torch.tensor(signs, dtype=torch.float64).expand(draw.samples, -1)
        shares.append(_Share(coefficients, order, isotropic[square], factors))
    return families, shares


def _even_root(form: Polynomial, order: int, dimension: int) -> tuple[float, Polynomial] | None:
    """``(c, q)`` with ``form == c * q^(order / 2)`` and q of order 2."""
    if order % 2:
        return None
    (first, value), *others = form.terms.items()
    if not others and first == ((LAPLACIAN, order // 2),):
        return float(value), Polynomial.variable(LAPLACIAN)
    form = expand(form, dimension)
    if order == 2:
        return 1.0, form
    square = form.root(order // 2)
    if square is None:
        return None
    return float(next(iter(form.terms.values())) / next(iter(square.terms.values())) ** (order // 2)), square


@dataclasses.dataclass(frozen=True)
class _Block:
    """``sign * v v^T`` averages to a definite part of a quadratic form, if ``v[variables] = z @ rows``."""

    sign: int
    variables: list[int] | None
    rows: Tensor


def _square_root(square: Polynomial, dimension: int) -> list[_Block]:
    """A quadratic form as a difference of expectations of squares; a vector of rows stands for a diagonal."""
    if square.variables == (LAPLACIAN,):
        value = float(square.terms[((LAPLACIAN, 1),)])
        sign = 1 if value > 0 else -1
        return [_Block(sign, None, torch.full((dimension,), math.sqrt(abs(value)), dtype=torch.float64))]
    if all(len(key) == 1 for key in square.terms):
        blocks = []
        for sign in (1, -1):
            values = {key[0][0]: float(value) for key, value in square.terms.items() if sign * value > 0}
            if values:
                sizes = torch.tensor(list(values.values()), dtype=torch.float64).abs().sqrt()
                blocks.append(_Block(sign, list(values), sizes))
        return blocks
    variables = list(square.variables)
    place = {variable: i for i, variable in enumerate(variables)}
    local = Polynomial({monomial((place[v], p) for v, p in key): value for key, value in square.terms.items()})
    values, vectors = torch.linalg.eigh(matrix_of(local, len(variables)))
    values = torch.where(values.abs() > 1e-14 * values.abs().max(), values, 0)
    return [
        _Block(sign, variables, (values.abs().sqrt() * vectors).T[sign * values > 0])
        for sign in (1, -1)
        if (sign * values > 0).any()
    ]


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Where random directions come from."""

    samples: int
    dimension: int
    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator | None

    @property
    def source(self) -> torch.device:
        return self.device if self.generator is None else self.generator.device

    def vectors(self, blocks: Sequence[_Block], method: str) -> Tensor:
        """Directions ``(samples, blocks, D)`` with the blocks' second moments."""
        out = torch.zeros(self.samples, len(blocks), self.dimension, dtype=self.dtype, device=self.device)
        for i, block in enumerate(blocks):
            rows = block.rows.to(self.dtype).to(self.device)
            shape = (self.samples, rows.shape[0])
            if method == "normal":
                z = torch.randn(shape, generator=self.generator, dtype=self.dtype, device=self.source)
            else:
                z = torch.randint(0, 2, shape, generator=self.generator, device=self.source).to(self.dtype) * 2 - 1
            z = z.to(self.device)
            v = z @ rows if rows.ndim == 2 else z * rows
            if block.variables is None:
                out[:, i] = v
            else:
                out[:, i, torch.tensor(block.variables, device=self.device)] = v
        return out

    def terms(self, form: Polynomial, order: int) -> tuple[Tensor, Tensor, float]:
        """Directions and factors of randomly chosen terms, and by what drawing without replacement helps."""
        chosen, shrinkage = self._choose(form, order)
        directions, factors = [], []
        for key, weight in chosen:
            local = monomial_directions(key)
            solution = _monomial_factors(tuple(power for _, power in key))
            directions.append([(key, direction) for direction in local])
            factors.append([weight * value for value in solution])
        most = max(map(len, factors))
        out = torch.zeros(self.samples, most, self.dimension, dtype=self.dtype, device=self.device)
        entries = [
            (s, j, variable, value)
            for s, group in enumerate(directions)
            for j, (key, direction) in enumerate(group)
            for (variable, _), value in zip(key, direction, strict=True)
        ]
        rows, places, variables, values = map(list, zip(*entries, strict=True))
        out[rows, places, variables] = torch.tensor(values, dtype=self.dtype, device=self.device)
        padded = [[*row, *[0.0] * (most - len(row))] for row in factors]
        return out, torch.tensor(padded, dtype=torch.float64), shrinkage

    def _choose(self, form: Polynomial, order: int) -> tuple[list[tuple[Monomial, float]], float]:
        """Terms, each with its coefficient over the expected number of times that a sample is it."""
        (first, value), *others = form.terms.items()
        if not others and first == ((LAPLACIAN, order // 2),):
            if order == 2:
                indices, shrinkage = self._subset(self.dimension)
                return [(((i, 2),), float(value) * self.dimension) for i in indices], shrinkage
            # Δ^m = sum over all tuples (i_1, …, i_m) of ∂²_{i_1} … ∂²_{i_m}
            shape = (self.samples, order // 2)
            tuples = torch.randint(0, self.dimension, shape, generator=self.generator, device=self.source)
            weight = float(value) * float(self.dimension) ** (order // 2)
            return [(monomial((i, 2) for i in row), weight) for row in tuples.tolist()], 1.0
        terms = list(expand(form, self.dimension).terms.items())
        sizes = torch.tensor([abs(float(value)) for _, value in terms], dtype=torch.float64)
        if bool((sizes == sizes[0]).all()):
            indices, shrinkage = self._subset(len(terms))
            return [(terms[i][0], float(terms[i][1]) * len(terms)) for i in indices], shrinkage
        probabilities = (sizes / sizes.sum()).to(self.source)
        indices = torch.multinomial(probabilities, self.samples, True, generator=self.generator).tolist()
        total = float(sizes.sum())
        return [(terms[i][0], math.copysign(total, terms[i][1])) for i in indices], 1.0

    def _subset(self, count: int) -> tuple[list[int], float]:
        """Samples from ``count`` equal terms, without replacement until all have been taken equally often."""
        rounds = [
            torch.randperm(count, generator=self.generator, device=self.source)
            for _ in range(-(-self.samples // count))
        ]
        # Only the terms of an incomplete round are left to chance.
        left = self.samples % count
        shrinkage = math.sqrt(left * (1 - left / count) / self.samples)
        return torch.cat(rounds)[: self.samples].tolist(), shrinkage


@functools.lru_cache(maxsize=1024)
def _monomial_factors(powers: tuple[int, ...]) -> list[float]:
    """What each of `monomial_directions` contributes to ``∂^alpha``."""
    key = tuple(enumerate(powers))
    directions = monomial_directions(key)
    order = degree(key)
    columns = [power_of(tuple((i, v) for i, v in enumerate(d) if v), order) for d in directions]
    keys = sorted({k for column in columns for k in column})
    matrix = torch.tensor([[float(column.get(k, 0)) for column in columns] for k in keys], dtype=torch.float64)
    target = torch.tensor([[float(k == key)] for k in keys], dtype=torch.float64)
    return torch.linalg.lstsq(matrix, target, driver="gelsd").solution[:, 0].tolist()


def _evaluate(
    f: Callable[[Any], Any],
    x: Any,
    exact: Sequence[_Part],
    families: Sequence[_Family],
    shares: Sequence[_Share],
    dimension: int,
    samples: int,
    standard_error: bool,
) -> Estimate:
    """One jet along all directions, and the mean and spread of what the samples give."""
    lines = [(coefficients, form) for coefficients, order, form in exact if order == 1]
    vectors = [torch.zeros(0, dimension, dtype=x.dtype, device=x.device)]
    for _, form in lines:
        vector = torch.zeros(1, dimension, dtype=x.dtype, device=x.device)
        places = [key[0][0] for key in form.terms]
        vector[0, places] = torch.tensor([float(value) for value in form.terms.values()]).to(vector)
        vectors.append(vector)
    orders = [1] * len(lines)
    # Directions that only fill up a sample with fewer than the others aren't propagated.
    used = [torch.zeros(family.directions.shape[:2], dtype=torch.bool) for family in families]
    for share in shares:
        used[share.family] |= share.factors != 0
    places = []
    for family, mask in zip(families, used, strict=True):
        place = torch.full(mask.shape, -1)
        place[mask] = torch.arange(len(orders), len(orders) + int(mask.sum()))
        places.append(place)
        vectors.append(family.directions[mask.to(x.device)])
        orders += [family.order] * int(mask.sum())
    weights = None if standard_error else _weights(shares, places, orders, samples)

    directions = torch.cat(vectors).reshape(-1, *[1] * (x.ndim - 1), dimension)
    with nested_level() as level:
        y = check_output(f(Jet.variable(x, orders, directions, weights, level) if orders else x))
        jet = y if isinstance(y, Jet) and y.level == level else None
        value: Any = y.primal if jet is not None else y
        total = torch.zeros_like(value)
        spread = torch.zeros((samples, *value.shape), dtype=value.dtype, device=value.device)
        for coefficients, order, form in exact:
            if order == 0:
                total = total + scaled(value * float(form.terms[()]), coefficients, x)
        if jet is None:
            return Estimate(total, torch.zeros_like(value) if standard_error else None, value)
        for r, (coefficients, _) in enumerate(lines):
            total = total + scaled(jet.derivative(1, r), coefficients, x)
        summed = jet.coefficient_layout.collapsed_order if jet.coefficient_layout.collapsed else 0
        if summed:
            top = next(share for share in shares if share.order == summed)
            total = total + scaled(jet.collapsed, top.coefficients, x)
        for share in shares:
            if share.order == summed:
                continue
            drawn = _samples(jet, share, places[share.family])
            drawn = drawn * scaled(torch.ones_like(value), share.coefficients, x)
            mean = drawn.mean(0)
            total = total + mean
            if standard_error:
                spread = spread + share.shrinkage * (drawn - mean).detach()
    if not standard_error:
        return Estimate(total, None, value)
    if not any(share.shrinkage for share in shares):
        return Estimate(total, torch.zeros_like(total), value)
    freedom = samples - 1 if samples > 1 else math.nan
    return Estimate(total, (spread.square().sum(0) / freedom / samples).sqrt(), value)


def _samples(jet: Jet, share: _Share, place: Tensor) -> Any:
    """What each sample gives, ``(samples, *shape)``."""
    first = torch.tensor(jet.coefficient_layout.first_places)
    # A sample with fewer directions than the others repeats its first, times 0.
    index = first[torch.where(place < 0, place[:, :1], place)] + share.order - 1
    factors = share.factors * math.factorial(share.order)
    factors = factors.reshape(*factors.shape, *[1] * jet.ndim).to(jet.dtype).to(jet.device)
    return (jet.coefficients[index.to(jet.device)] * factors).sum(1)


def _weights(
    shares: Sequence[_Share], places: Sequence[Tensor], orders: Sequence[int], samples: int
) -> list[float] | None:
    """Weights that collapse the highest order, where all of it is wanted in one sum."""
    top = max((share.order for share in shares), default=0)
    highest = [share for share in shares if share.order == top]
    same = len({tuple(map(id, share.coefficients)) for share in highest}) == 1
    if not same or {share.family for share in highest} != set(range(len(places))):
        return None
    weights = [0.0] * len(orders)
    for share in highest:
        place = places[share.family]
        for r, factor in zip(place.flatten().tolist(), share.factors.flatten().tolist(), strict=True):
            if r >= 0:
                weights[r] += factor / samples
    return weights
