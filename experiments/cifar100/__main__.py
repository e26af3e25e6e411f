from experiments.cifar100.main import cli

raise SystemExit(cli())
