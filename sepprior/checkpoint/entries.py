"""What a file says of itself, read with its types checked.

JSON gives values of any type. An `Entry` is one of them with its name; it is asked for
what is expected there, and says what is wrong otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

LARGEST = 1e150
"""Largest magnitude of a number; its square is still one."""
SHOWN = 40
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True)
class Entry:
    """A value of a JSON document.

    Attributes:
        value: of any type.
        name: where it stands, such as "metadata.novelty.mean".
    """

    value: object
    name: str

    def refuse(self, expected: str) -> NoReturn:
        """Say that the value is not what is expected.

        Raises:
            ValueError: always.
        """
        shown = repr(self.value)
        if isinstance(self.value, list | dict):
            shown = f"a {type(self.value).__name__} of {len(self.value)}"
        elif len(shown) > SHOWN:
            shown = shown[:SHOWN] + "..."
        raise ValueError(f"{self.name} is {shown}, expected {expected}")

    def fields(self) -> dict[str, Entry]:
        """The entries of a table by their names."""
        if not isinstance(self.value, dict):
            self.refuse("a table")
        return {k: Entry(v, f"{self.name}.{k}") for k, v in self.value.items()}

    def get(self, key: str) -> Entry | None:
        """An entry of a table, or None where it has none of that name."""
        return self.fields().get(key)

    def __getitem__(self, key: str) -> Entry:
        found = self.get(key)
        if found is None:
            raise ValueError(f"{self.name}.{key} is missing")
        return found

    def items(self, count: int | None = None) -> list[Entry]:
        """The entries of a list, of `count` if given."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        if count is not None and len(self.value) != count:
            self.refuse(f"a list of {count}")
        return [Entry(v, f"{self.name}[{i}]") for i, v in enumerate(self.value)]

    def number(self, low: float = -LARGEST, high: float = LARGEST) -> float:
        """A finite number from `low` to `high`."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse("a number")
        if not low <= value <= high:
            self.refuse(f"a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse("a whole number")
        if not low <= value <= high:
            self.refuse(f"a whole number from {low} to {high}")
        return value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return self.value

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            self.refuse("a text")
        return self.value

    def numbers(
        self,
        count: int | None = None,
        *,
        fewest: int = 1,
        low: float = -LARGEST,
        high: float = LARGEST,
    ) -> list[float]:
        """A list of finite numbers, of `count` or at least `fewest`."""
        values = [item.number(low, high) for item in self.items(count)]
        if len(values) < fewest:
            self.refuse(f"a list of {fewest} or more")
        return values

    def rising(
        self, *, fewest: int = 1, low: float = -LARGEST, equal: bool = False
    ) -> list[float]:
        """A list of numbers in ascending order, of which some may be `equal`."""
        values = self.numbers(fewest=fewest, low=low)
        if any(b < a or (b == a and not equal) for a, b in pairwise(values)):
            self.refuse("ascending numbers")
        return values


def finite(value: object) -> bool:
    """Whether all numbers within a JSON value are finite."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)
