from experiments.video.main import cli

raise SystemExit(cli())
