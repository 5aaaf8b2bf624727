"""Benchmarks and the backends that serve models to them."""
