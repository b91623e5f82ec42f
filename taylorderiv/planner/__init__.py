"""The planner: which directions to propagate to get the requested derivatives at the least cost.

Pure mathematics, without jets or networks. A request is a tuple of polynomials in the derivatives;
`make_plan` returns a `Plan` (or a `NestedPlan`, a jet of a jet): directions, orders, weights, and the linear
combinations of Taylor coefficients that give each quantity.
"""

from taylorderiv.planner.names import parse_partial, parse_variables
from taylorderiv.planner.plan import Cost, NestedPlan, Plan, format_scaled, format_table, kept
from taylorderiv.planner.polynomial import Monomial, Polynomial
from taylorderiv.planner.search import MAX_CONDITION, make_plan

__all__ = [
    "MAX_CONDITION",
    "Cost",
    "Monomial",
    "NestedPlan",
    "Plan",
    "Polynomial",
    "format_scaled",
    "format_table",
    "kept",
    "make_plan",
    "parse_partial",
    "parse_variables",
]
