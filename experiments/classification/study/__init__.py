"""The study of all losses: each method with its published value and with one that is chosen on validation images.

`table` says what a row is; `response`, `features` and `relations` have the rows; `digits` the problem, whose networks
and teacher are in `networks`; `choice` chooses values, `cells` runs what is not finished, `main` is the command.
"""
