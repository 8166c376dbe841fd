"""One page that shows a scoring: its tables, and every clip with its sound's spectrogram and its own scores.

    python -m eval.report out --blind      # anew, from out/results.json

The page loads nothing from anywhere. Clips are part of it up to a size; those beyond it are linked, by relative path.
"""

import argparse
import base64
import html
import io
import random
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.media import read_sound
from vidgen.sheets import TITLE_HEIGHT, contact_sheet

from . import against, results
from .tables import counts_text, estimate_text, leaves_out_zero

MAX_PROMPTS = 200
"""In the gallery; the tables are of all."""
SOUND_RATE_HZ = 24000
MAX_SOUND_S = 60.0
SPECTROGRAM_WIDTH = 320
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1400px; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { margin-top: 2em; border-bottom: 1px solid #ccc } h3 { margin: 1.6em 0 .3em }
table { border-collapse: collapse; margin: .6em 0 } td, th { padding: .15em .7em; border-bottom: 1px solid #e4e4e4 }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th:first-child { text-align: left }
.row { display: flex; flex-wrap: wrap; gap: 1em; align-items: end }
section h3 { max-width: 320px; font-size: 1em } section:has(.card + .card) { width: 100% }
section:has(.card + .card) h3 { max-width: none } .card { width: 320px; background: #f6f6f6; padding: .5em }
.card video, .card img { width: 100%; display: block; margin-bottom: .3em; background: #ddd }
.yes, .no { display: inline-block; padding: 0 .4em; margin: 1px; border-radius: .6em; font-size: 12px }
.yes { background: #cde8cf } .no { background: #f3c9c5; text-decoration: line-through }
.hit { background: #cde8cf } .miss { background: #f3c9c5 } .tables { display: flex; flex-wrap: wrap; gap: 2em }
.failed { color: #a00 } details { font-size: 12px } .sure { font-weight: bold }
"""


def write(found: dict[str, Any], folder: Path, *, blind: bool = False, embed_mib: float = 24.0) -> Path:
    """``report.html`` in the folder of the results.

    Args:
        found: as ``results.read`` gives it.
        blind: shuffle the models' order for each prompt, the same at every time, and name them at the end only.
        embed_mib: clips of so much are part of the page.
    """
    models = found["models"]
    gallery, key = _gallery(models, folder, blind, embed_mib)
    title = "Evaluation" if blind else "Evaluation of " + ", ".join(model["name"] for model in models)
    tables = _tables(found)
    body = [gallery, tables, key] if blind else [tables, gallery]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{_text(title)}</h1>\n{_facts(found)}\n" + "\n".join(body)
    )
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page + "\n</body></html>\n", encoding="utf-8")
    return path


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of ready HTML, the first a heading."""
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _facts(found: dict[str, Any]) -> str:
    versions, hardware = found["environment"]["versions"], found["environment"]["hardware"]
    lines = [
        f"suite {found['suite']}, prompts {found['prompts_sha256'][:12]}, results schema {found['schema']['version']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        ", ".join(str(value) for value in hardware.values()),
        "preprocessing: " + "; ".join(f"{name} {value}" for name, value in found["preprocessing"].items()),
        "measures: " + "; ".join(f"{name} {version}" for name, version in found["measures"].items()),
        *(f"without {what}" for what in found["missing"]),
    ]
    return "<p>" + "<br>".join(map(_text, lines)) + "</p>"


# --- tables ---------------------------------------------------------------------------------------------------------


def _tables(found: dict[str, Any]) -> str:
    models = found["models"]
    parts = ["<h2>Scores</h2>"]
    parts += [f"<p>{_text(counts_text(model))}{_model_facts(model)}</p>" for model in models]
    names = list(dict.fromkeys(name for model in models for name in model["estimates"]))
    rows = [["mean over clips [95 % interval over prompts] (n)", *(_text(model["name"]) for model in models)]]
    for name in names:
        estimates = [model["estimates"].get(name) for model in models]
        rows.append([_text(name), *(_text(estimate_text(e)) + (f" ({e['n']})" if e else "") for e in estimates)])
    parts.append(_table(rows))
    parts += ["<h3>Differences</h3>" + _differences(comparison) for comparison in found["comparisons"]]
    for model in models:
        if "judgement" in model:
            parts.append(_judgement(model))
            parts += [_differences(gap) for gap in model["judgement"]["gaps"]]
        if "vbench" in model:
            lines = "\n".join(model["vbench"]["told"])
            parts.append(f"<h3>{_text(model['name'])}: VBench</h3><pre>{_text(lines)}</pre>")
        if "distances" in model:
            told = "<br>".join(map(_text, against.lines(model["distances"])))
            parts.append(f"<h3>{_text(model['name'])}: distances from the reference</h3><p>{told}</p>")
    return "\n".join(parts)


def _differences(comparison: dict[str, Any]) -> str:
    heading = f"{comparison['second']} minus {comparison['first']}, {comparison['prompts']} prompts in pairs"
    rows = [[_text(heading), "difference [95 % interval]"]]
    for name, estimate in comparison["differences"].items():
        mark = ' class="sure"' if leaves_out_zero(estimate) else ""
        rows.append([_text(name), f"<span{mark}>{_text(estimate_text(estimate, signed=True))}</span>"])
    return _table(rows)


def _model_facts(model: dict[str, Any]) -> str:
    facts = [f"version {model['version']}"] if "version" in model else []
    if "sampler" in model:
        facts += [f"sha256 {model['sha256'][:12]}", *(f"{key} {value}" for key, value in model["sampler"].items())]
    return "<br>" + _text(", ".join(facts)) if facts else ""


def _judgement(model: dict[str, Any]) -> str:
    """What was asked for and seen, beside chance and the controls; and what was taken for what."""
    judged = model["judgement"]
    accuracy = (judged["accuracy"] or {}).get("attributes", {})
    rows = [["", "right", "95 % interval", "n", "instrument", "blind guess", "other prompts"]]
    for name, row in judged["summary"]["attributes"].items():
        control = (judged["moved_sounds"] if name == "sync" else judged["shuffled_prompts"])["attributes"].get(name)
        rows.append([
            _text(name), f"{row['share']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}", str(row["n"]),
            f"{accuracy[name]['share']:.1%}" if name in accuracy else "unknown",
            "" if row["chance"] is None else f"{row['chance']:.0%}",
            "" if control is None else f"{control['share']:.1%}" + (" (sound moved)" if name == "sync" else ""),
        ])  # fmt: skip
    tables = [_confusion(name, table) for name, table in judged["confusion"].items()]
    return (
        f"<h3>{_text(model['name'])}: what its clips show of what was asked for</h3>{_table(rows)}"
        f'<div class="tables">{"".join(tables)}</div>'
    )


def _confusion(name: str, table: dict[str, Any]) -> str:
    rows = [[f"{_text(name)}: asked ↓ seen →", *map(_text, table["words"]), "else"]]
    for index, (word, counts) in enumerate(zip(table["words"], table["counts"], strict=True)):
        if not any(counts):
            continue
        cells = [
            f'<span class="{"hit" if column == index else "miss"}">{count}</span>' if count else ""
            for column, count in enumerate(counts)
        ]
        rows.append([_text(word), *cells])
    return _table(rows)


# --- the gallery ----------------------------------------------------------------------------------------------------


def _gallery(models: Sequence[dict[str, Any]], folder: Path, blind: bool, embed_mib: float) -> tuple[str, str]:
    """The clips, prompt by prompt, and the key to who made them."""
    shown: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for model in models:
        for row in model["rows"]:
            shown.setdefault(results.cluster(row), []).append((model["name"], row))
    rng = random.Random(0)
    room = embed_mib * 2**20
    parts: list[str] = []
    keys = [["prompt", "from left to right"]]
    if len(shown) > MAX_PROMPTS:
        parts.append(f"<p>The first {MAX_PROMPTS} of {len(shown)} prompts.</p>")
    for prompt, clips in list(shown.items())[:MAX_PROMPTS]:
        if blind:
            rng.shuffle(clips)
            keys.append([_text(prompt), _text(", ".join(f"{name} (seed {row['seed']})" for name, row in clips))])
        cards = []
        for number, (name, row) in enumerate(clips, start=1):
            heading = f"clip {number}" if blind else f"{name}, seed {row['seed']}"
            card, used = _card(heading, row, folder, room, blind)
            room -= used
            cards.append(card)
        parts.append(f'<section><h3>{_text(prompt)}</h3><div class="row">{"".join(cards)}</div></section>')
    return f'<h2>Clips</h2><div class="row">{"".join(parts)}</div>', "<h2>Key</h2>" + _table(keys)


def _card(heading: str, row: dict[str, Any], folder: Path, room: float, blind: bool) -> tuple[str, int]:
    """A clip with what is to be said of it, folded away where it might sway; and the bytes it takes of the ``room``."""
    parts, used = [f"<b>{_text(heading)}</b>"], 0
    path = folder / row["file"]
    if path.is_file():
        content = path.read_bytes() if path.stat().st_size * 4 / 3 <= room else None
        if content is None:
            source = html.escape(urllib.parse.quote(row["file"]), quote=True)
        else:
            source = "data:video/mp4;base64," + base64.b64encode(content).decode()
            used = len(source)
        parts.append(f'<video src="{source}" controls loop preload="metadata"></video>')
        parts.append(_spectrogram(path))
    parts += [f'<div class="failed">{_text(name)}: {_text(why)}</div>' for name, why in row["failures"].items()]
    if "verdict" in row:
        rights = {name: right for name, right in row["verdict"]["right"].items() if right is not None}
        badges = (f'<span class="{"yes" if right else "no"}">{_text(name)}</span>' for name, right in rights.items())
        told = f"<div>{' '.join(badges)}</div>"
        parts.append(f"<details><summary>verdict</summary>{told}</details>" if blind else told)
    figures = [(name, value) for name, value in row["values"].items() if not name.startswith("tabletop.")]
    lines = "<br>".join(f"{_text(name)} {'-' if value is None else format(value, '.4g')}" for name, value in figures)
    parts.append(f"<details><summary>figures</summary>{lines}</details>")
    return f'<div class="card">{"".join(parts)}</div>', used


def _spectrogram(path: Path) -> str:
    """Waveform above log-mel spectrogram, as part of the page."""
    try:
        waveform = read_sound(path, SOUND_RATE_HZ, MAX_SOUND_S)
    except InputError:
        return "<div>no sound</div>"
    sheet = contact_sheet(None, waveform, SOUND_RATE_HZ, "")
    image = sheet.crop((0, TITLE_HEIGHT, sheet.width, sheet.height)).resize((SPECTROGRAM_WIDTH, 96))
    stored = io.BytesIO()
    image.save(stored, format="JPEG", quality=75)
    return f'<img alt="spectrogram" src="data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode()}">'


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.report", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("folder", type=Path, help="where results.json lies")
    parser.add_argument("--blind", action="store_true", help="models in random order, named at the end only")
    parser.add_argument("--embed-mib", type=float, default=24.0, help="clips of so much in the page, others linked")
    args = parser.parse_args()
    print(write(results.read(args.folder / "results.json"), args.folder, blind=args.blind, embed_mib=args.embed_mib))


if __name__ == "__main__":
    run(main)
