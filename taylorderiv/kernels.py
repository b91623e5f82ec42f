"""The coefficient-wise kernels behind one door: the compiled ones where they apply, else the reference.

The only importer of the extension ``taylorderiv._C``. Registers what PyTorch needs to combine the custom ops
with autograd, ``torch.func``, ``vmap`` and ``torch.compile``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from taylorderiv import reference
from taylorderiv.layout import Layout
from taylorderiv.unary_ops import UNARY_OPS

try:
    from taylorderiv import _C
except ImportError as error:
    raise ImportError(
        "the extension taylorderiv._C isn't built, or was built for another PyTorch or Python. Build it"
        " against the PyTorch that is installed: pip install --no-build-isolation . (in the source folder)"
    ) from error

_BACKEND = os.environ.get("TAYLORDERIV_BACKEND", "kernels")
if _BACKEND not in ("kernels", "reference"):
    raise ValueError(f"TAYLORDERIV_BACKEND must be 'kernels' or 'reference', got {_BACKEND!r}")

_FACTS: dict[str, Any] = _C.build_info()
_UNARY_KERNELS = frozenset(_C.unary_ops())
_UNARY_PARAMS: dict[str, int] = _C.unary_params()
_HALF_DTYPES = (torch.float16, torch.bfloat16)
_KERNEL_DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "cpu": (torch.float32, torch.float64),
    "meta": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, *_HALF_DTYPES) if _FACTS["cuda"] else (),
}


def build_info() -> dict[str, Any]:
    """What this build holds, and what is in use.

    Returns:
        A dictionary: ``backend`` (``"kernels"`` or ``"reference"``), ``unary_kernels`` (names of the ops with
        a kernel), ``torch`` (the PyTorch in use), and what the extension states about itself, such as
        ``instruction_sets`` and the one in use, ``cuda`` and its architectures, and ``compiler``.
    """
    return {
        **_FACTS,
        "backend": _BACKEND,
        "torch": torch.__version__,
        "unary_kernels": sorted(_UNARY_KERNELS),
    }


def _kernel_applies(*coefficients: Any) -> bool:
    # torch.compile can't trace a torch.func transform around a torch.autograd.Function. The reference works, and
    # torch.compile fuses it.
    if torch._C._are_functorch_transforms_active() and torch.compiler.is_compiling():
        return False
    return _kernels_in_use() and all(
        isinstance(c, Tensor) and c.dtype in _KERNEL_DTYPES.get(c.device.type, ()) for c in coefficients
    )


def _kernels_in_use() -> bool:
    # Forward mode: PyTorch loses tangents when it is nested around a torch.autograd.Function. The reference works.
    return _BACKEND == "kernels" and forward_ad._current_level < 0


def _structure(layout: Layout) -> tuple[list[int], list[float]]:
    return list(layout.orders), list(layout.weights or ())


def unary(op: str, coefficients: Any, layout: Layout, params: Sequence[float] = ()) -> Any:
    """Apply an op of the table of unary ops to a jet.

    Args:
        op: its name.
        coefficients: ``(C, *shape)``. 16-bit floats are computed in float32.
        layout: which coefficients these are.
        params: the op's parameters.

    Returns:
        The coefficients of the result, of the same shape and dtype.
    """
    if op in _UNARY_KERNELS and _kernel_applies(coefficients):
        return _call("unary", coefficients.contiguous(), op, list(params), *_structure(layout))
    if isinstance(coefficients, Tensor) and coefficients.dtype in _HALF_DTYPES:
        return unary(op, coefficients.float(), layout, params).to(coefficients.dtype)
    return reference.unary(UNARY_OPS[op], coefficients, layout, params)


def cauchy(a: Any, b: Any, layout: Layout) -> Any:
    """Multiply two jets, ``(C, *shape)`` of one shape and dtype. 16-bit floats are computed in float32."""
    if _kernel_applies(a, b):
        return _call("cauchy", a.contiguous(), b.contiguous(), *_structure(layout))
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype in _HALF_DTYPES:
        return cauchy(a.float(), b.float(), layout).to(a.dtype)
    return reference.cauchy(a, b, layout)


# Of one core, as measured: matrix products of cache-resident tiles, and coefficients through an activation, per
# instruction set.
_OPERATIONS_PER_SECOND = {"avx512": 200e9, "avx2": 80e9, "baseline": 20e9}
_COEFFICIENTS_PER_SECOND = {"avx512": 3e9, "avx2": 1e9, "baseline": 0.3e9}
_DOUBLE = 0.5  # the speed of float64
# As many numbers, in blocks that aren't too large (cpu/chain_launch.cpp), need no new memory: the C library keeps it
# for the next step. No chain saves more than the other limit unasked, however many points there are.
_RECYCLED_NUMBERS = 12_500_000
_MOST_SAVED_BYTES = 2**30
_WORTH_MEMORY = 2.0  # how much faster saving must be: some systems clear new memory far slower than measured


@functools.cache
def _fresh_bytes_per_second() -> float:
    """Writing to memory that is new to the process, and reading it again: pages of 2 MiB if it gets them, of 4 KiB."""
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:  # not Linux, or built without them
        return 1.5e9
    return 1.5e9 if "[never]" in setting else 4e9


class _Fusion(threading.local):
    enabled = True
    save: bool | None = None


_fusion = _Fusion()


@contextlib.contextmanager
def fusion(enabled: bool = True, *, save: bool | None = None) -> Iterator[None]:
    """How networks are computed by the code in the ``with`` block, on this thread.

    Args:
        enabled: whether linear layers and activations that follow each other run as one fused op.
        save: whether such an op saves its layers for the backward pass, which then needn't recompute them: memory for
            every layer and coefficient, against a third matrix product per layer. By default the faster one is chosen,
            for some of the points if that memory would be much.

    Example:
        >>> with taylorderiv.fusion(save=False):  # the least memory
        ...     loss = derivatives(model, x, 4)[4].square().mean()
    """
    before = _fusion.enabled, _fusion.save
    try:
        _fusion.enabled, _fusion.save = enabled, save
        yield
    finally:
        _fusion.enabled, _fusion.save = before


def chain_applies(like: Any, op: str | None = None) -> bool:
    """Whether a linear layer of this dtype and device, and the unary op, can be part of :func:`chain`, as things stand.

    On a GPU, the layer also has to fit (:func:`fits_chain`).
    """
    device = like.device.type
    return (
        device in ("cpu", "cuda")
        and like.dtype in _KERNEL_DTYPES[device]
        and (op is None or op in _UNARY_KERNELS)
        and _fusion.enabled
        and _kernels_in_use()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled(device)
    )


def fits_chain(weight: Tensor, layout: Layout) -> bool:
    """Whether a layer of jets of this layout fits the shared memory that :func:`chain` keeps it in."""
    if weight.device.type == "cpu":
        return True
    out, in_ = weight.shape
    return _C.cuda_chain_fits(layout.size, in_, out, weight.element_size(), _shared_bytes(weight.device))


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """The shared memory that a block of threads may have."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _tf32_allowed(tensor: Tensor) -> bool:
    """Whether the user lets PyTorch multiply float32 matrices in TF32."""
    return tensor.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"


def chain(
    x: Tensor,
    higher: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    ops: Sequence[str | None],
    params: Sequence[Sequence[float]],
    layout: Layout,
) -> Tensor:
    """A network ``x = op(x @ weightᵀ + bias)``, layer by layer, fused.

    Args:
        x: ``(C, N, in)`` coefficients, or the primals ``(1, N, in)`` of a seed.
        higher: the seed's other coefficients, ``(C - 1, in)`` for all points, or None.
        weights: per layer, ``(out, in)``.
        biases: per layer, ``(out,)`` or None.
        ops: per layer, the name of a unary op or None.
        params: per layer, those of the op.
        layout: which coefficients these are.

    Returns:
        The coefficients ``(C, N, out of the last layer)``.
    """
    most = _C.cuda_chain_layers if x.is_cuda else len(weights)
    if len(weights) > most:
        x = chain(x, higher, weights[:most], biases[:most], ops[:most], params[:most], layout)
        return chain(x, None, weights[most:], biases[most:], ops[most:], params[most:], layout)
    tensors = [x.new_empty(0) if t is None else t.contiguous() for t in (x, higher, *weights, *biases)]
    rest = ([op or "" for op in ops], [param for layer in params for param in layer], *_structure(layout))
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        rows = layout.size * x.shape[1]
        return _Chain.apply(saved_bytes(weights, rows), rest, *tensors)
    x, higher, *parameters = tensors
    return torch.ops.taylorderiv.chain(
        x, higher, parameters[: len(weights)], parameters[len(weights) :], *rest, 0, _tf32_allowed(x)
    )[0]


def saved_bytes(weights: Sequence[Tensor], rows: int) -> int:
    """How much a chain saves at most, -1 for all: its layers before the activations, which the backward pass reads.

    The layers of other points are recomputed there. Per coefficient, recomputing takes the floating-point operations of
    the layers, saving the time of fresh memory, unless little of it is needed.
    """
    if _fusion.save is not None:
        return -1 if _fusion.save else 0
    if weights[0].is_cuda:  # all or nothing
        needed = rows * sum(weight.shape[0] for weight in weights) * max(4, weights[0].element_size())
        return -1 if needed <= _MOST_SAVED_BYTES else 0
    dtype = weights[0].dtype
    recomputing = predicted_seconds(dtype, operations=sum(2 * weight.numel() for weight in weights))
    fresh_bytes = sum(weight.shape[0] * weight.element_size() for weight in weights)
    saving = predicted_seconds(dtype, fresh_bytes=fresh_bytes)
    return _MOST_SAVED_BYTES if recomputing > _WORTH_MEMORY * saving else _RECYCLED_NUMBERS * dtype.itemsize


def predicted_seconds(
    dtype: torch.dtype, *, operations: float = 0, coefficients: float = 0, fresh_bytes: float = 0
) -> float:
    """What operations of matrix products, coefficients through activations and fresh memory cost, on one core."""
    instruction_set = _FACTS["instruction_set"]
    share = _DOUBLE if dtype == torch.float64 else 1.0
    return (
        operations / (share * _OPERATIONS_PER_SECOND[instruction_set])
        + coefficients / (share * _COEFFICIENTS_PER_SECOND[instruction_set])
        + fresh_bytes / _fresh_bytes_per_second()
    )


# What PyTorch must know about the ops, each stated once: in a torch.autograd.Function. The dispatcher gets
# the same definitions. It is the faster way to call an op, but only a Function composes with the transforms
# of torch.func.


def _call(name: str, *args: Any) -> Any:
    if torch._C._are_functorch_transforms_active():
        return _KERNELS[name].apply(*args)
    return getattr(torch.ops.taylorderiv, name)(*args)


class _Kernel(torch.autograd.Function):
    """An op whose tensors, arguments and results, all have one shape and dtype and are contiguous.

    Its arguments are ``tensors`` tensors and then the same constants, ``ctx.rest``, for it and its
    derivatives.
    """

    name: ClassVar[str]
    results: ClassVar[int] = 1

    @classmethod
    def forward(cls, *args: Any) -> Any:
        return getattr(torch.ops.taylorderiv, cls.name)(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.rest = inputs[len(tensors) :]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        def batched(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            if dim is None:
                return value.unsqueeze(1).expand(-1, info.batch_size, *value.shape[1:]).contiguous()
            return value.movedim(dim, 1).contiguous()

        dims = (*in_dims, *[None] * (len(args) - len(in_dims)))
        result = _call(cls.name, *[batched(value, dim) for value, dim in zip(args, dims, strict=True)])
        return result, 1 if cls.results == 1 else (1,) * cls.results

    @classmethod
    def fake(cls, *args: Any) -> Any:
        """The result's shape and dtype, without computing it."""
        results = tuple(torch.empty_like(args[0]) for _ in range(cls.results))
        return results[0] if cls.results == 1 else results


class _Unary(_Kernel):
    """``y = op(x)``."""

    name = "unary"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return _call("unary_backward", grad.contiguous(), x, *ctx.rest), None, None, None, None


class _UnaryBackward(_Kernel):
    """The gradient ``Jᵀ(x) grad``."""

    name = "unary_backward"

    @staticmethod
    def backward(ctx: Any, grad_grad: Tensor) -> Any:
        grad, x = ctx.saved_tensors
        gradients = _call("unary_double_backward", grad_grad.contiguous(), grad, x, *ctx.rest)
        return *gradients, None, None, None, None


class _UnaryDoubleBackward(_Kernel):
    """For the cotangent ``grad_grad`` of ``Jᵀ(x) grad``, the gradients with respect to ``grad`` and ``x``.

    Its own derivatives are seldom wanted (the third by reverse mode): they come from the reference.
    """

    name = "unary_double_backward"
    results = 2

    @staticmethod
    def reference(rest: tuple[Any, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """The op as a composite of differentiable ones."""
        op, params, orders, weights = rest
        layout = Layout(tuple(orders), tuple(weights) or None)

        def backward(grad: Tensor, x: Tensor) -> Tensor:
            return torch.func.vjp(lambda x: reference.unary(UNARY_OPS[op], x, layout, params), x)[1](grad)[0]

        return lambda grad_grad, grad, x: torch.func.vjp(backward, grad, x)[1](grad_grad)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        reference_op: Any = _UnaryDoubleBackward.reference(ctx.rest)
        outputs, pullback, *_ = torch.func.vjp(reference_op, *ctx.saved_tensors)
        filled = tuple(
            torch.zeros_like(output) if cotangent is None else cotangent
            for cotangent, output in zip(cotangents, outputs, strict=True)
        )
        return *pullback(filled), None, None, None, None


class _Cauchy(_Kernel):
    """The product of the jets ``a`` and ``b``."""

    name = "cauchy"

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        grad = grad.contiguous()
        a_grad = _call("correlate", b, grad, *ctx.rest) if ctx.needs_input_grad[0] else None
        b_grad = _call("correlate", a, grad, *ctx.rest) if ctx.needs_input_grad[1] else None
        return a_grad, b_grad, None, None


class _Correlate(_Kernel):
    """The gradient of ``<grad, cauchy(a, b)>`` with respect to ``a``. They are each other's derivatives."""

    name = "correlate"

    @staticmethod
    def backward(ctx: Any, grad_grad: Tensor) -> Any:
        b, grad = ctx.saved_tensors
        a = grad_grad.contiguous()
        b_grad = _call("correlate", a, grad, *ctx.rest) if ctx.needs_input_grad[0] else None
        grad_grad_grad = _call("cauchy", a, b, *ctx.rest) if ctx.needs_input_grad[1] else None
        return b_grad, grad_grad_grad, None, None


_KERNELS: dict[str, type[_Kernel]] = {
    kernel.name: kernel for kernel in (_Unary, _UnaryBackward, _UnaryDoubleBackward, _Cauchy, _Correlate)
}
for _name, _kernel in _KERNELS.items():
    torch.library.register_fake(f"taylorderiv::{_name}", _kernel.fake)
    torch.library.register_autograd(f"taylorderiv::{_name}", _kernel.backward, setup_context=_kernel.setup_context)
    torch.library.register_vmap(f"taylorderiv::{_name}", _kernel.vmap)


# The fused chain. Its gradient is one op too; where that has to be differentiated, the layers are computed one by one.


def _chain_fake(
    x: Tensor, higher: Tensor, weights: list[Tensor], biases: list[Tensor], *rest: Any
) -> tuple[Tensor, list[Tensor]]:
    size = 1 + higher.shape[0] if higher.numel() else x.shape[0]
    saved = x.new_empty(torch.library.get_ctx().new_dynamic_size() if rest[-2] else 0)
    return x.new_empty(size, x.shape[1], weights[-1].shape[0]), [saved]  # in one block


def _chain_backward_fake(
    grad: Tensor,
    x: Tensor,
    higher: Tensor,
    saved: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    x_gradient = torch.empty_like(x) if rest[-2] else x.new_empty(0)
    sums = x.new_empty(higher.shape[0], weights[0].shape[0]) if higher.numel() else x.new_empty(0)
    return [x_gradient, sums, *map(torch.empty_like, [*weights, *biases])]


class _Chain(torch.autograd.Function):
    """The gradient; faster than one registered with the dispatcher, which only compilers and torch.func want."""

    @staticmethod
    def forward(ctx: Any, save: int, rest: tuple[Any, ...], *tensors: Tensor) -> Tensor:
        x, higher, *parameters = tensors
        count = len(parameters) // 2
        result, saved = torch.ops.taylorderiv.chain(
            x, higher, parameters[:count], parameters[count:], *rest, save, _tf32_allowed(x)
        )
        ctx.rest = rest
        ctx.blocks = len(saved)
        ctx.save_for_backward(*saved, *tensors)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors = ctx.saved_tensors
        saved, (x, higher, *parameters) = tensors[: ctx.blocks], tensors[ctx.blocks :]
        count = len(parameters) // 2
        weights, biases = parameters[:count], parameters[count:]
        if torch.is_grad_enabled():
            return None, None, *_chain_differentiable_gradient(grad, x, higher, weights, biases, *ctx.rest)
        needs_x, needs_higher = ctx.needs_input_grad[2:4]
        gradients = torch.ops.taylorderiv.chain_backward(
            grad.contiguous(), x, higher, saved, weights, biases, *ctx.rest, needs_x, _tf32_allowed(x)
        )
        if higher.numel() and needs_higher:  # through the first layer's weight
            gradients[1] = gradients[1] @ weights[0]
        return (
            None,
            None,
            *(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad[2:], strict=True)),
        )


def _chain_differentiable_gradient(
    grad: Tensor,
    x: Tensor,
    higher: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    ops: list[str],
    params: list[float],
    orders: list[int],
    collapse: list[float],
) -> list[Tensor | None]:
    # Aliases, so that the gradients stop here and don't reach a weight through the history of x.
    inputs = [t.view_as(t) if t.requires_grad else t for t in (x, higher, *weights, *biases)]
    y, higher, *parameters = inputs
    if higher.numel():
        y = torch.cat([y, higher[:, None].expand(-1, *y.shape[1:])])
    rest = list(params)
    for weight, bias, op in zip(parameters[: len(weights)], parameters[len(weights) :], ops, strict=True):
        y = y @ weight.T
        if bias.numel():
            y = torch.cat([y[:1] + bias, y[1:]])
        if op:
            count = _UNARY_PARAMS[op]
            y = _call("unary", y.contiguous(), op, rest[:count], orders, collapse)
            rest = rest[count:]
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if t.requires_grad else None for t in inputs]


torch.library.register_fake("taylorderiv::chain", _chain_fake)
torch.library.register_fake("taylorderiv::chain_backward", _chain_backward_fake)
