"""Benchmark of losses with high-order derivatives: see ``benchmarks/README.md``."""
