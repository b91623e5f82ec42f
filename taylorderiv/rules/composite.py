"""Ops composed of others: reductions, normalisations, softmax and the like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from taylorderiv.registry import fall_back, register
from taylorderiv.rules.engine import (
    AnyJet,
    Jet,
    cast,
    constant,
    is_jet,
    plain,
    primals,
    shift_dims,
    wrap_dim,
)
from taylorderiv.rules.unary import apply_unary


def _dims(dim: Any, ndim: int) -> tuple[int, ...]:
    """``dim`` as non-negative axes of the value; all for None."""
    return tuple(d - 1 for d in shift_dims(dim, ndim))


def _sum(x: Any, dims: tuple[int, ...], keepdim: bool = False) -> Any:
    return x.sum(dims, keepdim=keepdim) if dims else x


# Softmax and its like. The largest element is subtracted with its derivatives, which cancel: where it outweighs the
# others, no differences of large numbers are left.


def _shifted(x: AnyJet, dims: tuple[int, ...]) -> tuple[AnyJet, Any]:
    """``x`` minus its largest element along ``dims`` (its largest real part), and that."""
    if x.numel() == 0:
        return x, 0.0
    if not dims:
        largest = x.real
    else:
        last = tuple(range(-len(dims), 0))
        rows = x.real.movedim(dims, last).flatten(-len(dims))
        shape = [1 if d in dims else size for d, size in enumerate(x.shape)]
        largest = rows.gather(-1, rows.primal.argmax(-1, keepdim=True)).reshape(shape)
    largest = torch.where(largest.primal.isinf(), 0.0, largest)
    return x - largest, largest


@register("softmax", "_softmax", "special_softmax", F.softmax)
def _softmax(input: AnyJet, dim: int, dtype: Any = None, _stacklevel: int = 3) -> AnyJet:
    dims = _dims(dim, input.ndim)
    shifted, _ = _shifted(cast(input, dtype if isinstance(dtype, torch.dtype) else None), dims)
    exponentials = torch.exp(shifted)
    return exponentials / _sum(exponentials, dims, keepdim=True)


@register("log_softmax", "_log_softmax", "special_log_softmax", F.log_softmax)
def _log_softmax(input: AnyJet, dim: int, dtype: Any = None, _stacklevel: int = 3) -> AnyJet:
    dims = _dims(dim, input.ndim)
    shifted, _ = _shifted(cast(input, dtype if isinstance(dtype, torch.dtype) else None), dims)
    return shifted - torch.log(_sum(torch.exp(shifted), dims, keepdim=True))


@register(F.softmin)
def _softmin(input: AnyJet, dim: int, dtype: Any = None, _stacklevel: int = 3) -> AnyJet:
    return _softmax(-input, dim, dtype)


@register("logsumexp", "special_logsumexp")
def _logsumexp(input: AnyJet, dim: Any, keepdim: bool = False) -> AnyJet:
    dims = _dims(dim, input.ndim)
    shifted, largest = _shifted(input, dims)
    result = torch.log(_sum(torch.exp(shifted), dims, keepdim=True)) + largest
    return result if keepdim or not dims else result.squeeze(dims)


@register("logaddexp")
def _logaddexp(input: Any, other: Any) -> AnyJet:
    a, b = primals((input, other))
    # log(e^a + e^b) = a + softplus(b - a), from the larger one.
    first = a.real >= b.real
    larger, smaller = torch.where(first, input, other), torch.where(first, other, input)
    difference = torch.where((a == b) & a.isinf(), 0.0, smaller - larger)
    return larger + torch.log1p(torch.exp(difference))


@register("logaddexp2")
def _logaddexp2(input: Any, other: Any) -> AnyJet:
    return _logaddexp(input * math.log(2), other * math.log(2)) / math.log(2)


def _scan(combine: Callable[[Any, Any], Any], x: AnyJet, dim: int) -> AnyJet:
    """Elements 0 … i along ``dim`` combined, for every i: in as many steps as the logarithm of their number."""
    if x.ndim == 0:
        return x
    axis = wrap_dim(dim, x.ndim)
    length, step = x.shape[axis], 1
    while step < length:
        combined = combine(x.narrow(axis, step, length - step), x.narrow(axis, 0, length - step))
        x = torch.cat([x.narrow(axis, 0, step), combined], axis)
        step *= 2
    return x


@register("logcumsumexp")
def _logcumsumexp(input: AnyJet, dim: int) -> AnyJet:
    if (
        input.is_complex() and input.numel() > 1
    ):  # One after the other: which branch of the logarithm it is depends on the order.
        return torch.stack(list(itertools.accumulate(input.unbind(dim), _logaddexp)), dim)
    return _scan(_logaddexp, input, dim)


# Variance.


def _correction(unbiased: bool | None, correction: Any) -> float:
    if correction is not None:
        return correction
    return 1 if unbiased is None else int(unbiased)


def _squared_modulus(x: AnyJet) -> AnyJet:
    return torch.square(x.real) + torch.square(x.imag) if x.is_complex() else torch.square(x)


def _mean_and_variance(input: AnyJet, dims: tuple[int, ...], keepdim: bool, correction: float) -> tuple[AnyJet, AnyJet]:
    count = math.prod(input.shape[d] for d in dims)
    mean = input.mean(dims, keepdim=True) if dims else input
    # max(): as in PyTorch, too few elements give a division by 0.
    variance = _sum(_squared_modulus(input - mean), dims, keepdim) / max(count - correction, 0)
    return mean if keepdim or not dims else mean.squeeze(dims), variance


def _variance_rule(outputs: Callable[[Jet, AnyJet], Any]) -> Callable[..., Any]:
    def rule(
        input: AnyJet, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
    ) -> Any:
        if isinstance(dim, bool):  # var(input, unbiased)
            dim, unbiased = None, dim
        dims = _dims(dim, input.ndim)
        return outputs(*_mean_and_variance(input, dims, keepdim, _correction(unbiased, correction)))

    return rule


register("var")(_variance_rule(lambda mean, variance: variance))
register("std")(_variance_rule(lambda mean, variance: _root(variance)))
register("var_mean")(_variance_rule(lambda mean, variance: (variance, mean)))
register("std_mean")(_variance_rule(lambda mean, variance: (_root(variance), mean)))


# Norms.


def _root(square: AnyJet) -> AnyJet:
    """The square root of a sum of squares; at 0, where it has a kink, the derivatives are 0 as in PyTorch."""
    zero = square.primal == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, square)))


def _vector_norm(x: AnyJet, order: float, dims: tuple[int, ...], keepdim: bool) -> Any:
    if order == 0:
        return _sum((x.primal != 0).to(x.dtype.to_real()), dims, keepdim)
    if x.is_complex():
        x = _root(_squared_modulus(x)) if order != 2 else x
    if order == math.inf:
        return x.abs().amax(dims, keepdim=keepdim)
    if order == -math.inf:
        return x.abs().amin(dims, keepdim=keepdim)
    if order == 1:
        return _sum(x.abs(), dims, keepdim)
    if order == 2:
        return _root(_sum(_squared_modulus(x), dims, keepdim))
    powers = _sum(torch.pow(x.abs(), order), dims, keepdim)
    zero = powers.primal == 0
    return torch.where(zero, 0.0, torch.pow(torch.where(zero, 1.0, powers), 1 / order))


@register("linalg_vector_norm")
def _linalg_vector_norm(
    x: AnyJet, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    x = cast(x, dtype)
    return _vector_norm(x, float(ord), _dims(dim, x.ndim), keepdim)


@register("norm")
def _norm(
    input: AnyJet, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Any:
    if p == "nuc":
        return torch.linalg.matrix_norm(input, "nuc", (-2, -1) if dim is None else dim, keepdim)
    order = 2.0 if p in ("fro", None) else float(p)
    return _vector_norm(cast(input, dtype), order, _dims(dim, input.ndim), keepdim)


@register("linalg_matrix_norm")
def _matrix_norm(
    A: AnyJet,
    ord: Any = "fro",
    dim: Any = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    A = cast(A, dtype)
    rows, columns = (wrap_dim(d, A.ndim) for d in dim)
    if ord == "fro":
        return _vector_norm(A, 2.0, (rows, columns), keepdim)
    if ord in ("nuc", 2, -2):
        values = torch.linalg.svdvals(A.movedim((rows, columns), (-2, -1)))
        norm = values.sum(-1) if ord == "nuc" else values.amax(-1) if ord == 2 else values.amin(-1)
        return norm.unsqueeze(min(rows, columns)).unsqueeze(max(rows, columns)) if keepdim else norm
    if ord not in (1, -1, math.inf, -math.inf):
        raise ValueError(f"linalg.matrix_norm: Order {ord!r} not supported")
    summed, compared = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = A.abs().sum(summed, keepdim=True)
    result = torch.amax(sums, compared, keepdim=True) if ord > 0 else torch.amin(sums, compared, keepdim=True)
    return result if keepdim else result.squeeze((rows, columns))


@register("linalg_norm")
def _linalg_norm(
    A: AnyJet, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    A = cast(A, dtype)
    if ord is None:
        return _vector_norm(A, 2.0, _dims(dim, A.ndim), keepdim)
    axes = _dims(dim, A.ndim)
    if len(axes) == 1:
        return _vector_norm(A, float(ord), axes, keepdim)
    return _matrix_norm(A, ord, axes, keepdim)


@register(F.normalize)
def _normalize(input: AnyJet, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> AnyJet:
    return input / input.norm(p, dim, keepdim=True).clamp_min(eps)


@register("dist")
def _dist(input: Any, other: Any, p: float = 2) -> Any:
    return torch.norm(input - other, p)


@register("cdist")
def _cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: Any = None) -> Any:
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


@register("pdist")
def _pdist(input: AnyJet, p: float = 2.0) -> AnyJet:
    rows, columns = torch.triu_indices(input.shape[0], input.shape[0], 1, device=input.device)
    return torch.linalg.vector_norm(input[rows] - input[columns], p, -1)


@register("cosine_similarity")
def _cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    x1, x2 = torch.broadcast_tensors(x1, x2)
    norms = torch.linalg.vector_norm(x1, 2, dim).clamp_min(eps) * torch.linalg.vector_norm(x2, 2, dim).clamp_min(eps)
    return (x1 * x2).sum(dim) / norms


# Products of many factors, by halves: the depth, and the rounding, grow as the logarithm of their number.


def _product_along(x: AnyJet, dim: int) -> AnyJet:
    length = x.shape[dim]
    if length == 0:
        shape = (*x.shape[:dim], *x.shape[dim + 1 :])
        return constant(torch.ones(shape, dtype=x.dtype, device=x.device), x)
    while length > 1:
        half = length // 2
        product = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([product, x.narrow(dim, 2 * half, 1)], dim) if length % 2 else product
        length = x.shape[dim]
    return x.squeeze(dim)


@register("prod")
def _prod(input: AnyJet, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> AnyJet:
    x = cast(input, dtype)
    if dim is None:
        return _product_along(x.reshape(-1), 0)
    if x.ndim == 0:
        return x
    axis = wrap_dim(dim, x.ndim)
    result = _product_along(x, axis)
    return result.unsqueeze(axis) if keepdim else result


@register("cumprod")
def _cumprod(input: AnyJet, dim: int, *, dtype: torch.dtype | None = None) -> AnyJet:
    return _scan(torch.mul, cast(input, dtype), dim)


@register("linalg_matrix_power", "matrix_power")
def _matrix_power(A: AnyJet, n: int) -> AnyJet:
    if n < 0:
        return _matrix_power(torch.linalg.inv(A), -n)
    if n == 0:
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        return constant(eye.expand(A.shape), A)
    result = None
    while True:
        if n & 1:
            result = A if result is None else torch.matmul(result, A)
        n >>= 1
        if not n:
            assert result is not None
            return result
        A = torch.matmul(A, A)


# Normalisation layers.


def _affine(x: Any, weight: Any, bias: Any, shape: Sequence[int] | None = None) -> Any:
    def fitted(value: Any) -> Any:
        return value if shape is None else value.reshape(shape)

    if weight is not None:
        x = x * fitted(weight)
    return x if bias is None else x + fitted(bias)


def _standardized(x: AnyJet, dims: tuple[int, ...], eps: float) -> AnyJet:
    mean, variance = _mean_and_variance(x, dims, True, 0)
    return (x - mean) * torch.rsqrt(variance + eps)


def _upcast_half(x: Any) -> Any:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@register("layer_norm", F.layer_norm)
def _layer_norm(
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    if is_jet(input):
        if tuple(input.shape[-len(normalized_shape) :]) != tuple(normalized_shape):
            raise RuntimeError(f"layer_norm over {tuple(normalized_shape)} got input of shape {tuple(input.shape)}")
        dims = tuple(range(input.ndim - len(normalized_shape), input.ndim))
        normalized = _standardized(_upcast_half(input), dims, eps).to(input.dtype)
    else:
        normalized = F.layer_norm(input, normalized_shape, None, None, eps)
    return _affine(normalized, weight, bias)


@register("native_layer_norm")
def _native_layer_norm(input: AnyJet, normalized_shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    dims = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    mean, variance = _mean_and_variance(input, dims, True, 0)
    return _layer_norm(input, normalized_shape, weight, bias, eps), mean, torch.rsqrt(variance + eps)


@register("rms_norm", F.rms_norm)
def _rms_norm(input: AnyJet, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    dims = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    x = _upcast_half(input)
    return _affine((x * torch.rsqrt(torch.square(x).mean(dims, keepdim=True) + eps)).to(input.dtype), weight, None)


@register("group_norm", F.group_norm)
def _group_norm(
    input: AnyJet,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    grouped = input.reshape(input.shape[0], num_groups, math.prod(input.shape[1:]) // num_groups)
    normalized = _standardized(_upcast_half(grouped), (2,), eps).to(input.dtype).reshape(input.shape)
    return _affine(normalized, weight, bias, (1, -1, *[1] * (input.ndim - 2)))


@register("native_group_norm")
def _native_group_norm(
    input: AnyJet, weight: Any, bias: Any, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Any, ...]:
    mean, variance = _mean_and_variance(input.reshape(N, group, C // group * HxW), (2,), False, 0)
    return _group_norm(input, group, weight, bias, eps), mean, torch.rsqrt(variance + eps)


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    shape = [-1 if d == min(1, input.ndim - 1) else 1 for d in range(input.ndim)]
    if training:
        dims = (0, *range(2, input.ndim))
        if running_mean is not None:
            # PyTorch's own function updates the running statistics, with the primal.
            with torch.no_grad():
                F.batch_norm(plain(input), running_mean, running_var, None, None, True, momentum, eps)
        normalized = _standardized(_upcast_half(input), dims, eps).to(input.dtype)
    else:
        scale = torch.rsqrt(running_var + eps)
        normalized = (input - running_mean.reshape(shape)) * scale.reshape(shape)
    return _affine(normalized, weight, bias, shape)


@register(F.batch_norm)
def _functional_batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


@register("batch_norm")
def _aten_batch_norm(
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Any:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _statistics(input: AnyJet, eps: float) -> tuple[AnyJet, AnyJet]:
    """The mean of each channel, and the inverse of its standard deviation."""
    mean, variance = _mean_and_variance(_upcast_half(input), (0, *range(2, input.ndim)), False, 0)
    return mean, torch.rsqrt(variance + eps)


@register("native_batch_norm", "_native_batch_norm_legit")
def _native_batch_norm(input: Any, weight: Any, bias: Any, *rest: Any) -> tuple[Any, ...]:
    # The variant without running statistics leaves these arguments out.
    running_mean, running_var, training, momentum, eps = rest if len(rest) == 5 else (None, None, *rest)
    result = _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    empty = torch.empty(0, dtype=input.dtype, device=input.device)
    return result, *(_statistics(input, eps) if training else (empty, empty))


@register("_batch_norm_with_update")
def _batch_norm_with_update(
    input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> tuple[Any, ...]:
    result = _batch_norm(input, running_mean, running_var, weight, bias, True, momentum, eps)
    reserve = torch.empty(0, dtype=torch.uint8, device=input.device)
    return result, *_statistics(input, eps), reserve


@register(F.instance_norm)
def _instance_norm(
    input: AnyJet,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:
        with torch.no_grad():
            F.instance_norm(plain(input), running_mean, running_var, None, None, True, momentum, eps)
    normalized = _standardized(_upcast_half(input), tuple(range(2, input.ndim)), eps).to(input.dtype)
    return _affine(normalized, weight, bias, (1, -1, *[1] * (input.ndim - 2)))


# Dropout: one mask for all coefficients.


def _dropout_rule(func: Callable[..., Any]) -> Callable[..., Any]:
    def rule(input: AnyJet, p: float = 0.5, training: bool = True, train: bool | None = None) -> AnyJet:
        training = training if train is None else train
        if not training or p == 0:
            return input
        with torch.no_grad():
            mask = func(torch.ones_like(plain(input)), p, training)
        return input * mask

    return rule


register("dropout", F.dropout)(_dropout_rule(F.dropout))
register("feature_dropout", F.dropout1d)(_dropout_rule(F.dropout1d))
register(F.dropout2d)(_dropout_rule(F.dropout2d))
register(F.dropout3d)(_dropout_rule(F.dropout3d))


# Attention and gates.


@register("scaled_dot_product_attention")
def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (torch.repeat_interleave(x, repeats, -3) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    if is_causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = torch.where(visible, scores, -math.inf)
    nothing = None
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = torch.where(attn_mask, scores, -math.inf) if masked else scores + attn_mask
        nothing = (scores == -math.inf).all(-1, keepdim=True)
        scores = torch.where(nothing, 0.0, scores)
    weights = torch.softmax(scores, -1)
    if nothing is not None:  # A query that may look at nothing sees 0.
        weights = torch.where(nothing, 0.0, weights)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    return torch.matmul(weights, value)


@register("glu", F.glu)
def _glu(input: AnyJet, dim: int = -1) -> AnyJet:
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


@register(F.softsign)
def _softsign(input: AnyJet) -> AnyJet:
    return input / (1 + input.abs())


@register(F.tanhshrink)
def _tanhshrink(input: AnyJet) -> AnyJet:
    return input - torch.tanh(input)


@register("abs", "absolute")
def _abs(input: AnyJet) -> AnyJet:
    if input.is_complex():
        return _root(_squared_modulus(input))
    return apply_unary("abs", input)


@register("angle")
def _angle(input: AnyJet) -> AnyJet:
    return torch.atan2(input.imag, input.real) if input.is_complex() else torch.angle(input.primal)


@register("sgn")
def _sgn(input: AnyJet) -> AnyJet:
    return input / input.abs() if input.is_complex() else apply_unary("sign", input)


@register("polar")
def _polar(abs: Any, angle: Any) -> AnyJet:
    return torch.complex(abs * torch.cos(angle), abs * torch.sin(angle))


@register("elu")
def _aten_elu(input: AnyJet, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> AnyJet:
    if scale == 1 and input_scale == 1:
        return apply_unary("elu", input, float(alpha))
    return scale * torch.where(input.primal > 0, input, alpha * torch.expm1(input * input_scale))


@register("round")
def _round(input: AnyJet, *, decimals: int = 0) -> Any:
    if decimals:
        return torch.round(input.primal, decimals=decimals)
    return apply_unary("round", input)


# Losses.


def _reduced(loss: Any, reduction: Any) -> Any:
    name = {0: "none", 1: "mean", 2: "sum"}.get(reduction, reduction)
    if name == "none":
        return loss
    return loss.mean() if name == "mean" else loss.sum()


@register("mse_loss")
def _aten_mse_loss(input: Any, target: Any, reduction: int = 1) -> Any:
    return _reduced(torch.square(input - target), reduction)


@register(F.mse_loss)
def _mse_loss(
    input: Any,
    target: Any,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Any:
    loss = torch.square(input - target)
    if weight is not None:
        loss = loss * weight
        return loss.sum() / weight.expand(loss.shape).sum() if reduction == "mean" else _reduced(loss, reduction)
    return _reduced(loss, reduction)


@register(getattr(F, "linear_cross_entropy", "linear_cross_entropy"))  # since PyTorch 2.13
def _linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Any:
    # By `options` PyTorch saves memory: parts of the batch in an op that it differentiates once. The value is the same.
    return fall_back(F.linear_cross_entropy, "linear_cross_entropy", args, kwargs)
