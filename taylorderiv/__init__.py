"""High-order derivatives of PyTorch functions and networks by Taylor mode: fast, exact, trainable."""

from taylorderiv import testing
from taylorderiv.api import Partials, derivatives, jet, partials
from taylorderiv.calculus import curl, directional, divergence, gradient, hessian, hvp, jacobian
from taylorderiv.evaluation import ChunkWarning
from taylorderiv.explanation import Explanation, explain
from taylorderiv.jet import Jet
from taylorderiv.kernels import build_info, fusion
from taylorderiv.layout import Layout
from taylorderiv.operators import LinearOperator, bilaplacian, differentials, laplacian, plan
from taylorderiv.registry import supported_ops
from taylorderiv.rules import register_rule
from taylorderiv.stochastic import Estimate, estimate

__all__ = [
    "ChunkWarning",
    "Estimate",
    "Explanation",
    "Jet",
    "Layout",
    "LinearOperator",
    "Partials",
    "bilaplacian",
    "build_info",
    "curl",
    "derivatives",
    "differentials",
    "directional",
    "divergence",
    "estimate",
    "explain",
    "fusion",
    "gradient",
    "hessian",
    "hvp",
    "jacobian",
    "jet",
    "laplacian",
    "partials",
    "plan",
    "register_rule",
    "supported_ops",
    "testing",
]
