"""Objectives of several teachers or branches; private."""
