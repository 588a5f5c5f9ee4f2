"""Tables of plain text, for what is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def text_table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: Iterable[str] = ()) -> str:
    """Lines with aligned columns: numbers to the right, texts to the left, None as an empty cell.

    Args:
        head: the name of each column.
        rows: the cells of each line.
        left: names of columns that are aligned to the left; besides those whose cells are all texts.
    """
    rows = [list(row) for row in rows]
    left = set(left)
    to_left = [name in left or all(isinstance(row[i], str) for row in rows) for i, name in enumerate(head)]
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = []
    for line in cells:
        columns = zip(line, widths, to_left, strict=True)
        lines.append("  ".join(text.ljust(width) if is_left else text.rjust(width) for text, width, is_left in columns))
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
