"""Fixtures of the tests. The root conftest.py holds the settings that doctests share."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """A TFDS ``data_dir`` with cifar100 prepared in it: the environment variable ``JAXKD_DATA_DIR``."""
    given = os.environ.get("JAXKD_DATA_DIR")
    if not given:
        pytest.skip("needs real CIFAR-100: set JAXKD_DATA_DIR to a TFDS data_dir that holds cifar100")
    directory = pathlib.Path(given)
    if not (directory / "cifar100").is_dir():
        pytest.fail(f"JAXKD_DATA_DIR={given} holds no cifar100: prepare it there with `tfds build cifar100 --data_dir`")
    return directory
