from experiments.speech.main import cli

raise SystemExit(cli())
