"""What a field may hold, written beside its type: the sentence and bounds that the JSON Schema files show."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds are inclusive; lengths are in characters."""

    description: str
    minimum: int | None = None
    maximum: int | None = None
    min_length: int | None = None
    max_length: int | None = None
