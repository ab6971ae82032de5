"""Benchmarks: `python -m bench` runs them and prints each figure beside what is wanted."""
