"""What a contender is, and where it works."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import prompts


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contender works. `folder` is its own, for files; `concurrency` is for those that choose none."""

    bootstrap: str
    requests: str
    replies: str
    dead: str
    group: str
    triton_url: str
    model: str
    folder: Path
    prompt_bytes: int
    max_tokens: int
    concurrency: int = 4


@dataclass(frozen=True, slots=True)
class Command:
    """What is run, with what it adds to a clean environment."""

    argv: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """`prepare` installs what it needs, once; it raises StackError when that cannot be had.

    `sweep`: the concurrencies from which the best is chosen before the first round; none: it chooses by itself.
    `may_be_missing`: if it cannot be had or fails here, the rest is measured without it.
    `members`: so many processes share the partitions, and nothing is measured before each has some.
    `reads_new_only_after`: it reads only records that come after this text stands in its log.
    """

    name: str
    about: str
    command: Callable[[Place], Command]
    through_kafka: bool = True
    members: int = 1
    prepare: Callable[[], None] = lambda: None
    sweep: tuple[int, ...] = ()
    record: prompts.Make = prompts.request
    reads_new_only_after: str = ""
    is_peer: bool = False
    may_be_missing: bool = False
