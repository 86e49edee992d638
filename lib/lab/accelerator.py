"""An accelerator that is only pretended, so that a notebook's devices can be checked on a machine without one.

`pretend()` lets this process compute as before, on the CPU, but keep account of which tensors were moved to `cuda`:
what is made there or computed from such tensors is there too. A tensor that stayed on the CPU and meets one of them
raises the RuntimeError that a real accelerator would raise, as does `numpy()` before `cpu()`, and a generator of the
other device. The account is kept at the storage, so views share it.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
MARK, EITHER = "_pretended", "_on_either_side"
# What a real accelerator takes from both sides: copies, and positions that index another tensor.
ACROSS = {"aten::copy_", "aten::_to_copy", "aten::set_", "aten::index", "aten::index_put", "aten::index_put_",
          "aten::_index_put_impl_", "aten::_unsafe_index"}  # fmt: skip
MAY_SHARE = {"as_tensor", "asarray", "from_numpy"}  # their result may be the caller's own memory
MADE_INSIDE = {"one_hot", "pad_sequence"}  # below Python they make a tensor where their arguments are said to be
GETTER = torch.Tensor.device.__get__  # pyright: ignore[reportFunctionMemberAccess]


def is_there(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies on the pretended accelerator."""
    try:
        return getattr(tensor.untyped_storage(), MARK, False)
    except (NotImplementedError, RuntimeError):  # a tensor without storage: sparse, meta inside a transform
        return False


def pretend() -> None:
    """Pretend for the rest of this process; torch.Generator and Accelerate then take the pretended device too."""
    _generators()
    _accelerate()
    _backwards()
    _Account().__enter__()
    _Devices().__enter__()


def _mark(result: Any, there: bool = True) -> Any:
    for tensor in tree_leaves(result):
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
            setattr(tensor.untyped_storage(), MARK, there)
    return result


def _names_it(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == DEVICE.type


class _Account(TorchDispatchMode):
    """Below autograd: what an operation makes of tensors that are there is there, and the sides must not mix."""

    backwards = 0  # how many backward passes are running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = list(_tensors((args, kwargs or {})))
        there = [tensor for tensor in tensors if is_there(tensor)]
        name = func.name().partition(".")[0]
        if there and name not in ACROSS and any(t.dim() and not (is_there(t) or _is_either(t)) for t in tensors):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
                f"(in {name}: a tensor was not moved to the model's device)"
            )
        result = func(*args, **(kwargs or {}))
        if _Account.backwards and not tensors and isinstance(result, torch.Tensor):
            setattr(result.untyped_storage(), EITHER, True)  # zeros for a gradient that is none: PyTorch knows the side
        return _mark(result) if there and name != "aten::copy_" else result


def _is_either(tensor: torch.Tensor) -> bool:
    return getattr(tensor.untyped_storage(), EITHER, False)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


class _Devices(TorchFunctionMode):
    """What Python says of devices: `device`, `to`, `cpu`, `cuda`, `numpy`, and the device of new tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if (exact := kwargs.pop("out_dtype", None)) is not None:  # of products, which CUDA alone has
            args = tree_map_only(torch.Tensor, lambda tensor: tensor.to(exact), args)
        if func == GETTER:
            real = func(*args, **kwargs)
            return DEVICE if real.type == "cpu" and is_there(args[0]) else real
        if name in ("to", "cpu", "cuda") and isinstance(args[0], torch.Tensor):
            return _moved(func, name, args, kwargs)
        if name in ("numpy", "__array__") and is_there(args[0]):
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")
        if name == "__deepcopy__":
            return _mark(func(*args, **kwargs), is_there(args[0]))
        if name in MADE_INSIDE and any(is_there(tensor) for tensor in _tensors(args)):
            here = tree_map_only(torch.Tensor, lambda tensor: _moved(func, "cpu", (tensor,), {}), args)
            return _mark(func(*here, **kwargs))
        return _made(func, name, args, kwargs)


def _moved(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    tensor, *rest = args
    target: Any = {"cpu": "cpu", "cuda": DEVICE}.get(name) or kwargs.pop("device", None)
    other = kwargs.pop("other", None)
    if name == "to" and target is None and rest and not isinstance(rest[0], torch.dtype):
        first = rest.pop(0)
        other, target = (first, None) if isinstance(first, torch.Tensor) else (other, first)
    if other is not None:
        target, kwargs = DEVICE if is_there(other) else other.device, {"dtype": other.dtype} | kwargs
    options = dict(zip(("dtype", "non_blocking", "copy"), rest, strict=False)) | kwargs if name == "to" else {}
    options = {key: value for key, value in options.items() if value is not None}
    if target is not None and torch.device(target).type not in ("cpu", DEVICE.type):
        return tensor.to(target, **options)
    result = tensor.to(**options) if set(options) - {"non_blocking"} else tensor
    there = is_there(tensor) if target is None else torch.device(target).type == DEVICE.type
    if there == is_there(result):
        return result
    if result.requires_grad and torch.is_grad_enabled():
        return _Move.apply(result, there)  # pyright: ignore[reportReturnType]
    return _mark(result.clone(), there)


class _Move(torch.autograd.Function):
    """A copy on the other side, whose gradient comes back to this one."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, there: bool) -> torch.Tensor:
        ctx.there = is_there(tensor)
        return _mark(tensor.clone(), there)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _mark(gradient.clone(), ctx.there), None


def _made(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a function that may make tensors on a device, or draw with a generator."""
    wanted = _names_it(kwargs.get("device")) if "device" in kwargs else None
    if wanted:
        kwargs = {**kwargs, "device": "cpu"}
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator):
        there = wanted if wanted is not None else any(is_there(t) for t in _tensors((args, kwargs)))
        _refuse_other_generator(generator, bool(there))
    if name in MAY_SHARE and args and isinstance(args[0], torch.Tensor) and "device" in kwargs:
        return _moved(func, "to", (func(args[0]),), {**kwargs, "device": DEVICE if wanted else "cpu"})
    result = func(*args, **kwargs)
    if wanted:
        return tree_map_only(torch.Tensor, lambda t: _mark(t.clone() if name in MAY_SHARE else t), result)
    if name == "new_tensor" and wanted is None and is_there(args[0]):
        return _mark(result)
    return result


def _refuse_other_generator(generator: torch.Generator, there: bool) -> None:
    kind = generator.device.type
    if (kind == DEVICE.type) != there:
        expected = DEVICE.type if there else "cpu"
        raise RuntimeError(f"Expected a '{expected}' device type for generator but found '{kind}'")


def _generators() -> None:
    """Let torch.Generator take the pretended device; it draws as the CPU's."""
    real = torch.Generator

    class Generator(real):
        def __new__(cls, device: Any = "cpu"):
            made: Any = super().__new__(cls)
            made.there = _names_it(device)
            return made

        @property
        def device(self) -> torch.device:
            return DEVICE if self.there else torch.device("cpu")

    torch.Generator = Generator


def _backwards() -> None:
    """Tell devices in Python's backward functions too: the mode handles `Tensor.backward`, and is off inside."""
    run: Any = torch.autograd._engine_run_backward  # pyright: ignore[reportPrivateImportUsage]

    def run_telling(*args: Any, **kwargs: Any) -> Any:
        _Account.backwards += 1
        try:
            with _Devices():
                return run(*args, **kwargs)
        finally:
            _Account.backwards -= 1

    torch.autograd._engine_run_backward = run_telling  # pyright: ignore[reportPrivateImportUsage]


def _accelerate() -> None:
    """Let Accelerate, and the trainers on it, put their models there, also where the CPU is asked for."""
    from transformers import training_args

    prepare: Any = training_args.TrainingArguments.__post_init__

    def prepared(arguments: Any) -> None:
        arguments.use_cpu = False
        prepare(arguments)

    training_args.TrainingArguments.__post_init__ = prepared
    training_args.is_torch_bf16_gpu_available = lambda: True
    os.environ["ACCELERATE_TORCH_DEVICE"] = DEVICE.type
    torch.cuda.set_device = lambda device: None
    torch.cuda.get_device_name = lambda device=None: "pretended"
