import sys

from experiments.schemes.main import cli

if __name__ == "__main__":
    sys.exit(cli())
