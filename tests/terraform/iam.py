"""IAM's evaluation of a policy's statements, as far as our documents use it."""

from __future__ import annotations

import fnmatch
from typing import Any


def matches(policy: dict[str, Any], effect: str, action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a statement of this effect applies."""
    compare = {
        "StringEquals": lambda have, want: have == want,
        "StringLike": fnmatch.fnmatchcase,
        "ArnNotEquals": lambda have, want: have != want,
        "Bool": lambda have, want: have == want,
    }

    def holds(operator: str, key: str, wanted: list[str] | str) -> bool:
        if key not in context:
            return False
        each = [compare[operator](context[key], want) for want in listed(wanted)]
        return all(each) if operator == "ArnNotEquals" else any(each)

    return any(
        statement["Effect"] == effect
        and any(fnmatch.fnmatchcase(action, pattern) for pattern in listed(statement["Action"]))
        and (
            "Resource" not in statement or any(fnmatch.fnmatchcase(resource, p) for p in listed(statement["Resource"]))
        )
        and all(
            holds(operator, key, wanted)
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
        for statement in policy["Statement"]
    )


def listed(value: list[str] | str) -> list[str]:
    return value if isinstance(value, list) else [value]
