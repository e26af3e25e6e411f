from experiments.pose.main import cli

raise SystemExit(cli())
