"""Research scripts: each folder has a command, its cost, its table, and the results of a real run."""
