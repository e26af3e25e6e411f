"""Signals, ids and memory of the process; private."""
