"""What is measured of the clips beside a training run's sheets."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from eval.in_training import measure_sheet
from tests.scoring import FPS, RATE_HZ, click, moving
from vidgen.media import write_video


@pytest.fixture
def sheet(tmp_path):
    """Of two clips, the second without sound; and a clip of another sheet."""
    write_video(tmp_path / "step-2-0.mp4", moving(1), click(), FPS, RATE_HZ)
    write_video(tmp_path / "step-2-1.mp4", moving(2), None, FPS)
    write_video(tmp_path / "step-1-0.mp4", moving(0), None, FPS)
    return tmp_path / "step-2.png"


def test_every_clip_has_a_row_and_the_log_the_means(sheet):
    means = measure_sheet(sheet)
    with sheet.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == ["step-2-0.mp4", "step-2-1.mp4"]
    speeds = [float(row["motion_sides_per_s"]) for row in rows]
    assert speeds[1] > 1.5 * speeds[0] > 0
    assert means["motion_sides_per_s"] == pytest.approx(sum(speeds) / 2, rel=1e-4)
    assert rows[1]["loudness_lufs"] == rows[1]["onset_sync"] == ""
    assert means["loudness_lufs"] == pytest.approx(float(rows[0]["loudness_lufs"]), rel=1e-4)


def test_a_clip_that_cannot_be_read_is_told_and_left_out(sheet, capsys):
    sheet.with_name("step-2-2.mp4").write_bytes(b"no video")
    measure_sheet(sheet)
    assert "step-2-2.mp4: cannot be read" in capsys.readouterr().out
    assert len(sheet.with_suffix(".csv").read_text().splitlines()) == 3
    assert measure_sheet(sheet.with_name("step-9.png")) == {}


def test_without_the_eval_extra_one_line_is_said(sheet):
    code = (
        "import sys; from pathlib import Path\n"
        "for name in ('cv2', 'pyloudnorm', 'scipy'): sys.modules[name] = None\n"
        "from eval.in_training import measure_sheet\n"
        f"print([measure_sheet(Path({str(sheet)!r})) for _ in range(2)])"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines == ['samples are not measured: cv2 is missing: pip install -e ".[eval]"', "[{}, {}]"]
    assert not sheet.with_suffix(".csv").exists()
