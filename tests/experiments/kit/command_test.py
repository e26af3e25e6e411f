"""The command line that all experiments share: exit statuses, settings, one run to a folder."""

import dataclasses
import json
import pathlib

import pytest

from experiments.kit import command
from jaxkd.training import Preempted


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path = pathlib.Path("runs")
    epochs: int = 2
    seeds: int = 2
    first_seed: int = 5


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    monkeypatch.setattr(command, "remember_programs", lambda path: None)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("--epochs: expected more"), 2, "name: --epochs: expected more"),
        (command.Refused("another run"), 2, "another run"),
        (KeyboardInterrupt(), 130, "run the same command again to resume"),
        (Preempted(5), 75, "run the same command again to resume"),
    ],
)
def test_exit_statuses(error, status, message, capsys):
    def main():
        raise error

    assert command.status("name", main) == status
    assert message in capsys.readouterr().err
    assert command.status("name", lambda: None) == 0


def test_a_command_gets_its_settings():
    seen = []
    assert command.run("name", Config, lambda config, console: seen.append(config), ["--epochs", "3"]) == 0
    assert seen == [Config(epochs=3)] and command.seeds(seen[0]) == [5, 6]
    with pytest.raises(ValueError, match="--seeds: expected at least 3, got 2: an interval needs several"):
        command.seeds(Config(), least=3)


def test_a_folder_is_of_one_run(tmp_path):
    settings = {"epochs": 2, "weights": {"kd": 4.0}}
    with command.own_folder(tmp_path, settings):
        assert json.loads((tmp_path / "config.json").read_text()) == settings
        with pytest.raises(command.Refused, match="another run is at work"), command.own_folder(tmp_path, settings):
            pass
    other = {"epochs": 2, "weights": {"kd": 3.0}}
    with pytest.raises(command.Refused, match=r"weights.kd: 4.0 there, 3.0 here"), command.own_folder(tmp_path, other):
        pass
    assert json.loads((tmp_path / "config.json").read_text()) == settings
