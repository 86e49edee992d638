"""What a stage is made from, found by reading its function: nobody writes a key by hand, so none can be forgotten.

A stage is a function of the notebook. Its key holds the code of that function and of every notebook function it
calls, the values of all names they read, the code of each module of `lib` they can reach (its syntax tree without
comments and docstrings, along the import graph), the versions of the libraries those modules import, and the hash of
every asset they name. Whatever changes one of these makes another key; whatever changes none of them does not.
"""

import ast
import dataclasses
import dis
import functools
import importlib
import inspect
import json
import marshal
import os
import platform
import re
import sys
import time
import types
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash

import lib
from lib import TenfoldError
from lib.lab import paths
from lib.zoo import shipped
from lib.zoo.assets import ASSETS, fingerprint

STARTED = time.time()  # a module edited after its import is not the code that runs
IMITATED = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
LONG = 200  # items from which a container of plain values is hashed in one piece
HAS_DOCSTRING = 0x4000000  # a flag of code objects from Python 3.13 on
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
BUILT_UP = (list, tuple, dict, set, frozenset)
DATA_FILES = (".toml", ".csv")
BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, np.ufunc)


def digest_of(*parts: bytes | str | memoryview) -> str:
    """Hash of byte strings, in order."""
    hashed = xxhash.xxh3_128()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little"))
        hashed.update(data)
    return hashed.hexdigest()


# --- code of lib: modules, what they import, what they are made of ---------------------------------------------------


@functools.cache
def import_graph():
    """Imports among the modules of `lib`, inside functions too, and of libraries by their top name."""
    import grimp

    return grimp.build_graph("lib", include_external_packages=True, cache_dir=None)


def reach(module: str) -> set[str]:
    """Modules of `lib` that a module's code can reach, and the top names of the libraries these import.

    A package that hands out its parts on demand (by `__getattr__`) names them for type checkers, which the graph sees.
    """
    graph = import_graph()
    if module not in graph.modules:
        return set()
    return {module} | graph.find_upstream_modules(module)


def module_digest(module: str) -> str:
    """Hash of a module's code, whatever its comments, docstrings and layout, and of the data files beside it."""
    path = _source_of(module)
    return _file_digest(path, path.stat().st_mtime_ns)[0]


def assets_named_in(module: str) -> tuple[str, ...]:
    """Short names of assets that stand as strings in a module's code."""
    path = _source_of(module)
    return _file_digest(path, path.stat().st_mtime_ns)[1]


def shipped_to(modules: Collection[str]) -> dict[str, str]:
    """Fingerprints of the weights and replies shipped for the rooms among the modules, where any module reads such."""
    rooms = {module.split(".")[1] for module in modules if module.count(".")} if shipped.__name__ in modules else set()
    return {room: said for room in sorted(rooms) if (said := shipped.fingerprint(room))}


def edited_since_start(module: str) -> bool:
    """Whether a module was imported here before its file changed, so that what runs is not what the file says."""
    return module in sys.modules and _source_of(module).stat().st_mtime > STARTED


def is_here(module: str) -> bool:
    """Whether a module of `lib` has a source file."""
    return _source_of(module).exists()


def as_file(module: str) -> str:
    """A module's file as a reader knows it: `lib/selm/losses.py`."""
    return str(_source_of(module).relative_to(Path(lib.__file__).parents[1]))


def _source_of(module: str) -> Path:
    base = Path(lib.__file__).parent.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@functools.cache
def _file_digest(path: Path, _changed: int) -> tuple[str, tuple[str, ...]]:
    tree = ast.parse(path.read_text(encoding="utf8"))
    code = normal_form(tree)
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named = () if path.name == "assets.py" else tuple(sorted(strings & ASSETS.keys()))
    beside = sorted(f for f in path.parent.iterdir() if f.suffix in DATA_FILES and f.name != "paper.toml")
    read = [f for f in beside if any(f.name in text or f.stem in text for text in strings)]
    return digest_of(code, *(f.read_bytes() for f in read)), named


def modules_named_in(tree: ast.AST) -> Iterator[str]:
    """Modules that code imports by their whole names, those of `lib` down to the part that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & import_graph().modules
            yield from inner or {node.module}


def normal_form(tree: ast.AST) -> str:
    """Text of a syntax tree without places and docstrings (removes the docstrings from the tree itself)."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)


@functools.cache
def version_of(package: str) -> str:
    """Installed version of the library that an import's top name belongs to; empty for Python's own."""
    if package in sys.stdlib_module_names or package in sys.builtin_module_names or package in ("lib", "__main__"):
        return ""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(package)
        return metadata.version(owners[0]) if owners else ""


# --- what a function reads ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Reads:
    """All that a stage is made from, part by part; `as_parts` goes into the key and into the entry's meta.json."""

    namespace: dict[str, Any]
    values: dict[str, str] = dataclasses.field(default_factory=dict)  # names of the notebook: hash of what they hold
    functions: dict[str, str] = dataclasses.field(default_factory=dict)  # notebook functions: hash of their code
    modules: set[str] = dataclasses.field(default_factory=set)
    packages: set[str] = dataclasses.field(default_factory=set)
    assets: set[str] = dataclasses.field(default_factory=set)
    arguments: str = ""
    _done: dict[int, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    _open: list[int] = dataclasses.field(default_factory=list)

    def as_parts(self) -> dict[str, Any]:
        """Plain record: hashes by name, versions by library."""
        packages = self.packages | {"numpy", "torch"}
        versions = {name: found for name in sorted(packages) if (found := version_of(name))}
        named = self.assets | {name for module in self.modules for name in assets_named_in(module)}
        return {
            "values": dict(sorted(self.values.items())), "functions": dict(sorted(self.functions.items())),
            "arguments": self.arguments, "modules": {name: module_digest(name) for name in sorted(self.modules)},
            "versions": {"python": ".".join(platform.python_version_tuple()[:2]), **versions},
            "assets": {name: fingerprint(name) for name in sorted(named)},
        }  # fmt: skip

    # Values -----------------------------------------------------------------------------------------------------

    def digest(self, value: Any) -> str:
        """Hash of a value's content; raises TenfoldError (naming the type) for what has none, such as a lock."""
        if isinstance(value, PLAIN):
            if isinstance(value, str) and value in ASSETS:
                self.assets.add(value)
            said = digest_of(type(value).__name__, repr(value))
            return digest_of(said, self.digest(type(value))) if self._is_ours(type(value)) else said
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._open:  # a cycle: how far up it closes says all
            return digest_of("cycle", str(len(self._open) - self._open.index(id(value))))
        self._open.append(id(value))
        try:
            found = self._digest(value)
        finally:
            self._open.pop()
        self._done[id(value)] = (value, found)  # the value is kept, so that its id stays its own
        return found

    def _digest(self, value: Any) -> str:
        if _is_the_run(value):
            return self._run(value)
        if isinstance(value, list | tuple | dict | set | frozenset):
            return self._container(value) if type(value) in BUILT_UP else self._kind_of_container(value)
        if isinstance(value, property):
            return digest_of("property", *map(self.digest, (value.fget, value.fset, value.fdel)))
        if isinstance(value, functools.cached_property):  # whose lock, before Python 3.12, has no content
            return digest_of("cached", self.digest(value.func))
        if isinstance(value, classmethod):
            return digest_of("classmethod", self.digest(value.__func__))
        if isinstance(value, type | types.ModuleType | types.FunctionType | types.MethodType) or callable_kind(value):
            return self._code(value)
        special = self._known(value)
        return special if special is not None else self._object(value)

    def _is_ours(self, kind: type) -> bool:
        """Whether a class is written in the notebook or in `lib`, so that its code may be edited."""
        return kind.__module__ == self.namespace.get("__name__") or kind.__module__.startswith("lib.")

    def _run(self, run: Any) -> str:
        """What a stage that is handed the whole run may take from it: what it was begun with, not what it has noted."""
        begun = {name: vars(run)[name] for name in ("device", "dtype", "parameters") if name in vars(run)}
        return digest_of("run", self.digest(begun))

    def _kind_of_container(self, value) -> str:
        """Hash of a container of a class of its own: its items, and of our classes their code and what else they hold.

        A `defaultdict` counts by the function that it asks for what it lacks, too.
        """
        items = self._container(value)
        if isinstance(value, defaultdict) and isinstance(value.default_factory, types.FunctionType):
            return digest_of(items, self.digest(value.default_factory))
        if not self._is_ours(type(value)):
            return items
        return digest_of(items, self.digest(type(value)), self.digest(dict(getattr(value, "__dict__", {}))))

    def _container(self, value) -> str:
        kind = type(value).__name__
        if type(value) in (list, tuple, dict) and len(value) >= LONG:
            try:
                return digest_of(kind, marshal.dumps(value, 2))  # version 2 writes equal values equally
            except ValueError:
                pass
        if isinstance(value, dict):
            return digest_of(kind, *(part for pair in value.items() for part in map(self.digest, pair)))
        items = [self.digest(item) for item in value]
        return digest_of(kind, *(sorted(items) if isinstance(value, set | frozenset) else items))

    def _known(self, value: Any) -> str | None:
        """Hash of what torch, NumPy, pandas, datasets and transformers hold; None for anything else."""
        if isinstance(value, Path):
            return self._path(value)
        if isinstance(value, np.ma.MaskedArray):
            return digest_of("masked", *map(self.digest, (np.ma.getdata(value), np.ma.getmaskarray(value))))
        if isinstance(value, np.ndarray) and value.dtype != object:
            return digest_of(
                str(value.dtype), str(value.shape), np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
            )
        if isinstance(value, np.ndarray):
            return digest_of("objects", str(value.shape), *map(self.digest, value.ravel().tolist()))
        if isinstance(value, np.random.Generator):
            return self.digest(value.bit_generator.state)
        if isinstance(value, re.Pattern):
            return digest_of(str(value.flags), value.pattern)
        for module, how in _LIBRARIES.items():
            if module in sys.modules:
                found = how(self, value)
                if found is not None:
                    return found
        return None

    def _path(self, path: Path) -> str:
        """A folder of the cache is named by its key; any other file counts by its content, a missing one by name.

        Cards of shipped weights say where these come from, and count for nothing.
        """
        if path.is_relative_to(paths.cache_dir()):
            return digest_of("cache", str(path.relative_to(paths.cache_dir())))
        inside = path.rglob("*") if path.is_dir() else [path]
        files = sorted(f for f in inside if f.is_file() and not f.name.endswith(shipped.CARD))
        if not files:
            return digest_of("name", path.name)
        return digest_of("files", *(part for f in files for part in (str(f.relative_to(path.parent)), f.read_bytes())))

    def _object(self, value: Any) -> str:
        """Any other object: its class and what it holds, or what its own `fingerprint()` says."""
        kind = type(value)
        said = getattr(kind, "fingerprint", None)
        if callable(said):
            return digest_of(self._code(kind), self.digest(value.fingerprint()))
        slots = [n for c in kind.__mro__ for n in _as_tuple(c.__dict__.get("__slots__", ())) if n != "__weakref__"]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        if hasattr(value, "__dict__"):
            lazy = {n for c in kind.__mro__ for n, v in c.__dict__.items() if isinstance(v, functools.cached_property)}
            held |= {name: held_value for name, held_value in vars(value).items() if name not in lazy}
        elif not slots and (parts := _told_by_reduce(value)):
            return digest_of(self._code(kind), self.digest(parts))
        elif not slots:
            raise TenfoldError(
                f"a {kind.__module__}.{kind.__qualname__} has no content that a key could hold: read in the stage what "
                "it was made from, or give its class a method `fingerprint()` that returns plain values."
            )
        return digest_of(self._code(kind), self.digest(held))

    # Code -------------------------------------------------------------------------------------------------------

    def _code(self, value: Any) -> str:
        if isinstance(value, functools.partial):
            return digest_of("partial", *map(self.digest, (value.func, value.args, value.keywords)))
        if isinstance(value, types.MethodType):
            # What the run's own methods do (progress, seeding) is no part of a result.
            owner = digest_of("run") if _is_the_run(value.__self__) else self.digest(value.__self__)
            return digest_of("method", owner, value.__func__.__qualname__)
        if isinstance(value, types.ModuleType):
            self._take(value.__name__)
            return digest_of("module", value.__name__)
        owner = getattr(value, "__self__", None)
        if (
            isinstance(value, types.BuiltinFunctionType)
            and owner is not None
            and not isinstance(owner, types.ModuleType)
        ):
            return digest_of("method", self.digest(owner), value.__qualname__)
        inner = inspect.unwrap(value) if callable(value) else value
        module = getattr(inner, "__module__", None) or getattr(inner, "__objclass__", int).__module__
        if module != self.namespace.get("__name__"):
            self._take(module)
            name = digest_of(module, getattr(inner, "__qualname__", repr(inner)))
            made_by_ours = isinstance(inner, types.FunctionType) and module.startswith("lib.")
            return digest_of(name, self._closure(inner)) if made_by_ours else name
        if isinstance(inner, type):
            named = {n: v for n, v in vars(inner).items() if n != "_abc_impl"}  # an abstract class's own books
            body = {n: v for n, v in named.items() if not n.startswith("__") or inspect.isfunction(v)}
            return digest_of(inner.__qualname__, self.digest([*inner.__mro__[1:]]), self.digest(body))
        self.functions[inner.__qualname__] = code_digest(inner.__code__)
        layers = [self._made(layer) for layer in _layers(value) if self._is_editable(layer)]
        return digest_of(self._made(inner), *layers) if layers else self._made(inner)

    def _is_editable(self, layer: Any) -> bool:
        """Whether what a decorator put around a function is code of the notebook or of `lib`."""
        module = layer.__globals__.get("__name__") if isinstance(layer, types.FunctionType) else None
        return module == self.namespace.get("__name__") or str(module).startswith("lib.")

    def _made(self, function: types.FunctionType) -> str:
        """Hash of a function, defaults and closure included; the names of the notebook that it reads are taken along.

        Of code that lies in `lib` its module is taken, which holds all that it reads there.
        """
        module = str(function.__globals__.get("__name__"))
        if module.startswith("lib."):
            self._take(module)
        else:
            for chain in _global_chains(function.__code__):
                self._read(chain)
        return digest_of(code_digest(function.__code__), self._closure(function))

    def _closure(self, function: types.FunctionType) -> str:
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        return self.digest([function.__defaults__, function.__kwdefaults__, cells])

    def _read(self, chain: tuple[str, ...]) -> None:
        """Take along `name.attribute…` of the notebook: the attribute where it is a plain value, else the object."""
        if chain[0] == "import ":
            for name in chain[1:]:
                self._take(name)
            return
        if chain[0] not in self.namespace:
            return  # one of Python's own names, or one not yet defined
        value, path = self.namespace[chain[0]], chain[:1]
        for place, attribute in enumerate(chain[1:], start=2):
            try:
                inner = getattr(value, attribute)
            except Exception:  # a property may raise anything; the object itself is read then
                break
            if isinstance(value, types.ModuleType):
                value, path = inner, chain[:place]
            elif isinstance(inner, PLAIN) or type(inner).__name__ in ("dtype", "device"):
                value, path = inner, chain[:place]
                break
            elif not hasattr(inner, "__dict__") or callable(inner):
                break
            else:
                nested = self._plain_below(inner, chain[place:])
                if nested is not None:
                    value, path = nested[0], chain[: place + nested[1]]
                break
        if isinstance(value, types.ModuleType):
            self._take(value.__name__)
            return
        if _is_the_run(value):
            if len(chain) > 1 and chain[1] != "parameters":
                return  # what its methods show and write is no part of a result
            if len(chain) > 1:
                value, path = cast(Any, value).parameters, chain[:2]
        name = ".".join(path)
        if name not in self.values and name not in self.functions:
            self.values[name] = ""  # taken: a function that leads back here stops
            self.values[name] = self.digest(value)

    @staticmethod
    def _plain_below(value: Any, chain: tuple[str, ...]) -> tuple[Any, int] | None:
        for depth, attribute in enumerate(chain, start=1):
            value = getattr(value, attribute, value.__class__)
            if isinstance(value, PLAIN):
                return value, depth
            if callable(value):
                return None
        return None

    def _take(self, module: str) -> None:
        """Note a module: its own code and all that it reaches where it is ours, its version where it is not."""
        top = module.partition(".")[0]
        if top != "lib":
            self.packages.add(top)
            if not version_of(top) and top not in sys.stdlib_module_names:  # a file of the reader's own
                for name in sorted(n for n in sys.modules if n.partition(".")[0] == top):
                    self._own_file(name)
            return
        found = reach(module)
        ours = {name for name in found if name.startswith("lib.")}
        self.modules |= ours
        self.packages |= found - ours - {"lib"}

    def _own_file(self, name: str) -> None:
        file = getattr(sys.modules[name], "__file__", None)
        known = name == self.namespace.get("__name__") or f"file {name}" in self.values
        if file and not known and Path(file).suffix == ".py":
            tree = ast.parse(Path(file).read_text(encoding="utf8"))
            self.values[f"file {name}"] = digest_of(normal_form(tree))
            for module in modules_named_in(tree):
                self._take(module)


def _is_the_run(value: Any) -> bool:
    """Whether a value is the notebook's run, which counts by what it was begun with: what it notes is no result."""
    return getattr(type(value), "infrastructure", False) is True


def callable_kind(value: Any) -> bool:
    """Whether a value is code of a kind that has no instance to look into."""
    return isinstance(value, (functools.partial, *BUILT_IN)) or hasattr(value, "__wrapped__")


def reads_of(compute: Callable[..., Any], namespace: dict[str, Any]) -> Reads:
    """What a stage's function, defined in a notebook's namespace, is made from."""
    reads = Reads(namespace)
    reads.arguments = reads.digest(compute)
    return reads


def parts_of(stage: str, compute: Callable[..., Any], namespace: dict[str, Any]) -> dict[str, Any]:
    """Parts of a stage's key; raises TenfoldError naming the stage for a value whose content cannot be told."""
    try:
        parts = reads_of(compute, namespace).as_parts()
    except TenfoldError as error:
        raise TenfoldError(f"stage {stage!r}: {error}") from None
    imitated = {name: os.environ[name] for name in IMITATED if name in os.environ}
    read = shipped_to(parts["modules"])
    return parts | ({"shipped": read} if read else {}) | ({"processor": imitated} if imitated else {})


def changed_under_us(parts: dict[str, Any]) -> list[str]:
    """Modules among a stage's parts whose file has changed since this process imported it."""
    return [module for module in parts["modules"] if edited_since_start(module)]


def _layers(function: Any) -> Iterator[Any]:
    """What decorators have put around a function, the outermost first, as far as `functools.wraps` tells of it."""
    while hasattr(function, "__wrapped__"):
        yield function
        function = function.__wrapped__


def _told_by_reduce(value: Any) -> list[Any]:
    """What an object of Python's own or of a library in C says that it is made from (`range`, `deque`, a date)."""
    kind = type(value)
    if (kind.__reduce_ex__, kind.__reduce__) == (object.__reduce_ex__, object.__reduce__):
        return []
    try:
        parts = value.__reduce_ex__(4)
    except TypeError:  # it cannot be copied: a lock, a generator
        return []
    return [list(part) if isinstance(part, Iterator) else part for part in parts] if isinstance(parts, tuple) else []


def _is_filled(cell) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _as_tuple(slots) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


@functools.cache
def code_digest(code: types.CodeType) -> str:
    """Hash of compiled code: instructions with the names and constants they take, but no lines and no docstring."""
    steps = [(step.opname, _argument(step)) for step in dis.get_instructions(code)]
    named = (code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount, code.co_kwonlyargcount)
    return digest_of(repr(named), repr(code.co_flags & ~HAS_DOCSTRING), repr(steps), code.co_exceptiontable)


def _argument(step: dis.Instruction) -> str:
    value = step.argval
    if isinstance(value, types.CodeType):
        return code_digest(value)
    if isinstance(value, frozenset):
        return repr(sorted(value, key=repr))
    return f"{type(value).__name__} {value!r}"


@functools.cache
def _global_chains(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    return tuple(dict.fromkeys(_chains(code)))


def _chains(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    """Names that code reads from its globals, each with the attributes taken from it, inner functions included."""
    chain: list[str] = []
    for step in dis.get_instructions(code):
        if chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain.append(step.argval)
            continue
        if chain:
            yield tuple(chain)
            chain = []
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            chain = [step.argval]
        elif step.opname == "IMPORT_NAME":
            yield ("import ", step.argval)
            package = step.argval
        elif step.opname == "IMPORT_FROM" and importlib.util.find_spec(package.partition(".")[0]):
            yield ("import ", f"{package}.{step.argval}")
    if chain:
        yield tuple(chain)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _chains(constant)


# --- what the large libraries hold -------------------------------------------------------------------------------


def _torch(reads: Reads, value: Any) -> str | None:
    import torch

    if isinstance(value, torch.nn.Module):
        return _module(reads, value)
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous()
        data = flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b""
        return digest_of(str(flat.dtype), str(tuple(flat.shape)), data)
    if isinstance(value, torch.Generator):
        return reads.digest(value.get_state())
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return digest_of(repr(value))
    return None


def _module(reads: Reads, network: Any) -> str:
    """A network: its classes, their numbers, the settings of its configuration, and every weight.

    Switches (training, cache, checkpointing) are left out: a step before may leave them either way. A network that the
    notebook writes or puts together from torch's layers has no configuration, so all that its layers hold counts
    (`stride`, `padding_mode`, an activation function) but the training switch.
    """
    import torch

    found, bare = [], vars(torch.nn.Module())
    whole = _is_plain_network(reads, type(network))
    for name, part in network.named_modules():
        numbers = {k: v for k, v in vars(part).items() if isinstance(v, int | float) and not isinstance(v, bool)}
        found += [name, reads._code(type(part)), reads.digest(numbers)]
        others = {k: v for k, v in vars(part).items() if k not in (*bare, *numbers)}
        if others and whole and _is_plain_network(reads, type(part)):
            found.append(reads.digest(others))
    config = getattr(network, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        found.append(digest_of(json.dumps(_settings(config.to_dict()), sort_keys=True, default=str)))
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return digest_of("network", *found, *(part for k, v in state.items() for part in (k, reads.digest(v))))


def _is_plain_network(reads: Reads, kind: type) -> bool:
    return kind.__module__ == reads.namespace.get("__name__") or kind.__module__.startswith("torch.nn.")


def _settings(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    left_out = ("_name_or_path", "transformers_version", "dtype")
    named = {str(k): v for k, v in config.items()}  # id2label has numbers as names
    kept = {k: v for k, v in named.items() if k not in left_out and not k.endswith("_token_id")}
    return {k: _settings(v) for k, v in kept.items() if v is not None and not isinstance(v, bool)}


def _pandas(reads: Reads, value: Any) -> str | None:
    import pandas as pd

    if isinstance(value, pd.Index | pd.Series):
        value = value.to_frame()
    if not isinstance(value, pd.DataFrame):
        return None
    columns = [str(value.dtypes.tolist()), reads.digest([*value.columns.tolist()])]
    try:
        rows = pd.util.hash_pandas_object(value, index=True).to_numpy()
    except TypeError:  # cells that are lists or arrays
        rows = [value.index.tolist(), *(value.iloc[:, place].tolist() for place in range(value.shape[1]))]
    return digest_of("frame", *columns, reads.digest(rows))


def _datasets(reads: Reads, value: Any) -> str | None:
    import datasets

    if not isinstance(value, datasets.Dataset):
        return None
    return digest_of("dataset", reads.digest(value.with_format("arrow")[:].to_pydict()))


def _transformers(reads: Reads, value: Any) -> str | None:
    from transformers import PreTrainedTokenizerBase

    if not isinstance(value, PreTrainedTokenizerBase):
        return None
    rest = [value.special_tokens_map, getattr(value, "chat_template", None), value.padding_side]
    return digest_of("tokenizer", _vocabulary(value), json.dumps(rest, sort_keys=True, default=str))


def _vocabulary(tokenizer: Any) -> str:
    """Hash of how a tokenizer cuts text, worked out once for each number of tokens that it has had (.4 s)."""
    known = _VOCABULARIES.setdefault(tokenizer, {})
    if len(tokenizer) not in known:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        said = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
        for state in ("padding", "truncation"):  # what the last call left
            said.pop(state, None)
        known[len(tokenizer)] = digest_of(json.dumps(said, sort_keys=True))
    return known[len(tokenizer)]


_VOCABULARIES: weakref.WeakKeyDictionary[Any, dict[int, str]] = weakref.WeakKeyDictionary()
_LIBRARIES: dict[str, Callable[[Reads, Any], str | None]] = {
    "torch": _torch, "pandas": _pandas, "datasets": _datasets, "transformers": _transformers,
}  # fmt: skip


def warn_of_edited(stage: str, modules: list[str]) -> None:
    """Say that a stage is computed and not kept, since the code that runs is older than its file."""
    warnings.warn(
        f"{', '.join(modules)} changed after this kernel started, so stage {stage!r} runs the old code: it is computed "
        "and not kept; restart the kernel to run the new code.",
        stacklevel=4,
    )
