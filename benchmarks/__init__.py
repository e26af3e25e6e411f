"""Benchmarks: scripts that print measurements with machine and versions; `results/` keeps logs."""
