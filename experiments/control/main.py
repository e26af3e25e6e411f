"""The command: the tasks of the field, by name."""

import functools
from collections.abc import Mapping

from experiments.control import boards, play
from experiments.kit.tasks import run
from experiments.kit.tasks.task import Figure, Measure, Task

NAMES = {"breakout": "Breakout", "space_invaders": "Space Invaders", "cartpole": "CartPole"}
SPEED = Measure("environment steps a second", scale=play.STEPS, digits=0)
STRIP = {"kl": "KL", "kickstart": "kickstarting", "student": "alone"}


def game(name: str, steps: int, *ends: str) -> Task:
    """Returns the task of one game, with students of one size or more."""
    title, spec, figures = NAMES[name], play.SPECS[name], {}
    if "MinAtar" in spec.id:
        draw = boards.strip(name, STRIP)
        figures["episodes"] = Figure("Episodes with the same start: teacher and students, steps in the titles", draw)
    sizes = " and ".join(f"1/{play.SIZES[end]}" for end in ends)
    return Task(
        title=f"{title}: a teacher trained by PPO, and students of {sizes} of its parameters",
        about=(
            f"{spec.id} of gymnax. The teacher has two hidden layers of {spec.features[0]} units and learned for "
            f"{spec.steps * play.ROWS * play.STEPS:,} environment steps. A step of a student is {play.UPDATES} updates "
            f"with {play.ROWS} × {play.STEPS} environment steps. Returns are means of {play.EPISODES} episodes, with "
            "the same starts for all methods; actions are drawn from the policy, or are the likeliest ones (greedy). "
            "Agreement is the share of states in which student and teacher have the same likeliest action."
        ),
        measures={
            f"return_{name}": Measure("return", digits=1),
            f"greedy_return_{name}": Measure("return, greedy", digits=1),
            f"agreement_{name}": Measure("agreement, own states (%)", scale=100, digits=1),
            f"teacher_agreement_{name}": Measure("agreement, teacher's states (%)", scale=100, digits=1),
            "examples_per_second": SPEED,
        },
        methods=play.methods(ends=ends),
        steps=steps,
        evaluations=10,
        open=functools.partial(play.Play, names=(name,)),
        curve=f"validation/return_{name}",
        rises=True,
        figures=figures,
        seeds=5,
        equal_cost=False,
    )


def both(*names: str, steps: int) -> Task:
    """Returns the task of a student that plays several games, each taught by a teacher of its own."""
    return Task(
        title="Two games: a teacher of each, and one student of a tenth of both",
        about=(
            f"{' and '.join(NAMES[name] for name in names)} (MinAtar), with the teachers of their own tasks. The "
            "student shares its hidden layers between the games, whose channels are padded to the same number, and has "
            "a head for each. Every batch has steps of both. The score is the mean of both returns, as shares of the "
            "teachers'."
        ),
        measures={
            "score": Measure("score (% of the teachers' returns)", scale=100, digits=1),
            **{f"return_{name}": Measure(f"return, {NAMES[name]}", digits=1) for name in names},
            **{f"agreement_{name}": Measure(f"agreement, {NAMES[name]} (%)", scale=100, digits=1) for name in names},
            "examples_per_second": SPEED._replace(scale=play.STEPS * len(names)),
        },
        methods=play.methods(("student", "kl", "kl_sharp", "mse", "kl_teacher", "kickstart"), ("",)),
        steps=steps,
        evaluations=10,
        open=functools.partial(play.Play, names=names),
        curve="validation/score",
        rises=True,
        figures={
            f"episodes_{name}": Figure(f"{NAMES[name]}: episodes with the same start", boards.strip(name, STRIP))
            for name in names
        },
        seeds=5,
        equal_cost=False,
    )


TASKS: Mapping[str, Task] = {
    "cartpole": game("cartpole", 100, ""),
    "breakout": game("breakout", 500, "", "_small"),
    "space_invaders": game("space_invaders", 500, "", "_small"),
    "both": both("breakout", "space_invaders", steps=500),
}


def cli(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run.cli("control", TASKS, arguments)
