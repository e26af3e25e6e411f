from experiments.digits.main import cli

raise SystemExit(cli())
