"""Differences between the models of two results, prompt by prompt:

    python -m eval.compare old/results.json new/results.json

Refused where they were not come by in the same way: another schema, suite, preprocessing, or version of a measure.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from vidgen.cli import run
from vidgen.errors import InputError

from . import results, tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("first", type=Path, help="results.json")
    parser.add_argument("second", type=Path, help="results.json")
    parser.add_argument("--output", type=Path, help="write the differences as JSON, too")
    args = parser.parse_args()
    first, second = results.read(args.first), results.read(args.second)
    results.check_comparable(first, second)
    comparisons = []
    for one, other in product(first["models"], second["models"]):
        check_distances(one, other)
        if one["name"] == other["name"]:  # told apart by where they lie
            one, other = (
                model | {"name": f"{path.parent.name or path.stem}/{model['name']}"}
                for path, model in ((args.first, one), (args.second, other))
            )
        comparison = results.differences(one, other)
        comparisons.append(comparison)
        print(tables.counts_text(one), tables.counts_text(other), tables.differences_table(comparison), sep="\n")
        for metric in shared_metrics(one, other):
            for side, model in (("first", one), ("second", other)):
                leading = model["distances"]["metrics"][metric]["distances"][0]
                sizes = f"(n = {leading['num_first']}, {leading['num_second']})"
                print(f"{side}: {leading['name']} {leading['value']:.4g} {sizes}")
    if args.output is not None:
        results.write({"schema": results.SCHEMA, "comparisons": comparisons}, args.output)


def shared_metrics(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    sides = [model.get("distances", {}).get("metrics", {}) for model in (first, second)]
    return [metric for metric in sides[0] if metric in sides[1]]


def check_distances(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Distances are to be from the same reference, by the same network, after the same preprocessing.

    Raises:
        InputError: what differs.
    """
    for metric in shared_metrics(first, second):
        ours, theirs = (model["distances"] for model in (first, second))
        if ours["reference"] != theirs["reference"]:
            raise InputError("distances from different reference clips cannot be compared: measure both from the same")
        for what in ("extractor", "preprocessing"):
            values = [side["metrics"][metric][what] for side in (ours, theirs)]
            if values[0] != values[1]:
                raise InputError(f"distances of different {what} cannot be compared: {values[0]!r} and {values[1]!r}")


if __name__ == "__main__":
    run(main)
