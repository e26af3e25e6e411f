"""Every scheme on one problem, at equal cost: ``python -m experiments.schemes``.

`config` has the settings, `problem` the data with networks of several sizes, `method` what a method is and how it is
trained, `methods` the methods of each family and the order of the table, `teachers` the networks that methods begin
with and the search for a chain of assistants, `report` the table and the page, `plots` the figures, `main` the command.
"""
