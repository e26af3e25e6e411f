from experiments.classification.main import cli

raise SystemExit(cli())
