"""The command line."""

import sys

from experiments.tables.main import cli

if __name__ == "__main__":
    sys.exit(cli())
