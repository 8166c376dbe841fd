"""``results.json``: everything that a score depends on, a row for each clip, and estimates with their intervals.

Fields (version 2): ``schema``; ``suite``; ``prompts_sha256``, ``prompts_rewritten``; ``preprocessing`` (what was done
to the clips before they were measured); ``measures`` (name to version of code and weights), ``missing`` (what is not
measured, and why); ``environment``; ``models``, each with ``name``, what ``models.model_facts`` says, ``counts``,
``estimates``, ``rows``, and where they apply ``judgement`` (of the tabletop suite), ``vbench`` and ``distances``;
``comparisons`` of every two models.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from vidgen import __version__
from vidgen.errors import InputError
from vidgen.files import replacing

from .generate import Made
from .intervals import clustered_mean, paired_difference
from .measure import Measured

SCHEMA = {"name": "vidgen.eval", "version": 2}
LIBRARIES = (
    "torch", "numpy", "diffusers", "transformers", "av", "opencv-python-headless", "scipy", "pyloudnorm",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions of the libraries, and the machine."""
    versions = {"vidgen": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {"versions": versions, "hardware": hardware}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def clip_rows(
    made: Sequence[Made], measured: Sequence[Measured], verdicts: Sequence[dict] | None, folder: Path
) -> list[dict[str, Any]]:
    """A row for each clip: prompt, seed, ``file`` relative to the folder of the results, checksum, ``failures``,
    ``values`` (by the measure's name, a point and the figure's), and the verdict with what was ``asked``."""
    rows = []
    for index, (clip, found) in enumerate(zip(made, measured, strict=True)):
        values: dict[str, float | None] = {}
        for name, figures in found.values.items():
            if name != "tabletop":
                values |= {f"{name}.{key}": value for key, value in figures.items()}
        failures = {"file": clip.failure} if clip.failure else found.failures
        row: dict[str, Any] = {"prompt": clip.asked.prompt, "seed": clip.asked.seed}
        row |= {"file": os.path.relpath(clip.path, folder).replace(os.sep, "/"), "sha256": found.sha256}
        row |= {"failures": failures, "values": values}
        if verdicts is not None:
            rights = verdicts[index]["right"]
            values |= {f"tabletop.{key}": None if right is None else float(right) for key, right in rights.items()}
            row |= {"asked": clip.asked.attributes, "verdict": verdicts[index]}
        rows.append(row)
    return rows


def model_results(name: str, facts: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """One model's part: its facts, counts and estimates above its rows."""
    failed = sum(bool(row["failures"]) for row in rows)
    made = sum(row["sha256"] is not None for row in rows)
    counts = {"expected": len(rows), "made": made, "scored": len(rows) - failed, "failed": failed}
    return {"name": name, **facts, "counts": counts, "estimates": estimates(rows), **more, "rows": rows}


def names_of_values(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["values"]))


def cluster(row: dict[str, Any]) -> str:
    """What a bootstrap draws: the prompt, or the clip itself where there is none."""
    return row["prompt"] or row["file"]


def estimates(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, interval and n of every value over the clips that have it."""
    prompts = [cluster(row) for row in rows]
    found = {}
    for name in names_of_values(rows):
        estimate = clustered_mean([row["values"].get(name) for row in rows], prompts)
        if estimate is not None:
            found[name] = asdict(estimate)
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Second model minus first, value by value, on the prompts that both have.

    Raises:
        InputError: they have no prompt in common.
    """
    sides = [(model["rows"], [cluster(row) for row in model["rows"]]) for model in (first, second)]
    common = set(sides[0][1]) & set(sides[1][1])
    if not common:
        raise InputError(f"{first['name']} and {second['name']} have no prompt in common: there is nothing to pair")
    found = {}
    for name in names_of_values(first["rows"]):
        ours, theirs = (([row["values"].get(name) for row in rows], prompts) for rows, prompts in sides)
        estimate = paired_difference(ours, theirs)
        if estimate is not None:
            found[name] = asdict(estimate)
    return {"first": first["name"], "second": second["name"], "prompts": len(common), "differences": found}


def all_comparisons(models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [differences(*pair) for pair in combinations(models, 2)]


def write(results: dict[str, Any], path: Path) -> None:
    """Whole or not at all; a value that is not finite is a defect, not a number to write down."""
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Results that ``write`` wrote.

    Raises:
        InputError: no such file, or one of another kind or version.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        schema = results["schema"]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: holds no results of eval.run, or those of an old version: measure again") from error
    if schema != SCHEMA:
        raise InputError(f"{path} has the schema {schema}, this program reads {SCHEMA}: measure its clips again")
    return results


def check_comparable(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Refuse to set results beside one another that were not come by in the same way.

    Raises:
        InputError: what differs.
    """
    for what in ("schema", "suite", "preprocessing", "measures"):
        ours, theirs = first[what], second[what]
        if what == "measures":  # what only one of them has is not compared anyway
            shared = set(ours) & set(theirs)
            ours, theirs = ({name: side[name] for name in shared} for side in (ours, theirs))
        if ours != theirs:
            differing = (
                [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
                if isinstance(ours, dict)
                else []
            )
            which = f" ({', '.join(sorted(differing))})" if differing else f": {ours!r} and {theirs!r}"
            raise InputError(
                f"results of different {what} cannot be compared{which}; run eval.run again on the clips that are there"
            )
