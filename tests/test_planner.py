"""The planner: counts of coefficients, plans applied to polynomials in exact arithmetic, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorderiv.planner import NestedPlan, Plan, Polynomial, make_plan, parse_partial, parse_variables
from taylorderiv.planner import search as planner_search
from taylorderiv.planner.forms import space
from taylorderiv.planner.lattice import full_support_directions, monomial_directions
from taylorderiv.planner.polynomial import degree, monomial, power_of, spread
from taylorderiv.planner.waring import decompose

d = Polynomial.variable
X, Y, Z = d(0), d(1), d(2)


def laplacian(dimension: int, power: int = 1) -> Polynomial:
    return Polynomial({monomial([(i, 2)]): 1 for i in range(dimension)}) ** power


def partials(variables: str, *names: str) -> tuple[Polynomial, ...]:
    return tuple(Polynomial({parse_partial(name, tuple(variables)): 1}) for name in names)


def flat(quantities: tuple[Polynomial, ...], dimension: int) -> Plan:
    plan = make_plan(quantities, dimension)
    assert isinstance(plan, Plan)
    return plan


# Plans applied to polynomials, independently of how they were found.


def derivative(u: dict, operator: Polynomial) -> dict:
    """The operator applied to a polynomial ``{monomial: coefficient}``."""
    total: dict = {}
    for key, factor in operator.terms.items():
        for powers, value in u.items():
            left = dict(powers)
            for variable, order in key:
                for _ in range(order):
                    value *= left.get(variable, 0)
                    left[variable] = left.get(variable, 0) - 1
            if value:
                rest = monomial(left.items())
                total[rest] = total.get(rest, 0) + value * factor
    return total


def evaluate(u: dict, point: list) -> Fraction:
    return sum((value * math.prod(point[v] ** p for v, p in key) for key, value in u.items()), Fraction(0))


def along(u: dict, point: list, vector: tuple, order: int) -> list:
    """Taylor coefficients of ``ε -> u(point + ε vector)``."""
    direction = dict(vector)
    total = [Fraction(0)] * (order + 1)
    for key, value in u.items():
        series = [value] + [0] * order
        for variable, power in key:
            for _ in range(power):
                slope = direction.get(variable, 0)
                series = [point[variable] * series[k] + (slope * series[k - 1] if k else 0) for k in range(order + 1)]
        total = [a + b for a, b in zip(total, series, strict=True)]
    return total


def apply(plan: Plan | NestedPlan, u: dict, point: list) -> list:
    """All quantities at a point, read off the Taylor coefficients that the plan asks for."""
    if isinstance(plan, NestedPlan):
        outer = [apply(plan.outer, derivative(u, inner), point) for inner in plan.inner.quantities]
        check(plan.inner, u, point)
        return [outer[j][i] for i, j in plan.pairs]
    coefficients: list = [evaluate(u, point)]
    tops = []
    for r, (vector, order) in enumerate(zip(plan.vectors, plan.orders, strict=True)):
        series = along(u, point, vector, order)
        coefficients += series[1 : plan.layout.stored(r) + 1]
        tops.append(series[order])
    if plan.weights is not None:
        coefficients.append(sum(w * top for w, top in zip(plan.weights, tops, strict=True) if w))
    assert len(coefficients) == plan.size
    return [sum(factor * coefficients[index] for index, factor in terms) for terms in plan.reads]


def check(plan: Plan | NestedPlan, u: dict, point: list) -> None:
    for quantity, value in zip(plan.quantities, apply(plan, u, point), strict=True):
        expected = evaluate(derivative(u, quantity), point)
        scale = sum(abs(evaluate({k: abs(v)}, [abs(p) for p in point])) for k, v in derivative(u, quantity).items())
        assert abs(value - expected) <= 1e-9 * float(scale + 1), quantity


def random_polynomial(dimension: int, order: int, seed: int) -> tuple[dict, list]:
    generator = random.Random(seed)
    keys = [
        monomial((variable, 1) for variable in factors)
        for k in range(order + 2)
        for factors in itertools.combinations_with_replacement(range(dimension), k)
    ]
    chosen = generator.sample(keys, min(len(keys), 40))
    u = {key: Fraction(generator.randint(-9, 9), generator.randint(1, 9)) for key in chosen}
    return u, [Fraction(generator.randint(-9, 9), 7) for _ in range(dimension)]


def check_on_random_polynomials(plan: Plan | NestedPlan) -> None:
    order = max(quantity.degree for quantity in plan.quantities)
    for seed in range(3):
        check(plan, *random_polynomial(plan.dimension, order, seed))


SECOND_3D = tuple(d(i) * d(j) for i in range(3) for j in range(i, 3))

AT_MOST = {
    "KdV": (partials("xt", "u", "x", "t", "xxx"), 2, 5),
    "Kuramoto-Sivashinsky": (partials("xt", "u", "x", "t", "xx", "xxxx"), 2, 6),
    **{f"Laplacian, {D}-D": ((laplacian(D),), D, D + 2) for D in (1, 2, 3, 10, 100)},
    "biharmonic, 2-D": ((laplacian(2, 2),), 2, 11),
    "biharmonic, 3-D": ((laplacian(3, 2),), 3, 20),
    "biharmonic, 4-D": ((laplacian(4, 2),), 4, 35),
    "biharmonic, 5-D": ((laplacian(5, 2),), 5, 50),
    "triharmonic, 2-D": ((laplacian(2, 3),), 2, 22),
    "triharmonic, 3-D": ((laplacian(3, 3),), 3, 57),
    "biharmonic, 8-D": ((laplacian(8, 2),), 8, 137),
    "biharmonic, 30-D": ((laplacian(30, 2),), 30, 2702),
    "all second partials, 3-D": (SECOND_3D, 3, 13),
    "all third partials, 4-D": (
        tuple(d(i) * d(j) * d(k) for i in range(4) for j in range(i, 4) for k in range(j, 4)),
        4,
        61,
    ),
    "plane stress": (partials("xy", "xx", "yy", "xy"), 2, 7),
    "plane stress with all lower orders": (partials("xy", "u", "x", "y", "xx", "yy", "xy"), 2, 7),
    "(dx + dy)^6": (((X + Y) ** 6,), 2, 7),
    "u, t, Laplacian and biharmonic": ((d(0, 0), d(2), laplacian(2), laplacian(2, 2)), 3, 12),
    "gradient and biharmonic, 3-D": ((X, Y, Z, laplacian(3, 2)), 3, 20),
    "mixed second partials without squares": ((X * Y, Y * Z, X * Z), 3, 9),
    "one second partial beside a Laplacian": ((d(0, 2), laplacian(10)), 10, 13),
    "Laplacians of nested subspaces": ((laplacian(2), laplacian(3)), 3, 6),
    "Laplacian of the gradient": ((X * laplacian(3), Y * laplacian(3), Z * laplacian(3)), 3, 19),
    "anisotropic biharmonic": (((d(0, 2) * 2 + d(1, 2) * 3) ** 2,), 2, 11),
    "anisotropic biharmonic, 3-D": (((d(0, 2) * 2 + d(1, 2) * 3 + d(2, 2)) ** 2,), 3, 20),
    "dense quadratic form": ((d(0, 2) + X * Y * 3 + Y * Z - d(2, 2) * 5,), 3, 5),
    "quadratic form of rank 1": (((X + Y - Z * 2) ** 2,), 3, 3),
    "transport": ((X * 2 - Y * 3 + Z * 0.5,), 3, 2),
    "heat": ((d(3) - laplacian(3),), 4, 6),
    "five fourth powers in 3-D": (
        (d(0, 4) + (X + Y * 2 + Z * 3) ** 4 + (X - Y) ** 4 * 3 + (Y - Z * 2) ** 4 * -1,),
        3,
        14,
    ),
    "x^5 y^5": (partials("xy", "xxxxxyyyyy"), 2, 92),
    "the function alone": (partials("xy", "u"), 2, 1),
}


@pytest.mark.parametrize("name", AT_MOST)
def test_counts(name: str) -> None:
    quantities, dimension, limit = AT_MOST[name]
    plan = make_plan(quantities, dimension)
    assert plan.size <= limit
    assert plan.condition <= 30
    if dimension <= 10:
        check_on_random_polynomials(plan)


def test_directions_of_the_biharmonic_operator_in_two_dimensions() -> None:
    plan = flat((laplacian(2, 2),), 2)
    angles = torch.atan2(plan.directions[:, 1], plan.directions[:, 0]).rad2deg() % 180
    torch.testing.assert_close(angles.sort().values, torch.tensor([0.0, 60.0, 120.0]).double())
    assert plan.weights == pytest.approx([8 / 9] * 3)
    assert plan.orders == (4, 4, 4)


def test_directions_of_the_biharmonic_operator_in_three_dimensions_are_an_icosahedron() -> None:
    cosines = (lambda v: v @ v.T)(flat((laplacian(3, 2),), 3).directions)
    assert cosines[~torch.eye(6, dtype=torch.bool)].abs().tolist() == pytest.approx([5**-0.5] * 30)


def test_coordinate_directions_where_they_do() -> None:
    plan = flat(partials("xyt", "u", "t", "xx", "yy"), 3)
    assert sorted(plan.vectors) == [((0, 1),), ((1, 1),), ((2, 1),)]
    assert plan.weights is None


def test_lower_orders_ride_on_collapsed_directions() -> None:
    alone = make_plan((laplacian(3, 2),), 3)
    together = make_plan((*SECOND_3D, X, Y, Z, d(0, 0), laplacian(3, 2), laplacian(3)), 3)
    assert together.size == alone.size


def test_layout_of_a_plan() -> None:
    plan = flat((d(2), laplacian(2)), 3)
    assert plan.layout.collapsed
    assert plan.layout.collapsed_order == 2
    assert plan.size == plan.layout.size == 5
    assert plan.directions.shape == (3, 3)


def test_large_laplacian_is_planned_quickly() -> None:
    quantity = laplacian(1000)
    start = time.perf_counter()
    plan = flat((quantity,), 1000)
    assert time.perf_counter() - start < 2
    assert plan.size == 1002


def test_large_hessian() -> None:
    plan = flat(tuple(d(i) * d(j) for i in range(30) for j in range(i, 30)), 30)
    assert plan.size == 1 + 2 * 465
    assert plan.condition <= 2.001


def test_dense_quadratic_form_in_many_dimensions() -> None:
    generator = random.Random(0)
    terms = {monomial([(i, 1), (j, 1)]): generator.gauss(0, 1) for i in range(60) for j in range(i, 60)}
    plan = flat((Polynomial(terms),), 60)
    assert plan.size == 62
    check(plan, *random_polynomial(60, 1, 0))


def test_very_high_mixed_derivatives_are_nested() -> None:
    """Directions amplify rounding too much at this order; a jet of a jet doesn't at all."""
    plan = make_plan((X**13 * Y**13,), 2)
    assert isinstance(plan, NestedPlan)
    assert plan.size == 14 * 14
    assert plan.condition == 1
    assert "nested plan: C = 14 x 14 = 196 coefficients" in str(plan)
    check(plan, {((0, 14), (1, 13)): Fraction(2, 3), ((0, 3),): Fraction(1)}, [Fraction(1, 2), Fraction(3)])


def test_known_compositions_are_used() -> None:
    outer, inner = d(0, 13) + d(0, 11), d(1, 13) + d(1, 12)
    with pytest.raises(ValueError, match=r"u_x0\^13x1\^13 .* amplifies rounding by less than 1000"):
        make_plan((outer * inner,), 2)
    plan = make_plan((outer * inner, X), 2, ((outer, inner), None))
    assert isinstance(plan, NestedPlan)
    assert plan.size == 14 * 14


@st.composite
def requests(draw: st.DrawFn) -> tuple[tuple[Polynomial, ...], int]:
    dimension = draw(st.integers(1, 4))
    order = draw(st.integers(1, 5 if dimension <= 2 else 3))
    powers = st.lists(st.integers(0, dimension - 1), max_size=order)
    terms = st.dictionaries(
        powers.map(lambda factors: monomial((variable, 1) for variable in factors)),
        st.integers(-5, 5) | st.floats(-2, 2).filter(lambda value: abs(value) > 1e-3),
        min_size=1,
        max_size=4,
    )
    return tuple(map(Polynomial, draw(st.lists(terms, min_size=1, max_size=4)))), dimension


@settings(max_examples=60)
@given(requests())
def test_random_requests(request: tuple[tuple[Polynomial, ...], int]) -> None:
    quantities, dimension = request
    plan = make_plan(quantities, dimension)
    assert plan.quantities == quantities
    check_on_random_polynomials(plan)
    # Never worse than every monomial by closed formulas, all directions to the order of the monomial.
    keys = {key for quantity in quantities for key in quantity.terms}
    assert plan.size <= 1 + sum(len(monomial_directions(key)) * degree(key) for key in keys)


@settings(max_examples=20)
@given(st.integers(2, 4), st.integers(2, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_decompositions_find_hidden_directions(dimension: int, order: int, count: int, seed: int) -> None:
    generator = random.Random(seed)
    hidden = [tuple((i, generator.randint(-3, 3) or 1) for i in range(dimension)) for _ in range(count)]
    form = Polynomial()
    for vector in hidden:
        form += Polynomial(power_of(vector, order))
    assert min(map(len, decompose((form,), dimension, order, ()))) <= count


# Refusals and errors.


def test_plans_that_amplify_rounding_are_refused() -> None:
    quantities = partials("xy", "xxxyyy")
    condition = make_plan(quantities, 2).condition
    with pytest.raises(ValueError, match=r"no plan for u_x0x0x0x1x1x1 amplifies rounding by less than 0.5"):
        make_plan(quantities, 2, (), 0.5)
    assert condition >= 1


def test_an_ill_conditioned_candidate_loses_to_a_dearer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    close = [[((0, 1),), ((0, 1), (1, 1e-4))], [((0, 1),), ((1, 1),), ((0, 1), (1, 1))]]
    monkeypatch.setattr(planner_search, "_added_directions", lambda basis, forms: close)
    make_plan.cache_clear()
    try:
        plan = flat((X * Y + d(0, 2) * 0.5,), 2)
        assert plan.condition < 10
        assert len(plan.vectors) == 3
    finally:
        make_plan.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((), 2), ValueError, "nothing is requested"),
        (((X, Z), 2), ValueError, "isn't one of 0 … 1"),
        (((d(0, 171),), 1), ValueError, "of order 171; at most 170"),
        (((X, "xx"), 2), TypeError, "must be a Polynomial, got str"),
        (((X * Y,), 2, (None, None)), ValueError, "2 compositions for 1 quantities"),
    ],
)
def test_bad_requests(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_plan(*arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_coefficients_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        Polynomial({(): value})


@pytest.mark.parametrize("value", ["1", 1j, None, True])
def test_coefficients_must_be_real_numbers(value: object) -> None:
    with pytest.raises(TypeError, match="must be a real number"):
        Polynomial({(): value})  # pyright: ignore


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        ("", ValueError, "at least one name"),
        ("xtx", ValueError, "'x' more than once"),
        ("ux", ValueError, "'u' can't name a variable"),
        (["x", ""], ValueError, "no empty ones"),
        (3, TypeError, "variables must be a string"),
        (["x", 1], TypeError, "variables must be a string"),
    ],
)
def test_bad_variables(variables: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_variables(variables)  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("xz", ValueError, "'xz' isn't made of the variables x, y"),
        ((1,), ValueError, "1 entries for the 2 variables"),
        ((1, -1), ValueError, "can't be negative"),
        (("x", "z"), ValueError, "'z' isn't one of the variables x, y"),
        ((1, 1.0), TypeError, "a tuple of names or of integers"),
        ((), TypeError, "a tuple of names or of integers"),
        (2, TypeError, "must be a string, or a tuple"),
    ],
)
def test_bad_names(name: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_partial(name, ("x", "y"))  # pyright: ignore


def test_names() -> None:
    assert parse_partial("xyx", ("x", "y")) == parse_partial((2, 1), ("x", "y")) == ((0, 2), (1, 1))
    assert parse_partial("u", ("x",)) == parse_partial("", ("x",)) == parse_partial((0,), ("x",)) == ()
    assert parse_partial(("x1", "x1"), ("x1", "x2")) == ((0, 2),)
    assert parse_partial("x1x2x1", ("x1", "x2")) == ((0, 2), (1, 1))
    assert parse_partial("x" * 3000, ("x",)) == ((0, 3000),)
    with pytest.raises(ValueError, match="several ways"):
        parse_partial("xxx", ("x", "xx"))


# What surrounds the search.


def test_plans_are_cached() -> None:
    quantities = partials("xyz", "xxy", "z")
    assert make_plan(quantities, 3) is make_plan(partials("xyz", "yxx", "z"), 3)


def test_plans_are_the_same_in_every_run() -> None:
    first = [make_plan(*AT_MOST[name][:2]) for name in ("biharmonic, 4-D", "all second partials, 3-D")]
    make_plan.cache_clear()
    decompose.cache_clear()
    assert first == [make_plan(*AT_MOST[name][:2]) for name in ("biharmonic, 4-D", "all second partials, 3-D")]


def test_planning_leaves_the_random_state_alone() -> None:
    make_plan.cache_clear()
    decompose.cache_clear()
    before = torch.get_rng_state()
    make_plan((laplacian(4, 2),), 4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_chunks_add_up(size: int) -> None:
    plan = flat((d(0, 0) + d(0, 4), d(0, 2), laplacian(6), d(5), X * Y), 6)
    chunks = plan.chunks(size)
    assert all(len(chunk.vectors) <= size for chunk in chunks)
    assert [vector for chunk in chunks for vector in chunk.vectors] == list(plan.vectors)
    u, point = random_polynomial(6, 4, 0)
    parts = [apply(chunk, u, point) for chunk in chunks]
    assert [sum(values) for values in zip(*parts, strict=True)] == pytest.approx(apply(plan, u, point))


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_chunk_size_is_checked(size: object) -> None:
    with pytest.raises(ValueError, match="positive number of directions"):
        flat((laplacian(3),), 3).chunks(size)  # pyright: ignore


def test_cost_counts_a_network() -> None:
    plan = flat((laplacian(3),), 3)
    forward = plan.cost([3, 64, 64, 1], 1000, backward=False)
    both = plan.cost([3, 64, 64, 1], 1000)
    gemms = 2 * 5 * 1000 * (3 * 64 + 64 * 64 + 64)
    assert gemms < forward.flops < 1.5 * gemms
    assert both.flops == 3 * forward.flops
    assert plan.cost([3, 64, 64, 1], 1000, itemsize=8).bytes == 2 * both.bytes
    assert str(both).startswith("C = 5")
    for widths, points in (([3], 10), ([3, 0, 1], 10), ([3, 8, 1], 0)):
        with pytest.raises(ValueError, match="must be"):
            plan.cost(widths, points)


def test_table_shows_the_plan() -> None:
    plan = dataclasses.replace(flat((d(0, 2) - Y * 2, laplacian(2)), 2), variables=("x", "t"))
    assert str(plan).splitlines() == [
        "plan: C = 5 coefficients, 2 directions, order 2, rounding amplified by 1",
        "",
        "direction  order  weight of top  along",
        "0          2      -              x",
        "1          2      -              t",
        "",
        "quantity      from coefficients",
        "u_xx - 2 u_t  2 c2[0] - 2 c1[1]",
        "u_xx + u_tt   2 c2[0] + 2 c2[1]",
    ]
    collapsed = str(flat((laplacian(2, 2),), 2))
    assert "C = 11 coefficients, 3 collapsed directions" in collapsed
    assert "24 T" in collapsed
    assert len(str(flat((laplacian(1000),), 1000)).splitlines()) < 40


# The building blocks.


def test_polynomials_are_exact_and_immutable_values() -> None:
    product = (X + Y) * (X - Y)
    assert product == d(0, 2) - d(1, 2)
    assert hash((X + Y) ** 2) == hash(d(0, 2) + X * Y * 2 + d(1, 2))
    assert (X * 0.1).terms[((0, 1),)] == Fraction(0.1)
    assert not (X - X).terms
    assert (X * Y * 2 + d(0, 0)).homogeneous() == {2: X * Y * 2, 0: d(0, 0)}
    assert (X * 2 - Y).format(("x", "t")) == "2 u_x - u_t"


@pytest.mark.parametrize("root", [X + Y, laplacian(4), X * Y + d(2, 2) * 3 + Z + d(0, 0) * 2])
@pytest.mark.parametrize("power", [2, 3])
def test_roots_of_polynomials(root: Polynomial, power: int) -> None:
    found = (root**power * -5).root(power)
    assert found is not None
    assert found.monic() == root.monic()
    assert (root**power + d(0)).root(power) is None


def test_spread_is_a_lower_bound_attained_by_unmixed_derivatives() -> None:
    assert spread(((0, 4),)) == 1
    assert spread(((0, 1), (1, 1))) == pytest.approx(1)
    assert spread(((0, 2), (1, 2))) == pytest.approx(2 / 3)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("order", [2, 3, 5])
def test_full_support_directions_are_as_many_as_monomials(size: int, order: int) -> None:
    directions = full_support_directions(size, order)
    assert len(directions) == math.comb(order - 1, size - 1)
    assert all(all(direction) for direction in directions)


def test_powers_of_directions_have_the_bombieri_product() -> None:
    vectors = torch.randn(5, 3, dtype=torch.float64)
    powers = space(3, 4).powers(vectors)
    torch.testing.assert_close(powers.T @ powers, (vectors @ vectors.T) ** 4)
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    slopes = space(3, 4).power_slopes(vectors)
    for i in range(3):
        numeric = (space(3, 4).powers(vectors + step[i]) - space(3, 4).powers(vectors - step[i])) / 2e-6
        torch.testing.assert_close(slopes[i], numeric, atol=1e-7, rtol=1e-6)
