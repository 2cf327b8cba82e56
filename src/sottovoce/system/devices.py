"""Where a network computes: its device, the number type of its forward passes, and weights that visit the device layer by layer."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sottovoce.errors import MachineError, first_line
from sottovoce.system.torchrun import local_rank

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
WITHOUT_FLOAT64 = {"mps"}  # kinds of devices whose sums and solves run on the CPU
VISITORS = (nn.Linear, nn.Embedding)  # what `offload` keeps on the CPU: nearly all of a recognizer's weights
CPU = torch.device("cpu")
HOME = "_parameters_at_home"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and in which number type a network computes. `offload`: linear layers and embeddings stay on the CPU and visit the device."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    offload: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether this is how every model is loaded: float32 on the CPU."""
        return self == Placement()

    def __str__(self) -> str:
        return f"{self.device.type}, {str(self.dtype).removeprefix('torch.')}" + (", offload" if self.offload else "")


def find_placement(device: str = "cpu", dtype: str = "float32", *, offload: bool = False) -> Placement:
    """Return the placement that a user asked for.

    `device`: cpu, cuda, cuda:N, mps, or auto (the first of cuda, mps and cpu that is there); one of several ranks takes the GPU of its
    number. Raises `MachineError` for a device that is not there, a number type that it lacks, and for offloading to the CPU itself.
    """
    found = _find_device(device)
    if dtype not in DTYPES:
        raise MachineError(f"the number type {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    if offload and found.type == "cpu":
        raise MachineError("offloading keeps weights on the CPU while another device computes, and here the CPU computes; leave it out")
    if dtype != "float32" and (lack := _lacks(found, DTYPES[dtype])):
        raise MachineError(f"the device {found} cannot compute in {dtype} ({lack}); choose float32 or another of {', '.join(DTYPES)}")
    return Placement(device=found, dtype=DTYPES[dtype], offload=offload)


def _find_device(name: str) -> torch.device:
    if name == AUTO:
        name = next((kind for kind in ("cuda", "mps") if _is_there(kind)), "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdecimal())):
        raise MachineError(f"the device {name!r} is not known; choose cpu, cuda, cuda:N, mps or auto")
    if not _is_there(kind):
        others = ", ".join(other for other in ("cuda", "mps") if _is_there(other)) or "no other than cpu"
        raise MachineError(f"there is no device {name} that PyTorch {torch.__version__} can use here, {others}; choose another --device")
    if kind == "cuda":
        count, number = torch.cuda.device_count(), int(index) if index else local_rank()
        if number >= count:
            raise MachineError(f"there is no device cuda:{number}: this machine has {count}; start at most {count} processes on it")
        return torch.device("cuda", number)
    return torch.device(kind)


def _is_there(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    return kind == "cpu" or torch.backends.mps.is_available()


def _lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    """Compute what a recognizer computes in `dtype` on `device`; return what fails in the library's words, or None."""
    try:
        x = torch.ones(1, 4, 8, device=device, dtype=dtype)
        y = nn.functional.conv1d(x, torch.ones(4, 4, 3, device=device, dtype=dtype), padding=1)
        y = nn.functional.layer_norm(nn.functional.gelu(y @ y.transpose(1, 2)), (4,))
        nn.functional.scaled_dot_product_attention(y, y, y).softmax(-1).float().sum().item()
    except (RuntimeError, TypeError) as exc:
        return first_line(exc)
    return None


def solving_device(device: torch.device) -> torch.device:
    """Return where sums and solves in float64 run for data on `device`: there, or on the CPU if the device has no float64."""
    return CPU if device.type in WITHOUT_FLOAT64 else device


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all it was given, so that a clock that is read then says what its work took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def in_float64(tensor: Tensor) -> Tensor:
    """Return `tensor` in float64: on its device, or on the CPU if the device has no such numbers."""
    return tensor.to(solving_device(tensor.device)).double()


def placement_of(network: nn.Module) -> Placement:
    """Return where a network computes: as `placed` has put it, or where its first parameter lies."""
    own = getattr(network, "placement", None)
    if isinstance(own, Placement):
        return own
    parameter = next(network.parameters())
    return Placement(device=parameter.device, dtype=parameter.dtype)


def placed(network: nn.Module, placement: Placement, *, keep_float32: bool = False) -> nn.Module:
    """Return `network` (float32, on the CPU) as it computes by `placement`; a copy, unless that is how it computes already.

    `keep_float32`: parameters stay float32 and are rounded to the placement's type call by call, for work that needs the weights
    themselves. Raises `MachineError` if a module's own parameters could not be rounded so.
    """
    if placement.is_plain:
        return network
    copied = share_weights(network)
    rounded_later = keep_float32 and placement.dtype != torch.float32
    first, moved = next(network.parameters()), dict[tuple[int, torch.device], Tensor]()

    def move(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        key = id(tensor), device  # tied parameters stay one
        if key not in moved:
            moved[key] = tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                moved[key] = nn.Parameter(moved[key], requires_grad=False)
        return moved[key]

    for name, module in copied.named_modules():
        own = {key: parameter for key, parameter in module._parameters.items() if parameter is not None}
        stays = placement.offload and isinstance(module, VISITORS) and not any(parameter is first for parameter in own.values())
        if rounded_later and own and next(module.children(), None) is not None:
            raise MachineError(f"{name}: holds weights beside other layers, so it computes in float32 only; leave out --dtype")
        for key, parameter in own.items():
            kept = torch.float32 if rounded_later else placement.dtype
            module._parameters[key] = move(parameter, CPU if stays else placement.device, kept)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = move(buffer, placement.device, buffer.dtype)
        if own and (stays or rounded_later):
            visit = _Visit(placement)
            module.register_forward_pre_hook(visit.begin)
            module.register_forward_hook(visit.end, always_call=True)
    copied.placement = placement  # type: ignore[assignment]
    return copied


def brought_home(network: nn.Module, original: nn.Module) -> nn.Module:
    """Return the parameters of `network` on the CPU, in a copy of `original`, from which it was placed."""
    copied, known = share_weights(original), dict[int, nn.Parameter]()
    for name, module in copied.named_modules():
        for key, parameter in network.get_submodule(name)._parameters.items():
            if parameter is not None:
                known.setdefault(id(parameter), nn.Parameter(parameter.detach().cpu(), requires_grad=False))
                module._parameters[key] = known[id(parameter)]
    return copied


def share_weights(network: nn.Module) -> nn.Module:
    """Return a copy of `network` with modules of its own that share all tensors; replace a parameter to change only the copy."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]})


@dataclass(frozen=True)
class _Visit:
    """Bring a module's parameters to the device in the type of the forward pass for the time of one call."""

    placement: Placement

    def begin(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        home = dict(module._parameters)
        module.__dict__[HOME] = home
        for name, parameter in home.items():
            if parameter is not None:
                visiting: Any = parameter.detach().to(self.placement.device, self.placement.dtype, non_blocking=True)
                module._parameters[name] = visiting

    def end(self, module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        module._parameters.update(module.__dict__.pop(HOME, {}))
