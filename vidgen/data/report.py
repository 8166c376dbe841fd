"""What a preparation kept and dropped, and why, as one page of HTML that needs no network."""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import replacing
from ..media import read_clip
from .journal import Progress
from .shards import Slice

SHOWN_CLIPS = 48
SHOWN_DROPS = 500
HISTOGRAMS = {
    "duration_s": "length, seconds",
    "width": "width, pixels",
    "height": "height, pixels",
    "luma": "brightness, 0 to 255",
    "motion": "mean change from frame to frame, 0 to 255",
    "loudness_lufs": "loudness, LUFS",
    "sync_offset_s": "sound late by, seconds (where it can be told)",
}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:left;border-bottom:1px solid #ddd;
overflow-wrap:anywhere}td.n{text-align:right}svg{background:#f6f6f6}.plots,.clips{display:flex;flex-wrap:wrap;gap:1em}
figure{margin:0;width:200px;font-size:12px}figure img{width:100%;display:block}"""


def write_report(output: Path, entries: list[dict[str, Any]], progress: Progress, mistakes: list[str]) -> Path:
    """``report.html``: counts, reasons, histograms, a contact sheet, and what was dropped.

    Args:
        entries: of the index.
        mistakes: what is wrong with the captions.
    """
    hours = sum(entry["duration_s"] for entry in entries) / 3600
    counts = Counter(entry["kind"] for entry in entries)
    silent = sum(entry["kind"] == "video" and not entry["has_audio"] for entry in entries)
    size_gb = sum(entry["bytes"] for entry in entries) / 1e9
    totals = {
        "files": len(progress.files),
        "clips": len(entries),
        **{f"{kind} clips": count for kind, count in sorted(counts.items())},
        "video clips without sound": silent,
        "clips without a caption": sum(not entry["captions"] for entry in entries),
        "hours": f"{hours:.3f}",
        "gigabytes": f"{size_gb:.3f}",
        "caption lines that cannot be used": len(mistakes),
    }
    notes = Counter(note for line in progress.files.values() for note in line["notes"])
    drops = [
        (name, drop["reason"], drop.get("detail", ""))
        for name, line in progress.files.items()
        for drop in line["drops"]
    ]
    drops += [(drop["file"], drop["reason"], drop.get("detail", "")) for drop in progress.drops]
    plots = "".join(
        histogram([entry[name] for entry in entries if entry.get(name) is not None], title)
        for name, title in HISTOGRAMS.items()
    )
    step = max(1, len(entries) // SHOWN_CLIPS)
    clips = "".join(_figure(output, entry) for entry in entries[::step][:SHOWN_CLIPS])
    more = "" if len(drops) <= SHOWN_DROPS else f"<p>{len(drops) - SHOWN_DROPS} more are in the journals.</p>"
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(output.name)}</title>
<style>{STYLE}</style><h1>{_text(output.name)}</h1>{_table(totals.items())}
<h2>Dropped</h2>{_table(progress.reasons().most_common()) or "<p>Nothing.</p>"}
<h2>Mended or noted</h2>{_table(notes.most_common()) or "<p>Nothing.</p>"}
<h2>Clips</h2><div class="plots">{plots}</div><div class="clips">{clips}</div>
<h2>What was dropped</h2><table>{"".join(_row(drop) for drop in drops[:SHOWN_DROPS])}</table>{more}
<h2>Made with</h2><pre>{_text(_settings(progress))}</pre></html>"""
    path = output / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def histogram(values: Sequence[float], title: str, bins: int = 24) -> str:
    """An SVG; nothing where there is nothing to count."""
    if not values:
        return ""
    counts, edges = np.histogram(np.array(values, float), bins)
    width, height = 300, 90
    bars = "".join(
        f'<rect x="{index * width / bins:.1f}" y="{height * (1 - count / counts.max()):.1f}" '
        f'width="{width / bins - 1:.1f}" height="{height * count / counts.max():.1f}" fill="#4477aa"/>'
        for index, count in enumerate(counts)
    )
    label = f"{title}: {edges[0]:.4g} to {edges[-1]:.4g}, median {np.median(values):.4g}"
    return f'<div><svg width="{width}" height="{height}">{bars}</svg><div>{_text(label)}</div></div>'


def _figure(output: Path, entry: dict[str, Any]) -> str:
    picture = ""
    if entry["kind"] != "sound":
        try:
            data = Slice(output / entry["shard"], entry["offset"], entry["bytes"]).read()
            image = Image.open(io.BytesIO(data)) if entry["kind"] == "image" else _middle(data, entry["duration_s"])
            image.thumbnail((200, 200))
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=80)
            picture = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
        except (InputError, OSError) as error:
            picture = _text(str(error))
    words = [entry["captions"][0]] if entry["captions"] else []
    words.append(f"{entry['kind']}, {entry['duration_s']:.1f} s{', sound' if entry['has_audio'] else ''}")
    caption = "<br>".join(map(_text, words))
    return f'<figure title="{_text(entry["file"])}">{picture}<figcaption>{caption}</figcaption></figure>'


def _middle(data: bytes, duration_s: float) -> Image.Image:
    return Image.fromarray(read_clip(data, start_s=duration_s / 2, max_frames=1).frames[0])


def _settings(progress: Progress) -> str:
    return "\n".join(
        f"{name}: {value}"
        for group in (progress.settings or {}).values()
        for name, value in (group.items() if isinstance(group, dict) else [("cut_threshold", group)])
    )


def _table(rows: Any) -> str:
    body = "".join(f'<tr><td>{_text(name)}</td><td class="n">{_text(value)}</td></tr>' for name, value in rows)
    return f"<table>{body}</table>" if body else ""


def _row(cells: Sequence[Any]) -> str:
    return f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"


def _text(value: Any) -> str:
    """Safe in HTML, whatever bytes a file's name is made of."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())
