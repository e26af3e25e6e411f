"""The workflows of .github: they parse, and what they call exists."""

import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def jobs(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def steps(path):
    return [(job, step) for job in jobs(path).values() for step in job["steps"]]


def expanded(command, job):
    """Returns a command with each value that its matrix gives to a variable."""
    found = [command]
    matrix = job.get("strategy", {}).get("matrix", {})
    for name in re.findall(r"\$\{\{ matrix\.(\w+) \}\}", command):
        values = matrix.get(name) or [one[name] for one in matrix["include"]]
        found = [text.replace(f"${{{{ matrix.{name} }}}}", str(value)) for text in found for value in values]
    return found


def test_there_are_tests_nightly_docs_and_release():
    assert [path.stem for path in FILES] == ["docs", "nightly", "release", "tests"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_workflow_has_triggers_least_permissions_and_steps(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content[True]  # `on`, which YAML reads as true
    assert content["permissions"] == {"contents": "read"}
    for job, step in steps(path):
        assert ("uses" in step) != ("run" in step), step
        assert job["runs-on"] == "ubuntu-latest"
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w/-]+@[\w/.]+", step["uses"]), step


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_target_of_make_that_is_called_exists(path):
    called = [
        target
        for job, step in steps(path)
        for command in expanded(step.get("run", ""), job)
        for target in re.findall(r"\bmake ([a-z-]+)", command)
    ]
    assert called
    assert set(called) <= TARGETS


def test_quick_tests_run_on_two_pythons_with_oldest_and_newest_jax():
    job = jobs(ROOT / ".github" / "workflows" / "tests.yml")["quick"]
    matrix = job["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12"]
    targets = {one["jax"]: one["target"] for one in matrix["include"]}
    assert targets == {"oldest": "test-oldest", "newest": "test"} and set(matrix["jax"]) == set(targets)


def test_nightly_runs_every_part_of_the_slow_tier_once():
    job = jobs(ROOT / ".github" / "workflows" / "nightly.yml")["slow"]
    parts = job["strategy"]["matrix"]["part"]
    assert [f"{part}/{len(parts)}" for part in parts] == expanded(job["env"]["JAXKD_SLOW_PART"], job)
