"""Objectives without labels; private."""
