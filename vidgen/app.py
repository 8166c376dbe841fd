"""The page: a prompt in the browser, a clip with its sound beside it.

    python -m vidgen.app --model weights

Everything is served by this process: no fonts, scripts or statistics of others are fetched.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from .errors import InputError
from .generation import QUALITIES, SHIPPED_MODEL, GenerationConfig, chosen_quality
from .options import Parser, parse_args

if TYPE_CHECKING:
    import gradio as gr

    from .making import Made
    from .pipeline import VidGenPipeline

IDEAS = (
    "a small red metal ball drops onto a wooden floor",
    "a big blue rubber ball rolls from the left",
    "a green glass cube hits a yellow wooden cube",
)
"""Prompts of the shipped model's world."""
UPLOAD_LIMIT = "200mb"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m vidgen.app", description="Make clips with sound in the browser.")
    parser.add_argument(
        "--model", type=Path, default=SHIPPED_MODEL, help="folder of a model (default: the shipped one)"
    )
    parser.add_argument("--lora", nargs="+", action="extend", default=[], metavar="PATH[:SCALE]",
                        help="adapters to choose from on the page")  # fmt: skip
    parser.add_argument("--quality", choices=QUALITIES,
                        help="fast: the few-step student of the model (default if there is); high: guided")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for clips (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--max-waiting", type=int, default=16, help="clips in the queue at most (default: %(default)s)")
    parser.add_argument("--max-duration", type=float, default=10.0, metavar="SECONDS",
                        help="of a clip (default: %(default)s)")  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args(argv)
    if args.max_waiting < 1:
        raise InputError(f"--max-waiting must be at least 1, not {args.max_waiting}")
    if not 0.5 <= args.max_duration <= 60:
        raise InputError(f"--max-duration must lie between 0.5 and 60 seconds, not {args.max_duration}")
    return args


class Studio:
    """What the page does: one clip at a time, from the fields' values to what is shown.

    Args:
        pictures: a folder under the system's temporary one, for what is shown: Gradio serves copies from there.
        loras: adapters to choose from, each ``PATH[:SCALE]``; visitors see their labels only.
        quality: as which the pipeline was loaded, for the recipes of clips.
    """

    def __init__(
        self, pipeline: "VidGenPipeline", model: Path, output: Path, pictures: Path, loras: Sequence[str] = (),
        quality: str | None = None,
    ):  # fmt: skip
        from .app_form import adapter_labels

        self.pipeline, self.model, self.output, self.pictures = pipeline, model, output, pictures
        self.adapters = adapter_labels(loras)  # by label
        self.quality = quality
        self.turn = threading.Lock()
        self.stops: dict[str, threading.Event] = {}  # of the visitors whose clips are being made

    def labels_of(self, clip: "Made") -> list[str]:
        """The adapters that a clip was made with."""
        texts = clip.settings.get("lora", [])
        return [label for label, text in self.adapters.items() if text in texts]

    def stop(self, visitor: str) -> None:
        """End what is made for a visitor with the step that is being done."""
        if visitor in self.stops:
            self.stops[visitor].set()

    def make(self, visitor: str, *values: Any) -> Iterator[Any]:
        """States of the clip: HTML of the stage while it is made, then the clip itself; no clip if it is stopped.

        Raises:
            InputError: what was asked for cannot be made.
        """
        from . import app_html
        from .app_form import Form
        from .making import Made, Stopped, make

        args = parse_args(Form(*values).words(self.pipeline.generation, self.output, self.adapters))
        args.model, args.output, args.quality = self.model, self.output, self.quality
        stop = self.stops[visitor] = threading.Event()
        start_s, strip = time.perf_counter(), ""
        yield app_html.STARTING  # from here on the work ends by itself when it is told to
        states = make(self.pipeline, args, self.pictures, self.turn, stop)
        try:
            for state in states:
                if isinstance(state, Made):
                    yield state
                    return
                if state.preview is not None:
                    strip = app_html.picture(state.preview, "moments of the clip as it is so far")
                left_s = None
                if state.done:
                    left_s = (time.perf_counter() - start_s) / state.done * (state.total - state.done)
                yield app_html.progress(state, strip, left_s)
        except Stopped:
            yield app_html.STOPPED
        finally:
            states.close()
            if self.stops.get(visitor) is stop:
                del self.stops[visitor]


def launch(page: "gr.Blocks", args: argparse.Namespace, *, wait: bool = True) -> str:
    """Serve the page and return its address, at once if not told to ``wait`` for its end.

    Raises:
        InputError: the port is taken.
    """
    from . import app_html
    from .app_page import import_gradio

    gr = import_gradio()
    theme = gr.themes.Soft(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    ).set(
        block_title_background_fill="transparent", block_title_padding="0", block_title_text_color="*body_text_color",
        block_label_background_fill="transparent", block_label_text_color="*body_text_color",
        block_label_border_width="0", block_label_shadow="none", block_border_width="1px", block_shadow="none",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_600",
        body_text_color_subdued="*neutral_500", input_placeholder_color="*neutral_500",
    )  # fmt: skip
    page.queue(max_size=args.max_waiting, api_open=False)
    try:
        _, address, _ = page.launch(
            server_name=args.host,
            server_port=args.port,
            inbrowser=args.open,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=UPLOAD_LIMIT,
            footer_links=[],
            ssr_mode=False,
            theme=theme,
            css=app_html.STYLE,
            js=app_html.KEYBOARD,
        )
    except OSError as error:
        raise InputError(f"port {args.port or '7860 and those after it'} is taken: give another --port") from error
    print(f"vidgen is at {address}", flush=True)
    if wait:
        page.block_thread()
    return address


def main() -> None:
    args = parse_arguments()
    args.quality = chosen_quality(args.model, args.quality)
    GenerationConfig.load(args.model, args.quality)
    from .app_page import build, import_gradio

    import_gradio()
    args.output.mkdir(parents=True, exist_ok=True)
    cli.keep_freed_memory()
    from .loading import choose_device
    from .lora import Lora
    from .pipeline import VidGenPipeline

    pipeline = VidGenPipeline.from_pretrained(args.model, device=choose_device(args.device), quality=args.quality)
    pipeline.use_loras([Lora.parse(text) for text in args.lora])  # what does not fit is told now
    with tempfile.TemporaryDirectory(prefix="vidgen-") as pictures:
        studio = Studio(pipeline, args.model, args.output, Path(pictures), args.lora, args.quality)
        ideas = IDEAS if args.model == SHIPPED_MODEL else ()
        launch(build(studio, args.max_duration, ideas), args)


if __name__ == "__main__":
    cli.run(main)
