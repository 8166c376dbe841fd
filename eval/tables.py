"""Results as lines for a terminal: a row a value, a column a model."""

from collections.abc import Sequence
from typing import Any

FORMAT = "{:.3g}"


def estimate_text(estimate: dict[str, Any] | None, signed: bool = False) -> str:
    """``0.42 [0.3, 0.5]``, and ``-`` where there is none."""
    if estimate is None:
        return "-"
    number = "{:+.3g}" if signed else FORMAT
    text = number.format(estimate["value"])
    if estimate["low"] is not None:
        text += f" [{number.format(estimate['low'])}, {number.format(estimate['high'])}]"
    return text


def counts_text(model: dict[str, Any]) -> str:
    counts = model["counts"]
    text = f"{model['name']}: {counts['scored']} of {counts['expected']} clips scored"
    if counts["failed"]:
        reasons = [reason for row in model["rows"] for reason in row["failures"].values()]
        text += f", {counts['failed']} failed, the first: {reasons[0]}"
    return text


def estimates_table(models: Sequence[dict[str, Any]], without: str | None = None) -> str:
    """Every value's mean and 95 % interval, over prompts, and the number of clips that have it.

    Args:
        without: values whose names begin so are left out.
    """
    names = list(dict.fromkeys(name for model in models for name in model["estimates"]))
    names = [name for name in names if without is None or not name.startswith(without)]
    lines = [["", *(f"{model['name']} (95 % interval; n)" for model in models)]]
    for name in names:
        cells = []
        for model in models:
            estimate = model["estimates"].get(name)
            cells.append(estimate_text(estimate) + (f"; {estimate['n']}" if estimate else ""))
        lines.append([name, *cells])
    return columns(lines)


def differences_table(comparison: dict[str, Any]) -> str:
    """Second minus first; a star marks an interval that leaves out zero."""
    lines = [["", f"{comparison['second']} minus {comparison['first']}, {comparison['prompts']} prompts in pairs"]]
    for name, estimate in comparison["differences"].items():
        lines.append([name, estimate_text(estimate, signed=True) + (" *" if leaves_out_zero(estimate) else "")])
    return columns(lines)


def leaves_out_zero(estimate: dict[str, Any]) -> bool:
    return estimate["low"] is not None and (estimate["low"] > 0 or estimate["high"] < 0)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells padded to the width of their column, the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )
