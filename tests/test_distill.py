"""The student's target, where the teacher's way is known."""

import pytest
import torch

from vidgen.distill import DistillConfig, distillation_loss
from vidgen.errors import InputError
from vidgen.solvers import sigma_schedule

torch.manual_seed(0)
VIDEO, AUDIO = torch.randn(4, 2, 3, 2, 2), torch.randn(4, 3, 5)
TIMES = {"video_times_s": torch.arange(3.0), "audio_times_s": torch.arange(5.0)}
SEEDS = [11, 12, 13, 14]


def words(value):
    return torch.full((4, 1, 1), value), torch.ones(4, 1, dtype=torch.bool)


class Field(torch.nn.Module):
    """Velocities that are a constant of the text, plus ``slope`` times the place; keeps the levels that it is told."""

    def __init__(self, slope=0.0, answer=1.0):
        super().__init__()
        self.slope, self.answer, self.levels = slope, answer, []

    def forward(self, video, audio, text, *, text_mask, video_sigma, audio_sigma, **times):
        self.levels.append((video_sigma.flatten(), audio_sigma.flatten()))
        constant = self.answer * text.mean((1, 2))
        return (self.slope * video + constant.view(-1, 1, 1, 1, 1), self.slope * audio + 2 * constant.view(-1, 1, 1))


def loss_of(student, teacher, **changes):
    config = DistillConfig(**{"student_steps": 4, "teacher_substeps": 3, "video_guidance": 3.0, "audio_guidance": 2.0,
                              "video_shift": 3.0, "audio_shift": 2.0, **changes})  # fmt: skip
    return distillation_loss(
        student, teacher, VIDEO, AUDIO, words(1.0), words(0.5), **TIMES, seeds=SEEDS, config=config
    )


def test_the_target_of_a_constant_field_is_the_guided_constant():
    student = Field(answer=0.0)
    _, parts = loss_of(student, Field())
    assert float(parts["video"]) == pytest.approx((0.5 + 3 * 0.5) ** 2, rel=1e-4)
    assert float(parts["audio"]) == pytest.approx((1 + 2 * 1) ** 2, rel=1e-4)


def test_one_unguided_step_of_the_teacher_is_the_teacher_itself():
    same = {"teacher_substeps": 1, "video_guidance": 1.0, "audio_guidance": 1.0}
    assert float(loss_of(Field(0.7), Field(0.7), **same)[0]) == pytest.approx(0, abs=1e-9)
    assert float(loss_of(Field(0.7), Field(0.7), **same | {"teacher_substeps": 3})[0]) > 1e-3


def test_the_line_joins_the_ends_of_the_exact_path():
    """dx/dσ = s·x has x(σ') = x(σ)·exp(s·(σ' − σ)); with many substeps the teacher follows it."""
    slope, substeps = 0.8, 400
    config = DistillConfig(student_steps=1, teacher_substeps=substeps, video_guidance=1, audio_guidance=1)

    class Exact(Field):
        def forward(self, video, audio, text, **rest):
            gain = 1 - torch.exp(torch.tensor(-slope))  # over σ = 1 to 0
            return gain * video, gain * audio

    _, parts = distillation_loss(
        Exact(), Field(slope, answer=0.0), VIDEO, AUDIO, words(1.0), words(1.0), **TIMES, seeds=SEEDS, config=config
    )
    assert float(parts["video"]) < 1e-5
    assert float(parts["audio"]) < 1e-5


def test_the_students_levels_are_its_schedule():
    config = DistillConfig(student_steps=4, teacher_substeps=5, video_shift=3.0, audio_shift=2.0)
    for rows, shift in zip(config.levels(), (3.0, 2.0), strict=True):
        schedule = sigma_schedule(4, shift)
        assert torch.allclose(rows[:, 0], schedule[:-1])
        assert torch.allclose(rows[:, -1], schedule[1:], atol=1e-6)
        assert (rows.diff(dim=1) < 0).all()


def test_the_student_is_asked_once_where_the_teacher_starts():
    student, teacher = Field(), Field()
    loss_of(student, teacher)
    video_level, audio_level = student.levels[0]
    steps = torch.tensor([seed % 4 for seed in SEEDS])
    assert torch.allclose(video_level, sigma_schedule(4, 3.0)[steps])
    assert torch.allclose(audio_level, sigma_schedule(4, 2.0)[steps])
    assert torch.equal(teacher.levels[0][0], video_level.repeat(2))
    assert len(student.levels) == 1
    assert len(teacher.levels) == 3


def test_a_clip_without_sound_starts_from_noise():
    student = Field()
    has_audio = torch.tensor([True, False, True, False])
    distillation_loss(student, Field(), VIDEO, AUDIO, words(1.0), words(0.5), **TIMES, has_audio=has_audio, seeds=SEEDS,
                      config=DistillConfig())  # fmt: skip
    levels, _ = student.levels[0]
    assert (levels[~has_audio] == 1).all()
    assert levels[0] < 1  # 11 % 4 = 3: the last of the four steps


def test_no_gradient_reaches_the_teacher():
    teacher = torch.nn.Linear(1, 1)

    class Scaled(Field):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, video, audio, text, **rest):
            return self.layer.weight * video, self.layer.weight * audio

    student = torch.nn.Linear(1, 1)
    loss, _ = loss_of(Scaled(student), Scaled(teacher))
    loss.backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_no_steps_are_an_input_error():
    with pytest.raises(InputError, match="student_steps"):
        DistillConfig(student_steps=0)
