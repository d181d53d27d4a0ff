"""Benchmarks: ratios against the honest alternative, measured in turn in one run."""
