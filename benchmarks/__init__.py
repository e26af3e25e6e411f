"""Benchmarks: scripts that print what they measure and on what; `results/` keeps what was really run."""
