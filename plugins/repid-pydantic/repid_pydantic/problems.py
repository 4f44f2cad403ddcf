"""What pydantic finds wrong, in words that show no value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import ValidationError

from repid_core.errors import ConversionError

MOST = 100


def path_of(head: str, rest: Sequence[int | str]) -> str:
    """A path as people write it."""
    return "".join([head, *(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)]).lstrip(".")


def problems_of(error: ValidationError, head: Callable[[str], str]) -> list[str]:
    """One text for each problem. `head` tells how a field's path begins."""
    problems = []
    for found in error.errors(include_url=False, include_input=False):
        if found["type"] == "missing" and len(found["loc"]) == 1:  # an argument, which who bound them has missed
            continue
        text = found["msg"]
        if found["type"] == "union_tag_invalid":  # the one text of pydantic's that quotes what was given
            text = f"Input tag is none of the expected tags: {found['ctx']['expected_tags']}"
        field, *rest = found["loc"] or ("",)
        path = path_of(head(str(field)), rest)
        problems.append(f"{path}: {text}" if path else text)
    return problems


def conversion_error(problems: Sequence[str]) -> ConversionError:
    """All problems as one error."""
    more = [f"and {len(problems) - MOST} more"] if len(problems) > MOST else []
    return ConversionError([*problems[:MOST], *more])


def trouble(error: Exception) -> str:
    """What is said of an error that is no finding of pydantic's: a validator's own, or of what cannot be written."""
    return f"{type(error).__name__}: {error}"
