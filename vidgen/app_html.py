"""Pieces of the page: HTML of what changes, its style, and the keyboard."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .app_form import Material
from .inspect import command
from .making import Made, Progress
from .material import read_picture
from .media import probe, read_clip, read_sound

THUMBNAIL_PIXELS = 144

WELCOME = """<div class="stage empty"><p>Your clip appears here, with its sound.</p>
<p>Say what should be seen and heard, and press <kbd>Enter</kbd>.</p></div>"""
WAITING = '<div class="stage empty waiting"><p role="status">Waiting for its turn …</p></div>'
STARTING = '<div class="stage empty"><p role="status">Starting …</p></div>'
STOPPED = '<div class="stage empty"><p role="status">Stopped.</p></div>'

LEAVE_THE_QUEUE = """() => {
  if (document.querySelector("#stage .waiting")) document.getElementById("leave").click();
}"""

KEYBOARD = """() => {
  document.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    document.getElementById("make").click();
  });
}"""
"""Ctrl-Enter makes the clip, wherever one is; Enter does in the prompt."""
TO_THE_STAGE = """(...values) => {
  if (window.innerWidth < 768) document.getElementById("stage").scrollIntoView({behavior: "smooth"});
  return values;
}"""

STYLE = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
footer { display: none !important; }
.html-container { padding: 0 !important; }
#head h1 { font-size: 1.5rem; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
#head p { margin: 0.1rem 0 0; color: var(--body-text-color-subdued); }
#prompt textarea { font-size: 1.05rem; line-height: 1.45; min-height: 5rem; }
#ideas .gallery { gap: 0.4rem; }
#ideas .gallery-item { border-radius: 999px; padding: 0.1rem 0.6rem; font-size: 0.85rem;
  color: var(--body-text-color-subdued); }
#files .wrap { font-size: 0.95rem; line-height: 1.3; padding-top: 1.4rem; color: var(--body-text-color-subdued); }
#files .icon-wrap { display: none; }
.stage { border: 1px solid var(--border-color-primary); border-radius: var(--block-radius);
  background: var(--block-background-fill); padding: 1rem; }
.stage p { margin: 0; }
.stage.empty { min-height: 17rem; display: flex; flex-direction: column; gap: 0.4rem; align-items: center;
  justify-content: center; text-align: center; }
.stage.empty p { color: var(--body-text-color-subdued); }
.stage kbd { border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 0 0.35rem; }
.stage img { width: 100%; display: block; border-radius: var(--radius-md); margin-bottom: 0.9rem; }
.stage progress { appearance: none; display: block; width: 100%; height: 0.5rem; border: 0; border-radius: 999px;
  overflow: hidden; background: var(--border-color-primary); margin-bottom: 0.4rem; }
.stage progress::-webkit-progress-bar { background: var(--border-color-primary); }
.stage progress::-webkit-progress-value { background: var(--color-accent); transition: width 0.2s; }
.stage progress::-moz-progress-bar { background: var(--color-accent); }
.stage.wrong { border-color: #dc2626; }
.stage.wrong p { color: #dc2626; }
.dark .stage.wrong p { color: #fca5a5; }
.stage.done { border: 0; background: none; padding: 0.2rem 0; }
.note { color: var(--body-text-color-subdued); font-size: 0.9rem; }
.material { display: flex; flex-wrap: wrap; gap: 0.8rem; align-items: flex-end; margin-bottom: 0.4rem; }
.material figure { margin: 0; max-width: 11rem; }
.material img { height: 4.5rem; border-radius: var(--radius-md); display: block; }
.material figcaption { font-size: 0.8rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
#video video { max-height: 26rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: 0.6rem 1rem; margin: 0; }
.facts dt { font-size: 0.75rem; color: var(--body-text-color-subdued); }
.facts dd { margin: 0; font-weight: 550; overflow-wrap: anywhere; }
.again { margin-top: 0.8rem; font-size: 0.8rem; color: var(--body-text-color-subdued); }
.again code { display: block; white-space: pre-wrap; overflow-wrap: anywhere; padding: 0.5rem 0.7rem;
  margin-top: 0.3rem; background: var(--block-background-fill); border-radius: var(--radius-md); }
#earlier h2 { font-size: 1rem; font-weight: 600; margin: 0.6rem 0 0; }
#gallery, #gallery .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
#gallery { border: 0; background: none; }
#gallery .grid-wrap { padding: 0; overflow: visible; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) !important;
  grid-auto-rows: auto !important; }
:focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container { padding: 0.6rem !important; }
  #head p { font-size: 0.9rem; }
  button.lg { min-height: 2.9rem; }
  button.md { min-height: 2.6rem; padding: 0.3rem; font-size: 0.85rem; }
}
"""


def heading(model: str) -> str:
    return f"<h1>vidgen</h1><p>Text to video, with the sound that belongs to it. Model: {html.escape(model)}</p>"


def progress(state: Progress, strip: str, left_s: float | None) -> str:
    """The stage while a clip is made; ``strip`` is the newest preview as ``picture`` gives it, or empty."""
    said = f"{state.unit.capitalize()} {state.done} of {state.total}"
    bar = f'<progress max="{state.total}" value="{state.done}" aria-label="progress"></progress>'
    if left_s is not None:
        said += f", about {max(1, round(left_s))} s left"
    return f'<div class="stage">{strip}{bar}<p class="note" role="status">{said}</p></div>'


def picture(frame: np.ndarray, alt: str) -> str:
    """(H, W, 3) uint8 as an <img> that carries its data."""
    data = io.BytesIO()
    Image.fromarray(frame).save(data, format="JPEG", quality=85)
    return f'<img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


EARLIER = "<h2>Clips of this session</h2>"


def escaped(text: str) -> str:
    return html.escape(text, quote=False)


def wrong(message: str) -> str:
    return f'<div class="stage wrong"><p role="alert">{html.escape(message)}</p></div>'


def done(clip: Made) -> str:
    said = [f"Made in {clip.seconds:.1f} s.", *clip.notes]
    return f'<div class="stage done"><p class="note" role="status">{html.escape(" ".join(said))}</p></div>'


def details(clip: Made, adapters: Sequence[str] = ()) -> str:
    """How a clip was made, with ``adapters`` of these labels, and the command that makes it again."""
    own = clip.settings
    facts = {
        "Seed": clip.tags["seed"],
        "Size": f"{own['width']} × {own['height']}",
        "Length": f"{clip.duration_s:.2f} s, {float(own['num_frames'] / clip.duration_s):.4g} fps",
        "Steps": f"{own['num_inference_steps']}, {own['solver']}",
        "Guidance": f"{own['guidance_scale']:g}, sound {own['audio_guidance_scale']:g}",
        "Model": clip.tags["model_version"],
    }
    if own["negative_prompt"]:
        facts["Keep away from"] = own["negative_prompt"]
    if own.get("camera"):
        facts["Camera"] = own["camera"].replace("-", " ")
    if adapters:
        facts["Adapters"] = ", ".join(adapters)
    if own.get("given"):
        facts["Given"] = ", ".join(f"{name.replace('_', ' ')} {said(value)}" for name, value in own["given"].items())
    rows = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items())
    return (
        f'<dl class="facts">{rows}</dl>'
        f'<div class="again">The command that makes it again:<code>{html.escape(command(clip.tags))}</code></div>'
    )


def said(value: object) -> str:
    """A recorded setting in words: spans as 0.5-1, pictures by frame as 24: a.png."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {entry}" for name, entry in value.items())
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def dropped(files: Sequence[str] | None, material: Material) -> str:
    """Small pictures of what was dropped, and what will be made of it. Raises InputError at a file that is broken."""
    square = (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    figures = []
    for path in map(Path, files or ()):
        said = path.name
        if path in material.pictures:
            shown = picture(read_picture(path, *square)[0], path.name)
        elif path == material.clip:
            info = probe(path)
            first = read_clip(path, height=square[0], width=square[1], max_frames=1)
            said += f", {info.duration_s:.3g} s, {'with sound' if info.has_audio else 'silent'}"
            shown = picture(first.frames[0], path.name)
        else:
            read_sound(path, 8000, 0.5)
            shown = ""
        figures.append(f"<figure>{shown}<figcaption>{html.escape(said)}</figcaption></figure>")
    if not figures:
        return ""
    return f'<div class="material">{"".join(figures)}</div><p class="note">{html.escape(material.says)}.</p>'
