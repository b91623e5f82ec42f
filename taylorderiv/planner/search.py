"""From requested derivatives to the cheapest plan that can be found."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch

from taylorderiv.layout import Layout
from taylorderiv.planner.basis import Number, PowerBasis
from taylorderiv.planner.forms import TOLERANCE, globalize, localize, space
from taylorderiv.planner.plan import NestedPlan, Plan
from taylorderiv.planner.polynomial import Monomial, Polynomial, Vector, monomial, power_of, spread
from taylorderiv.planner.waring import decompose

MAX_CONDITION = 1e3
"""Plans that amplify rounding by more than this are refused."""

MAX_ORDER = 170
"""The k-th derivative is k! times a coefficient, and float64 ends at 170!."""

NESTING_OVERHEAD = 8
"""A coefficient of a jet of jets costs as much as about this many of a jet: 4 to 19 on networks of width 64 to 512."""

_BEAM = 6
_SPLIT_VARIABLES = 4
_EXACT_LIMIT = 200_000
_COLLAPSE_TRIALS = 3


@dataclasses.dataclass(frozen=True)
class _State:
    """The directions chosen for the orders above the one being worked on."""

    vectors: tuple[Vector, ...] = ()
    orders: tuple[int, ...] = ()
    collapsed: range = range(0)
    target: Polynomial | None = None

    @property
    def size(self) -> int:
        return 1 + sum(self.orders) - len(self.collapsed) + bool(self.collapsed)

    def basis(self, order: int) -> PowerBasis:
        """The directions whose coefficients of this order are stored one by one."""
        return PowerBasis(
            order,
            (
                (r, vector)
                for r, (vector, highest) in enumerate(zip(self.vectors, self.orders, strict=True))
                if highest > order or (highest == order and r not in self.collapsed)
            ),
        )

    def extended(self, order: int, vectors: Sequence[Vector], target: Polynomial | None = None) -> _State:
        total = len(self.vectors) + len(vectors)
        collapsed = range(len(self.vectors), total) if target is not None else self.collapsed
        return _State(
            (*self.vectors, *vectors),
            (*self.orders, *(order,) * len(vectors)),
            collapsed,
            target if target is not None else self.target,
        )


@functools.lru_cache(maxsize=512)
def make_plan(
    quantities: tuple[Polynomial, ...],
    dimension: int,
    compositions: tuple[tuple[Polynomial, Polynomial] | None, ...] = (),
    max_condition: float = MAX_CONDITION,
) -> Plan | NestedPlan:
    """The cheapest plan found that delivers each of the quantities; cached.

    Candidates are compared by their number of coefficients, then by how much they amplify rounding:
    coordinate directions, shared directions, Waring decompositions of the parts of each order, a collapsed
    sum at one order, and jets of jets for products of operators. The plan returned has been verified.

    Args:
        quantities: linear differential operators with constant coefficients, each wanted for itself.
        dimension: the number D of variables.
        compositions: for each quantity a known factorization ``(outer, inner)``, or None; may be left out.
        max_condition: the most that rounding may be amplified by.

    Raises:
        ValueError: no quantities, a variable that isn't below ``dimension``, or no plan found that amplifies
            rounding by less than ``max_condition``.
    """
    _check(quantities, dimension, compositions)
    with _one_thread():
        return _search(quantities, dimension, compositions, max_condition)


_lock = threading.RLock()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The search's matrices are tiny: on a busy machine, sharing them out takes 50 times longer.

    The number of threads is the process's, so the lock keeps two searches from restoring it out of order.
    """
    with _lock:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _search(
    quantities: tuple[Polynomial, ...],
    dimension: int,
    compositions: tuple[tuple[Polynomial, Polynomial] | None, ...],
    max_condition: float,
) -> Plan | NestedPlan:
    best: Plan | None = None
    worst = math.inf
    for state in _candidates(quantities):
        if best is not None and state.size > best.size:
            break
        plan = _finish(state, quantities, dimension)
        if plan is None:
            continue
        worst = min(worst, plan.condition)
        if plan.condition <= max_condition and (best is None or _quality(plan) < _quality(best)):
            best = plan
    nested = _nested(quantities, dimension, compositions, max_condition)
    if nested is not None and (best is None or _expense(nested) < best.size):
        return nested
    if best is None:
        raise ValueError(
            f"no plan for {', '.join(q.format() for q in quantities[:6])} amplifies rounding by less than "
            f"{max_condition:g}" + (f"; the best found does by {worst:.3g}" if worst < math.inf else "")
        )
    return best


def _quality(plan: Plan) -> tuple[int, int, float]:
    """Less is better: the power of 4 of the condition, then directions that aren't exact, then the condition."""
    inexact = sum(any(isinstance(value, float) for _, value in vector) for vector in plan.vectors)
    return int(math.log(plan.condition, 4) + 1e-9), inexact, round(plan.condition, 6)


def _expense(plan: Plan | NestedPlan) -> int:
    """The number of coefficients of a jet that cost as much as the plan."""
    if isinstance(plan, Plan):
        return plan.size
    return NESTING_OVERHEAD * _expense(plan.outer) * _expense(plan.inner)


def _check(quantities: Sequence[Polynomial], dimension: int, compositions: Sequence[object]) -> None:
    if not quantities:
        raise ValueError("nothing is requested: give at least one derivative or operator")
    for quantity in quantities:
        if not isinstance(quantity, Polynomial):
            raise TypeError(f"a quantity must be a Polynomial, got {type(quantity).__name__}")
        if quantity.variables and not 0 <= quantity.variables[0] <= quantity.variables[-1] < dimension:
            raise ValueError(f"{quantity.format()} differentiates by a variable that isn't one of 0 … {dimension - 1}")
        if quantity.degree > MAX_ORDER:
            raise ValueError(f"{quantity.format()} is of order {quantity.degree}; at most {MAX_ORDER} can be reached")
    if compositions and len(compositions) != len(quantities):
        raise ValueError(f"{len(compositions)} compositions for {len(quantities)} quantities")


def _candidates(quantities: Sequence[Polynomial]) -> list[_State]:
    """Directions that give all quantities, fewest coefficients first: a beam search down the orders."""
    by_order: dict[int, dict[Polynomial, Polynomial]] = {}
    for quantity in quantities:
        for order, form in quantity.homogeneous().items():
            if order:
                by_order.setdefault(order, {}).setdefault(form.monic(), form)
    states = [_State()]
    for order in sorted(by_order, reverse=True):
        grown: dict[_State, None] = {}
        for state in states:
            for extended in _extensions(state, order, list(by_order[order].values())):
                grown[extended] = None
        states = sorted(grown, key=lambda state: state.size)[:_BEAM]
    return states


def _extensions(state: _State, order: int, forms: Sequence[Polynomial]) -> Iterator[_State]:
    """Ways to add directions so that all forms of this order can be read off."""
    basis = state.basis(order)
    missing = [form for form in forms if basis.express(form) is None]
    if not missing:
        yield state
        return
    for vectors in _added_directions(basis, missing):
        yield state.extended(order, vectors)
    if order == 1 or state.collapsed:
        return
    few = len(missing) <= 8
    for target in sorted(missing, key=lambda form: -len(form.terms))[:_COLLAPSE_TRIALS]:
        if len(target.terms) == 1 and not few:
            continue
        others = [_simplest(form, target) for form in missing if form is not target]
        for single in _added_directions(basis, others) if others else [[]]:
            stored = state.extended(order, single)
            own = stored.basis(order)
            if own.express(target) is not None:
                continue
            for summed in _added_directions(own, [target]):
                if len(summed) > 1:
                    yield stored.extended(order, summed, target)


def _simplest(form: Polynomial, target: Polynomial) -> Polynomial:
    """The form plus the multiple of the target that leaves the fewest terms: as good, beside the target."""
    ratios = {form.terms[key] / value for key, value in target.terms.items() if key in form.terms}
    return min([form, *(form - target * ratio for ratio in sorted(ratios)[:8])], key=lambda form: len(form.terms))


def _added_directions(basis: PowerBasis, forms: Sequence[Polynomial]) -> list[list[Vector]]:
    """Sets of new directions that make all forms expressible, put together from the problem's components."""
    home: dict[int, int] = {}
    components = basis.components(forms)
    for number, (variables, _) in enumerate(components):
        home |= dict.fromkeys(variables, number)
    parts: list[dict[Polynomial, None]] = [{} for _ in components]
    for form in forms:
        pieces: dict[int, dict[Monomial, Fraction]] = {}
        for key, value in form.terms.items():
            pieces.setdefault(home[key[0][0]], {})[key] = value
        for number, terms in pieces.items():
            parts[number][Polynomial(terms).monic()] = None
    choices: list[list[list[Vector]]] = []
    for (variables, indices), part in zip(components, parts, strict=True):
        if len(variables) == 1:
            choices.append([[] if indices else [((variables[0], 1),)]])
            continue
        wanted = [piece for piece in part if basis.express(piece) is None]
        if not wanted:
            continue
        place = {variable: i for i, variable in enumerate(variables)}
        existing = tuple(basis.local(index, place) for index in indices)
        local = tuple(localize(piece, place) for piece in wanted)
        found = decompose(local, len(variables), basis.order, existing)
        choices.append([[globalize(direction, variables) for direction in chosen] for chosen in found])
    variants = max((len(options) for options in choices), default=1)
    return [[vector for options in choices for vector in options[min(i, len(options) - 1)]] for i in range(variants)]


def _finish(state: _State, quantities: Sequence[Polynomial], dimension: int) -> Plan | None:
    """Weights and the combination for each quantity; None if that can't be done or verified."""
    bases = {order: state.basis(order) for order in range(1, max(state.orders, default=0) + 1)}
    weights: list[float] | None = None
    top: Polynomial | None = None
    if state.target is not None:
        order = state.orders[state.collapsed[0]]
        everything = PowerBasis(order, ((r, v) for r, v in enumerate(state.vectors) if state.orders[r] >= order))
        solution = everything.express(state.target)
        if solution is None:
            return None
        weights = [float(solution.get(r, 0)) if r in state.collapsed else 0.0 for r in range(len(state.vectors))]
        kept = {r: value for r, value in solution.items() if r not in state.collapsed}
        top = _pruned(state.target - _combination(kept, state.vectors, order))
        # A direction that the sum turned out not to use can't be collapsed.
        if any(weights[r] == 0 for r in state.collapsed):
            return None
    layout = Layout(state.orders, tuple(weights) if weights is not None else None)
    reads, condition = [], 1.0
    for quantity in quantities:
        terms: list[tuple[int, float]] = []
        for order, form in quantity.homogeneous().items():
            if order == 0:
                terms.append((0, float(form.terms[()])))
                continue
            collapsed_here = layout.collapsed and layout.collapsed_order == order
            found = _read(form, bases[order], top if collapsed_here else None, state)
            if found is None:
                return None
            from_top, solution = found
            factorial = math.factorial(order)
            terms += [
                (layout.first_places[r] + order - 1, factorial * float(value)) for r, value in sorted(solution.items())
            ]
            if from_top:
                terms.append((layout.size - 1, factorial * from_top))
            summed = {r: from_top * w for r, w in enumerate(weights or ()) if w and from_top} | solution
            if not _verified(form, summed, state.vectors, order):
                return None
            condition = max(condition, _amplification(form, summed, state.vectors, order))
        reads.append(tuple(terms))
    return Plan(tuple(quantities), dimension, state.vectors, layout, tuple(reads), condition)


def _read(
    form: Polynomial, basis: PowerBasis, top: Polynomial | None, state: _State
) -> tuple[float, dict[int, Number]] | None:
    """How much of the collapsed sum, and of each stored direction, a form is."""
    solution = basis.express(form)
    if solution is not None:
        return 0.0, solution
    if top is None or state.target is None:
        return None
    # A multiple of the sum has to be taken off; the terms that only it has tell which.
    ratios = dict.fromkeys(form.terms.get(key, Fraction(0)) / value for key, value in top.terms.items() if value)
    for ratio in list(ratios)[:16]:
        rest = form - top * ratio
        if _negligible(rest, form):
            return float(ratio), {}
        solution = basis.express(rest)
        if solution is not None:
            return float(ratio), solution
    return None


def _nested(
    quantities: Sequence[Polynomial],
    dimension: int,
    compositions: Sequence[tuple[Polynomial, Polynomial] | None],
    max_condition: float,
) -> NestedPlan | None:
    """The best jet of a jet, if a quantity is known to be an operator of an operator."""
    one = Polynomial.constant(1)
    plans = []
    for factors in _factorizations(quantities, compositions):
        for alone in (0, 1):  # quantities that don't factor go to the outer or to the inner jet
            pairs = [
                pair or ((quantity, one) if alone == 0 else (one, quantity))
                for quantity, pair in zip(quantities, factors, strict=True)
            ]
            sides = [tuple(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1)]
            try:
                outer, inner = (make_plan(side, dimension, (), max_condition) for side in sides)
            except ValueError:
                continue
            indices = tuple((sides[0].index(first), sides[1].index(second)) for first, second in pairs)
            plans.append(NestedPlan(outer, inner, indices, tuple(quantities)))
            if all(factors):
                break
    plans = [plan for plan in plans if plan.condition <= max_condition]
    return min(plans, key=_expense, default=None)


_Factors = list[tuple[Polynomial, Polynomial] | None]


def _factorizations(
    quantities: Sequence[Polynomial], compositions: Sequence[tuple[Polynomial, Polynomial] | None]
) -> Iterator[_Factors]:
    """Ways to see some of the quantities as an operator of an operator."""
    if max(quantity.degree for quantity in quantities) < 3:
        return  # a jet of jets of order 1 never has fewer coefficients than one of order 2
    given = list(compositions) or [None] * len(quantities)
    powers = [pair or _halves(quantity) for quantity, pair in zip(quantities, given, strict=True)]
    if any(powers):
        yield powers
    variables = sorted({variable for quantity in quantities for variable in quantity.variables})
    for variable in variables if len(variables) <= _SPLIT_VARIABLES else ():
        split = [_split_off(quantity, variable) for quantity in quantities]
        if any(split):
            yield split


def _split_off(quantity: Polynomial, variable: int) -> tuple[Polynomial, Polynomial] | None:
    """``∂_v^a q`` as a derivative of q, if all terms have the same power of v; q isn't a number."""
    powers = {dict(key).get(variable, 0) for key in quantity.terms}
    if len(powers) != 1 or powers == {0} or powers == {quantity.degree}:
        return None
    power = powers.pop()
    shift = (variable, -power)
    return (
        Polynomial.variable(variable, power),
        Polynomial({monomial((*key, shift)): value for key, value in quantity.terms.items()}),
    )


def _halves(quantity: Polynomial) -> tuple[Polynomial, Polynomial] | None:
    """The two halves of a power of an operator."""
    if quantity.degree < 4 or len(quantity.terms) < 2:
        return None
    for power in range(quantity.degree // 2, 1, -1):
        root = quantity.root(power)
        if root is not None:
            scale = next(iter(quantity.terms.values())) / next(iter((root**power).terms.values()))
            return root ** (power - power // 2) * scale, root ** (power // 2)
    return None


def _negligible(rest: Polynomial, form: Polynomial) -> bool:
    scale = max(map(abs, form.terms.values()))
    return all(abs(value) <= TOLERANCE * scale for value in rest.terms.values())


def _pruned(form: Polynomial) -> Polynomial:
    scale = max(map(abs, form.terms.values()), default=Fraction(0))
    return Polynomial({key: value for key, value in form.terms.items() if abs(value) > TOLERANCE * scale})


def _combination(solution: dict[int, Number], vectors: Sequence[Vector], order: int) -> Polynomial:
    total: dict = {}
    for r, factor in solution.items():
        for key, value in power_of(vectors[r], order).items():
            total[key] = total.get(key, 0) + factor * value
    return Polynomial(total)


def _verified(form: Polynomial, solution: dict[int, Number], vectors: Sequence[Vector], order: int) -> bool:
    """Whether the combination of powers is the form, monomial by monomial: then it is on every function."""
    if sum(math.comb(len(vectors[r]) + order - 1, order) for r in solution) > _EXACT_LIMIT:
        return _verified_in_floats(form, solution, vectors, order)
    left: dict = dict(form.terms)
    size = {key: abs(value) for key, value in left.items()}
    for r, factor in solution.items():
        for key, value in power_of(vectors[r], order).items():
            share = factor * value
            left[key] = left.get(key, 0) - share
            size[key] = max(size.get(key, 0), abs(share))
    return all(abs(value) <= TOLERANCE * size[key] for key, value in left.items())


def _verified_in_floats(form: Polynomial, solution: dict[int, Number], vectors: Sequence[Vector], order: int) -> bool:
    variables = sorted({*form.variables, *(variable for r in solution for variable, _ in vectors[r])})
    place = {variable: i for i, variable in enumerate(variables)}
    here = space(len(variables), order)
    left = here.vector(localize(form, place))
    scale = left.abs()
    for r, factor in solution.items():
        direction = torch.zeros(1, len(variables), dtype=torch.float64)
        for variable, value in vectors[r]:
            direction[0, place[variable]] = value
        share = here.powers(direction)[:, 0] * float(factor)
        left -= share
        scale = torch.maximum(scale, share.abs())
    return bool((left.abs() <= TOLERANCE * scale.max()).all())


def _amplification(form: Polynomial, solution: dict[int, Number], vectors: Sequence[Vector], order: int) -> float:
    error = sum(
        abs(float(factor)) * math.hypot(*(component for _, component in vectors[r])) ** order
        for r, factor in solution.items()
    )
    return error / sum(abs(float(value)) * spread(key) for key, value in form.terms.items())
