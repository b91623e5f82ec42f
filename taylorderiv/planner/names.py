"""Names of variables and of partial derivatives, as users write them."""

from __future__ import annotations

from collections.abc import Sequence

from taylorderiv.planner.polynomial import Monomial, monomial

PartialName = str | Sequence[str] | Sequence[int]
"""``"xxt"``, ``("x", "x", "t")``, a multi-index ``(2, 1)``, or ``"u"`` for the function itself."""


def parse_variables(variables: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the variables, in order: a string of one-letter names, or a sequence of names.

    Raises:
        TypeError: neither a string nor a sequence of strings.
        ValueError: no names, an empty or repeated name, or ``"u"``, which stands for the function itself.
    """
    if not isinstance(variables, str) and (
        not isinstance(variables, Sequence) or not all(isinstance(name, str) for name in variables)
    ):
        raise TypeError(f"variables must be a string of one-letter names or a sequence of names, got {variables!r}")
    names = tuple(variables)
    if not names or not all(names):
        raise ValueError(f"variables must have at least one name and no empty ones, got {variables!r}")
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise ValueError(f"variables must differ, got {', '.join(map(repr, repeated))} more than once")
    if "u" in names:
        raise ValueError("'u' can't name a variable: it stands for the function itself")
    return names


def parse_partial(name: PartialName, variables: tuple[str, ...]) -> Monomial:
    """Which derivative a name means.

    Args:
        name: names of variables, one after the other (``"xxt"``) or in a tuple (``("x", "x", "t")``), ``"u"``
            or ``""`` for the function itself, or the order in each variable (``(2, 1)``).
        variables: the names of the variables, from `parse_variables`.

    Raises:
        TypeError: neither a string nor a sequence of strings or of integers.
        ValueError: an unknown variable, a name that can be read in several ways, a multi-index of another
            length than ``variables``, or a negative order.
    """
    if isinstance(name, str):
        return () if name in ("", "u") else monomial((variable, 1) for variable in _split(name, variables))
    kinds = {type(part) for part in name} if isinstance(name, Sequence) else set()
    if kinds == {str}:
        unknown = [part for part in name if part not in variables]
        if unknown:
            raise ValueError(f"{unknown[0]!r} isn't one of the variables {', '.join(variables)}")
        return monomial((variables.index(str(part)), 1) for part in name)
    if kinds != {int}:
        raise TypeError(f"a partial derivative must be a string, or a tuple of names or of integers, got {name!r}")
    if len(name) != len(variables):
        raise ValueError(
            f"multi-index {tuple(name)} has {len(name)} entries for the {len(variables)} variables "
            f"{', '.join(variables)}"
        )
    powers = [int(power) for power in name]
    if min(powers) < 0:
        raise ValueError(f"orders can't be negative, got multi-index {tuple(name)}")
    return monomial(enumerate(powers))


def _split(name: str, variables: tuple[str, ...]) -> tuple[int, ...]:
    # From each place to the end, at most two readings: one more than allowed.
    readings: list[list[tuple[int, ...]]] = [[] for _ in name] + [[()]]
    for start in reversed(range(len(name))):
        for index, variable in enumerate(variables):
            if name.startswith(variable, start):
                readings[start] += [(index, *rest) for rest in readings[start + len(variable)]]
        del readings[start][2:]
    if not readings[0]:
        raise ValueError(f"{name!r} isn't made of the variables {', '.join(variables)}")
    if len(readings[0]) > 1:
        raise ValueError(f"{name!r} can be read in several ways with the variables {', '.join(variables)}")
    return readings[0][0]
