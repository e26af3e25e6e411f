from experiments.schemes.main import cli

raise SystemExit(cli())
