"""Polynomials in partial derivatives: what a request to the planner is made of, in exact arithmetic."""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Rational, Real

Monomial = tuple[tuple[int, int], ...]
"""A partial derivative as ``((variable, power), …)``: variables ascending, powers positive; ``()`` is u."""

Vector = tuple[tuple[int, int | float], ...]
"""A direction as ``((variable, component), …)``: variables ascending, components nonzero."""


def monomial(powers: Iterable[tuple[int, int]]) -> Monomial:
    """The product of the given powers of variables; a variable may come more than once."""
    total: defaultdict[int, int] = defaultdict(int)
    for variable, power in powers:
        total[variable] += power
    return tuple(sorted((variable, power) for variable, power in total.items() if power))


def degree(exponents: Monomial) -> int:
    """The order of a partial derivative."""
    return sum(power for _, power in exponents)


def multinomial(exponents: Monomial) -> int:
    """``k! / prod_i alpha_i!``: the coefficient of a monomial in the k-th power of a sum."""
    return math.factorial(degree(exponents)) // math.prod(math.factorial(power) for _, power in exponents)


LAPLACIAN = -1
"""The number of a formal variable: the Laplacian in all variables, however many there are. See `expand`."""


class Polynomial:
    """A linear differential operator with constant coefficients: ``sum_alpha c_alpha ∂^alpha``.

    Immutable and hashable. Coefficients are exact: floats are taken as the rational numbers they are.

    Args:
        terms: the coefficient of each monomial; zeros are dropped.

    Raises:
        TypeError: a coefficient isn't a real number.
        ValueError: a coefficient isn't finite.
    """

    __slots__ = ("_hash", "terms")

    terms: Mapping[Monomial, Fraction]
    """The nonzero coefficients, highest order first, then lexicographically."""

    def __init__(self, terms: Mapping[Monomial, Real | float | Fraction] | None = None) -> None:
        exact = {key: value if type(value) is Fraction else to_fraction(value) for key, value in (terms or {}).items()}
        self.terms = {key: exact[key] for key in sorted(exact, key=_graded, reverse=True) if exact[key]}
        self._hash: int | None = None

    @classmethod
    def constant(cls, value: Real | float | Fraction) -> Polynomial:
        """The operator ``u -> value * u``."""
        return cls({(): value})

    @classmethod
    def variable(cls, index: int, power: int = 1) -> Polynomial:
        """The derivative of order ``power`` in variable ``index``."""
        return cls({monomial([(index, power)]): 1})

    @property
    def degree(self) -> int:
        """The highest order of differentiation; 0 for a constant."""
        return max(map(degree, self.terms), default=0)

    @property
    def variables(self) -> tuple[int, ...]:
        """The variables that are differentiated by, ascending."""
        return tuple(sorted({variable for key in self.terms for variable, _ in key}))

    def homogeneous(self) -> dict[int, Polynomial]:
        """The parts of one order each, by order."""
        parts: defaultdict[int, dict[Monomial, Fraction]] = defaultdict(dict)
        for key, value in self.terms.items():
            parts[degree(key)][key] = value
        return {order: Polynomial(terms) for order, terms in parts.items()}

    def monic(self) -> Polynomial:
        """The multiple whose first coefficient is 1: equal for proportional polynomials."""
        return self if not self.terms else self * (1 / next(iter(self.terms.values())))

    def root(self, power: int) -> Polynomial | None:
        """The ``r`` with ``self == c * r ** power`` for a number ``c``, or None if there is none.

        Term by term, as one takes the square root of a number: the next term of the root is fixed by the
        leading term of what is left.
        """
        if not self.terms:
            return None
        rest = dict(self.terms)
        lead = next(iter(rest))
        if any(exponent % power for _, exponent in lead):
            return None
        scale = rest[lead]
        term, value = tuple((variable, exponent // power) for variable, exponent in lead), Fraction(1)
        divisor = [(variable, -exponent * (power - 1)) for variable, exponent in term]
        powers: list[dict[Monomial, Fraction]] = [{(): Fraction(1)}, *({} for _ in range(power))]
        while True:
            # powers[j] becomes (root + new term)^j; the growth of the last one is taken from the rest.
            for j in range(power, 0, -1):
                for i in range(1, j + 1):
                    factor = math.comb(j, i) * value**i
                    shift = tuple((variable, exponent * i) for variable, exponent in term)
                    for key, coefficient in powers[j - i].items():
                        product, growth = monomial((*key, *shift)), coefficient * factor
                        powers[j][product] = powers[j].get(product, Fraction(0)) + growth
                        if j == power:
                            left = rest.get(product, Fraction(0)) - scale * growth
                            if left:
                                rest[product] = left
                            else:
                                rest.pop(product, None)
            if not rest:
                return Polynomial(powers[1])
            lead = max(rest, key=_graded)
            term, value = monomial([*lead, *divisor]), rest[lead] / (power * scale)
            if any(exponent < 0 for _, exponent in term) or term in powers[1] or len(powers[1]) > len(self.terms):
                return None

    def __add__(self, other: Polynomial) -> Polynomial:
        total = dict(self.terms)
        for key, value in other.terms.items():
            total[key] = total.get(key, Fraction(0)) + value
        return Polynomial(total)

    def __mul__(self, other: Polynomial | Real | float | Fraction) -> Polynomial:
        if not isinstance(other, Polynomial):
            factor = to_fraction(other)
            return Polynomial({key: value * factor for key, value in self.terms.items()})
        total: defaultdict[Monomial, Fraction] = defaultdict(Fraction)
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                total[monomial((*left, *right))] += a * b
        return Polynomial(total)

    __rmul__ = __mul__

    def __neg__(self) -> Polynomial:
        return self * -1

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + -other

    def __pow__(self, power: int) -> Polynomial:
        result = Polynomial.constant(1)
        for _ in range(power):
            result *= self
        return result

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(tuple(self.terms.items()))
        return self._hash

    def __repr__(self) -> str:
        return f"Polynomial({self.format()})"

    def format(self, variables: Sequence[str] | None = None, limit: int = 6) -> str:
        """The operator as text, ``u_xx + 2 u_xy``, at most ``limit`` of its terms."""
        text = ""
        for key, value in list(self.terms.items())[:limit]:
            sign = "-" if value < 0 else "+"
            size = "" if abs(value) == 1 else f"{float(abs(value)):.6g} "
            text += f" {sign} {size}{format_monomial(key, variables)}"
        text = f"-{text[3:]}" if text.startswith(" - ") else text[3:] or "0"
        return text if len(self.terms) <= limit else f"{text} + … ({len(self.terms)} terms)"


def to_fraction(value: Real | float | Fraction) -> Fraction:
    """``value`` as the rational number it is.

    Raises:
        TypeError: not a real number.
        ValueError: infinite or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real | float):
        raise TypeError(f"a coefficient must be a real number, got {value!r} of type {type(value).__name__}")
    if isinstance(value, Rational):
        return Fraction(value)
    if not math.isfinite(value):
        raise ValueError(f"a coefficient must be finite, got {value!r}")
    return Fraction(float(value))


def format_monomial(key: Monomial, variables: Sequence[str] | None = None) -> str:
    """A partial derivative as text: ``u_xxt``, ``u_x1x1``, ``Δ²u``."""

    def name(variable: int) -> str:
        return variables[variable] if variables is not None else f"x{variable}"

    powers = dict(key)
    formal = powers.pop(LAPLACIAN, 0)
    prefix = "" if not formal else "Δ" if formal == 1 else f"Δ{str(formal).translate(_SUPERSCRIPTS)}"
    indices = "".join(
        name(variable) * power if power <= _SPELLED_OUT else f"{name(variable)}^{power}"
        for variable, power in powers.items()
    )
    return f"{prefix}u_{indices}" if indices else f"{prefix}u"


_SPELLED_OUT = 6
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@functools.lru_cache(maxsize=256)
def expand(symbol: Polynomial, dimension: int) -> Polynomial:
    """The polynomial with the formal Laplacian written out in ``dimension`` variables."""
    powers: defaultdict[int, dict[Monomial, Fraction]] = defaultdict(dict)
    for key, value in symbol.terms.items():
        power = dict(key).get(LAPLACIAN, 0)
        powers[power][tuple(item for item in key if item[0] != LAPLACIAN)] = value
    if not any(powers):
        return symbol
    laplacian = Polynomial({((variable, 2),): 1 for variable in range(dimension)})
    return sum((laplacian**power * Polynomial(terms) for power, terms in powers.items()), Polynomial())


@functools.lru_cache(maxsize=4096)
def spread(key: Monomial) -> float:
    """The size of ``∂^alpha u`` if no unit direction has a derivative of its order above 1 (a lower bound).

    It's the nuclear norm of the monomial, bounded from below by duality with its spectral norm,
    ``max over |v| = 1 of v^alpha = prod_i (alpha_i / k)^(alpha_i / 2)``: 1 for ∂x^k and ∂x∂y.
    """
    order = degree(key)
    spectral = math.prod((power / order) ** (power / 2) for _, power in key)
    return 1 / (multinomial(key) * spectral)


def power_of(vector: Vector, order: int) -> dict[Monomial, int | float]:
    """The polynomial ``(v · ∂) ** order``: exact for integer vectors."""
    total: dict[Monomial, int | float] = {}
    for factors in itertools.combinations_with_replacement(vector, order):
        key = monomial((variable, 1) for variable, _ in factors)
        total[key] = multinomial(key) * math.prod(component for _, component in factors)
    return total


def _graded(key: Monomial) -> tuple[int, Monomial]:
    """Sorts monomials by order, then lexicographically: an order that multiplication keeps."""
    return degree(key), tuple((-variable, power) for variable, power in key)
