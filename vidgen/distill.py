"""A few-step student of a flow-matching model: one step of the student does what several of its guided teacher do.

Guidance and steps are distilled at once (Meng et al. 2023, arXiv 2210.03142, section 3, which builds on progressive
distillation, Salimans & Ho 2022, arXiv 2202.00512, algorithm 2). The student's schedule is fixed in advance. From each
of its noise levels the teacher walks to the next one in small steps under guidance; the straight line between both ends
is the velocity that the student has to answer there. The student is the teacher's network and starts from its weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .conditioning import Text, guide, stack_texts
from .errors import InputError
from .flow import interpolate
from .noise import seeded_normal, to_device
from .solvers import sigma_schedule


@dataclass(frozen=True)
class DistillConfig:
    """The student's schedule, and what the teacher does in each of its steps."""

    student_steps: int = 4
    teacher_substeps: int = 4
    video_guidance: float = 4.0
    audio_guidance: float = 4.0
    video_shift: float = 1.0
    audio_shift: float = 1.0
    video_weight: float = 1.0
    audio_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.student_steps < 1 or self.teacher_substeps < 1:
            raise InputError("student_steps and teacher_substeps must be at least 1")

    def levels(self) -> tuple[Tensor, Tensor]:
        """Noise levels (student_steps, teacher_substeps + 1) of video and audio: a row for each step of the student."""
        student = self.student_steps * self.teacher_substeps
        rows = torch.arange(self.student_steps)[:, None] * self.teacher_substeps
        places = rows + torch.arange(self.teacher_substeps + 1)
        # The finer schedule holds every level of the student's own: both are even before the shift.
        video, audio = (sigma_schedule(student, shift)[places] for shift in (self.video_shift, self.audio_shift))
        return video, audio


def distillation_loss(
    student: nn.Module,
    teacher: nn.Module,
    video: Tensor,
    audio: Tensor,
    text: Text,
    negative_text: Text,
    *,
    has_audio: Tensor | None = None,
    video_times_s: Tensor,
    audio_times_s: Tensor,
    seeds: Sequence[int],
    config: DistillConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The student's squared error against the straight line through the teacher's steps, and its parts.

    Args:
        student, teacher: ``JointDiT`` or anything that is called like it.
        video, audio: clean normalised latents (B, C, t, h, w) and (B, C_a, L).
        text, negative_text: of the prompts and, as many, of what guidance leads away from.
        has_audio: bool (B,); None if every sample has sound. One without trains the first step, which starts from
            noise alone.
        video_times_s, audio_times_s: (t,) and (L,).
        seeds: one a sample; they decide its noise and which of the student's steps it trains.
    """
    device = video.device
    clean = (video, audio)
    noise = tuple(seeded_normal(seeds, x.shape[1:], device, stream=part).to(x) for part, x in enumerate(clean))
    chosen = to_device(torch.tensor([seed % config.student_steps for seed in seeds]), device)
    if has_audio is not None:
        chosen = chosen * has_audio
    levels = tuple(to_device(rows, device)[chosen] for rows in config.levels())
    times = {"video_times_s": video_times_s, "audio_times_s": audio_times_s}

    def at(model: nn.Module, x: tuple[Tensor, ...], place: int, words: Text, copies: int = 1) -> tuple[Tensor, ...]:
        features, mask = words
        video_sigma, audio_sigma = (rows[:, place].repeat(copies) for rows in levels)
        video_in, audio_in = (stream.repeat(copies, *(1 for _ in stream.shape[1:])) for stream in x)
        return model(video_in, audio_in, features, text_mask=mask, video_sigma=video_sigma[:, None, None, None],
                     audio_sigma=audio_sigma[:, None], **times)  # fmt: skip

    start = tuple(interpolate(x, e, _like(rows[:, 0], x)) for x, e, rows in zip(clean, noise, levels, strict=True))
    scales = (config.video_guidance, config.audio_guidance)
    both_texts = stack_texts(text, negative_text)
    with torch.no_grad():
        x = start
        for place in range(config.teacher_substeps):
            answers = at(teacher, x, place, both_texts, copies=2)
            x = tuple(
                stream + _like(rows[:, place + 1] - rows[:, place], stream) * guide(answer.float(), scale)
                for stream, rows, answer, scale in zip(x, levels, answers, scales, strict=True)
            )
        lines = tuple(
            (first - last) / _like(rows[:, 0] - rows[:, -1], first)
            for first, last, rows in zip(start, x, levels, strict=True)
        )
    velocities = at(student, start, 0, text)
    errors = [(velocity.float() - line).square().mean() for velocity, line in zip(velocities, lines, strict=True)]
    loss = config.video_weight * errors[0] + config.audio_weight * errors[1]
    return loss, {"video": errors[0].detach(), "audio": errors[1].detach()}


def _like(per_sample: Tensor, x: Tensor) -> Tensor:
    """(B,) to (B, 1, …) with as many axes as ``x``."""
    return per_sample.view(-1, *(1 for _ in x.shape[1:]))
