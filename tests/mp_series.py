"""Truncated power series with mpmath's numbers: exact Taylor coefficients of functions of one variable.

The functions avoid cancellation and keep the zeros of even and odd functions exact, so that any precision
will do. ``test_unary_accuracy.py`` compares them with ``mpmath.taylor``, which knows nothing of series.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpmath import mp, mpf

Number = Any
"""A number of Python or of mpmath, which has no types."""


class Series:
    """``x(t) = sum_k c_k t^k`` up to the order ``len(coefficients) - 1``."""

    def __init__(self, coefficients: Sequence[Number]):
        self.c = [mpf(c) for c in coefficients]

    @classmethod
    def variable(cls, x: Number, order: int) -> Series:
        """``x + t``."""
        return cls([x, 1, *[0] * order][: order + 1])

    def like(self, constant: Number) -> Series:
        """A constant, as a series of the same order."""
        return Series([constant, *[0] * (len(self.c) - 1)])

    def __add__(self, other: Series | Number) -> Series:
        other = other if isinstance(other, Series) else self.like(other)
        return Series([a + b for a, b in zip(self.c, other.c, strict=True)])

    __radd__ = __add__

    def __neg__(self) -> Series:
        return -1 * self

    def __sub__(self, other: Series | Number) -> Series:
        return self + -other

    def __rsub__(self, other: Number) -> Series:
        return -self + other

    def __mul__(self, other: Series | Number) -> Series:
        if not isinstance(other, Series):
            return Series([a * other for a in self.c])
        return Series([_convolve(self.c, other.c, k) for k in range(len(self.c))])

    __rmul__ = __mul__

    def __truediv__(self, other: Series | Number) -> Series:
        return self * (power(other, -1) if isinstance(other, Series) else 1 / mpf(other))

    def __rtruediv__(self, other: Number) -> Series:
        return other * power(self, -1)


def _convolve(a: Sequence[Number], b: Sequence[Number], k: int) -> Number:
    return mp.fdot((a[j], b[k - j]) for j in range(k + 1) if a[j] and b[k - j])


def _integrate(x: Series, slope: Sequence[Number], k: int) -> Number:
    """Coefficient k of the integral of ``slope(t) x'(t)``."""
    return mp.fdot((j * x.c[j], slope[k - j]) for j in range(1, k + 1) if x.c[j] and slope[k - j]) / k


def from_slope(x: Series, value: Number, slope: Series) -> Series:
    """``y(t)`` from its value at 0 and the series of ``dy/dx``."""
    return Series([value, *[_integrate(x, slope.c, k) for k in range(1, len(x.c))]])


def exp(x: Series) -> Series:
    y = [mp.exp(x.c[0])]
    for k in range(1, len(x.c)):
        y.append(_integrate(x, y, k))
    return Series(y)


def power(x: Series, p: Number) -> Series:
    """``x^p`` from ``x y' = p x' y``."""
    x0, order = x.c[0], len(x.c) - 1
    y = [x0**p]
    for k in range(1, order + 1):
        y.append(mp.fsum((p * j - (k - j)) * x.c[j] * y[k - j] for j in range(1, k + 1) if x.c[j]) / (k * x0))
    return Series(y)


def _oscillator(x: Series, y0: Number, slope0: Number, sign: int) -> tuple[Series, Series]:
    """The solution of ``y'' = sign y`` and its slope."""
    y, slope = [y0], [slope0]
    for k in range(1, len(x.c)):
        y_k = _integrate(x, slope, k)
        slope.append(sign * _integrate(x, y, k))
        y.append(y_k)
    return Series(y), Series(slope)


def sin(x: Series) -> Series:
    return _oscillator(x, mp.sin(x.c[0]), mp.cos(x.c[0]), -1)[0]


def cos(x: Series) -> Series:
    return _oscillator(x, mp.cos(x.c[0]), -mp.sin(x.c[0]), -1)[0]


def sinh(x: Series) -> Series:
    return _oscillator(x, mp.sinh(x.c[0]), mp.cosh(x.c[0]), 1)[0]


def cosh(x: Series) -> Series:
    return _oscillator(x, mp.cosh(x.c[0]), mp.sinh(x.c[0]), 1)[0]


def tan(x: Series) -> Series:
    return from_slope(x, mp.tan(x.c[0]), power(cos(x), -2))


def tanh(x: Series) -> Series:
    return from_slope(x, mp.tanh(x.c[0]), power(cosh(x), -2))


def log(x: Series) -> Series:
    return from_slope(x, mp.log(x.c[0]), 1 / x)


def log1p(x: Series) -> Series:
    return from_slope(x, mp.log1p(x.c[0]), 1 / (1 + x))


def expm1(x: Series) -> Series:
    return from_slope(x, mp.expm1(x.c[0]), exp(x))


def asin(x: Series) -> Series:
    return from_slope(x, mp.asin(x.c[0]), power(1 - x * x, mpf("-0.5")))


def acos(x: Series) -> Series:
    return from_slope(x, mp.acos(x.c[0]), -power(1 - x * x, mpf("-0.5")))


def atan(x: Series) -> Series:
    return from_slope(x, mp.atan(x.c[0]), 1 / (1 + x * x))


def asinh(x: Series) -> Series:
    return from_slope(x, mp.asinh(x.c[0]), power(1 + x * x, mpf("-0.5")))


def acosh(x: Series) -> Series:
    return from_slope(x, mp.acosh(x.c[0]), power(x * x - 1, mpf("-0.5")))


def atanh(x: Series) -> Series:
    return from_slope(x, mp.atanh(x.c[0]), 1 / (1 - x * x))


def sigmoid(x: Series) -> Series:
    return from_slope(x, 1 / (1 + mp.exp(-x.c[0])), power(2 * cosh(x / 2), -2))


def softplus(x: Series) -> Series:
    return from_slope(x, mp.log1p(mp.exp(x.c[0])), sigmoid(x))


def erf(x: Series) -> Series:
    return from_slope(x, mp.erf(x.c[0]), 2 / mp.sqrt(mp.pi) * exp(-x * x))


def erfc(x: Series) -> Series:
    return from_slope(x, mp.erfc(x.c[0]), -2 / mp.sqrt(mp.pi) * exp(-x * x))


def sinc(x: Series) -> Series:
    """``sin(pi x) / (pi x)``."""
    z = mp.pi * x
    if abs(x.c[0]) >= 1:
        return sin(z) / z
    # Its power series: dividing by a small number would cost digits at each order.
    square, total = z * z, x.like(0)
    for m in range(len(x.c) // 2 + 40, -1, -1):
        total = total * square + (-1) ** m / mp.factorial(2 * m + 1)
    return total
