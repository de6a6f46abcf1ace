"""Tensors that claim to lie on a CUDA device, so that tensors of two devices that meet are seen without one.

A `Pretended` holds an ordinary tensor and computes on the CPU. It says `cuda:0`, does not become a NumPy array, and
does not meet a tensor of the CPU where CUDA's tensors do not; nor do generators of one device draw on the other.
Autocast, speed, memory, numerics and kernels that CUDA lacks are not seen.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bolus.device import VARIABLE

DEVICE = torch.device("cuda", 0)
MOVES = ("aten::_to_copy", "aten::copy_")
INDEXES = ("aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
REFUSED = "can't convert cuda:0 device type tensor to numpy"


def is_cuda(device: Any) -> bool:
    """Lazy is what C++ takes a pretended tensor's device for: backward passes run there as they do on the CPU."""
    return device is not None and torch.device(device).type in ("cuda", "lazy")


class Pretended(torch.Tensor):
    """A tensor of the CPU, `held`, that claims to lie on `DEVICE`."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> Pretended:
        about = {"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, real.size(), layout=real.layout, device="lazy", **about)
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Pretended({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = Pretended(self.held.detach().clone())
        copied = torch.nn.Parameter(copied) if getattr(self, "_is_param", False) else copied
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(REFUSED)

    __array__ = numpy

    def storage(self) -> Any:  # which safetensors compares
        return self.held.storage()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: Any, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
        return Pretended(_tensor(data, dtype=dtype or self.dtype))


class Everywhere(TorchDispatchMode):
    """Tensors made on `DEVICE`, or moved there, are pretended ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = is_cuda(kwargs.get("device")) or kwargs.get("generator") is not None
        ours = ours or any(isinstance(each, Pretended) for each in tree_leaves((args, kwargs)))
        return compute(func, args, kwargs) if ours else func(*args, **kwargs)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, computed on the CPU; RuntimeError where CUDA would not do it."""
    name = func._schema.name
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = any(isinstance(each, Pretended) for each in tensors)
    away = [each for each in tensors if not isinstance(each, Pretended) and each.ndim]  # a number may come from the CPU
    if name in INDEXES and isinstance(args[0], Pretended):
        away = [each for each in args[2:3] if any(each is other for other in away)]  # and so may an index, not a value
    if there and away and name not in MOVES:
        raise RuntimeError(f"{name}: expected all tensors on one device, found cuda:0 and cpu")
    if kwargs.get("device") is not None:
        there = is_cuda(kwargs["device"])
        kwargs = {**kwargs, "device": "cpu" if there else kwargs["device"]}
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in [each._cdata for each in _generators]) != there:
        raise RuntimeError(f"{name}: expected a generator of the device that is drawn on")
    real_args, real_kwargs = tree_map(lambda each: each.held if isinstance(each, Pretended) else each, (args, kwargs))
    given = {id(each.held if isinstance(each, Pretended) else each): each for each in tensors}

    def back(each: Any) -> Any:
        if id(each) in given:  # changed in place
            return given[id(each)]
        return Pretended(each) if there and isinstance(each, torch.Tensor) else each

    return tree_map(back, func(*real_args, **real_kwargs))


_tensor, _generator = torch.tensor, torch.Generator
_generators: list[torch.Generator] = []


class _Generators(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _generator)


class _Generator(metaclass=_Generators):
    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        made = _generator()
        _generators.extend([made] if is_cuda(device) else [])
        return made


def _made(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
    there = is_cuda(device)
    made = _tensor(data, device=None if there else device, **kwargs)
    return Pretended(made) if there else made


@pytest.fixture
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine that seems to have a CUDA device, which bolus takes."""
    import torch._dynamo  # whose annotations need the real generator

    for name, value in {
        "_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "none",
        "get_rng_state": torch.zeros(1), "set_rng_state": None, "manual_seed": None, "manual_seed_all": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch, "tensor", _made)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    # What watches for tensors is of this thread, so none is made in another.
    monkeypatch.setattr("bolus.embedding.vectors.one_ahead", lambda items: (each for each in items))
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which hides what operations consist of
    monkeypatch.setenv(VARIABLE, str(DEVICE))
    monkeypatch.setitem(PartialState(cpu=True).__dict__, "device", DEVICE)
    with Everywhere():
        yield
    _generators.clear()
