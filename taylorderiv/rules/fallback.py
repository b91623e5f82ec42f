"""Functions without a rule: decomposed into ATen ops, or derived from PyTorch's forward-mode derivative.

The function runs once on plain primals while a recorder notes the ATen ops, and these are replayed with jets.
An ATen op without a rule is decomposed further where PyTorch knows how. Else it is differentiated by forward
mode, ``y'(t) = JVP(x(t), x'(t))``: the ops of that formula, recorded likewise, are replayed on series one
order lower, and the result is integrated; so the recursion ends. Where such a formula uses a result that
PyTorch holds for constant, as the factors inside a solver, it is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._functorch import pyfunctorch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from taylorderiv import registry
from taylorderiv.rules.engine import Jet, integrate, is_jet, plain, primals
from taylorderiv.rules.memory import indices_at, put, take, unwrapped

# What depends on how a tensor lies in memory, where a jet that takes its place doesn't.
_BY_PLACES = {
    torch.ops.aten.as_strided.default: take,
    torch.ops.aten.as_strided_copy.default: take,
    torch.ops.aten.as_strided_scatter.default: put,
}

# The results of these are samples, not functions of the argument.
_SAMPLERS = frozenset(("rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal"))


class _Call(NamedTuple):
    """An ATen call whose result depends on a jet or on a tensor that requires gradients."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    in_place: bool


class _Unsupported(Exception):
    """Why a function can't be decomposed; becomes the one error that the user sees."""


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _overlap(a: Any, b: Any) -> bool:
    """Whether two views, by key, of one storage have an element in common."""
    size = 1 + max(
        offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        for _, offset, shape, stride, *_ in (a, b)
    )
    marks = torch.zeros(size, dtype=torch.bool)
    marks.as_strided(a[2], a[3], a[1]).fill_(True)
    return bool(marks.as_strided(b[2], b[3], b[1]).any())


def _key(tensor: Tensor) -> Any:
    """Equal for two tensors that are views of the same elements in the same arrangement."""
    if tensor.layout is not torch.strided:
        return (id(tensor),)
    return (
        _storage(tensor),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _snapshot(tree: Any) -> Any:
    """The same tensors as other objects, whose shape and strides no op in place changes later."""
    return pytree.tree_map(
        lambda leaf: leaf.detach() if isinstance(leaf, Tensor) and not leaf.requires_grad else leaf, tree
    )


class _Recorder(TorchDispatchMode):
    """Notes the ATen calls that depend on given tensors, decomposed until each has a rule if possible."""

    def __init__(self, variables: Any):
        super().__init__()
        self.calls: list[_Call] = []
        # Everything seen is kept alive: a tensor is known by its memory, which must not be used again.
        self._alive: list[Any] = [variables]
        self._dependent = {_key(tensor) for tensor in _tensors(variables)}
        self._used: set[int] = set()  # storages that a noted call has read
        self._written: set[int] = set()  # storages that a noted call has written to

    def _depends(self, tensor: Tensor) -> bool:
        if tensor.requires_grad or _key(tensor) in self._dependent:
            return True
        return bool(self._written) and _storage(tensor) in self._written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(tensor.is_meta for tensor in _tensors((args, kwargs))):  # PyTorch works out a shape.
            return func(*args, **kwargs)
        self._alive.append((args, kwargs))
        depends = any(self._depends(tensor) for tensor in _tensors((args, kwargs)))
        found = registry.find(func)
        mutates = func._schema.is_mutable
        if depends and found.rule is None and not mutates and func in decomposition_table:
            before = len(self.calls)
            with self:
                result = decomposition_table[func](*args, **kwargs)
            if result is not NotImplemented and all(registry.find(c.func).rule for c in self.calls[before:]):
                return result
            del self.calls[before:]
        noted_func, noted_args, noted_kwargs = func, *_snapshot((args, kwargs))
        if torch.Tag.inplace_view in func.tags:  # such as transpose_: another view of the same elements
            noted_func, mutates = getattr(torch.ops.aten, found.name), False
        if depends and func in _BY_PLACES:
            (noted_func, noted_args), noted_kwargs = _by_places(func, noted_args, noted_kwargs), {}
        if mutates:
            self._check_mutation(func, found, args, depends)
        result = func(*args, **kwargs)
        self._alive.append(result)
        if depends and mutates and found.name in _SAMPLERS:  # What is drawn replaces what was there.
            noted_func, noted_args, noted_kwargs = torch.ops.aten.copy_.default, (noted_args[0], result.clone()), {}
        elif found.name in _SAMPLERS:
            return result
        if depends and any(True for _ in _tensors(result)):
            self._note(_Call(noted_func, noted_args, noted_kwargs, _snapshot(result), mutates))
        return result

    def _check_mutation(self, func: Any, found: registry.Found, args: tuple[Any, ...], depends: bool) -> None:
        # A constant is read at replay, when it has its last value.
        constant_was_used = not self._depends(args[0]) and _storage(args[0]) in self._used
        if constant_was_used or (depends and not (found.in_place and found.rule)):
            raise _Unsupported(f"{func} writes into a tensor that is used elsewhere")

    def _note(self, call: _Call) -> None:
        self.calls.append(call)
        self._used |= {_storage(tensor) for tensor in _tensors((call.args, call.kwargs))}
        if call.in_place:
            self._written.add(_storage(call.args[0]))
        for tensor in _tensors(call.result):
            if tensor.is_floating_point() or tensor.is_complex():
                self._dependent.add(_key(tensor))

    def replay(self, values: dict[Any, Any], result: Any) -> Any:
        """The result of the recorded function where tensors, by key, have other values such as jets."""
        values = dict(values)

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            key = _key(leaf)
            if key in values:
                return values[key]
            if not leaf.requires_grad and self._depends(leaf):
                raise _Unsupported("it reads memory that was written through a view, or a result without derivative")
            return leaf

        for func, args, kwargs, output, in_place in self.calls:
            new_args, new_kwargs = pytree.tree_map(value, (args, kwargs))
            if in_place:
                target = _key(args[0])
                written = _functional(func, new_args, new_kwargs)
                for key in [key for key in values if key[0] == target[0] and _overlap(key, target)]:
                    del values[key]
                values[target] = written
                continue
            results = _leaves(_apply(func, new_args, new_kwargs))
            for old, new in zip(_leaves(output), results, strict=True):
                if isinstance(old, Tensor) and new is not None:
                    values[_key(old)] = new
        return pytree.tree_map(value, result)


def _leaves(tree: Any) -> list[Any]:
    """The leaves of a result, None among them."""
    return pytree.tree_leaves(tree, is_leaf=lambda leaf: leaf is None)


def _by_places(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """A call that depends on how a tensor lies in memory as one that takes elements of it, or puts them there."""
    input, *others = args
    sources, others = others[: _BY_PLACES[func] is put], others[_BY_PLACES[func] is put :]
    indices = indices_at(input, *others, **kwargs)
    if (indices < 0).any():
        raise _Unsupported(f"{func} reads memory around its argument")
    return _BY_PLACES[func], (input, *sources, indices)


def _apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An ATen op on jets, tensors that require gradients, and constants."""
    if func in (take, put) or not any(is_jet(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
        return func(*args, **kwargs)
    found = registry.find(func)
    if found.rule is None:
        if "::" in found.name:  # A custom op may lack a forward mode without saying so.
            raise _Unsupported(f"{found.name} has no rule")
        return _from_forward_mode(func, args, kwargs)
    return Jet.__torch_function__(func, (), args, kwargs)


def _functional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result that an ATen op in place would write."""
    rule = registry.find(func).rule
    assert rule is not None
    if not any(is_jet(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
        return func(args[0].clone(), *args[1:], **kwargs)
    result = rule(*args, **kwargs)
    return result.to(args[0].dtype).expand(args[0].shape)


def _stand_in(value: Any) -> Any:
    """The plain tensor to run a function on in place of a jet, or of a tensor inside torch.func.grad."""
    if is_jet(value):
        value = plain(value).detach()
    try:
        return unwrapped(value) if isinstance(value, Tensor) else value
    except NotImplementedError as error:
        raise _Unsupported(str(error)) from error


def _without_mutations(func: Any, leaves: list[Any], structure: Any, tangents: dict[int, Tensor] | None = None) -> Any:
    """Call a function so that ops in place reach a dispatch mode as ops that aren't.

    Args:
        func: the function.
        leaves: the leaves of its arguments ``(args, kwargs)``, of that structure.
        structure: of the arguments.
        tangents: if given, the derivative along these, by place of the leaf, is returned in place of the
            result.
    """
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def run(replaced: dict[int, Tensor]) -> Any:
        args, kwargs = pytree.tree_unflatten([replaced.get(i, leaf) for i, leaf in enumerate(leaves)], structure)
        return func(*args, **kwargs)

    def call(*tensors: Tensor) -> Any:
        still = dict(zip(places, tensors, strict=False))
        if tangents is None:
            return run(still)
        moved = list(tangents)
        points = tuple(still[place] for place in moved)
        velocities = tensors[len(places) :]
        return torch.func.jvp(lambda *moving: run(still | dict(zip(moved, moving, strict=True))), points, velocities)[1]

    extra = () if tangents is None else tuple(tangents.values())
    return torch.func.functionalize(call)(*[leaves[place] for place in places], *extra)


@contextlib.contextmanager
def _outside_transforms() -> Iterator[None]:
    """Compute with plain tensors also inside torch.func.grad and its like."""
    if not torch._C._are_functorch_transforms_active():
        yield
        return
    with pyfunctorch.temporarily_clear_interpreter_stack():
        yield


@contextlib.contextmanager
def _recording(recorder: _Recorder) -> Iterator[None]:
    """Note what runs, with attention as plain matrix products."""
    math_attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with _outside_transforms(), math_attention, torch.no_grad(), recorder:
        yield


@torch.compiler.disable
def fall_back(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a function without a rule to arguments with jets.

    Raises:
        NotImplementedError: it can't be decomposed into ops with rules, nor differentiated by forward mode.
    """
    try:
        if isinstance(func, torch._ops.OpOverload) and func not in decomposition_table:
            return _apply(func, args, kwargs)
        return _decompose(func, args, kwargs)
    except _Unsupported as error:
        raise registry.missing_rule(name, str(error)) from error


def _decompose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, structure = pytree.tree_flatten((args, kwargs))
    stand_ins = [_stand_in(leaf) for leaf in leaves]
    recorder = _Recorder([stand_in for leaf, stand_in in zip(leaves, stand_ins, strict=True) if is_jet(leaf)])
    try:
        with _recording(recorder):
            result = _without_mutations(func, stand_ins, structure)
    except NotImplementedError as error:
        raise _Unsupported(str(error)) from error
    values = {
        _key(stand_in): leaf
        for leaf, stand_in in zip(leaves, stand_ins, strict=True)
        if isinstance(stand_in, Tensor) and stand_in is not leaf
    }
    return recorder.replay(values, result)


registry.set_fallback(cast("Any", fall_back))


# Derivatives from forward mode.


def _from_forward_mode(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An ATen op by the formula that PyTorch has for its derivative along a tangent."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if is_jet(leaf)]
    values, result_structure = pytree.tree_flatten(func(*primals(args), **primals(kwargs)))
    jets = [leaves[place] for place in places]
    if jets[0].order == 0:
        return pytree.tree_unflatten(integrate(values, jets, lambda *_: []), result_structure)
    formula = _Formula(func, leaves, structure, places)
    results = integrate(values, jets, formula)
    # Results such as the factors that a solver keeps: they vary, but PyTorch has no derivative of them.
    known = [result if known else None for result, known in zip(results, formula.differentiable, strict=True)]
    return pytree.tree_unflatten(known, result_structure)


class _Formula:
    """The recorded forward-mode derivative of an op."""

    def __init__(self, func: Any, leaves: list[Any], structure: Any, places: list[int]):
        stand_ins = [_stand_in(leaf) for leaf in leaves]
        with _outside_transforms():
            for place in places:
                stand_ins[place] = stand_ins[place].clone()  # Fresh memory: each variable is known by its own.
            tangents = {place: torch.ones_like(stand_ins[place]) for place in places}
        points = [stand_ins[place] for place in places]
        self._recorder = _Recorder((points, tangents))
        self._keys = [_key(tensor) for tensor in (*points, *tangents.values())]
        try:
            with _recording(self._recorder):
                self._results = pytree.tree_leaves(_without_mutations(func, stand_ins, structure, tangents))
        except (NotImplementedError, RuntimeError) as error:
            raise _Unsupported(str(error).splitlines()[0]) from error
        self.differentiable = _compared_with_reverse_mode(
            func, stand_ins, structure, places, [*tangents.values()], self._results
        )

    def __call__(self, positions: list[Jet], velocities: list[Jet]) -> list[Any]:
        """The derivatives of the outputs, as jets; None for an output without."""
        values = dict(zip(self._keys, [*positions, *velocities], strict=True))
        results = self._recorder.replay(values, self._results)
        return [result if is_jet(result) else None for result in results]


def _compared_with_reverse_mode(
    func: Any, leaves: list[Any], structure: Any, places: list[int], tangents: list[Tensor], derivatives: list[Any]
) -> list[bool]:
    """For each output of an op whether PyTorch differentiates it, or it is an integer and so constant.

    Args:
        func: the op.
        leaves: the leaves of its arguments.
        structure: of the arguments.
        places: of the leaves that vary.
        tangents: their directions.
        derivatives: the derivatives of the outputs along these by forward mode.

    Raises:
        _Unsupported: forward and reverse mode disagree, as they do for a few ops of PyTorch.
    """
    leaves = list(leaves)
    with _outside_transforms(), torch.enable_grad():
        for place in places:
            leaves[place] = leaves[place].detach().requires_grad_()
        args, kwargs = pytree.tree_unflatten(leaves, structure)
        outputs = pytree.tree_leaves(func(*args, **kwargs))
        known = []
        for y, forward in zip(outputs, derivatives, strict=True):
            varies = isinstance(y, Tensor) and (y.is_floating_point() or y.is_complex())
            known.append(not varies or y.requires_grad)
            if not (varies and y.requires_grad):
                continue
            cotangent = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64, device=y.device).to(y.dtype)
            cotangent = cotangent.reshape(y.shape)
            with contextlib.suppress(NotImplementedError, RuntimeError):  # Not every op has a reverse mode.
                inputs = [leaves[place] for place in places]
                gradients = torch.autograd.grad(y, inputs, cotangent, retain_graph=True, materialize_grads=True)
                by_reverse = sum(_dot(g, t) for g, t in zip(gradients, tangents, strict=True))
                by_forward = _dot(cotangent, forward)
                size = abs(by_reverse) + float((cotangent.abs() * forward.abs()).sum())
                if abs(by_forward - by_reverse) > 1e-3 * size:
                    raise _Unsupported("PyTorch's forward and reverse mode disagree about it")
    return known


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.conj() * b).real.sum() if a.is_complex() or b.is_complex() else (a * b).sum())
