"""Benchmarks: each prints ratios from one interleaved run. `python -m bench` lists them."""
