"""Poses of people in single images: ``python -m experiments.pose TASK``.

A file for each task: `lspet`. Sets, metrics and figures are shared with the poses in videos, in `kit.tasks`.
"""
