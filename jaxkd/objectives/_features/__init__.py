"""Objectives on features; private."""
