"""Online adaptation: a light detector learns from a larger one while a video runs, on chosen frames only."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.kit import files
from experiments.kit.rows import cost
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from experiments.video import frames, strips
from jaxkd import adapters, data, distillers, losses, metrics, teachers, wrappers
from jaxkd.schemes import streams
from jaxkd.types import Batch, Context, Distiller, Mean, Metrics, TrainState, Variables

STUDENT, TEACHER = ((8, 16, 32), 16), ((32, 64, 128), 48)  # channels of the stages and of the pyramid
STUDENT_FRAMES, STUDENT_STEPS, TEACHER_STEPS = 192, 800, 2400
FROZEN = "^PyramidBackbone"  # all but the head
RATE, UPDATES, THRESHOLD = 1e-3, 3, 0.05
SHARE = 1 / 8  # of the frames for which the teacher is asked
CHANGE = 0.5  # relative change of a feature since the last key frame
FEATURE = "level1"  # output that the rules read
LEARN_FRAMES, WINDOW, WORTH = 400, 20, 0.75  # of the LSTM: frames to learn from, in a row, quantile of ε
LSTM_STEPS = 200
FOUND = "detections"  # entry of the state, and prefix of the metrics that it keeps
SHOWN, SHOWN_SCORE = 6, 0.3  # frames of the film strip, and least score of its boxes

METHODS = {
    "student": Method("frozen student", "trained before, and never adapted: a random rule of probability 0"),
    "every_16": Method("every 16th frame", "the head adapts, up to 3 steps of Adam on a key frame (TKD)"),
    "every_8": Method("every 8th frame", "the same, twice as often"),
    "every_4": Method("every 4th frame", "the same, four times as often"),
    "every_8_reset": Method("every 8th frame, reset", "the same, from the trained student again in every clip"),
    "random_8": Method("random frames", "each with a probability of 1/8"),
    "motion": Method("motion", f"where a feature has changed by {CHANGE:g} of its norm since the last key frame"),
    "lstm": Method(
        "LSTM",
        "where an LSTM on the student's features predicts that adapting lowers the loss by more than ε (a reading of "
        "the paper, whose inputs and targets are not public); as often as an eighth of the training frames",
    ),
    "oracle": Method("every frame", "the teacher is asked always"),
}


class Online:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        self._folder, self._frames, self._config = folder, frames.read(config), config
        self._count = min(config.steps, len(self._frames.test["index"]))
        self._student = frames.detector(self._frames, *STUDENT)
        self._teacher = frames.detector(self._frames, *TEACHER)

    @functools.cached_property
    def _taught(self) -> Variables:
        """The teacher's weights, from all training frames."""
        path = self._folder / "teacher.safetensors"
        steps = networks.before(TEACHER_STEPS, self._config)
        return frames.trained(path, self._frames, self._teacher, self._frames.train, steps=steps, seed=0)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _trained(self, seed: int) -> Variables:
        """Returns the weights of a seed's student, from few training frames."""
        few = frames.shuffled_clips(self._frames.train, seed, STUDENT_FRAMES)
        path = self._folder / f"student{seed}.safetensors"
        steps = networks.before(STUDENT_STEPS, self._config)
        return frames.trained(path, self._frames, self._student, few, steps=steps, seed=seed)

    def _stream(self, seed: int) -> dict[str, np.ndarray]:
        """Returns the frames of the test split, clip after clip, in an order of clips by seed."""
        return frames.shuffled_clips(self._frames.test, seed, self._count)

    def _adapting(self, seed: int, rule: streams.KeyFrameRule, **options: Any) -> Distiller:
        """Returns the student that adapts its head to the teacher, on frames that are not normalized."""
        student = wrappers.freeze(wrappers.pretrained(self._student, self._trained(seed)), FROZEN)
        objective = jaxkd.term(streams.confident_mse, "student/raw", "teacher/raw", "teacher/objectness")
        kd = streams.key_frames(
            student,
            teachers.frozen(self._teacher, self._taught),
            objective,
            rule,
            optimizer=optax.adam(RATE),
            updates=UPDATES,
            threshold=THRESHOLD,
            metrics=(),
            **options,
        )
        normalize = self._frames.normalize
        return distillers.preprocess(kd, train_transform=normalize, eval_transform=normalize)

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _gains(self, seed: int) -> dict[str, np.ndarray]:
        """Returns, of a stream of training frames that are all key frames, the feature and what adapting gains."""

        def seen(context: Context) -> Metrics:
            feature = context.student[FEATURE].mean(axis=(0, 1, 2))
            return {"feature": Mean(feature, jnp.ones_like(feature))}

        def compute() -> dict[str, Any]:
            kd = self._adapting(seed, streams.at_intervals(1), train_metrics=seen)
            loader = data.Resident(frames.shuffled_clips(self._frames.train, seed, LEARN_FRAMES), 1, shuffle=False)
            state, step, evaluate = None, jax.jit(kd.step), jax.jit(kd.evaluate)
            found: dict[str, list[Any]] = {"features": [], "gains": []}
            for _, batch in zip(range(loader.steps_per_epoch), loader.batches(), strict=False):
                state = kd.init(jax.random.key(seed), batch) if state is None else state
                state, reported = step(state, batch)
                after = evaluate(state, batch)["loss"]
                found["features"].append(np.asarray(reported["feature"].sum).tolist())
                found["gains"].append(float(reported["loss"].sum - after.sum / after.count))
            return found

        stored = files.once(self._folder / f"gains{seed}.json", compute)
        return {name: np.asarray(x, np.float32) for name, x in stored.items()}

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _selector(self, seed: int) -> tuple[Any, float]:
        """Returns the parameters of a seed's LSTM, and the probability above which it asks the teacher."""
        known = self._gains(seed)
        length = min(WINDOW, len(known["gains"]))
        count = len(known["gains"]) // length
        rows = {name: x[: count * length].reshape(count, length, *x.shape[1:]) for name, x in known.items()}
        worth = float(max(np.quantile(known["gains"], WORTH), 0.0))
        arrays = {"features": rows["features"], "worth": rows["gains"] > worth}
        channels = rows["features"].shape[-1]
        model = adapters.plain(
            lambda key, features: streams.init_selector(key, channels), streams.selector_logits, inputs="features"
        )
        bce = jaxkd.term(_worth, "student/logits", "batch/worth")
        kd = networks.distill(model, teachers.none(), bce, 1e-2, LSTM_STEPS, lambda context: {})
        train = data.Resident(arrays, count, seed=seed)
        path = self._folder / f"lstm{seed}.safetensors"
        learned = networks.trained_once(path, kd, train, {}, steps=LSTM_STEPS, seed=seed).params
        logits = streams.selector_logits(learned, jnp.asarray(known["features"])[None])[0]
        return learned, float(np.quantile(jax.nn.sigmoid(logits), 1 - SHARE))

    def _rule(self, method: str, seed: int) -> streams.KeyFrameRule:
        kind, _, number = method.removesuffix("_reset").partition("_")
        if kind == "every":
            return streams.at_intervals(int(number))
        if kind == "lstm":
            params, threshold = self._selector(seed)
            return streams.as_predicted(params, f"student/{FEATURE}", threshold=threshold)
        return {
            "student": streams.at_random(0.0),
            "random": streams.at_random(SHARE),
            "motion": streams.on_change(f"student/{FEATURE}", threshold=CHANGE),
            "oracle": streams.at_intervals(1),
        }[kind]

    def training(self, method: str, seed: int, steps: int) -> Training:
        reset = "clip" if method.endswith("_reset") else None
        kd = self._adapting(seed, self._rule(method, seed), reset=reset, train_metrics=self._detected)
        stream = data.Resident(self._stream(seed), 1, shuffle=False)
        return Training(recorded(kd, self._count), stream, min(steps, self._count))

    def _detected(self, context: Context) -> Metrics:
        found = frames.found(self._frames, context.student)._asdict()
        return {f"{FOUND}/{name}": Mean(x[0], jnp.ones(x[0].shape)) for name, x in found.items()}

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        own = {name: int(state.opt_state["stream"][name]) for name in ("frames", "teacher_calls", "updates")}
        flops = self._flops
        spent = own["frames"] * flops["frame"] + own["teacher_calls"] * flops["call"] + own["updates"] * flops["update"]
        return {
            **self._precision(state.opt_state[FOUND], seed, own["frames"]),
            "calls": own["teacher_calls"] / own["frames"],
            "updates": own["updates"] / own["frames"],
            "megaflops": spent / own["frames"] / 1e6,
            "flops": spent,
        }

    def _precision(self, found: Mapping[str, Any], seed: int, count: int) -> dict[str, float]:
        truth = {name: self._stream(seed)[name][:count] for name in ("boxes", "box_label", "box_mask")}
        whole = metrics.average_precision({name: np.asarray(x)[:count] for name, x in found.items()}, truth)
        return {name: whole[name] for name in ("ap", "ap50", "ap75")}

    @functools.cached_property
    def _flops(self) -> dict[str, float]:
        """The cost of a frame, of the teacher's call and of an update."""
        kd, batch = self._adapting(0, streams.at_intervals(1)), next(iter(data.Resident(self._stream(0), 1)))
        state = jax.eval_shape(kd.init, jax.random.key(0), batch)
        batch = jax.eval_shape(self._frames.normalize, batch)
        student = wrappers.freeze(self._student, FROZEN)
        taught = jax.eval_shape(lambda v, b: self._teacher.apply(v, b, key=None, train=False)[0], self._taught, batch)

        def loss(params: Any, kept: Any, batch: Batch, taught: Any) -> Any:
            outputs, _ = student.apply(Variables(params, kept), batch, key=None, train=False)
            return jnp.mean(streams.confident_mse(outputs["raw"], taught["raw"], taught["objectness"]))

        def forward(model: Any) -> Callable[..., Any]:
            return lambda variables, batch: frames.found(
                self._frames, model.apply(variables, batch, key=None, train=False)[0]
            )

        return {
            "frame": cost.flops(forward(student), state.student, batch),
            "call": cost.flops(forward(self._teacher), self._taught, batch),
            "update": cost.flops(jax.grad(loss), *state.student, batch, taught),
        }

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _teachers(self, seed: int) -> dict[str, np.ndarray]:
        """Returns the teacher's detections in every frame of a seed's stream."""
        apply = jax.jit(
            lambda variables, batch: frames.found(
                self._frames, self._teacher.apply(variables, self._frames.normalize(batch), key=None, train=False)[0]
            )._asdict()
        )
        stream = data.Resident(self._stream(seed), min(50, self._count), shuffle=False)
        parts = [apply(self._taught, batch) for _, batch in zip(range(stream.steps_per_epoch), stream, strict=False)]
        whole: Any = jax.tree.map(lambda *x: np.concatenate(x)[: self._count], *parts)
        return whole

    def references(self) -> Mapping[str, Mapping[str, float]]:
        own = self._precision(self._teachers(0), 0, self._count)
        size = {"parameters": networks.parameters(self._taught), "megaflops": self._flops["call"] / 1e6}
        return {"teacher": own | size | {"calls": 1.0}}

    def shown(self, method: str, state: TrainState) -> dict[str, Any]:
        """Returns frames of the first seed's stream, with the boxes that were found before adapting to each."""
        stream = self._stream(0)
        places = strips.places(stream["clip"], SHOWN)
        found = {"": state.opt_state[FOUND]} | ({"teacher": self._teachers(0)} if method == "student" else {})
        boxes = {
            name: [strips.boxes(x["boxes"][i], x["mask"][i] & (x["scores"][i] >= SHOWN_SCORE)) for i in places]
            for name, x in ((name, jax.tree.map(np.asarray, x)) for name, x in found.items())
        }
        if method != "student":
            return boxes
        truth = [strips.boxes(stream["boxes"][i], stream["box_mask"][i]) for i in places]
        return {**boxes, "truth": truth, "images": [strips.encoded(stream["image"][i]) for i in places]}


def recorded(kd: Distiller, count: int) -> Distiller:
    """Returns a distiller whose state keeps what ``kd`` reports to have found in each of a number of frames."""

    def taken(state: TrainState) -> TrainState:
        return state._replace(opt_state={name: x for name, x in state.opt_state.items() if name != FOUND})

    def of(reported: Metrics) -> dict[str, Any]:
        return {name.partition("/")[2]: x.sum for name, x in reported.items() if name.startswith(f"{FOUND}/")}

    def init(key: Any, batch: Batch) -> TrainState:
        state = kd.init(key, batch)
        shapes = jax.eval_shape(lambda *given: of(kd.step(*given)[1]), state, batch)
        kept = {name: jnp.zeros((count, *x.shape), x.dtype) for name, x in shapes.items()}
        return state._replace(opt_state={**state.opt_state, FOUND: kept})

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, reported = kd.step(taken(state), batch)
        kept = {name: state.opt_state[FOUND][name].at[batch["index"][0]].set(x) for name, x in of(reported).items()}
        others = {name: x for name, x in reported.items() if not name.startswith(f"{FOUND}/")}
        return new._replace(opt_state={**new.opt_state, FOUND: kept}), others

    return Distiller(init, step, lambda state, batch: kd.evaluate(taken(state), batch))


def _worth(logits: Any, worth: Any) -> Any:
    """Returns the cross-entropy of each frame."""
    return losses.binary_cross_entropy(logits[..., None], worth[..., None].astype(jnp.float32))


TASK = Task(
    title="A detector that adapts to a video",
    about=(
        "The frames of the test clips follow each other as one stream, clip after clip, in an order by seed. The "
        "student's boxes in a frame are those before it adapts to this frame. Teacher: a one-stage detector that "
        f"learned from all training frames. Student: a light one that learned from {STUDENT_FRAMES} of them. On a key "
        "frame the teacher is asked, and only the head of the student adapts; the parameters are those of the head."
    ),
    measures={
        "ap": Measure("AP (%)", scale=100, digits=1),
        "ap50": Measure("AP50 (%)", scale=100, digits=1),
        "calls": Measure("teacher calls (% of frames)", scale=100, digits=1, higher=False),
        "updates": Measure("updates a frame", digits=2, higher=False),
        "megaflops": Measure("MFLOP a frame", digits=1, higher=False),
    },
    methods=METHODS,
    steps=1302,
    evaluations=4,
    open=Online,
    equal_cost=False,
    figures={
        "calls": Figure("Average precision against teacher calls", strips.calls),
        "strip": Figure(
            "Frames of one clip: truth, teacher, frozen student, adapted students; boxes found before each adaptation",
            strips.strip,
            lambda work, method, state: work.shown(method, state),
        ),
    },
    any_set=True,
)
