from experiments.detection.main import cli

raise SystemExit(cli())
