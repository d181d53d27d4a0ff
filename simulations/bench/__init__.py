"""Benchmarks: what the parts cost, against the fastest plain way of doing the same."""
