"""The rows of each group of schemes."""
