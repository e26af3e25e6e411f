"""Speech: recognizers of spoken digits, and what is meant by them: ``python -m experiments.speech TASK``.

A file for each task: `strings`, `few`, `intent`. They share `sounds`, the recordings and their features; `recognizers`,
networks, losses and error rates; and `alignment`, a figure.
"""
