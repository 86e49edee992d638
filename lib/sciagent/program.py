"""Model-written programs: how they are read out of a reply, and the subset that a very small model is held to.

The subset is assignments, arithmetic, comparisons, literals, subscripts, comprehensions, f-strings, and calls of shown
functions and a few builtins. It keeps a small model from mistakes; it is **no security layer**: a function called
may do anything with its arguments, and a limit on syntax has never held. What isolates a program is `sandbox.Sandbox`.
"""

import ast
import re
from collections.abc import Collection

from lib import TenfoldError

BUILTINS = (
    "abs", "bool", "dict", "divmod", "enumerate", "float", "int", "len", "list", "max", "min", "pow", "print", "range",
    "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
)  # fmt: skip
MATHS = (
    "acos", "asin", "atan", "atan2", "ceil", "cos", "cosh", "degrees", "e", "exp", "factorial", "floor", "log", "log10",
    "log2", "pi", "radians", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
IMPORTS = (  # of a free program, beside the libraries of the functions shown
    "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "heapq", "itertools", "json", "math", "numbers", "numpy", "operator", "pandas", "pint", "random", "re",
    "scipy", "statistics", "string", "sympy", "time", "typing",
)  # fmt: skip
FENCED = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.S)
NODES: tuple[type[ast.AST], ...] = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Name, ast.Load, ast.Store, ast.Constant,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.Subscript, ast.Slice,
    ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
    ast.comprehension, ast.JoinedStr, ast.FormattedValue, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
LONGEST_PROGRAM = 20_000  # characters


class ProgramRefused(TenfoldError):
    """A program left the allowed subset; the message names the line and what it may do instead."""


def program_in(reply: str) -> str:
    """Return the program in a model's reply: its last fenced block (of Python), or all where nothing is fenced."""
    blocks = FENCED.findall(reply)
    python = [body for language, body in blocks if language.lower() in ("", "py", "python", "python3")]
    return (python or [body for _, body in blocks] or [reply])[-1].strip("\n").rstrip("`").rstrip()


def without_redefinitions(source: str, functions: Collection[str]) -> str:
    """Drop what a program defines under the name of a function that it was shown, so that its calls reach the real one.

    Small models write a shown function anew before they call it. Only definitions, classes and lambdas assigned at the
    top level count; a program that has none, or is no Python, comes back as it is.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
    dropped = [line for line in tree.body if _defined(line) & set(functions)]
    if not dropped:
        return source
    tree.body = [line for line in tree.body if line not in dropped]
    lines = source.splitlines()
    for line in reversed(dropped):
        first = min([line.lineno, *(d.lineno for d in getattr(line, "decorator_list", []))])
        lines[first - 1 : line.end_lineno] = []
    left = "\n".join(lines)  # with its comments, unless a line holds several statements
    return left if _same(left, tree) else ast.unparse(tree)


def _same(source: str, tree: ast.Module) -> bool:
    try:
        return ast.dump(ast.parse(source)) == ast.dump(tree)
    except SyntaxError:
        return False


def _defined(line: ast.stmt) -> set[str]:
    """Names that a statement gives a function of its own: a definition, a class, or a lambda that is assigned."""
    if isinstance(line, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {line.name}
    if isinstance(line, ast.Assign) and isinstance(line.value, ast.Lambda):
        return {target.id for target in line.targets if isinstance(target, ast.Name)}
    return set()


def checked(source: str, *, functions: Collection[str]) -> ast.Module:
    """Parse a program that keeps to the subset and calls only `functions` and the known builtins.

    Raises ProgramRefused otherwise, or where the source is no Python.
    """
    if len(source) > LONGEST_PROGRAM:
        raise ProgramRefused(f"the program has more than {LONGEST_PROGRAM} characters: write a shorter one.")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProgramRefused(f"the program is no Python: {error}.") from None
    taken = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    callable_names = (set(functions) | set(BUILTINS) | set(MATHS)) - taken
    for node in ast.walk(tree):
        _check(node, callable_names, taken | callable_names, functions)
    return tree


def _check(node: ast.AST, callable_names: set[str], known: set[str], functions: Collection[str]) -> None:
    line = getattr(node, "lineno", 0)
    if not isinstance(node, NODES):
        raise ProgramRefused(
            f"line {line}: {_in_words(node)} is not allowed: use assignments, arithmetic and calls of shown functions."
        )
    if isinstance(node, ast.Name):
        if node.id.startswith("_") or (isinstance(node.ctx, ast.Store) and node.id in functions):
            raise ProgramRefused(f"line {line}: the name {node.id!r} may not be used for a variable.")
        if isinstance(node.ctx, ast.Load) and node.id not in known:
            raise ProgramRefused(f"line {line}: the name {node.id!r} is neither a variable nor a function shown.")
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name):
            raise ProgramRefused(f"line {line}: only functions can be called, by their name.")
        if node.func.id not in callable_names:
            raise ProgramRefused(f"line {line}: {node.func.id!r} was not shown: call {_some(functions)}.")
    if isinstance(node, ast.Constant) and isinstance(node.value, (bytes, type(...))):
        raise ProgramRefused(f"line {line}: write numbers and strings only.")


def _in_words(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"the attribute `.{node.attr}`"
    return {"Import": "an import", "ImportFrom": "an import", "FunctionDef": "a definition"}.get(
        type(node).__name__, f"`{type(node).__name__}`"
    )


def _some(functions: Collection[str]) -> str:
    names = sorted(functions)
    return "one of " + ", ".join(names[:8]) if names else "only builtins here, no function was shown"


def called_in(source: str, functions: Collection[str]) -> tuple[str, ...]:
    """List the functions that a program calls by name, in order of writing; none in what is no Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    called = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    called.sort(key=lambda n: (n.lineno, n.col_offset))
    return tuple(n.func.id for n in called if isinstance(n.func, ast.Name) and n.func.id in functions)
