"""Results as plain JSON values; what has no plain form is described by its `repr`, cut to a length."""

import contextlib
from typing import Any

LONGEST = 400
MOST_ITEMS = 256


def plain(value: Any, depth: int = 0) -> Any:
    """Numbers, strings, lists and dicts of them; `{"repr": …}` for anything else."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value[:10_000]
    if isinstance(value, complex):
        return {"real": value.real, "imag": value.imag}
    if depth < 4:
        if isinstance(value, (set, frozenset)):
            value = sorted(value, key=repr)
        if isinstance(value, (list, tuple)):
            return [plain(item, depth + 1) for item in value[:MOST_ITEMS]]
        if isinstance(value, dict):
            items = list(value.items())[:MOST_ITEMS]
            return {str(key)[:LONGEST]: plain(item, depth + 1) for key, item in items}
        with contextlib.suppress(Exception):  # NumPy scalars and arrays
            if hasattr(value, "tolist"):
                return plain(value.tolist(), depth + 1)
        if type(value).__module__.startswith("sympy"):
            with contextlib.suppress(Exception):
                return int(value) if value.is_Integer else float(value)
    return {"repr": repr(value)[:LONGEST]}
