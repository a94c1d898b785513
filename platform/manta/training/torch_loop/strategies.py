"""How several workers train one module: each with all of it, or each with a share of its parameters.

Both give and take the whole state as plain tensors by name, so that a checkpoint does not depend on how many
workers there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed
from torch import nn

BLOCK_PARAMETERS = 1_000_000  # from which on an element of a ModuleList is shared by itself


class Strategy(Protocol):
    """Attributes:
    model: what is called to train.
    judged: what is called to evaluate; by all workers together.
    """

    model: nn.Module
    judged: nn.Module

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """Around a part of a step, forward and backward; gradients are exchanged in the ``last``."""
        ...

    def weights(self) -> dict[str, Any]:
        """The state of the module, on the CPU. Called by all workers; the first gets it, others may not."""
        ...

    def momenta(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of the optimizer, in the same way."""
        ...

    def take_up(
        self, optimizer: torch.optim.Optimizer, weights: dict[str, Any], momenta: dict[str, Any]
    ) -> None:
        """Go on from such states."""
        ...


def workers() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def strategy(name: str, module: nn.Module, device: torch.device) -> Strategy:
    """``name``: as in :class:`manta.definitions.Torch`."""
    return FSDP(module, device) if name == "fsdp" else DDP(module, device)


class DDP:
    """Each worker holds the whole module; gradients are averaged."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.judged = module.to(device)
        self.model: nn.Module = module
        if workers() > 1:
            places = [device] if device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(module, device_ids=places)

    def part(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def weights(self) -> dict[str, Any]:
        return {name: value.detach().cpu().clone() for name, value in self.judged.state_dict().items()}

    def momenta(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def take_up(
        self, optimizer: torch.optim.Optimizer, weights: dict[str, Any], momenta: dict[str, Any]
    ) -> None:
        self.judged.load_state_dict(weights)
        optimizer.load_state_dict(momenta)


class FSDP:
    """Each worker holds a share of the parameters, and of what the optimizer keeps of them. Large elements
    of a `ModuleList`, as the blocks of a transformer, are gathered one at a time; the rest is together."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (workers(),))
        module = module.to(device)
        for block in _blocks(module):
            fully_shard(block, mesh=mesh)
        self._sharded: Any = fully_shard(module, mesh=mesh)
        self.model = self.judged = module

    def part(self, last: bool) -> AbstractContextManager[Any]:
        self._sharded.set_requires_gradient_sync(last)
        return nullcontext()

    def weights(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.model, options=whole)

    def momenta(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(self.model, optimizer, options=whole)

    def take_up(
        self, optimizer: torch.optim.Optimizer, weights: dict[str, Any], momenta: dict[str, Any]
    ) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        set_state_dict(
            self.model,
            optimizer,
            model_state_dict=weights,
            optim_state_dict=momenta,
            options=StateDictOptions(full_state_dict=True),
        )


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Inner ones before those around them."""
    for inner in module.children():
        yield from _blocks(inner)
    if isinstance(module, nn.ModuleList):
        for each in module:
            if sum(parameter.numel() for parameter in each.parameters()) >= BLOCK_PARAMETERS:
                yield each
