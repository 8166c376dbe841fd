"""Train one stage of vidgen, from scratch or onward from its own last checkpoint.

    accelerate launch train.py vae3d --config tabletop-cpu --data scenes.npz --output out/vae3d

``vidgen.train_options`` says what it may be told, and so does ``train.py --help``. To resume after a stop, run the same
command again.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eval.in_training import measure_sheet
from vidgen import checkpoint, cli, config, parallel
from vidgen.autoencoder_stages import audio_stage, vae_stage
from vidgen.data.sampling import KeyedBatches, Layout, SeededBatches
from vidgen.data.source import parse_source
from vidgen.errors import InputError
from vidgen.noise import on_device
from vidgen.optimizers import adamw, make_optimizers, set_learning_rate, update_average
from vidgen.progress import Allowance, Log, Unread, Work, measured_peak_flops_per_s
from vidgen.stages import Loss, Stage, distill_stage, dit_stage
from vidgen.trackers import open_trackers
from vidgen.train_options import parse_arguments
from vidgen.validation import check_scoring, score, validate

STAGES: dict[str, Callable[..., Stage]] = {
    "vae3d": vae_stage,
    "audio": audio_stage,
    "dit": dit_stage,
    "distill": distill_stage,
}


def main() -> None:
    started = time.perf_counter()
    args = parse_arguments()
    args.data = [parse_source(text) for text in args.data]
    cli.keep_freed_memory()
    settings = config.load(args.config, args.stage, args.set)
    if args.lora_alpha is not None and not getattr(settings, "lora_rank", 0):
        raise InputError("--lora-alpha is the strength of an adapter: give its size, too, as --lora-rank")
    precision = settings.mixed_precision
    if precision not in ("no", "bf16"):
        raise InputError(f"mixed_precision is 'no' or 'bf16', not {precision!r}")
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # for the one process that caches latents
    # Untold, accelerate takes several processes on a machine without accelerators for independent ones.
    on_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=[patience])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # what autocast leaves in float32
    torch.manual_seed(settings.seed)  # initial weights
    stage = STAGES[args.stage](args, settings, accelerator)
    record = {"stage": args.stage, "preset": args.config, **dataclasses.asdict(settings)}
    if accelerator.is_main_process:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "config.json").write_text(json.dumps(record, indent=1) + "\n")
    train(stage, settings, accelerator, args, record, started)


# --- the loop -------------------------------------------------------------------------------------------------------


class LossModule(nn.Module):
    """Model and loss in one forward call, which is what distributed wrappers hook into."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(self.model, batch)


def train(
    stage: Stage,
    settings: config.TrainConfig,
    accelerator: Accelerator,
    args: argparse.Namespace,
    record: dict[str, Any],
    started: float,
) -> None:
    """Train until the settings' number of steps, or ``--stop-after``; then the model, or a checkpoint to go on from."""
    output, leads = args.output, accelerator.is_main_process
    model = stage.model.train()
    if settings.gradient_checkpointing:
        if not getattr(model, "_supports_gradient_checkpointing", False):
            raise InputError("gradient_checkpointing is for the stages dit and distill")
        model.enable_gradient_checkpointing()  # type: ignore[operator]
    sharded = parallel.is_sharded(settings, accelerator)
    if args.score_every and (stage.pipeline is None or sharded or not (args.validation and args.validation.is_dir())):
        raise InputError("--score-every needs --validation with a folder of clips, and dit or distill, not sharded")
    if args.score_every and leads:
        assert stage.pipeline is not None
        check_scoring(stage, args.validation, stage.pipeline(model).generation.num_frames)
    if sharded and not getattr(model, "_no_split_modules", None):
        raise InputError("shard is for the stages dit and distill: an autoencoder fits on every device")
    bones = parallel.skeleton(model) if sharded else None
    average: nn.Module
    if bones is not None:
        parallel.shard(model, accelerator)
        average = parallel.sharded_copy(model, bones, accelerator)
    else:
        model.to(accelerator.device)
        # What is frozen is the same in the average, and is not copied.
        frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        average = copy.deepcopy(model, dict(frozen))
    average.requires_grad_(False).eval()
    modules = {"model": model, "average": average}
    optimizers = make_optimizers(model, settings)
    if stage.discriminator is not None:
        modules["discriminator"] = stage.discriminator.to(accelerator.device).train()
        optimizers["discriminator_adamw"] = adamw(stage.discriminator.parameters(), settings)
    step, notes = checkpoint.load_latest(output / "checkpoints", modules, optimizers)
    parallel.share_tokens(model, settings, accelerator)  # not the average, which may be asked by one process alone
    clips_a_batch = settings.batch_size * (accelerator.num_processes // settings.context_parallel)
    clips_a_step = clips_a_batch * settings.accumulate
    clips_seen = notes.get("clips_seen", step * clips_a_step)  # by however many processes
    allowance = Allowance(args.spend, output, settings.cooldown, step)
    if settings.compile:
        for block in (
            child for child in model.modules() if type(child).__name__ in getattr(model, "_repeated_blocks", ())
        ):
            block.compile()
    loss_module: nn.Module = LossModule(model, stage.loss)
    if not sharded:
        loss_module = accelerator.prepare_model(loss_module)
    adversary = None
    if stage.discriminator is not None and stage.discriminator_loss is not None:
        adversary = accelerator.prepare_model(LossModule(stage.discriminator, stage.discriminator_loss))

    batches = iterate(stage.dataset, settings, accelerator, clips_seen // clips_a_batch)
    trackers = open_trackers(args.log_with, output, record, step) if leads else []
    steps_known = settings.steps if allowance.decided else None
    log = Log(output, leads, settings.log_every, step, steps_known, work(stage, args, accelerator), trackers)
    terminated = threading.Event()  # as schedulers announce that they are about to kill the job
    handler_before = signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    unread = Unread(settings, output, accelerator)
    ending, settling = parallel.Meeting(accelerator), parallel.Meeting(accelerator)
    while step < (settings := allowance.apply(settings, step, settling)).steps:
        for optimizer in optimizers.values():
            set_learning_rate(optimizer, settings, step)
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter()
        micro_batches = list(itertools.islice(batches, settings.accumulate))
        wait_s = time.perf_counter() - seconds
        loss, parts = backward(loss_module, micro_batches, accelerator)
        norm = parallel.clip_gradients(model, settings.clip_norm)
        if adversary is not None:
            adversary.zero_grad(set_to_none=True)
            adversary_loss, _ = backward(adversary, micro_batches, accelerator)
            parallel.clip_gradients(adversary, settings.clip_norm)
            parts["discriminator"] = adversary_loss
        for optimizer in optimizers.values():
            optimizer.step()
        step += 1
        clips_seen += clips_a_step
        update_average(average, model, min(settings.ema_decay, (1 + step) / (10 + step)))

        unread.add(step, {"loss": loss, **parts, "gradient_norm": norm}, {"clips": clips_a_step, "wait_s": wait_s})
        time_is_up = args.stop_after is not None and time.perf_counter() > started + args.stop_after
        stop = ending.is_any(step, time_is_up or terminated.is_set())
        due = step % settings.checkpoint_every == 0 or step == settings.steps or stop
        if due or step % settings.log_every == 0:
            for number, values in unread.read():
                log.step(number, values, settings.steps if allowance.decided else None)
        if due:
            notes = {"clips_seen": clips_seen}
            if stage.validation is not None and not stop:
                seconds = time.perf_counter()
                values = validate(stage, average, settings, accelerator)
                notes["validation"] = values["loss"]
                log.aside("validation", step, values, time.perf_counter() - seconds)
            if leads or sharded:
                checkpoint.save(output / "checkpoints", step, modules, optimizers, settings.keep_checkpoints, notes)
            if leads:
                allowance.note(step)
        if (leads or sharded) and (step % settings.sample_every == 0 or step == settings.steps):
            seconds = time.perf_counter()
            with tempfile.TemporaryDirectory() as unseen:  # all work on it, one shows it
                sheet = (output / "samples" if leads else Path(unseen)) / f"step-{step:07d}.png"
                stage.sheet(average, sheet)
            if leads:
                log.aside("samples", step, measure_sheet(sheet), time.perf_counter() - seconds)
        if leads and args.score_every and step % args.score_every == 0:
            seconds = time.perf_counter()
            values = score(stage, average, args.validation, output / "scores" / f"step-{step:07d}")
            log.aside("scores", step, values, time.perf_counter() - seconds, printed=True)
        if stop:
            break
    signal.signal(signal.SIGTERM, handler_before)
    log.close()
    finished = parallel.gathered(average, bones, leads) if bones is not None and step == settings.steps else average
    if leads and step < settings.steps:
        aim = settings.steps if allowance.decided else "as many as time allows"
        print(f"stopped at step {step} of {aim}: run the same command again to go on")
    elif leads:
        part = output / "model.part"
        shutil.rmtree(part, ignore_errors=True)
        stage.finish(finished, part, step)
        shutil.rmtree(output / "model", ignore_errors=True)
        part.rename(output / "model")
        print(f"saved {output / 'model'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def iterate(
    dataset: Dataset, settings: config.TrainConfig, accelerator: Accelerator, start_batch: int
) -> Iterator[dict[str, Any]]:
    """Endless batches on the training device, this process's share only."""
    sampler = KeyedBatches(
        len(dataset),  # type: ignore[arg-type]
        settings.batch_size,
        seed=settings.seed,
        start_batch=start_batch,
        rank=accelerator.process_index // settings.context_parallel,
        world_size=accelerator.num_processes // settings.context_parallel,
        layout=Layout.of(dataset),
    )
    loader = DataLoader(
        SeededBatches(dataset, settings.seed),
        sampler=sampler,
        batch_size=None,
        num_workers=settings.workers,
        pin_memory=accelerator.device.type == "cuda" and settings.workers > 0,  # without workers, pictures are there
    )
    for batch in loader:
        yield on_device(batch, accelerator.device)


def backward(
    loss_module: nn.Module, micro_batches: list[dict[str, Any]], accelerator: Accelerator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Accumulate gradients over the micro-batches; the loss and its parts, averaged over them, of this process."""
    totals: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches):
        is_last = number == len(micro_batches) - 1
        with parallel.accumulating(loss_module, accelerator, is_last), accelerator.autocast():
            loss, parts = loss_module(batch)
            accelerator.backward(loss / len(micro_batches))
        batch.update({key: parts.pop(key) for key in list(parts) if parts[key].ndim})
        for key, value in {"loss": loss, **parts}.items():
            totals[key] = totals.get(key, torch.zeros((), device=loss.device)) + value.detach() / len(micro_batches)
    return totals.pop("loss"), totals


def work(stage: Stage, args: argparse.Namespace, accelerator: Accelerator) -> Work:
    """What a clip takes to train, and the rate that the devices could reach: as stated, else as measured."""
    if not stage.flops or not accelerator.is_main_process:
        return Work()
    is_bf16 = accelerator.mixed_precision == "bf16" and accelerator.device.type != "cpu"
    peak = args.peak_tflops * 1e12 if args.peak_tflops else measured_peak_flops_per_s(accelerator.device, is_bf16)
    return Work(stage.tokens, stage.flops, peak * accelerator.num_processes)


if __name__ == "__main__":
    cli.run(main)
