import sys

from experiments.digits.main import cli

if __name__ == "__main__":
    sys.exit(cli())
