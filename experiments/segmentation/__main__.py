from experiments.segmentation.main import cli

raise SystemExit(cli())
