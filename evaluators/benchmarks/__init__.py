"""Benchmarks of language models: how each reads its data and asks its questions."""
