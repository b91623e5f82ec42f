"""Writing a form as a combination of the k-th powers of directions that a plan already has."""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch

from taylorderiv.planner import quadratic
from taylorderiv.planner.forms import TOLERANCE, Direction, localize, residual_norm, space
from taylorderiv.planner.polynomial import Monomial, Polynomial, Vector, power_of

Number = Fraction | float

_LOCAL = 4
"""Forms in up to this many variables are first looked for among the directions within those variables."""

_DENSE_LIMIT = 3e6
"""No least-squares problem with more entries than this is set up."""


class PowerBasis:
    """The k-th powers of a growing set of directions.

    Args:
        order: the degree k.
        directions: pairs of a direction's number in the plan and its vector.
    """

    def __init__(self, order: int, directions: Iterable[tuple[int, Vector]] = ()) -> None:
        self.order = order
        self._vectors: dict[int, Vector] = {}
        self._within: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        self._touching: defaultdict[int, list[int]] = defaultdict(list)
        for index, vector in directions:
            self.add(index, vector)

    def add(self, index: int, vector: Vector) -> None:
        """Take in one more direction."""
        self._vectors[index] = vector
        support = tuple(variable for variable, _ in vector)
        self._within[support].append(index)
        if len(support) > 1:
            for variable in support:
                self._touching[variable].append(index)

    def components(self, forms: Sequence[Polynomial]) -> list[tuple[list[int], list[int]]]:
        """Groups of variables that can be treated apart, each with the directions within it.

        Variables belong together if they meet in a monomial of a form or in a direction; if k = 1, in a form.
        """
        parent: dict[int, int] = {}

        def find(variable: int) -> int:
            parent.setdefault(variable, variable)
            while parent[variable] != variable:
                parent[variable] = parent[parent[variable]]
                variable = parent[variable]
            return variable

        def link(variables: Iterable[int]) -> None:
            first, *others = variables
            root = find(first)
            for other in others:
                parent[find(other)] = root

        for form in forms:
            if self.order == 1:
                link(form.variables)
            for key in form.terms:
                link(variable for variable, _ in key)
        reached, pending = set(), list(parent)
        while pending:
            for index in self._touching[pending.pop()]:
                if index not in reached:
                    reached.add(index)
                    support = [variable for variable, _ in self._vectors[index]]
                    pending += [variable for variable in support if variable not in parent]
                    link(support)
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for variable in sorted(parent):
            groups[find(variable)].append(variable)
        inside: defaultdict[int, list[int]] = defaultdict(list)
        for index in sorted(reached):
            inside[find(self._vectors[index][0][0])].append(index)
        for variable in parent:
            inside[find(variable)] += self._within.get((variable,), [])
        return [(variables, inside[root]) for root, variables in groups.items()]

    def local(self, index: int, place: dict[int, int]) -> Direction:
        """A direction by its components in the variables that ``place`` numbers."""
        components: list[int | float] = [0] * len(place)
        for variable, value in self._vectors[index]:
            components[place[variable]] = value
        return tuple(components)

    def express(self, form: Polynomial) -> dict[int, Number] | None:
        """Coefficients ``a`` with ``form == sum_r a_r (v_r · ∂)^k``, by direction, or None if there are none.

        Unmixed derivatives are read off coordinate directions where there are some. Exact if it can be.
        """
        if not form.terms:
            return {}
        total: defaultdict[int, Number] = defaultdict(Fraction)
        mixed = {}
        for key, value in form.terms.items():
            axes = self._within.get((key[0][0],)) if len(key) == 1 else None
            if axes:
                ((_, component),) = self._vectors[axes[0]]
                total[axes[0]] += _times(value, Fraction(component) ** -self.order)
            else:
                mixed[key] = value
        rest = Polynomial(mixed)
        if not mixed:
            return total
        for attempt in (self._within_variables, self._by_components, self._by_monomials):
            found = attempt(rest)
            if found is not None:
                break
        else:
            return None
        for index, value in found.items():
            total[index] = total[index] + value
        return {index: value for index, value in total.items() if abs(value) > 1e-15}

    def _within_variables(self, form: Polynomial) -> dict[int, Number] | None:
        variables = form.variables
        if len(variables) > _LOCAL:
            return None
        subsets = (s for size in range(1, len(variables) + 1) for s in itertools.combinations(variables, size))
        indices = [index for subset in subsets for index in self._within.get(subset, ())]
        return self._solve(form, variables, indices)

    def _by_components(self, form: Polynomial) -> dict[int, Number] | None:
        total: dict[int, Number] = {}
        components = self.components([form])
        if not all(indices for _, indices in components):
            return None
        home = {variable: i for i, (variables, _) in enumerate(components) for variable in variables}
        parts: list[dict[Monomial, Fraction]] = [{} for _ in components]
        for key, value in form.terms.items():
            parts[home[key[0][0]]][key] = value
        for (variables, indices), terms in zip(components, parts, strict=True):
            solution = self._solve(Polynomial(terms), variables, indices)
            if solution is None:
                return None
            total |= solution
        return total

    def _by_monomials(self, form: Polynomial) -> dict[int, Number] | None:
        """For forms too large to be treated as a vector, such as Δ² in 50 dimensions."""
        total: defaultdict[int, Number] = defaultdict(Fraction)
        if len(form.terms) == 1:
            return None
        for key, value in form.terms.items():
            found = self._within_variables(Polynomial({key: 1}))
            if found is None:
                return None
            for index, share in found.items():
                total[index] = total[index] + share * value
        return total

    def _solve(self, form: Polynomial, variables: Sequence[int], indices: Sequence[int]) -> dict[int, Number] | None:
        if not indices:
            return None
        place = {variable: i for i, variable in enumerate(variables)}
        directions = tuple(self.local(index, place) for index in indices)
        solution = _express_locally(localize(form, place), len(variables), self.order, directions)
        if solution is None:
            return None
        return {index: value for index, value in zip(indices, solution, strict=True) if value}


def _times(value: Fraction, factor: Fraction) -> Number:
    return value * factor if factor.denominator < 1 << 20 else float(value) * float(factor)


@functools.lru_cache(maxsize=4096)
def _express_locally(
    form: Polynomial, dimension: int, order: int, directions: tuple[Direction, ...]
) -> tuple[Number, ...] | None:
    vectors = torch.tensor(directions, dtype=torch.float64)
    lengths = vectors.norm(dim=1)
    units = vectors / lengths[:, None]
    if math.comb(dimension + order - 1, order) * len(directions) <= _DENSE_LIMIT:
        here = space(dimension, order)
        solution, left = residual_norm(here.powers(units), here.vector(form)[:, None])
        if left > TOLERANCE:
            return None
    elif order == 2:
        # <(v·x)^2, (w·x)^2> = (v·w)^2 and <f, (v·x)^2> = f(v): the normal equations need no vectors of forms.
        matrix = quadratic.matrix_of(form, dimension)
        values = torch.einsum("ri,ij,rj->r", units, matrix, units)
        solution = torch.linalg.lstsq((units @ units.T) ** 2, values[:, None], driver="gelsd").solution
        if ((units.T * solution[:, 0]) @ units - matrix).norm() > TOLERANCE * matrix.norm():
            return None
    else:
        return None
    floats = (solution[:, 0] / lengths**order).tolist()
    guess = [Fraction(value).limit_denominator(100_000) for value in floats]
    return tuple(guess) if _is_exact(form, order, directions, guess) else tuple(floats)


def _is_exact(form: Polynomial, order: int, directions: Sequence[Direction], guess: Sequence[Fraction]) -> bool:
    """Whether the directions are integer and the guess gives the form without any rounding."""
    if not all(isinstance(value, int) for direction in directions for value in direction):
        return False
    left: dict[Monomial, Number] = dict(form.terms)
    for direction, factor in zip(directions, guess, strict=True):
        if factor:
            for key, value in power_of(tuple((i, c) for i, c in enumerate(direction) if c), order).items():
                left[key] = left.get(key, Fraction(0)) - value * factor
    return not any(left.values())
