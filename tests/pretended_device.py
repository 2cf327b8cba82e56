"""A device that does not exist: its tensors are CPU tensors inside, and an operation that mixes it with the CPU fails, as on a GPU."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretended")
DEVICE, CPU = torch.device("pretended", 0), torch.device("cpu")
COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}  # what may go from device to device


class PretendedTensor(torch.Tensor):
    """A tensor on `DEVICE`; `inner` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "PretendedTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _Call(func, args, kwargs or {}).run()

    def tolist(self) -> Any:
        return self.inner.tolist()


class _FromNumbers(TorchFunctionMode):
    """Tensors made from Python's numbers do not pass the dispatcher on their way to the device: make them on the CPU, and move them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": CPU}).to(kwargs["device"])
        if func is torch.Tensor.__getitem__ and isinstance(args[0], PretendedTensor) and isinstance(args[1], list):
            return args[0][torch.tensor(args[1]).to(DEVICE)]
        return func(*args, **kwargs)


class PretendedDevice(TorchDispatchMode):
    """Inside of this context `DEVICE` exists. `calls`: how many operations ran on it. `refused`: a type that it does not have."""

    def __init__(self, refused: torch.dtype | None = None) -> None:
        super().__init__()
        self.calls, self.refused, self._numbers = 0, refused, _FromNumbers()

    def __enter__(self) -> "PretendedDevice":
        self._numbers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = _Call(func, args, kwargs or {})
        out = call.run()
        self.calls += call.on_device is not None
        if isinstance(out, PretendedTensor) and out.dtype == self.refused:
            raise AssertionError(f"{func} makes {out.dtype} on the device")
        return out


class _Call:
    """One operation: what it is given, unwrapped, and where its tensors were."""

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.on_device: torch.Tensor | None = None
        self.on_cpu: torch.Tensor | None = None

    def run(self) -> Any:
        args = [self._inside(value) for value in self.args]
        kwargs = {name: self._inside(value) for name, value in self.kwargs.items()}
        if self.on_device is not None and self.on_cpu is not None and self.func not in COPIES:
            raise AssertionError(f"{self.func} mixes {DEVICE} {tuple(self.on_device.shape)} with the CPU {tuple(self.on_cpu.shape)}")
        out = self.func(*args, **kwargs)
        if self.func._schema.is_mutable and isinstance(out, torch.Tensor):
            return self.kwargs.get("out", self.args[0] if self.args else None)
        asked = self.kwargs.get("device")
        there = self.on_device is not None if asked is None else torch.device(asked) == DEVICE
        return _outside(out) if there else out

    def _inside(self, value: Any) -> Any:
        if isinstance(value, PretendedTensor):
            self.on_device = value
            return value.inner
        if isinstance(value, torch.Tensor):
            if value.ndim:  # single numbers of the CPU may go anywhere
                self.on_cpu = value
            return value
        if isinstance(value, list | tuple):
            return [self._inside(one) for one in value]
        return CPU if isinstance(value, torch.device) else value


def _outside(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return PretendedTensor(value)
    return type(value)(map(_outside, value)) if isinstance(value, list | tuple) else value
