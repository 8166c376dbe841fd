"""Train one stage of vidgen, from scratch or onward from its own last checkpoint.

    accelerate launch train.py vae3d --config tabletop-cpu --data scenes.npz --output out/vae3d
    accelerate launch train.py audio --config tabletop-cpu --data scenes.npz --output out/audio
    accelerate launch train.py dit   --config tabletop-cpu --data scenes.npz --output out/dit \
        --vae out/vae3d/model --codec out/audio/model
    accelerate launch train.py distill --config tabletop-cpu --data scenes.npz --output out/student \
        --teacher out/dit/model

``--data`` is a folder of shards (python -m vidgen.data.prepare) or of clips (captions in metadata.jsonl or same-named
.txt files; sound is optional), or a file of simulated tabletop scenes (python -m vidgen.tabletop.physics); several are
mixed, ``--data A:0.7 B:0.3`` by weight. To resume after a stop, run the same command again: data,
noise and schedule follow from the seed and the step, so the run goes on as if it had not stopped. SIGTERM, which
schedulers send, ends a run with a checkpoint. The dit and distill stages end in a complete model folder for
sample.py --model.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import shutil
import signal
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
from vidgen import checkpoint, cli, config
from vidgen.data.sampling import KeyedBatches, Layout, SeededBatches
from vidgen.data.source import parse_source
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL
from vidgen.muon import Muon
from vidgen.noise import to_device
from vidgen.progress import Allowance, Log, Unread, is_any
from vidgen.stages import Loss, Stage, audio_stage, distill_stage, dit_stage, vae_stage

STAGES: dict[str, Callable[..., Stage]] = {
    "vae3d": vae_stage,
    "audio": audio_stage,
    "dit": dit_stage,
    "distill": distill_stage,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", required=True, help=f"a preset: {', '.join(config.PRESETS)}")
    parser.add_argument(
        "--data", required=True, nargs="+", action="extend", type=parse_source, metavar="PATH[:WEIGHT]",
        help="shards (vidgen.data.prepare), a folder of clips, or a .npz of simulated scenes; several are mixed",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, help="checkpoints, log, sheets and the model go here")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--init", type=Path, help="start from the weights in this folder instead of random ones")
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help="write a checkpoint and end soon after")
    parser.add_argument(
        "--spend",
        type=float,
        metavar="SECONDS",
        help="training time of the whole stage, in all runs together, instead of a number of steps",
    )
    parser.add_argument("--model", type=Path, help="dit: a whole model's folder, for --vae, --codec, --text and --init")
    parser.add_argument("--lora-rank", type=int, metavar="R", help="dit: train an adapter (LoRA) of --model or --init")
    parser.add_argument("--lora-alpha", type=float, metavar="A", help="the adapter works at A / R (default R)")
    parser.add_argument("--vae", type=Path, help="dit: folder of a trained vae3d")
    parser.add_argument("--codec", type=Path, help="dit: folder of a trained audio codec")
    parser.add_argument("--teacher", type=Path, help="distill: model folder of the teacher")
    parser.add_argument("--latents", type=Path, help="dit, distill: latent cache, made if missing (OUTPUT/latents)")
    parser.add_argument(
        "--text", default=str(SHIPPED_MODEL / "text_encoder"), help="dit: text encoder, a folder or a hub id"
    )
    parser.add_argument("--prompt", nargs="+", default=[], action="extend", help="prompts of the sample sheets")
    args = parser.parse_args()
    for key in ("lora_rank", "lora_alpha"):
        if getattr(args, key) is not None:
            args.set.append(f"{key}={getattr(args, key)}")
    return args


def main() -> None:
    started = time.perf_counter()
    args = parse_arguments()
    cli.keep_freed_memory()
    settings = config.load(args.config, args.stage, args.set)
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
    if accelerator.is_main_process:
        args.output.mkdir(parents=True, exist_ok=True)
        record = {"stage": args.stage, "preset": args.config, **dataclasses.asdict(settings)}
        (args.output / "config.json").write_text(json.dumps(record, indent=1) + "\n")
    stop_at = None if args.stop_after is None else started + args.stop_after
    train(stage, settings, accelerator, args.output, stop_at, args.spend)


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
    output: Path,
    stop_at: float | None = None,
    spend_s: float | None = None,
) -> None:
    """Train until the settings' number of steps, or ``stop_at`` (of ``time.perf_counter``); then the model, or a
    checkpoint to go on from."""
    model = stage.model.to(accelerator.device).train()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    modules = {"model": model, "average": average}
    optimizers = make_optimizers(model, settings)
    if stage.discriminator is not None:
        modules["discriminator"] = stage.discriminator.to(accelerator.device).train()
        optimizers["discriminator_adamw"] = adamw(stage.discriminator.parameters(), settings)
    step = checkpoint.load_latest(output / "checkpoints", modules, optimizers)
    allowance = Allowance(spend_s, output, settings.cooldown, step)
    if settings.compile:
        for block in (
            child for child in model.modules() if type(child).__name__ in getattr(model, "_repeated_blocks", ())
        ):
            block.compile()
    loss_module = accelerator.prepare_model(LossModule(model, stage.loss))
    adversary = None
    if stage.discriminator is not None and stage.discriminator_loss is not None:
        adversary = accelerator.prepare_model(LossModule(stage.discriminator, stage.discriminator_loss))

    batches = iterate(stage.dataset, settings, accelerator, step * settings.accumulate)
    log = Log(
        output, accelerator.is_main_process, settings.log_every, step, settings.steps if allowance.decided else None
    )
    terminated = threading.Event()  # as schedulers announce that they are about to kill the job
    handler_before = signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    unread = Unread(settings, output)
    while step < (settings := allowance.apply(settings, step, accelerator)).steps:
        for optimizer in optimizers.values():
            set_learning_rate(optimizer, settings, step)
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter()
        micro_batches = list(itertools.islice(batches, settings.accumulate))
        wait_s = time.perf_counter() - seconds
        loss, parts = backward(loss_module, micro_batches, accelerator)
        norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip_norm)
        if adversary is not None:
            adversary.zero_grad(set_to_none=True)
            adversary_loss, _ = backward(adversary, micro_batches, accelerator)
            accelerator.clip_grad_norm_(adversary.parameters(), settings.clip_norm)
            parts["discriminator"] = adversary_loss
        for optimizer in optimizers.values():
            optimizer.step()
        step += 1
        update_average(average, model, min(settings.ema_decay, (1 + step) / (10 + step)))

        clips = settings.batch_size * settings.accumulate * accelerator.num_processes
        unread.add(step, {"loss": loss, **parts, "gradient_norm": norm}, {"clips": clips, "wait_s": wait_s})
        time_is_up = stop_at is not None and time.perf_counter() > stop_at
        stop = is_any(time_is_up or terminated.is_set(), accelerator)
        due = step % settings.checkpoint_every == 0 or step == settings.steps or stop
        if due or step % settings.log_every == 0:
            for number, values in unread.read():
                log.step(number, values, settings.steps if allowance.decided else None)
        if accelerator.is_main_process and due:
            checkpoint.save(output / "checkpoints", step, modules, optimizers, settings.keep_checkpoints)
            allowance.note(step)
        if accelerator.is_main_process and (step % settings.sample_every == 0 or step == settings.steps):
            sheet = output / "samples" / f"step-{step:07d}.png"
            stage.sheet(average, sheet)
            log.samples(step, measure_sheet(sheet))
        accelerator.wait_for_everyone()
        if stop:
            break
    signal.signal(signal.SIGTERM, handler_before)
    log.close()
    if accelerator.is_main_process and step < settings.steps:
        aim = settings.steps if allowance.decided else "as many as time allows"
        print(f"stopped at step {step} of {aim}: run the same command again to go on")
    elif accelerator.is_main_process:
        finished = output / "model.part"
        shutil.rmtree(finished, ignore_errors=True)
        stage.finish(average, finished, step)
        shutil.rmtree(output / "model", ignore_errors=True)
        finished.rename(output / "model")
        print(f"saved {output / 'model'}")
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
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
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
        yield {
            key: to_device(value, accelerator.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }


def backward(
    loss_module: nn.Module, micro_batches: list[dict[str, Any]], accelerator: Accelerator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Accumulate gradients over the micro-batches; the loss and its parts, averaged over them and the processes."""
    totals: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(loss_module), accelerator.autocast():
            loss, parts = loss_module(batch)
            accelerator.backward(loss / len(micro_batches))
        batch.update({key: parts.pop(key) for key in list(parts) if parts[key].ndim})
        for key, value in {"loss": loss, **parts}.items():
            totals[key] = totals.get(key, torch.zeros((), device=loss.device)) + value.detach() / len(micro_batches)
    totals = {key: accelerator.reduce(value, reduction="mean") for key, value in totals.items()}
    return totals.pop("loss"), totals


def make_optimizers(model: nn.Module, settings: config.TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    Muon: Jordan et al. 2024; its step is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that
    one learning rate serves both.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if settings.optimizer == "adamw":
        return {"adamw": adamw(parameters.values(), settings)}
    if settings.optimizer != "muon":
        raise InputError(f"optimizer is 'adamw' or 'muon', not {settings.optimizer!r}")
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and "blocks." in name and min(p.shape) >= 32]
    if not matrices:
        return {"adamw": adamw(parameters.values(), settings)}
    chosen = {id(p) for p in matrices}
    muon = Muon(matrices, settings.learning_rate, settings.weight_decay)
    return {"muon": muon, "adamw": adamw([p for p in parameters.values() if id(p) not in chosen], settings)}


def adamw(parameters: Any, settings: config.TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels, none on vectors."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2))


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: config.TrainConfig, step: int) -> None:
    """Linear warm-up, a plateau, linear fall to zero over the last ``cooldown`` of the steps."""
    rise = (step + 1) / max(1, settings.warmup_steps)
    fall = (settings.steps - step) / max(1.0, settings.cooldown * settings.steps)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * min(1.0, rise, fall)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)


if __name__ == "__main__":
    cli.run(main)
