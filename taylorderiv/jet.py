"""Jet: the truncated Taylor polynomial that flows through the user's code like a tensor."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from taylorderiv import chain, registry
from taylorderiv.chain import Value
from taylorderiv.layout import Layout

Level = tuple[int, int]


class _Depth(threading.local):
    """How many differentiations enclose the running code, in this thread."""

    def __init__(self) -> None:
        self.value = 0  # of each thread: an attribute that appears later has code compiled again


_depth = _Depth()


class nested_level:
    """A context in which new jets are perturbed independently of all jets that exist outside it.

    ``with nested_level() as level: f(Jet(c, layout, level))`` is how a differentiation runs a function: jets
    of an enclosing differentiation that ``f`` closes over are constants to it.
    """

    def __enter__(self) -> Level:
        _depth.value += 1
        return (_depth.value, 0)

    def __exit__(self, *exception: object) -> None:
        _depth.value -= 1


def factorial(k: int) -> float:
    """k!, between the k-th coefficient and the k-th derivative; an OverflowError if it exceeds the largest float."""
    if k > 170:
        raise OverflowError(f"derivative {k}: {k}! exceeds the largest float; use the scaled .coefficients")
    return float(math.factorial(k))


def _operator(name: str) -> Any:
    return lambda self, *others: _apply(name, self, *others)


def _reflected(name: str) -> Any:
    return lambda self, other: _apply(name, other, self)


def _comparison(name: str) -> Any:
    def compare(self: Jet, other: Any) -> Any:
        if not isinstance(other, (int, float, complex, Tensor, Jet)):
            return NotImplemented
        return _apply(name, self, other)

    return compare


class Jet:
    """A tensor-like value together with its Taylor coefficients along one or several directions.

    Applied to torch functions, operators, methods and modules in place of a tensor. Where a plain value is
    asked for (comparisons, ``bool``, ``item``, printing), it is the primal's.

    Args:
        coefficients: scaled Taylor coefficients ``c_k = f^(k) / k!``, stacked as ``(C, *shape)`` in the order
            of ``layout``. Usually a tensor; another jet for jets of jets.
        layout: which coefficients these are.
        level: which differentiation the jet belongs to; by default that of the running code.
        memory: a tensor that lies in memory as the jet would if it were one, where that is known. Strides are
            those of this tensor, and ``as_strided`` takes elements as from it. On the meta device: one that
            begins somewhere in its storage.

    Raises:
        ValueError: the number of coefficients isn't that of the layout.
        TypeError: the coefficients are neither floating-point nor complex.
    """

    __array_ufunc__ = None  # NumPy arrays leave operators with a jet to the jet.

    def __init__(
        self, coefficients: Any, layout: Layout, level: Level | None = None, memory: Tensor | Jet | None = None
    ):
        if coefficients.ndim == 0 or coefficients.shape[0] != layout.size:
            raise ValueError(
                f"{layout} has {layout.size} coefficients along axis 0, got shape {tuple(coefficients.shape)}"
            )
        if not (coefficients.is_floating_point() or coefficients.is_complex()):
            raise TypeError(f"coefficients must be floating-point or complex, got {coefficients.dtype}")
        self._value = Value(coefficients, layout)
        self.coefficient_layout = layout
        self.level = _level_of(coefficients) if level is None else level
        self.memory: Tensor | None = memory.memory if isinstance(memory, Jet) else memory
        self._aliases: list[weakref.ref[Jet]] | None = None

    @classmethod
    def variable(
        cls,
        x: Any,
        order: int | Sequence[int],
        directions: Any = None,
        weights: Sequence[float] | None = None,
        level: Level | None = None,
    ) -> Jet:
        """The jet of ``x + ε v`` for each direction ``v``.

        Args:
            x: a floating-point or complex tensor (or jet).
            order: the highest order, one for all directions or one for each.
            directions: ``(R, *x.shape)``, or a sequence of R tensors shaped like ``x``; or ``(R, 1, …, 1, D)``,
                directions that all points share, which a linear layer need only see once, if ``x`` is
                ``(…, D)``; one direction of ones if left out.
            weights: a weight per direction, to carry only the weighted sum of the top coefficients of those
                whose weight isn't 0 (see :class:`Layout`).
            level: as for :class:`Jet`.

        Raises:
            TypeError: ``x`` isn't a tensor of floating-point or complex numbers, or an order isn't an
                integer, or ``directions`` are of another dtype.
            ValueError: an order is negative, or ``directions`` have another shape or device than ``x``.
        """
        check_variable(x, "x")
        shared = torch.Size([1] * (x.ndim - 1)) + x.shape[-1:]
        if directions is None:
            directions = [x.new_ones(shared)]
        count = len(directions)
        for direction in directions[:1] if isinstance(directions, Tensor) else directions:
            check_like(direction, x, "direction", shared)
        orders = [order] * count if not isinstance(order, Sequence) else list(order)
        if len(orders) != count:
            raise ValueError(f"{len(orders)} orders for {count} directions")
        for k in orders:
            check_order(k)
        kept = [r for r in range(count) if orders[r] > 0]
        layout = Layout(
            tuple(orders[r] for r in kept),
            None if weights is None else tuple(float(weights[r]) for r in kept),
        )
        shapes = {directions.shape[1:]} if isinstance(directions, Tensor) else {vector.shape for vector in directions}
        if shapes == {shared} and chain.may_be_seed(x):
            rows = directions if isinstance(directions, Tensor) else torch.stack(list(directions))
            rows = rows.reshape(count, x.shape[-1])
            higher = layout.lines(rows[kept] if len(kept) < count else rows)
            return cls.seeded(x, higher, layout, _level_of(x) if level is None else level)
        vectors = [directions[r].expand(x.shape) for r in kept]
        # One zero tensor stands for all coefficients that vanish.
        zero = torch.zeros_like(vectors[0]) if layout.order > 1 else None
        coefficients: list[Any] = [x]
        for r, vector in enumerate(vectors):
            if layout.stored(r):
                coefficients += [vector, *[zero] * (layout.stored(r) - 1)]
        if layout.weights is not None:
            if layout.collapsed_order == 1:
                coefficients.append(sum(layout.weights[r] * vectors[r] for r in layout.collapsed_directions))
            else:
                coefficients.append(zero)
        return cls(torch.stack(coefficients), layout, level, x)

    @classmethod
    def seeded(cls, points: Tensor, higher: Tensor, layout: Layout, level: Level) -> Jet:
        """The jet of points ``(…, D)`` that share the higher coefficients ``(C - 1, D)``; it isn't written out."""
        return cls._of(chain.seeded(points, higher, layout), layout, level, points)

    @classmethod
    def _of(cls, value: Value, layout: Layout, level: Level, memory: Tensor | Jet | None = None) -> Jet:
        jet = cls.__new__(cls)
        jet._value = value
        jet.coefficient_layout = layout
        jet.level = level
        jet.memory = memory.memory if isinstance(memory, Jet) else memory
        jet._aliases = None
        return jet

    @property
    def coefficients(self) -> Any:
        """The scaled Taylor coefficients, ``(C, *shape)`` in the order of :attr:`coefficient_layout`."""
        return self._value.coefficients

    @property
    def value(self) -> Value:
        """The coefficients, or the layers that they wait to be computed by."""
        return self._value

    def with_value(self, value: Value) -> Jet:
        """A jet of the same layout and level with another value."""
        return Jet._of(value, self.coefficient_layout, self.level)

    def with_coefficients(self, coefficients: Any) -> Jet:
        """A jet of the same layout and level with other coefficients ``(C, *any shape)``."""
        return Jet(coefficients, self.coefficient_layout, self.level)

    def rebind(self, coefficients: Any) -> None:
        """Give the jet other coefficients of the same shape and dtype: what an op in place does."""
        self._value = Value(coefficients, self.coefficient_layout)
        self._aliases = None

    @property
    def order(self) -> int:
        """The highest order of any direction."""
        return self.coefficient_layout.order

    @property
    def primal(self) -> Any:
        """The value itself, coefficient 0."""
        return self.coefficients[0]

    def derivative(self, k: int, direction: int = 0) -> Any:
        """The k-th derivative along a direction (unscaled: k! times the coefficient).

        Raises:
            OverflowError: k is above 170, where k! exceeds the largest number.
        """
        if k == 0:
            return self.primal
        return self.coefficients[self.coefficient_layout.index(k, direction)] * factorial(k)

    @property
    def collapsed(self) -> Any:
        """``sum_r w_r`` times the K-th derivative along direction r, where the layout is collapsed."""
        if not self.coefficient_layout.collapsed:
            raise ValueError(f"{self.coefficient_layout} isn't collapsed")
        return self.coefficients[-1] * factorial(self.coefficient_layout.collapsed_order)

    # What a tensor has.

    @property
    def shape(self) -> torch.Size:
        return self._value.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._value.dtype

    @property
    def device(self) -> torch.device:
        return self._value.device

    @property
    def layout(self) -> torch.layout:
        return torch.strided

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def requires_grad(self) -> bool:
        return self.coefficients.requires_grad

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def T(self) -> Any:
        return _apply("permute", self, tuple(reversed(range(self.ndim))))

    @property
    def mT(self) -> Any:
        return _apply("transpose", self, -2, -1)

    @property
    def H(self) -> Any:
        return _apply("conj", self.T)

    @property
    def mH(self) -> Any:
        return _apply("conj", self.mT)

    @property
    def real(self) -> Any:
        return _apply("real", self) if self.is_complex() else self

    @property
    def imag(self) -> Any:
        return _apply("imag", self)

    @property
    def data(self) -> Any:
        return _apply("detach", self)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    ndimension = dim

    def numel(self) -> int:
        return math.prod(self.shape)

    nelement = numel

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        return self.dtype.is_complex

    def get_device(self) -> int:
        return self.coefficients.get_device()

    def element_size(self) -> int:
        return self.coefficients.element_size()

    def is_contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
        return self._laid_out.is_contiguous(memory_format=memory_format)

    def stride(self, dim: int | None = None) -> Any:
        return self._laid_out.stride() if dim is None else self._laid_out.stride(dim)

    def storage_offset(self) -> int:
        return self._laid_out.storage_offset()

    @property
    def _laid_out(self) -> Any:
        return self.primal if self.memory is None else self.memory

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d jet")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a 0-d jet")
        return iter([self[i] for i in range(len(self))])

    def __bool__(self) -> bool:
        return bool(self.primal)

    def __float__(self) -> float:
        return float(self.primal)

    def __int__(self) -> int:
        return int(self.primal)

    def __complex__(self) -> complex:
        return complex(self.primal)

    def item(self) -> float:
        return self.primal.item()

    def tolist(self) -> Any:
        return self.primal.tolist()

    def __repr__(self) -> str:
        return (
            f"Jet(shape={tuple(self.shape)}, {self.coefficient_layout}, dtype={self.dtype}, device='{self.device}',"
            f" coefficients={self.coefficients!r})"
        )

    # Operators.

    __add__, __radd__, __iadd__ = _operator("add"), _reflected("add"), _operator("add_")
    __sub__, __rsub__, __isub__ = _operator("sub"), _reflected("sub"), _operator("sub_")
    __mul__, __rmul__, __imul__ = _operator("mul"), _reflected("mul"), _operator("mul_")
    __truediv__, __rtruediv__, __itruediv__ = _operator("div"), _reflected("div"), _operator("div_")
    __floordiv__, __rfloordiv__, __ifloordiv__ = (
        _operator("floor_divide"),
        _reflected("floor_divide"),
        _operator("floor_divide_"),
    )
    __mod__, __rmod__, __imod__ = _operator("remainder"), _reflected("remainder"), _operator("remainder_")
    __pow__, __rpow__, __ipow__ = _operator("pow"), _reflected("pow"), _operator("pow_")
    __matmul__, __rmatmul__, __imatmul__ = _operator("matmul"), _reflected("matmul"), _operator("matmul_")
    __neg__ = _operator("neg")
    __abs__ = _operator("abs")
    __pos__ = _operator("positive")
    __eq__ = _comparison("eq")
    __ne__ = _comparison("ne")
    __lt__ = _comparison("lt")
    __le__ = _comparison("le")
    __gt__ = _comparison("gt")
    __ge__ = _comparison("ge")
    __hash__ = object.__hash__
    __getitem__, __setitem__ = _operator("__getitem__"), _operator("__setitem__")

    def __getattr__(self, name: str) -> Any:
        # All other methods of a tensor, and properties such as is_sparse. Only called for names that aren't
        # found otherwise.
        method = getattr(Tensor, name, None)
        if name.startswith("is_") and method is not None and not callable(method):
            return getattr(self.primal, name)
        if method is None or not callable(method) or name.startswith("__"):
            raise AttributeError(f"'Jet' has no attribute '{name}'")

        def call(*args: Any, **kwargs: Any) -> Any:
            return _dispatch(method, (self, *args), kwargs)

        return call

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})


def _level_of(coefficients: Any) -> Level:
    level = (_depth.value, 1)
    if isinstance(coefficients, Jet) and coefficients.level >= level:
        return (coefficients.level[0], coefficients.level[1] + 1)
    return level


def _apply(name: str, *args: Any) -> Any:
    return _dispatch(name, args, {})


def _jets(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Jet]:
    """The jets among the arguments, those inside lists and tuples included."""
    found = []
    for arg in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(arg, Jet):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found += _jets(tuple(arg), {})
    return found


def _map_jets(function: Callable[[Jet], Any], value: Any) -> Any:
    if isinstance(value, Jet):
        return function(value)
    if isinstance(value, (list, tuple)):
        items = [_map_jets(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: _map_jets(function, item) for key, item in value.items()}
    return value


def constant(value: Any, like: Jet) -> Jet:
    """A tensor as a jet of the layout and level of another one, with all derivatives 0."""
    zeros = torch.zeros((like.coefficient_layout.size - 1, *value.shape), dtype=value.dtype, device=value.device)
    return like.with_coefficients(torch.cat([value[None], zeros]))


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a torch function to arguments that hold at least one jet."""
    name, rule, in_place = registry.find(func)
    jets = _jets(args, kwargs)
    first = jets[0]
    for jet in jets[1:]:
        if jet.level != first.level:
            # Jets of an enclosing differentiation are constants to this one.
            top = max(jets, key=lambda j: j.level)
            args, kwargs = _map_jets(lambda j, top=top: j if j.level == top.level else constant(j, top), (args, kwargs))
            return _dispatch(func, args, kwargs)
        if jet.coefficient_layout != first.coefficient_layout:
            raise ValueError(
                f"'{name}' got jets of different layouts: {first.coefficient_layout} and {jet.coefficient_layout}"
            )
    named = kwargs
    if kwargs:
        kwargs = {_KEYWORDS.get(key, key): value for key, value in kwargs.items()}
        if kwargs.pop("out", None) is not None:
            raise NotImplementedError(f"'{name}' can't write a jet into a given tensor: out= isn't supported")
        in_place = kwargs.pop("inplace", False) or in_place
    if in_place:
        return _in_place(func, name, rule, args, kwargs)
    result = registry.fall_back(func, name, args, named) if rule is None else rule(*args, **kwargs)
    if name in _VIEWS:
        _link(result, args[0] if args else kwargs["input"])
    return result


# NumPy-like and ATen names of arguments that torch functions accept.
_KEYWORDS = {"axis": "dim", "self": "input", "keepdims": "keepdim", "x": "input"}

# Ops whose result shares, or may share, the memory of their first argument.
_VIEWS = frozenset(
    "__getitem__ select slice narrow view reshape view_as reshape_as expand expand_as permute transpose t"
    " movedim moveaxis swapaxes swapdims flatten unflatten squeeze unsqueeze split chunk unbind"
    " split_with_sizes tensor_split vsplit hsplit dsplit diagonal unfold broadcast_to detach real imag ravel"
    " as_strided contiguous alias mT adjoint view_as_real view_as_complex atleast_1d atleast_2d atleast_3d"
    " broadcast_tensors".split()
)


def _link(result: Any, source: Any) -> None:
    """Remember that jets share memory with ``source``."""
    if isinstance(result, (list, tuple)):
        for item in result:
            _link(item, source)
    elif isinstance(result, Jet) and isinstance(source, Jet) and result is not source:
        if source._aliases is None:
            source._aliases = [weakref.ref(source)]
        source._aliases.append(weakref.ref(result))
        result._aliases = source._aliases


def _in_place(func: Any, name: str, rule: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rebind the coefficients of the first argument to the result of the op."""
    target = args[0] if args else kwargs["input"]
    check_writable(target, name)
    if rule is None:
        raise registry.missing_rule(f"{name}_", "there is no rule for the op it writes in place")
    result = rule(*args, **kwargs)
    if not isinstance(result, Jet):
        result = constant(result, target)
    if result.shape != target.shape:
        raise ValueError(f"'{name}' in place can't change shape {tuple(target.shape)} to {tuple(result.shape)}")
    target.rebind(result.coefficients.to(target.dtype))
    return target


def check_writable(target: Any, name: str) -> None:
    """Raise if writing to ``target`` would have to be seen through another tensor or jet.

    Raises:
        NotImplementedError: ``target`` is a plain tensor, or a jet that shares its memory with another one.
    """
    if not isinstance(target, Jet):
        raise NotImplementedError(
            f"'{name}' would write a jet into a plain tensor of shape {tuple(target.shape)}, which has no"
            f" place for Taylor coefficients. Build the result with torch.cat, stack or where instead."
        )
    for reference in target._aliases or ():
        other = reference()
        if other is not None and other is not target:
            raise NotImplementedError(
                f"'{name}' would write into a jet that shares memory with another one (a view). Copy it first"
                f" (x = x.clone()), or use the op that isn't in place."
            )


# Checks of arguments that several public functions share.


def check_variable(x: Any, name: str) -> None:
    """Raise unless ``x`` is a dense floating-point or complex tensor, or a jet.

    Raises:
        TypeError: ``x`` isn't a tensor of floating-point or complex numbers.
        NotImplementedError: ``x`` is sparse.
    """
    if not isinstance(x, (Tensor, Jet)):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{name} must be floating-point or complex to be differentiated, got {x.dtype}")
    if x.layout is not torch.strided:
        raise NotImplementedError(f"{name} is {x.layout}: Taylor coefficients are dense; use to_dense()")


def check_like(value: Any, x: Any, name: str, other_shape: tuple[int, ...] | None = None) -> None:
    """Raise unless ``value`` is a tensor of the shape (or of another one), dtype and device of ``x``."""
    if not isinstance(value, (Tensor, Jet)):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.shape not in (x.shape, other_shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(x.shape)} as that of x")
    if value.dtype != x.dtype:
        raise TypeError(f"{name} has dtype {value.dtype}, expected {x.dtype} as that of x")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, expected {x.device} as x")


def check_order(order: Any) -> None:
    """Raise unless ``order`` is an integer that isn't negative."""
    if isinstance(order, bool) or not isinstance(order, int):
        raise TypeError(f"order must be an int, got {type(order).__name__}")
    if order < 0:
        raise ValueError(f"order must not be negative, got {order}")
