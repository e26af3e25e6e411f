from experiments.language.main import cli

raise SystemExit(cli())
