"""Long clips in windows: nothing is lost, moved or decoded otherwise than at once, and no window grows."""

import itertools
import json
import shlex
from fractions import Fraction

import numpy as np
import pytest
import torch

import sample
from vidgen import inspect, streaming
from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.media import read_clip, read_metadata
from vidgen.pipeline import VidGenPipeline
from vidgen.streaming import ENDING_LATENTS, Window, plan_windows

from .test_pipeline import SPEC, make_pipeline, seeded

LONG_S = 40 / 24  # 11 latent frames, in windows of 3


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture
def calls(pipeline, monkeypatch):
    """What each window's denoising was given and made."""
    seen, denoise = [], pipeline.denoise

    def recorded(noise, text, negative_text, sampling, video_times_s, audio_times_s, conditioning, on_step_end=None):
        made = denoise(noise, text, negative_text, sampling, video_times_s, audio_times_s, conditioning, on_step_end)
        seen.append({"text": text, "times": (video_times_s, audio_times_s), "given": conditioning, "made": made})
        return made

    monkeypatch.setattr(pipeline, "denoise", recorded)
    monkeypatch.setattr(
        streaming, "held", lambda made, _known, _like: made
    )  # so that what was made is what is passed on
    return seen


@pytest.mark.parametrize("total", range(1, 40))
def test_windows_cover_every_latent_frame_once(total):
    windows = plan_windows(total, 13, 6)
    made = [frame for window in windows for frame in range(window.start + window.known, window.stop)]
    assert made == list(range(total))
    assert all(window.stop - window.start == 12 and window.known >= 6 for window in windows[1:])
    assert windows[0] == Window(0, min(13, total), 0)


@pytest.mark.parametrize("cuts", [(1,), (5, 6), (13, 20), (4, 30)])
def test_a_new_part_begins_at_every_cut(cuts):
    windows = plan_windows(40, 13, 6, cuts)
    made = [frame for window in windows for frame in range(window.start + window.known, window.stop)]
    assert made == list(range(40))
    assert set(cuts) <= {window.start + window.known for window in windows}
    assert all(window.stop - window.start <= 13 and window.known >= min(6, window.start + 1) for window in windows[1:])


@pytest.mark.parametrize(("frame_rate", "overlap"), [(120, 1), (60, 3), (6, 1)])
def test_sound_has_no_gap_at_other_rates(pipeline, frame_rate, overlap):
    settings = {"frame_rate": frame_rate, "overlap_latents": overlap, "num_inference_steps": 1}
    chunks = list(pipeline.stream("a red ball", 2.0, generator=seeded(3), **settings))
    assert sum(len(chunk.frames) for chunk in chunks) == 2 * frame_rate
    assert sum(len(chunk.waveform) for chunk in chunks) == 48000


def test_a_clip_of_one_window_is_what_the_pipeline_makes(pipeline):
    whole = pipeline("a red ball", generator=seeded(3))
    (chunk,) = pipeline.stream("a red ball", SPEC.duration_s, generator=seeded(3))
    assert np.array_equal(chunk.frames, whole.frames[0])
    assert np.abs(chunk.waveform - whole.audio[0]).max() < 1e-5


@pytest.mark.parametrize("frame_rate", [24, Fraction(24000, 1001)])
def test_chunks_join_to_the_decoded_whole(pipeline, calls, frame_rate):
    chunks = list(pipeline.stream("a red ball", LONG_S, overlap_latents=1, frame_rate=frame_rate, generator=seeded(3)))
    spec = ClipSpec.from_duration(LONG_S, frame_rate, height=32, width=64)
    assert len(chunks) == len(calls) > 4
    shown = 0
    for chunk in chunks:
        assert chunk.start_frame == shown
        assert len(chunk.waveform) == spec.samples_until(shown + len(chunk.frames)) - spec.samples_until(shown)
        shown += len(chunk.frames)
    assert shown == spec.num_frames

    video, audio = [], []
    for call in calls:
        video.append(call["made"][0][:, :, known(call["given"].video_given) :])
        end = None if call is calls[-1] else -ENDING_LATENTS
        audio.append(call["made"][1][:, :, known(call["given"].audio_given) : end])
    assert torch.cat(audio, dim=2).shape[2] == spec.audio_latents
    whole = pipeline.vae.from_latents(torch.cat(video, dim=2)).clamp(-1, 1)[0, :, : spec.num_frames]
    frames = np.concatenate([chunk.frames for chunk in chunks]).transpose(3, 0, 1, 2)
    assert np.abs(frames - (whole.detach().numpy() + 1) * 127.5).max() < 0.51
    sound = pipeline.codec.from_latents(torch.cat(audio, dim=2), spec.num_samples).clamp(-1, 1)[0, 0]
    assert np.abs(np.concatenate([chunk.waveform for chunk in chunks]) - sound.detach().numpy()).max() < 1e-4


def known(mask):
    return 0 if mask is None else int(mask.sum())


def test_windows_go_on_from_what_is_there_on_the_same_clock(pipeline, calls):
    list(pipeline.stream("a red ball", LONG_S, overlap_latents=1, generator=seeded(3)))
    own = SPEC.video_latent_times_s()
    hop_s = SPEC.compression.samples / SPEC.sample_rate_hz
    for before, call in itertools.pairwise(calls):
        given = call["given"]
        count, count_audio = known(given.video_given), known(given.audio_given)
        assert count >= 1 <= count_audio
        assert torch.equal(call["made"][0][:, :, :count], before["made"][0][:, :, -count:])
        assert torch.equal(
            call["made"][1][:, :, :count_audio],
            before["made"][1][:, :, -count_audio - ENDING_LATENTS : -ENDING_LATENTS],
        )
        video_times_s, audio_times_s = call["times"]
        assert video_times_s == pytest.approx(own[1:])  # no window is larger than the model's own clip
        assert 0 <= audio_times_s[0] - 0.5 * hop_s < hop_s
        assert audio_times_s[-1] <= SPEC.duration_s + hop_s


def test_faults_do_not_grow_from_window_to_window(pipeline, monkeypatch):
    """A model that makes every window harder and brighter than the one before; a new prompt starts anew."""
    windows = itertools.count()

    def denoise(noise, _text, _negative, _sampling, _video_times_s, _audio_times_s, given, _on_step_end=None):
        turn = next(windows)
        video = 2.0 ** min(turn, 8) * noise[0] + turn
        return given.start((video, None))[0], noise[1]

    monkeypatch.setattr(pipeline, "denoise", denoise)
    monkeypatch.setattr(streaming, "_decode", lambda _pipeline, _spec, latents, _with_audio: latents)

    def made(prompt):
        nonlocal windows
        windows = itertools.count()
        parts = [video for video, _ in pipeline.stream(prompt, 60 / 24, with_audio=False, generator=seeded(3))]
        return [(float(part.mean()), float(part.std())) for part in parts]

    mean, std = made("a red ball")[0]
    for later_mean, later_std in made("a red ball")[1:]:
        assert abs(later_mean - mean) < 0.5 * std
        assert later_std < 1.5 * std
    told = made([(0, "a red ball"), (1, "a blue cube")])
    assert all(red_std < 1.5 * std for _, red_std in told[:5])
    new_mean, new_std = told[5]  # the prompt changes there: see test_prompts_change_where_a_new_part_begins
    assert new_std > 10 * std
    for later_mean, later_std in told[6:]:
        assert abs(later_mean - new_mean) < 0.5 * new_std
        assert later_std < 1.5 * new_std
    monkeypatch.setattr(streaming, "held", lambda video, _known, _like: video)
    assert made("a red ball")[-1][1] > 50 * std


def test_a_window_is_held_to_what_was_and_what_is_known_stays():
    torch.manual_seed(0)
    like = (torch.full((1, 3, 1, 1, 1), 5.0), torch.tensor([0.5, 1.0, 8.0]).view(1, 3, 1, 1, 1))
    video = 2 * torch.randn(1, 3, 6, 32, 32)
    out = streaming.held(video, 2, like)
    assert torch.equal(out[:, :, :2], video[:, :, :2])
    shift, spread = (
        out[:, :, 2:].mean((0, 2, 3, 4)),
        out[:, :, 2:].std((0, 2, 3, 4)) / video[:, :, 2:].std((0, 2, 3, 4)),
    )
    assert shift.tolist() == pytest.approx([5, 5, 5], abs=0.1)
    assert spread.tolist() == pytest.approx([0.25, 0.5, 1.0], abs=0.03), "never more spread than was made"


def test_prompts_change_where_a_new_part_begins(pipeline, calls):
    story = [(0, "a red ball"), (1, "a blue cube")]
    list(pipeline.stream(story, LONG_S, overlap_latents=1, generator=seeded(3)))
    red, blue = (pipeline.encode_text([text])[0] for _, text in story)
    told = [torch.equal(call["text"][0], blue) for call in calls]
    assert not told[0]
    assert told == sorted(told)
    assert all(told[n] or torch.equal(call["text"][0], red) for n, call in enumerate(calls))
    # New parts begin with latent frames 0, 3, 4, 5, …; the middle of 7 is the first beyond 1 s.
    assert told.index(True) == 5


def test_without_sound_and_the_same_seed(pipeline):
    first, again, other = (
        list(pipeline.stream("a red ball", LONG_S, with_audio=False, generator=seeded(seed))) for seed in (3, 3, 4)
    )
    assert all(chunk.waveform is None for chunk in first)
    assert sum(len(chunk.frames) for chunk in first) == 40
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].frames, other[0].frames)


def test_a_chunk_is_there_before_the_next_window_is_made(pipeline, calls):
    chunks = pipeline.stream("a red ball", LONG_S, overlap_latents=1, with_audio=False, generator=seeded(3))
    assert not calls
    next(chunks)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("prompt", "duration_s", "settings", "message"),
    [
        (" ", 1, {}, "empty"),
        ([], 1, {}, "empty"),
        ([(0.5, "a ball")], 1, {}, "start at 0 s"),
        ([(0, "a ball"), (0, "a cube")], 1, {}, "in order"),
        ([(0, "a ball"), (3, "a cube")], 1, {}, "lies beyond"),
        ("a ball", 0, {}, "duration"),
        ("a ball", 1, {"overlap_latents": 0}, "overlap by 1 to 1, not 0"),
        ("a ball", 1, {"solver": "magic"}, "magic"),
        ("a ball", 1, {"num_inference_steps": 0}, "0 steps"),
        ([(0, "a ball"), (0.5, "a cube"), (0.51, "a cone")], 1, {}, "'a cube'.*less than a latent frame"),
    ],
)
def test_what_cannot_be_made_is_said_at_once(pipeline, prompt, duration_s, settings, message):
    with pytest.raises(InputError, match=message):
        pipeline.stream(prompt, duration_s, **settings)


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return str(folder)


def test_a_story_becomes_a_file_that_says_how_it_was_made(folder, tmp_path, capsys):
    path = tmp_path / "story.mp4"
    words = ["--model", folder, "--seed", "3", "--duration", f"{LONG_S:.6g}"]
    sample.main(["--prompt", "0s: a red ball", "1s: a blue cube", *words, "--output", str(path), "--preview", "--json"])
    line = json.loads(capsys.readouterr().out)
    assert line["seconds"]["first_part"] < line["seconds"]["all_parts"]
    assert path.with_suffix(".png").exists()
    clip = read_clip(path)
    assert len(clip.frames) == 40
    assert len(clip.waveform) == 40000

    tags = read_metadata(path)
    again = shlex.split(inspect.command(tags))[2:]
    sample.main([*again, "--output", str(tmp_path / "again.mp4")])
    assert read_metadata(tmp_path / "again.mp4") == tags
    assert np.array_equal(read_clip(tmp_path / "again.mp4").frames, clip.frames)


def test_what_was_made_before_an_interruption_can_be_played(pipeline, folder, tmp_path, monkeypatch):
    made = sum(len(chunk.frames) for chunk in itertools.islice(pipeline.stream("a red ball", 2.0), 3))
    path, stream = tmp_path / "long.mp4", VidGenPipeline.stream

    def interrupted(*args, **kwargs):
        yield from itertools.islice(stream(*args, **kwargs), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(VidGenPipeline, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample.main(["--prompt", "a red ball", "--model", folder, "--duration", "2", "--output", str(path)])
    clip = read_clip(path)
    assert len(clip.frames) == made < 48
    assert len(clip.waveform) == made * 1000


def test_what_is_given_does_not_go_with_a_story(folder, tmp_path):
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 32)).save(picture)
    story = ["--prompt", "0s: a ball", "0.2s: a cube"]
    with pytest.raises(InputError, match="go with one prompt"):
        sample.main([*story, "--model", folder, "--image", str(picture), "--output", str(tmp_path)])
