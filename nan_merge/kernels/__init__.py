"""Loops compiled by numba, for what every element of every model goes through.

Each works through one run of elements in blocks that stay in the processor's cache, so that the
memory is read once, and releases the interpreter's lock, so that threads share the work. They
compute what the torch functions in `nan_merge.methods` compute, operation by operation and to the
last bit; the tests compare the two. Nothing is fused or reordered: no `fastmath`.

A kernel is compiled when it is first used on a machine, which takes some seconds, and kept.
"""
