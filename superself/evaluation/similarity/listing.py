"""Listing: what the results of this folder have in common: they print as a table, and are written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from superself.basics.tables import text_table
from superself.training.files import write_text

MOST_LINES = 20  # that are printed


class Listing:
    """Base of results that are lists of images."""

    def head(self) -> tuple[str, ...]:
        """Names of the columns."""
        raise NotImplementedError

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """The cells of each line, None where there is nothing to say."""
        raise NotImplementedError

    def summary(self) -> str:
        """One sentence above the table."""
        raise NotImplementedError

    def __str__(self) -> str:
        lines = list(islice(self.lines(), MOST_LINES + 1))
        more = "\n... (all of them: to_csv)" if len(lines) > MOST_LINES else ""
        if not lines:
            return self.summary()
        return f"{self.summary()}\n{text_table(self.head(), lines[:MOST_LINES])}{more}"

    def to_csv(self, path: str | Path) -> Path:
        """Writes the whole table, and returns its path; missing folders are created."""
        path, text = Path(path), io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.head())
        writer.writerows(self.lines())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text.getvalue())
        return path
