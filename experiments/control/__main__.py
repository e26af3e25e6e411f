from experiments.control.main import cli

raise SystemExit(cli())
