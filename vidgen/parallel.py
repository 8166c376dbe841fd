"""A network shared out over processes (FSDP2), or a clip's tokens, and what processes decide together.

Weights, gradients, the optimiser's state and the average of the weights are each cut along their first axis; a block's
weights are gathered when it is their turn (Zhao et al. 2023, arXiv 2304.11277; torch's ``fully_shard``). The same code
runs over gloo on CPUs, where accelerate would quietly copy the whole network to every process instead.
"""

import contextlib
import copy
import os
import time
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .config import TrainConfig
from .errors import InputError


def is_sharded(settings: TrainConfig, accelerator: Accelerator) -> bool:
    """Whether the network is to be shared out: ``shard=true``, or accelerate was launched with FSDP.

    Raises:
        InputError: an optimizer that needs whole matrices.
    """
    # On CPUs accelerate forgets that it was asked for FSDP.
    asked = accelerator.distributed_type == DistributedType.FSDP or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    wanted = settings.shard or asked
    if wanted and settings.optimizer != "adamw":
        raise InputError(f"a sharded network needs optimizer=adamw: {settings.optimizer} works on whole matrices")
    return wanted and accelerator.num_processes > 1


def share_tokens(network: Any, settings: TrainConfig, accelerator: Accelerator) -> None:
    """Let neighbouring processes share out each clip's tokens (``context_parallel``), in place; 1 leaves it as it is.

    Raises:
        InputError: a network without tokens, or numbers that do not divide one another.
    """
    size = settings.context_parallel
    if size == 1:
        return
    if not hasattr(network, "context"):
        raise InputError("context_parallel is for the stages dit and distill: an autoencoder has no tokens")
    if size < 1 or accelerator.num_processes % size:
        raise InputError(f"{accelerator.num_processes} processes do not make groups of context_parallel={size}")
    from torch.distributed.device_mesh import init_device_mesh

    from .dit import context

    mesh = init_device_mesh(
        accelerator.device.type, (accelerator.num_processes // size, size), mesh_dim_names=("data", "context")
    )
    context.share_tokens(network, mesh["context"].get_group())


def shard(network: Any, accelerator: Accelerator) -> None:
    """Share out a diffusers network in place; its parameters are new objects afterwards.

    It moves to the device block by block, each cut up before the next: it need not fit there as a whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # Inputs stay as they are: times in seconds and noise levels would suffer from the eight bits of bfloat16.
    lower = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=lower, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in list(network.modules()):
        if type(module).__name__ in network._no_split_modules:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def sharded_copy(network: nn.Module, bones: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A copy of a network that is shared out, without ever being whole."""
    made = copy.deepcopy(bones)
    shard(made, accelerator)
    made.to_empty(device=accelerator.device)
    with torch.no_grad():
        for side in ("parameters", "buffers"):
            for empty, tensor in zip(getattr(made, side)(), getattr(network, side)(), strict=True):
                own_part(empty).copy_(own_part(tensor))
    return made


def skeleton(network: nn.Module) -> nn.Module:
    """A copy without weights, to gather them into later."""
    placeless = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=False) for tensor in network.parameters()
    }
    return copy.deepcopy(network, placeless)


def gathered(network: nn.Module, bones: nn.Module, keep: bool) -> nn.Module | None:
    """The whole of a sharded network on the CPU, in ``bones``, where it is to be kept; every process must take part."""
    values = {}
    for name, tensor in network.state_dict().items():
        full = whole(tensor)
        if keep:
            values[name] = full.cpu()
    if not keep:
        return None
    bones.load_state_dict(values, assign=True)
    return bones.eval()


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, or as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: a view, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip_gradients(network: nn.Module, limit: float) -> Tensor:
    """Scale gradients to a norm of at most ``limit``, over all processes; the norm before, as a single number."""
    return whole(torch.nn.utils.clip_grad_norm_(network.parameters(), limit)).detach()


@contextlib.contextmanager
def accumulating(loss_module: Any, accelerator: Accelerator, is_last: bool) -> Any:
    """Gradients stay in this process until the last of the micro-batches."""
    sharded: Any = getattr(loss_module, "model", None)
    if hasattr(sharded, "set_requires_gradient_sync"):
        sharded.set_requires_gradient_sync(is_last)
        yield
    else:
        with contextlib.nullcontext() if is_last else accelerator.no_sync(loss_module):
            yield


class Meeting:
    """A question that all processes answer alike, put to them every few seconds: each time all wait for the slowest.

    A process alone answers at once.
    """

    MOST_STEPS = 1000

    def __init__(self, accelerator: Accelerator, every_s: float = 5.0) -> None:
        self.accelerator, self.every_s = accelerator, every_s
        self.next_step = 0
        self.last: tuple[int, float] | None = None

    def is_any(self, step: int, flag: bool) -> bool:
        """Whether the flag is set in any process; False between meetings. To be asked in every process each step."""
        if self.accelerator.num_processes == 1:
            return flag
        if step < self.next_step:
            return False
        now, ahead = time.perf_counter(), 1.0
        if self.last is not None:
            ahead = (step - self.last[0]) / max(now - self.last[1], 1e-6) * self.every_s
        self.last = (step, now)
        asked = torch.tensor([float(flag), min(ahead, self.MOST_STEPS)], device=self.accelerator.device)
        flags, steps = self.accelerator.reduce(asked, reduction="sum").tolist()
        self.next_step = step + max(1, int(steps / self.accelerator.num_processes))
        return flags > 0
