"""The page: a prompt in the browser, a clip with its sound beside it.

    python -m vidgen.app --model weights

Everything is served by this process: no fonts, scripts or statistics of others are fetched.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli
from .errors import InputError
from .generation import SHIPPED_MODEL, GenerationConfig
from .options import Parser, parse_args

if TYPE_CHECKING:
    import gradio as gr

    from .pipeline import VidGenPipeline

IDEAS = (
    "a small red metal ball drops onto a wooden floor",
    "a big blue rubber ball rolls from the left",
    "a green glass cube hits a yellow wooden cube",
)
"""Prompts of the shipped model's world."""
UPLOAD_LIMIT = "200mb"
KEPT_S = 86400  # of copies that the page has served


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m vidgen.app", description="Make clips with sound in the browser.")
    parser.add_argument(
        "--model", type=Path, default=SHIPPED_MODEL, help="folder of a model (default: the shipped one)"
    )
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


def import_gradio() -> Any:
    """Gradio, told to report nothing to anyone. Raises InputError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise InputError('the page needs Gradio: pip install "vidgen[app]"') from error
    return gradio


class Studio:
    """What the page does: one clip at a time, from the fields' values to what is shown.

    Args:
        pictures: a folder under the system's temporary one, for what is shown: Gradio serves copies from there.
    """

    def __init__(self, pipeline: "VidGenPipeline", model: Path, output: Path, pictures: Path):
        self.pipeline, self.model, self.output, self.pictures = pipeline, model, output, pictures
        self.turn = threading.Lock()
        self.stops: dict[str, threading.Event] = {}  # of the visitors whose clips are being made

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

        args = parse_args(Form(*values).words(self.pipeline.generation))
        args.model, args.output = self.model, self.output
        stop = self.stops[visitor] = threading.Event()
        start_s, strip = time.perf_counter(), ""
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


def build(studio: Studio, max_duration_s: float, ideas: tuple[str, ...] = ()) -> "gr.Blocks":
    """The page with its events; ``ideas`` are prompts to start from."""
    gr = import_gradio()
    from . import app_form, app_html
    from .app_form import Form, Material, plain

    own = studio.pipeline.generation
    own_s = min(own.spec().duration_s, max_duration_s)

    with gr.Blocks(title="vidgen", analytics_enabled=False, delete_cache=(3600, KEPT_S)) as page:
        clips = gr.State([])  # list[Made], the newest first
        shown = gr.State(None)  # the one on the stage
        gr.HTML(app_html.heading(own.model_version), elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                prompt = gr.Textbox(label="Prompt", placeholder="What should be seen and heard?", lines=1, max_lines=6,
                                    autofocus=True, elem_id="prompt", max_length=2000)  # fmt: skip
                if ideas:
                    gr.Examples([[idea] for idea in ideas], [prompt], label="Ideas", api_visibility="private",
                                elem_id="ideas")  # fmt: skip
                files = gr.File(label="From a picture, clip or sound", file_count="multiple",
                                file_types=app_form.ALL_SUFFIXES, height=110, elem_id="files")  # fmt: skip
                note = gr.HTML(visible=False)
                task = gr.Radio([], label="What to do with it", visible=False, elem_id="task")
                extend_s = gr.Slider(0.2, max_duration_s, value=min(1.0, max_duration_s), step=0.1, visible=False,
                                     label="Seconds to add")  # fmt: skip
                with gr.Row(visible=False) as span:
                    replace_from_s = gr.Number(0.5, label="Anew from second", minimum=0, step=0.1)
                    replace_to_s = gr.Number(1.0, label="to second", minimum=0, step=0.1)
                duration_s = gr.Slider(0.1, max_duration_s, value=round(own_s, 1), step=app_form.DURATION_STEP_S,
                                       label="Length in seconds", elem_id="duration")  # fmt: skip
                with gr.Row():
                    sizes = app_form.sizes(own)
                    size = gr.Dropdown(sizes, value=sizes[0][1], label="Size", allow_custom_value=True, min_width=150,
                                       elem_id="size")  # fmt: skip
                    seed = gr.Textbox(label="Seed", placeholder="new every time", max_lines=1, min_width=150,
                                      elem_id="seed")  # fmt: skip
                with gr.Row():
                    make = gr.Button("Make the clip", variant="primary", elem_id="make", scale=3, min_width=150)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False, min_width=90)
                with gr.Accordion("More settings", open=False, elem_id="more"):
                    steps = gr.Slider(1, 100, value=own.num_inference_steps, step=1, label="Steps", elem_id="steps")
                    guidance = gr.Slider(0, 15, value=own.guidance_scale, step=0.1, label="Guidance of the picture")
                    audio_guidance = gr.Slider(0, 15, value=own.audio_guidance_scale, step=0.1,
                                               label="Guidance of the sound")  # fmt: skip
                    negative_prompt = gr.Textbox(label="Keep away from", max_lines=3, max_length=2000)
                    moves = [("as the prompt says", ""), *((name.replace("-", " "), name) for name in own.cameras)]
                    camera = gr.Dropdown(moves, value="", label="Camera", visible=len(moves) > 1)
                    with gr.Row():
                        loop = gr.Checkbox(False, label="Loop", min_width=100)
                        with_sound = gr.Checkbox(True, label="Make sound", min_width=100)
            with gr.Column(scale=6, min_width=320):
                stage = gr.HTML(app_html.WELCOME, elem_id="stage")
                with gr.Column(visible=False) as result:
                    video = gr.Video(label="Clip", show_label=False, autoplay=True, buttons=[], interactive=False,
                                     elem_id="video")  # fmt: skip
                    with gr.Row():
                        download = gr.DownloadButton("Download", size="md", elem_id="download", min_width=90)
                        same_seed = gr.Button("Same seed", size="md", elem_id="same-seed", min_width=90)
                        same_settings = gr.Button("Same settings", size="md", elem_id="same-settings", min_width=90)
                    sheet = gr.Image(label="Frames, waveform and spectrogram", show_label=False, buttons=["fullscreen"],
                                     interactive=False, elem_id="sheet")  # fmt: skip
                    details = gr.HTML(elem_id="details")
        earlier = gr.HTML(app_html.EARLIER, visible=False, elem_id="earlier")
        gallery = gr.Gallery(label="Clips of this session", show_label=False, columns=6, fit_columns=False,
                             allow_preview=False, object_fit="cover", interactive=False, visible=False, buttons=[],
                             elem_id="gallery")  # fmt: skip

        fields = [prompt, files, task, extend_s, replace_from_s, replace_to_s, duration_s, size, seed, steps, guidance,
                  audio_guidance, negative_prompt, camera, loop, with_sound]  # fmt: skip
        assert len(fields) == len(Form.__dataclass_fields__)

        def on_stage(clip):
            return {
                shown: clip,
                result: gr.Column(visible=True),
                video: clip.copy,
                sheet: clip.sheet,
                details: app_html.details(clip),
                download: clip.copy,
            }

        def run(request: gr.Request, made, *values):  # type: ignore[name-defined]
            given = values[1]
            try:
                for state in studio.make(request.session_hash, *values):
                    if isinstance(state, str):
                        yield {stage: state, result: gr.Column(visible=False)}
                    else:
                        made = [state, *made]
                        captions = [(clip.poster, f"seed {clip.tags['seed']}") for clip in made]
                        yield {
                            stage: app_html.done(state),
                            clips: made,
                            earlier: gr.HTML(visible=True),
                            gallery: gr.Gallery(captions, selected_index=0, visible=True),
                            **on_stage(state),
                        }
            except InputError as error:
                said = plain(error, given)
                yield {stage: app_html.wrong(said)}
                raise gr.Error(app_html.escaped(said), title="Not made", print_exception=False) from error
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                said = f"This went wrong ({type(error).__name__}). What is known of it stands in the server's output."
                yield {stage: app_html.wrong(said)}
                raise gr.Error(said, title="Not made", print_exception=False) from error

        def begin():
            return app_html.WAITING, gr.Button(interactive=False), gr.Button(interactive=True)

        def rest(said):
            """Also after a failure, as when the queue is full and nothing began."""
            said = app_html.WELCOME if said == app_html.WAITING else said
            return said, gr.Button(interactive=True), gr.Button(interactive=False)

        def stopped(request: gr.Request):  # type: ignore[name-defined]
            studio.stop(request.session_hash)
            return app_html.STOPPED, gr.Button(interactive=True), gr.Button(interactive=False)

        def drop(dropped):
            try:
                material = Material.of(dropped)
                said = app_html.dropped(dropped, material)
            except InputError as error:
                material, said = Material(), app_html.wrong(plain(error, dropped))
            choices = [(label, name) for name, label in material.tasks.items()]
            return (
                gr.HTML(said, visible=bool(said)),
                gr.Radio(choices, value=choices[0][1] if choices else None, visible=bool(choices)),
                *of_task(dropped, choices[0][1] if choices else None),
            )

        def of_task(dropped, chosen):
            """The fields that a task needs."""
            has_length = chosen in app_form.OWN_LENGTH
            with suppress(InputError):
                has_length = has_length or Material.of(dropped).sound is not None
            return (
                gr.Slider(visible=chosen in ("extend", "lead")),
                gr.Row(visible=chosen == "replace"),
                gr.Slider(visible=not has_length),
            )

        def settings_of(clip):
            """The fields as they were for a clip; its files have to be dropped again."""
            settings = clip.settings
            return (
                clip.tags["prompt"], round(clip.duration_s, 2), f"{settings['width']}x{settings['height']}",
                clip.tags["seed"], settings["num_inference_steps"], settings["guidance_scale"],
                settings["audio_guidance_scale"], settings["negative_prompt"], settings.get("camera", ""),
                settings.get("loop", False), settings.get("with_audio", True),
            )  # fmt: skip

        def choose(made, event: gr.SelectData):  # type: ignore[name-defined]
            clip = made[event.index]
            return {stage: app_html.done(clip), **on_stage(clip)}

        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        outputs = [stage, clips, earlier, gallery, shown, result, video, sheet, details, download]
        prompt.submit(None, js="() => { document.getElementById('make').click(); }", **quiet)
        begun = make.click(begin, None, [stage, make, stop], js=app_html.TO_THE_STAGE, **quiet)
        running = begun.then(run, [clips, *fields], outputs, concurrency_limit=1, show_progress="minimal",
                             show_progress_on=[stage], api_visibility="private")  # fmt: skip
        for ended in (running.success, running.failure):
            ended(rest, [stage], [stage, make, stop], **quiet)
        stop.click(stopped, None, [stage, make, stop], cancels=[running], **quiet)
        files.change(drop, [files], [note, task, extend_s, span, duration_s], **quiet)
        task.input(of_task, [files, task], [extend_s, span, duration_s], **quiet)
        gallery.select(choose, [clips], outputs, **quiet)
        same_seed.click(lambda clip: clip.tags["seed"], [shown], [seed], **quiet)
        same_settings.click(
            settings_of, [shown],
            [prompt, duration_s, size, seed, steps, guidance, audio_guidance, negative_prompt, camera, loop,
             with_sound], **quiet,
        )  # fmt: skip
    return page


def launch(page: "gr.Blocks", args: argparse.Namespace, *, wait: bool = True) -> str:
    """Serve the page and return its address, at once if not told to ``wait`` for its end.

    Raises:
        InputError: the port is taken.
    """
    gr = import_gradio()
    from . import app_html

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
    GenerationConfig.load(args.model)
    import_gradio()
    args.output.mkdir(parents=True, exist_ok=True)
    cli.keep_freed_memory()
    from .loading import choose_device
    from .pipeline import VidGenPipeline

    pipeline = VidGenPipeline.from_pretrained(args.model, device=choose_device(args.device))
    with tempfile.TemporaryDirectory(prefix="vidgen-") as pictures:
        studio = Studio(pipeline, args.model, args.output, Path(pictures))
        launch(build(studio, args.max_duration, IDEAS if args.model == SHIPPED_MODEL else ()), args)


if __name__ == "__main__":
    cli.run(main)
