"""Control: a teacher that learned to play by itself, and small students: ``python -m experiments.control TASK``.

`games` (environments), `networks` (policies), `acting` (trajectories, episodes), `ppo` (reinforcement learning as an
objective), `play` (methods, measures), `boards` (frames as text and as figures), `main` (the tasks by name).
"""
