"""Choice of the slow tier from measured times: rewrites `tests/slow.txt`, which conftest.py reads.

A test function is slow if it is marked where it is written, or listed in that file. The list holds the functions that
take the most time for what they cover, as many as it needs for the rest to take the budget:

    make test-all ARGS="--junitxml=times.xml" && python -m tests.tiers times.xml --budget 450

The budget is in seconds of one worker. The functions below are always in the quick tier.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import xml.etree.ElementTree

LIST = pathlib.Path(__file__).parent / "slow.txt"
QUICK = (
    "tests/losses/values_test.py::test_values_and_gradients_in_float64",
    "tests/losses/where_test.py::test_masking_is_dropping",
    "tests/distillers/distill_test.py::test_step_equals_one_written_by_hand",
)


def times_of(paths: list[pathlib.Path]) -> dict[str, list[float]]:
    """Returns the times of each test function's cases, in seconds."""
    times = collections.defaultdict(list)
    for path in paths:
        for case in xml.etree.ElementTree.parse(path).iter("testcase"):
            if case.get("classname"):
                file = case.get("classname", "").replace(".", "/") + ".py"
                times[f"{file}::{case.get('name', '').partition('[')[0]}"].append(float(case.get("time", 0)))
    return times


def choose_slow(times: dict[str, list[float]], budget: float) -> list[str]:
    """Returns the functions to leave out, those with the most seconds per root of their number of cases first.

    >>> choose_slow({"tests/a.py::x": [9.0], "tests/a.py::y": [1.0] * 4, "tests/a.py::z": [0.1]}, budget=5)
    ['tests/a.py::x']
    """
    rest, slow = sum(map(sum, times.values())), []
    for name in sorted(times.keys() - set(QUICK), key=lambda name: -sum(times[name]) / len(times[name]) ** 0.5):
        if rest <= budget:
            break
        slow.append(name)
        rest -= sum(times[name])
    return sorted(slow)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", nargs="+", type=pathlib.Path, help="files that pytest --junitxml has written")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds of one worker for the quick tier")
    arguments = parser.parse_args()
    chosen = choose_slow(times_of(arguments.times), arguments.budget)
    LIST.write_text("".join(f"{name}\n" for name in chosen), encoding="utf-8")
    print(f"{LIST}: {len(chosen)} test functions")
