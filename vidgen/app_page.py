"""The page itself: its fields, what happens when they are used, and what they show."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import app_form, app_html
from .app_form import Form, Material, plain
from .errors import InputError
from .making import Made
from .media import read_clip

if TYPE_CHECKING:
    import gradio as gr

    from .app import Studio

KEPT_S = 86400  # of copies that the page has served
LENGTH = "Length in seconds"
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def import_gradio() -> Any:
    """Gradio, told to report nothing to anyone. Raises InputError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise InputError('the page needs Gradio: pip install "vidgen[app]"') from error
    return gradio


def build(studio: "Studio", max_duration_s: float, ideas: Sequence[str] = ()) -> "gr.Blocks":
    """The page with its events.

    Args:
        ideas: prompts to start from.
    """
    gr = import_gradio()
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
                white = gr.Brush("auto", ["#ffffff"], color_mode="fixed")
                drawn = gr.ImageEditor(label="Draw over what is to be made anew", brush=white, sources=(), layers=False,
                                       transforms=(), height=300, buttons=[], format="png", visible=False,
                                       elem_id="drawn")  # fmt: skip
                with gr.Row(visible=False) as span:
                    replace_from_s = gr.Number(0.5, label="Anew from second", minimum=0, step=0.1, elem_id="from")
                    replace_to_s = gr.Number(1.0, label="to second", minimum=0, step=0.1, elem_id="to")
                streams = [(said, name) for name, said in app_form.STREAMS.items()]
                anew = gr.Radio(streams, value="", label="Anew", visible=False, elem_id="anew")
                strength = gr.Slider(0.05, 1, value=1, step=0.05, visible=False, elem_id="strength",
                                     label="Strength: how far it may depart from what was there")  # fmt: skip
                moments = gr.Textbox(label="Seconds at which the pictures are seen", max_lines=1, visible=False,
                                     elem_id="moments")  # fmt: skip
                duration_s = gr.Slider(0.1, max_duration_s, value=round(own_s, 1), step=app_form.DURATION_STEP_S,
                                       label=LENGTH, elem_id="duration")  # fmt: skip
                with gr.Row():
                    sizes = app_form.sizes(own)
                    size = gr.Dropdown(sizes, value=sizes[0][1], label="Size", allow_custom_value=True, min_width=150,
                                       elem_id="size")  # fmt: skip
                    seed = gr.Textbox(label="Seed", placeholder="new every time", max_lines=1, min_width=150,
                                      elem_id="seed")  # fmt: skip
                with gr.Row():
                    make = gr.Button("Make the clip", variant="primary", elem_id="make", scale=3, min_width=150)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False, min_width=90)
                    leave = gr.Button(visible="hidden", elem_id="leave")
                with gr.Accordion("More settings", open=False, elem_id="more"):
                    steps = gr.Slider(1, 100, value=own.num_inference_steps, step=1, label="Steps", elem_id="steps")
                    guidance = gr.Slider(0, 15, value=own.guidance_scale, step=0.1, label="Guidance of the picture")
                    audio_guidance = gr.Slider(0, 15, value=own.audio_guidance_scale, step=0.1,
                                               label="Guidance of the sound")  # fmt: skip
                    negative_prompt = gr.Textbox(label="Keep away from", max_lines=3, max_length=2000)
                    moves = [("as the prompt says", ""), *((name.replace("-", " "), name) for name in own.cameras)]
                    camera = gr.Dropdown(moves, value="", label="Camera", visible=len(moves) > 1)
                    names = list(studio.adapters)
                    adapters = gr.CheckboxGroup(names, value=names, label="Adapters (LoRA)", visible=bool(names),
                                                elem_id="adapters")  # fmt: skip
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

        fields = [prompt, files, task, extend_s, replace_from_s, replace_to_s, anew, drawn, strength, moments,
                  duration_s, size, seed, steps, guidance, audio_guidance, negative_prompt, camera, adapters, loop,
                  with_sound]  # fmt: skip
        assert len(fields) == len(Form.__dataclass_fields__)

        def on_stage(clip: Made) -> dict[Any, Any]:
            return {
                shown: clip,
                result: gr.Column(visible=True),
                video: clip.copy,
                sheet: clip.sheet,
                details: app_html.details(clip, studio.labels_of(clip)),
                download: clip.copy,
            }

        def run(
            request: gr.Request,  # type: ignore[name-defined]
            made: list[Made],
            *values: Any,
        ) -> Iterator[dict[Any, Any]]:
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

        def begin() -> tuple[Any, ...]:
            return app_html.WAITING, gr.Button(interactive=False), gr.Button(interactive=True)

        def rest(said: str) -> tuple[Any, ...]:
            """Also after a failure, as when the queue is full and nothing began."""
            said = app_html.WELCOME if said == app_html.WAITING else said
            return said, gr.Button(interactive=True), gr.Button(interactive=False)

        def stopped(request: gr.Request) -> Any:  # type: ignore[name-defined]
            """The work ends by itself, then `rest`. Were it cancelled, Gradio might cancel the next one with it."""
            studio.stop(request.session_hash)
            return gr.Button(interactive=False)

        def left() -> tuple[Any, ...]:
            return app_html.STOPPED, gr.Button(interactive=True), gr.Button(interactive=False)

        def drop(dropped: list[str] | None) -> dict[Any, Any]:
            try:
                material = Material.of(dropped)
                said = app_html.dropped(dropped, material)
            except InputError as error:
                material, said = Material(), app_html.wrong(plain(error, dropped))
            choices = [(label, name) for name, label in material.tasks.items()]
            chosen = choices[0][1] if choices else None
            return {
                note: gr.HTML(said, visible=bool(said)),
                task: gr.Radio(choices, value=chosen, visible=len(choices) > 1),
                **of_task(dropped, chosen),
            }

        def of_task(dropped: list[str] | None, chosen: str | None) -> dict[Any, Any]:
            """The fields that a task needs."""
            material, picture = Material(), None
            with suppress(InputError):
                material = Material.of(dropped)
                if chosen == "place" and material.clip is not None and not material.pictures:
                    picture = read_clip(material.clip, max_frames=1, with_sound=False).frames[0]
            is_place = chosen == "place"
            has_sound = material.sound is not None or chosen == "sound"
            return {
                extend_s: gr.Slider(visible=chosen in ("extend", "lead")),
                drawn: gr.ImageEditor(picture, visible=picture is not None),
                span: gr.Row(visible=chosen in app_form.WITH_SPAN),
                replace_from_s: gr.Number(0.0 if is_place else 0.5),
                replace_to_s: gr.Number(0.0 if is_place else 1.0, label=f"to second{' (0: all)' * is_place}"),
                anew: gr.Radio(visible=chosen == "replace"),
                strength: gr.Slider(
                    value=app_form.OWN_STRENGTH.get(chosen or "", 1.0), visible=chosen in app_form.WITH_STRENGTH
                ),
                moments: gr.Textbox(app_form.spread(len(material.pictures), own), visible=chosen == "moments"),
                duration_s: gr.Slider(
                    visible=chosen not in app_form.OWN_LENGTH,
                    label=LENGTH + " (until it is moved, the sound's)" * has_sound,
                ),
            }

        def settings_of(clip: Made) -> tuple[Any, ...]:
            """The fields as they were for a clip; its files have to be dropped again."""
            settings = clip.settings
            return (
                clip.tags["prompt"], round(clip.duration_s, 2), f"{settings['width']}x{settings['height']}",
                clip.tags["seed"], settings["num_inference_steps"], settings["guidance_scale"],
                settings["audio_guidance_scale"], settings["negative_prompt"], settings.get("camera", ""),
                studio.labels_of(clip), settings.get("loop", False), settings.get("with_audio", True),
            )  # fmt: skip

        def choose(made: list[Made], event: gr.SelectData) -> dict[Any, Any]:  # type: ignore[name-defined]
            clip = made[event.index]
            return {stage: app_html.done(clip), **on_stage(clip)}

        outputs = [stage, clips, earlier, gallery, shown, result, video, sheet, details, download]
        prompt.submit(None, js="() => { document.getElementById('make').click(); }", **QUIET)
        begun = make.click(begin, None, [stage, make, stop], js=app_html.TO_THE_STAGE, **QUIET)
        running = begun.then(run, [clips, *fields], outputs, concurrency_limit=1, show_progress="minimal",
                             show_progress_on=[stage], api_visibility="private")  # fmt: skip
        for ended in (running.success, running.failure):
            ended(rest, [stage], [stage, make, stop], **QUIET)
        stop.click(stopped, None, [stop], js=app_html.LEAVE_THE_QUEUE, **QUIET)
        leave.click(left, None, [stage, make, stop], cancels=[running], **QUIET)
        for_task = [extend_s, drawn, span, replace_from_s, replace_to_s, anew, strength, moments, duration_s]
        files.change(drop, [files], [note, task, *for_task], **QUIET)
        task.input(of_task, [files, task], for_task, **QUIET)
        gallery.select(choose, [clips], outputs, **QUIET)
        same_seed.click(lambda clip: clip.tags["seed"], [shown], [seed], **QUIET)
        same_settings.click(
            settings_of, [shown],
            [prompt, duration_s, size, seed, steps, guidance, audio_guidance, negative_prompt, camera,
             adapters, loop, with_sound], **QUIET,
        )  # fmt: skip
    return page
