"""Helpers that the packages share; private."""
