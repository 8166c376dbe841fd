"""What the tests of the page share: its fields filled in, files to drop, and what makes the clips."""

from pathlib import Path

import numpy as np
from PIL import Image

from vidgen import app, media
from vidgen.app_form import Form
from vidgen.generation import SHIPPED_MODEL, GenerationConfig

OWN = GenerationConfig(num_frames=9, height=32, width=64, num_inference_steps=2)


def form(**fields):
    values = {
        "prompt": "a red ball", "files": None, "task": None, "extend_s": 0.25, "replace_from_s": 0.1,
        "replace_to_s": 0.3, "anew": "", "drawn": None, "strength": 1.0, "moments": None,
        "duration_s": round(OWN.spec().duration_s, 1), "size": "64x32", "seed": "3", "steps": 2, "guidance": 2.0,
        "audio_guidance": 3.0, "negative_prompt": None, "camera": "", "loras": [], "loop": False, "with_sound": True,
    }  # fmt: skip
    return Form(**(values | fields))


def studio(pipeline, folder, loras=()):
    return app.Studio(pipeline, SHIPPED_MODEL, folder / "clips", folder, loras)


def write_files(folder):
    """clip.mp4 of 192×128, a.png, b.jpg and c.png of its frames, and broken.png."""
    y, x = np.mgrid[:128, :192] / 128
    falling = np.minimum(0.15 + 0.05 * np.arange(20), 0.75)
    ball = (x - 0.75) ** 2 + (y - falling[:, None, None]) ** 2 < 0.02
    frames = np.where(ball[..., None], (200, 40, 30), (190, 190, 195)).astype(np.uint8)
    sound = np.sin(2 * np.pi * 440 * np.arange(20000) / 24000).astype(np.float32) / 2
    media.write_video(folder / "clip.mp4", frames, sound, 24)
    for frame, name in enumerate(("a.png", "b.jpg", "c.png")):
        Image.fromarray(frames[frame]).save(folder / name)
    (folder / "broken.png").write_text("no picture")
    return Path(folder)
