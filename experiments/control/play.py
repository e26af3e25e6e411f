"""Methods and measures: a policy that learns alone, from a teacher, or both, on one game or on several."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.control import acting, boards, games, networks, ppo
from experiments.kit import files
from experiments.kit.tasks.networks import before, trained_once
from experiments.kit.tasks.task import Method, Training
from jaxkd import data, distillers, losses, metrics, schemes, teachers
from jaxkd.types import Array, Batch, Distiller, Mean, Metrics, Model, Objective, PyTree, Teacher, TrainState, Variables

ROWS, STEPS = 64, 16  # environments, and their steps in a batch
UPDATES, RATE = 4, 1e-3  # updates with each batch, and their first learning rate
STORED = 4096  # rows of the stored set
EPISODES, WATCHED = 128, 32  # that a trained student plays, and those of each evaluation in between
SHARP = 0.01  # the temperature of Rusu et al.
SIZES = {"": 10, "_small": 50}  # by how much a student is smaller, by the end of a method's name


class Spec(NamedTuple):
    """A game and its teacher."""

    id: str  # name in gymnax
    features: tuple[int, ...]  # hidden layers of the teacher
    steps: int  # batches that the teacher learns from


SPECS = {
    "cartpole": Spec("CartPole-v1", (64, 64), 400),
    "breakout": Spec("Breakout-MinAtar", (256, 256), 2000),
    "space_invaders": Spec("SpaceInvaders-MinAtar", (256, 256), 2000),
}


def sharp_kl(student: Array, teacher: Array, *, temperature: float, where: Array | None = None) -> Array:
    """Returns the KL divergence from softmax(z_t / τ) to softmax(z_s): the teacher alone has the temperature."""
    return losses.soft_target_kl(student, teacher / temperature, temperature=1.0, where=where)


def best_action(student: Array, teacher: Array, *, where: Array | None = None) -> Array:
    """Returns the negative log-likelihood of the teacher's likeliest action."""
    return losses.cross_entropy(student, jnp.argmax(teacher, axis=-1), where=where)


def taught(names: Sequence[str], loss: Any, **options: Any) -> dict[str, Objective]:
    """Returns a term for each game, between logits of student and teacher."""
    return {
        f"kd_{name}": jaxkd.term(loss, f"student/logits_{name}", f"teacher/logits_{name}", **options) for name in names
    }


LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "kl": (losses.soft_target_kl, {"temperature": 1.0}),
    "kl_sharp": (sharp_kl, {"temperature": SHARP}),
    "nll": (best_action, {}),
    "mse": (losses.logit_mse, {}),
    "kl_teacher": (losses.soft_target_kl, {"temperature": 1.0}),
    "kl_stored": (losses.soft_target_kl, {"temperature": 1.0}),
    "kickstart": (losses.soft_target_kl, {"temperature": 1.0}),
}
"""The loss of each method that has a teacher."""

METHODS = {
    "student": Method("student alone", "PPO (Schulman 2017), with as many environment steps and updates"),
    "kl": Method("KL, student's states", "the student acts, and the teacher is asked in every state (τ = 1)"),
    "kl_sharp": Method("KL, τ = 0.01", "Rusu (2016): the teacher's logits divided by τ; student's states"),
    "nll": Method("likeliest action", "Rusu (2016), NLL of the teacher's likeliest action; student's states"),
    "mse": Method("MSE of logits", "Rusu (2016); student's states"),
    "kl_teacher": Method("KL, teacher's states", "the teacher acts (τ = 1)"),
    "kl_stored": Method("KL, stored states", f"a set of {STORED * STEPS:,} states of the teacher's episodes (τ = 1)"),
    "kickstart": Method("kickstarting", "Schmitt (2018): PPO + λ KL (τ = 1), λ from 1 to 0 over half of the training"),
}


def methods(names: Sequence[str] = tuple(METHODS), ends: Sequence[str] = tuple(SIZES)) -> dict[str, Method]:
    """Returns the table of a task: methods with students of some sizes."""
    return {
        f"{name}{end}": METHODS[name]._replace(
            title=METHODS[name].title + (f", 1/{SIZES[end]}" if len(ends) > 1 else ""),
            settings={"loss": name, "size": SIZES[end]},
            baseline=f"student{end}",
        )
        for end in ends
        for name in names
    }


class Play:
    """The opened task: its games, and a teacher of each."""

    def __init__(self, config: Any, folder: pathlib.Path, names: Sequence[str]) -> None:
        self._folder, self._names, self._config = folder, tuple(names), config
        self._games = {name: games.make(SPECS[name].id) for name in names}
        self._experts = {name: networks.policy({name: self._games[name]}, SPECS[name].features) for name in names}
        self._teacher = networks.together(self._experts)

    @functools.cached_property
    def _taught(self) -> Variables:
        return Variables({name: self._expert(name).params for name in self._names})

    @functools.cached_property
    def _whole(self) -> int:
        """Number of parameters of all teachers."""
        return sum(networks.size({name: self._games[name]}, SPECS[name].features) for name in self._names)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _student(self, end: str) -> Model:
        budget = self._whole / SIZES[end]
        return networks.policy(self._games, networks.features_of(self._games, budget))

    def _expert(self, name: str) -> Variables:
        """Returns the teacher of a game, which every task of the game shares and the first one trains."""
        one, model, usual = {name: self._games[name]}, self._experts[name], SPECS[name].steps
        steps = before(usual, self._config)
        file = "teacher.safetensors" if steps == usual else f"teacher{steps}.safetensors"
        path = self._folder.parents[1] / name / "prepared" / file
        kd, inputs = learner(one, model, teachers.none(), jaxkd.combine(**ppo.terms(one, steps)), steps, "own", True)
        kd = kd._replace(evaluate=evaluation(one, model))
        return trained_once(path, kd, inputs, {"validation": starts(WATCHED)}, steps=steps)

    @functools.cached_property
    def _returns(self) -> dict[str, float]:
        """Mean returns of the teachers, which a score is divided by."""
        path = self._folder / "returns.json"

        def measured() -> dict[str, float]:
            found = played(self._games, self._teacher, self._taught, (self._teacher, self._taught))
            return {name: found[f"return_{name}"] for name in self._names}

        with files.claim(path, wait=True):
            found: dict[str, float] = files.once(path, measured)
        return found

    @functools.cached_property
    def _stored(self) -> dict[str, np.ndarray]:
        """States of the teachers' episodes, which are played once."""
        path = self._folder / "stored.npz"
        with files.claim(path, wait=True):
            if not path.exists():
                play = jax.jit(functools.partial(acting.trajectory, self._games, self._teacher, steps=STEPS))
                keys = jax.random.split(jax.random.key(5), (STORED // ROWS + 1, ROWS))
                states, found = acting.strong(acting.begin(self._games)(keys[0])), []
                for own in keys[1:]:
                    made, states = play(self._taught, states, own)
                    found.append({name: np.asarray(made[f"observation_{name}"], np.float16) for name in self._names})
                arrays: Any = {f"observation_{n}": np.concatenate([one[n] for one in found]) for n in self._names}
                with path.with_suffix(".part").open("wb") as file:
                    np.savez_compressed(file, **arrays)
                path.with_suffix(".part").rename(path)
        return {name: np.asarray(x) for name, x in np.load(path).items()}

    def training(self, method: str, seed: int, steps: int) -> Training:
        name, end = parts(method)
        model, teacher = self._student(end), teachers.none()
        objectives: dict[str, Objective] = {}
        if name in LOSSES:
            loss, options = LOSSES[name]
            if name == "kickstart":
                options = {**options, "weight": optax.linear_schedule(1.0, 0.0, max(steps // 2, 1))}
            objectives, teacher = taught(self._names, loss, **options), teachers.frozen(self._teacher, self._taught)
        learns = name in ("student", "kickstart")
        objective = jaxkd.combine(**(ppo.terms(self._games, steps) if learns else {}), **objectives)
        if name == "kl_stored":
            inputs = data.Resident(self._stored, ROWS, seed=seed, drop_remainder=True)
            kd = distillers.repeated(distilled(model, teacher, objective, steps), times=UPDATES)
        else:
            actor = "teacher" if name == "kl_teacher" else "own"
            kd, inputs = learner(
                self._games, model, teacher, objective, steps, actor, learns, acts=(self._teacher, self._taught)
            )
        kd = kd._replace(evaluate=evaluation(self._games, model, self._returns if len(self._names) > 1 else None))
        return Training(kd, inputs, steps, {"validation": starts(WATCHED)})

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        """Returns the measures of a student in its own episodes, and its agreement in those of the teachers."""
        student, teacher = (self._student(parts(method)[1]), state.student), (self._teacher, self._taught)
        found = played(self._games, *student, teacher)
        greedy = played(self._games, *student, teacher, greedy=True)
        found |= {f"greedy_{key}": value for key, value in greedy.items() if key.startswith("return")}
        there = played(self._games, *teacher, student)
        found |= {f"teacher_{key}": value for key, value in there.items() if key.startswith("agreement")}
        return found | scores(self._names, found, self._returns)

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        """Returns frames of the first episode of teacher and student, as `boards` writes them."""
        student = self._student(parts(method)[1]), state.student
        return [
            line
            for name, game in self._games.items()
            if len(game.shape) == 3
            for who, (model, variables) in (("teacher", (self._teacher, self._taught)), ("student", student))
            for line in boards.lines(f"{name}, {who}", *first_episode(self._games, name, model, variables))
        ]

    def references(self) -> Mapping[str, Mapping[str, float]]:
        found = {}
        pair = self._teacher, self._taught
        for greedy, title in ((False, "teacher"), (True, "teacher, likeliest actions")):
            one = played(self._games, *pair, pair, greedy=greedy)
            found[title] = one | scores(self._names, one, self._returns) | {"parameters": self._whole}
        return found


def parts(method: str) -> tuple[str, str]:
    """Returns the loss of a method and the end of its name, which tells the size of its student."""
    end = next((end for end in SIZES if end and method.endswith(end)), "")
    return method.removesuffix(end), end


def scores(names: Sequence[str], found: Mapping[str, float], of_teachers: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean over the games of the return as a share of the teacher's."""
    return {"score": float(np.mean([found[f"return_{name}"] / of_teachers[name] for name in names]))}


def distilled(model: Model, teacher: Teacher, objective: Objective, steps: int) -> Distiller:
    """Returns the distiller of all methods, with Adam and a rate that falls to a tenth."""
    rate = optax.linear_schedule(RATE, RATE / 10, steps * UPDATES)
    adam = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))
    return jaxkd.distill(model, teacher, objective, optimizer=adam, metrics=lambda context: {})


def learner(
    of: acting.Games,
    model: Model,
    teacher: Teacher,
    objective: Objective,
    steps: int,
    actor: str,
    learns: bool,
    *,
    acts: Any = None,
) -> tuple[Distiller, data.Resident]:
    """Returns a distiller that plays before each of its batches, and its input, of which only the shapes matter.

    The student acts, or the teacher. Where it learns from rewards, the batch also has what PPO needs.
    """

    def advance(student: Variables, taught: PyTree, states: PyTree, batch: Batch, *, keys: Array) -> Any:
        if learns:
            return ppo.entries(of, model, student, states, keys, STEPS)
        who, variables = (acts[0], taught) if actor == "teacher" else (model, student)
        found, after = acting.trajectory(of, who, variables, states, keys, STEPS)
        return {name: x for name, x in found.items() if name.startswith("observation_")}, after

    def shapes(key: Array) -> Any:
        keys = jax.random.split(key, ROWS)
        states = acting.begin(of)(keys)
        student = model.init(key, acting.observed(states))
        return advance(student, acts[1] if acts and actor == "teacher" else None, states, {}, keys=keys)[0]

    made = jax.eval_shape(shapes, jax.random.key(0))
    inputs = data.Resident({name: np.zeros(x.shape, x.dtype) for name, x in made.items()}, ROWS, shuffle=False)
    kd = distillers.repeated(distilled(model, teacher, objective, steps), times=UPDATES)
    return schemes.sequences.interactive(kd, acting.begin(of), advance), inputs


def starts(count: int) -> data.Resident:
    """Returns the numbers of episodes to evaluate, as one batch."""
    return data.Resident({"episode": np.arange(count, dtype=np.int32)}, count, shuffle=False)


def evaluation(
    of: acting.Games, model: Model, of_teachers: Mapping[str, float] | None = None
) -> Callable[[TrainState, Batch], Metrics]:
    """Returns the evaluation of a distiller: mean returns of episodes, and a score of several games."""

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(77), number))(batch["episode"])
        found = acting.episodes(of, model, state.student, keys)
        count = jnp.float32(len(keys))
        returns = {f"return_{name}": Mean(jnp.sum(found[f"return_{name}"]), count) for name in of}
        if of_teachers is not None:
            shares = [returns[f"return_{name}"].sum / of_teachers[name] for name in of]
            returns["score"] = Mean(jnp.mean(jnp.stack(shares)), count)
        return metrics.psum(returns, distillers.mapped_axis())

    return evaluate


def played(
    of: acting.Games, model: Model, variables: Variables, other: tuple[Model, Variables], greedy: bool = False
) -> dict[str, float]:
    """Returns mean returns and agreements of a policy with another one, in the first one's episodes."""

    @jax.jit
    def run(variables: Variables, second: Variables) -> Any:
        keys = jax.random.split(jax.random.key(99), EPISODES)
        return acting.episodes(of, model, variables, keys, other=(other[0], second), greedy=greedy)

    sums = {name: float(jnp.sum(x)) for name, x in run(variables, other[1]).items()}
    found = {}
    for name in of:
        found[f"return_{name}"] = sums[f"return_{name}"] / EPISODES
        found[f"agreement_{name}"] = sums[f"agreed_{name}"] / sums[f"length_{name}"]
    return found


def first_episode(
    of: acting.Games, name: str, model: Model, variables: Variables, steps: int = 200
) -> tuple[np.ndarray, int]:
    """Returns observations ``[steps, ...]`` of an episode, the same start for all policies, and its length."""
    keys = jax.random.split(jax.random.key(7), 1)
    states = acting.strong(acting.begin(of)(keys))
    run = jax.jit(lambda variables: acting.trajectory(of, model, variables, states, keys, steps))
    found, _ = run(variables)
    done = np.flatnonzero(found[f"done_{name}"][0])
    return np.asarray(found[f"observation_{name}"][0]), int(done[0]) + 1 if len(done) else steps
