"""Directory of a run: what is never overwritten, links that lead out of it, names of paths, readers beside a run."""

import os
import pathlib
import shutil
import threading
import warnings

import jax
import jax.numpy as jnp
import pytest

from jaxkd import weights
from jaxkd._core import digests
from jaxkd.training import Checkpoints, Logs
from jaxkd.types import ObjectiveVars, TrainState, Variables
from tests.training.toy import TRAIN, Died, Streaming, raising, run, timeless

LOGS = ("metrics.csv", "metrics.jsonl")


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# --- rows without their checkpoints -----------------------------------------------------------------------------------


def own_loop(directory):
    with Logs(directory) as logs:
        logs.write({"step": 1, "train/loss": 0.5})


def without_checkpoints(directory):
    run("resident", directory, steps=6)
    shutil.rmtree(directory / "checkpoints")


def without_config(directory):
    without_checkpoints(directory)
    (directory / "config.json").unlink()


def only_events(directory):
    own_loop(directory)
    for name in LOGS:
        (directory / name).unlink()


@pytest.mark.parametrize("make", [own_loop, without_checkpoints, without_config, only_events])
def test_rows_without_a_checkpoint_are_never_overwritten(make, tmp_path):
    make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds .*(metrics\.csv|events).* of a run, and no checkpoint .*Nothing was"):
        run("resident", tmp_path, steps=6)
    with pytest.raises(ValueError, match=r"holds a run already\. resume=True"):
        run("resident", tmp_path, steps=6, resume=False)
    assert contents(tmp_path) == before


def test_run_that_died_before_its_first_checkpoint_starts_again(tmp_path, straight):
    def dies(step):
        if step == 5:
            raise Died

    with pytest.raises(Died):
        run("streaming", tmp_path, train=Streaming(TRAIN, on_next=dies))
    with pytest.raises(ValueError, match="holds a run already"):
        run("streaming", tmp_path, resume=False)
    assert timeless(run("streaming", tmp_path).history) == timeless(straight["streaming"][0].history)


# --- nothing outside is written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_no_link_lets_a_run_write_outside(link, tmp_path):
    directory, outside = tmp_path / "run", tmp_path / "outside"
    directory.mkdir()
    outside.mkdir()
    # Empty, as the files of a new run are, so that a comparison of contents finds nothing to replace.
    names = (*LOGS, "config.json", "program.txt.gz")
    for name in names:
        (outside / name).write_bytes(b"")
        if link == "symbolic":
            (directory / name).symlink_to(outside / name)
        else:
            os.link(outside / name, directory / name)
    run("resident", directory, steps=6)
    assert all((outside / name).read_bytes() == b"" for name in names)
    assert all((directory / name).stat().st_size for name in names)


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_folder_that_leads_outside_is_refused(name, tmp_path):
    directory, outside = tmp_path / "run", tmp_path / "outside"
    directory.mkdir()
    outside.mkdir()
    (directory / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{name} is a link to .*/outside, outside of .*replace it by a folder"):
        run("resident", directory, steps=6)
    assert not list(outside.iterdir())
    (directory / name).unlink()
    (directory / "within").mkdir()
    (directory / name).symlink_to("within")
    run("resident", directory, steps=6)


def test_run_through_a_link_to_its_directory_is_resumed(tmp_path):
    run("resident", tmp_path / "run", steps=6)
    (tmp_path / "link").symlink_to("run")
    assert int(run("resident", tmp_path / "link", steps=12).state.step) == 12


def test_links_among_checkpoints_are_removed_and_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory, keep=1) as checkpoints:
        for name in ("1.unfinished", "1.deleted", "2.unfinished"):
            (directory / name).symlink_to(outside)
        checkpoints.save(1, {"a": jnp.ones(1)})
        (directory / "0").symlink_to(outside)
        (directory / "1.corrupt").symlink_to(outside / "missing")
        (directory / "1/extra.json").write_bytes(b"")
    with Checkpoints(directory, keep=1) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(1)})
        checkpoints.save(2, {"a": jnp.zeros(1)})
        assert checkpoints.steps() == (2,)
    assert {path.name for path in outside.iterdir()} == {"kept"}
    assert (directory / "1.corrupt.1/extra.json").exists()


# --- TensorBoard files of others --------------------------------------------------------------------------------------


def test_events_of_other_programs_stay_as_they_are(tmp_path):
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        writer.add_scalar("mine", 1.0, 100)
    (tmp_path / "tensorboard/events.notes").write_text("mine too")
    before = contents(tmp_path)
    with pytest.raises(Died):
        run("resident", tmp_path, on_eval=raising(18, Died()))
    run("resident", tmp_path)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert sum(name.startswith("tensorboard/") for name in after) >= len(before) + 1


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run[1]", "a*b", "a?b", "a\\b"])
def test_path_that_is_a_pattern_is_refused_before_anything_is_written(name, tmp_path):
    path = tmp_path / name
    for write in (
        lambda: run("resident", path / "run", steps=6),
        lambda: Checkpoints(path),
        lambda: weights.save_orbax(path, {"params": {"w": jnp.ones(2)}}),
    ):
        with pytest.raises(ValueError, match="expected a path without"):
            write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a b", "{a,b}", "a#b", "ä", "a%20b", "x:y", "]"])
def test_other_paths_work(name, tmp_path):
    path = tmp_path / name
    with Checkpoints(path / "c") as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
        assert checkpoints.restore({"w": jnp.zeros(2)}).state["w"].tolist() == [1, 1]
    weights.save_orbax(path / "w", {"params": {"w": jnp.ones(2)}})
    assert weights.load_orbax(path / "w")["params/w"].tolist() == [1, 1]


# --- a reader beside a run --------------------------------------------------------------------------------------------


def state_of(step):
    parts = Variables({"w": jnp.full(1000, float(step))}), {}, ObjectiveVars(), {}
    return TrainState(*parts, jnp.int32(step), jax.random.key(step))


@pytest.mark.filterwarnings("error")
def test_reader_beside_a_run_reads_whole_checkpoints(tmp_path):
    def write():
        with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
            for step in range(2, 40):
                checkpoints.save(step, state_of(step))

    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, state_of(1))
    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    with Checkpoints(tmp_path / "checkpoints") as reader:
        while writer.is_alive():
            w = weights.load_run(tmp_path)["params/w"]
            assert (w == w[0]).all()
            restored = reader.restore(state_of(0))
            assert float(restored.state.student.params["w"][0]) == restored.step
            reader.best()
            seen |= {int(w[0]), restored.step}
    writer.join()
    assert len(seen) > 1


@pytest.mark.parametrize("when", ["verified", "read"])
def test_checkpoint_removed_while_it_is_read_is_replaced_by_the_next(when, tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step))
    module, name = (digests, "find_damage") if when == "verified" else (weights._orbax_directory, "_read")
    original = getattr(module, name)

    def removed_first(folder, *args, **kwargs):
        if (tmp_path / "2").exists():
            (tmp_path / "2").rename(tmp_path / "2.deleted")
        return original(folder, *args, **kwargs)

    monkeypatch.setattr(module, name, removed_first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(weights.load_run(tmp_path)["params/w"][0]) == 1
        monkeypatch.undo()
        with pytest.raises(ValueError, match="expected a checkpoint of step 2"):
            weights.load_run(tmp_path, 2)


def test_folder_that_is_removed_again_and_again_ends_in_an_error(tmp_path):
    def choose():
        folder = tmp_path / "x"
        folder.mkdir()
        return folder

    with pytest.raises(TimeoutError, match="each of 50 checkpoints was removed while it was read"):
        digests.read_whole(choose, pathlib.Path.rmdir)
    (tmp_path / "x").mkdir()
    with pytest.raises(ZeroDivisionError):
        digests.read_whole(lambda: tmp_path / "x", lambda folder: 1 / 0)
