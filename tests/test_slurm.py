"""runs/slurm.sh with stand-ins for SLURM and Python: what each machine starts, and what comes after the signal."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# SLURM 22.05's own srun, told to end, kills what it started and leaves nothing time to save: so does this one.
STAND_INS = {
    "srun": """
shift
SLURM_NODEID=1 "$@" &
echo $! >"$SEEN/step"
trap 'kill -KILL $(cat "$SEEN/step"); exit 143' TERM
wait $!""",
    "scancel": '[ "$*" = "--signal=TERM $SLURM_JOB_ID" ] && kill -TERM $(cat "$SEEN/step")',
    "squeue": """
[ "${STATE:-}" != busy ] || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
echo ${STATE:-RUNNING}""",
    "scontrol": """
case "$1 $2" in
"show hostnames") printf "first\\nsecond\\n" ;;
"show job") echo "JobId=$3 ${JOB:-PreemptTime=None}" ;;
*) echo "$@" >"$SEEN/requeued" ;;
esac""",
    "python": """
trap 'echo saved >"$SEEN/checkpoint"; kill "$!"; exit 0' TERM
sleep 60 &
printf '%s\\n' "$@" >"$SEEN/part" && mv "$SEEN/part" "$SEEN/arguments"
[ -n "${STAYS:-}" ] && wait
kill "$!"\n""",
}


@pytest.fixture
def job(tmp_path):
    """Starts the script as SLURM does for two machines with four GPUs each."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    told = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path), "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "x[1-2]",
    }  # fmt: skip

    def start(*arguments, **more):
        return subprocess.Popen([ROOT / "runs" / "slurm.sh", *arguments], env=os.environ | told | more)

    return start


@pytest.mark.parametrize(
    ("stage", "chosen", "config"),
    [
        ("dit", {}, "runs/accelerate/many_nodes_fsdp.yaml"),
        ("audio", {}, "runs/accelerate/many_nodes.yaml"),
        ("distill", {"ACCELERATE_CONFIG": "runs/accelerate/many_nodes.yaml"}, "runs/accelerate/many_nodes.yaml"),
    ],
)
def test_every_machine_starts_its_share_of_the_processes(job, tmp_path, stage, chosen, config):
    assert job(stage, "--data", "my clips", "--output", "out", **chosen).wait(60) == 0
    words = (tmp_path / "arguments").read_text().splitlines()
    launched = dict(zip(words[2:12:2], words[3:13:2], strict=True))
    assert launched.pop("--config_file") == config
    assert (ROOT / config).is_file()
    assert launched == {
        "--num_machines": "2", "--num_processes": "8", "--machine_rank": "1", "--main_process_ip": "first",
    }  # fmt: skip
    assert words[-6:] == ["train.py", stage, "--data", "my clips", "--output", "out"]
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    ("told", "job_is", "again"),
    [
        ("script", {"STATE": "RUNNING"}, True),  # before its time is over
        ("script", {"STATE": "CANCELLED"}, False),  # by its owner, who wants it to end
        ("script", {"STATE": "COMPLETING"}, False),
        ("script", {"STATE": "busy"}, True),  # squeue fails: nothing says that the owner wants it to end
        ("step", {"JOB": "PreemptTime=2026-11-25T17:55:54"}, True),  # for another job, which spares the script
        ("step", {}, False),
    ],
)
def test_a_signal_lets_training_save_and_queues_again_what_was_not_to_end(job, tmp_path, told, job_is, again):
    running = job("dit", STAYS="1", **job_is)
    while not (tmp_path / "arguments").exists():
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid if told == "script" else int((tmp_path / "step").read_text()), signal.SIGTERM)
    assert running.wait(60) == 0
    assert (tmp_path / "checkpoint").read_text() == "saved\n"
    assert (tmp_path / "requeued").exists() == again
    assert not again or (tmp_path / "requeued").read_text() == "requeue 123\n"
