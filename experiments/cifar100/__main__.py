import sys

from experiments.cifar100.main import cli

if __name__ == "__main__":
    sys.exit(cli())
