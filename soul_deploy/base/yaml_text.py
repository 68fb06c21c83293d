"""Writing YAML, of which JSON's values are a part: so it needs no library. PyYAML reads it."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def value_text(value: Any) -> str:
    """JSON data, or a path as its text, in one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def lines(data: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """NAME: VALUE for each entry; names are ours. Of a list, each item has a line."""
    for name, value in data.items():
        if isinstance(value, list):
            yield f"{indent}{name}:"
            yield from (f"{indent}- {value_text(item)}" for item in value)
        else:
            yield f"{indent}{name}: {value_text(value)}"
