"""Writes what is said about settings from the settings themselves: `config/worker.env.example` and README's table.

python -m config.settings_reference          write both
python -m config.settings_reference --check  exit 1 if one of them is not current
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from promptbus_worker.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent
EXAMPLE = PROJECT / "config" / "worker.env.example"
README = PROJECT / "README.md"
BEGIN, END = (
    "<!-- settings: written by python -m config.settings_reference -->\n",
    "<!-- end of settings -->\n",
)
_FAMILIES = {"kafka_client": "KAFKA_CLIENT__<KEY>", "kafka_consumer": "KAFKA_CONSUMER__<KEY>"}
_FAMILIES |= {"kafka_producer": "KAFKA_PRODUCER__<KEY>", "triton_headers": "TRITON_HEADERS__<NAME>"}


def fields() -> Iterator[tuple[str, str, str]]:
    """Name, default and description of each setting, in their order."""
    for name, field in Settings.model_fields.items():
        label = _FAMILIES.get(name, name.upper())
        text = (field.description or "").removeprefix(f"`{label}`: ")
        yield label, _default(name, field), text[:1].upper() + text[1:]


def _default(name: str, field: FieldInfo) -> str:
    if name in _FAMILIES or field.default is None or field.default == "":
        return ""
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def example() -> str:
    """The text of worker.env.example: every setting, commented out at its default."""
    parts = [
        "# Settings of `promptbus worker` and of the client, at their defaults. Copy to .env and uncomment what differs;\n"
        "# the environment beats .env. Written by `python -m config.settings_reference`.\n"
    ]
    for name, default, description in fields():
        text = textwrap.fill(description.replace("`", ""), 110, initial_indent="# ", subsequent_indent="# ")
        parts.append(f"{text}\n#{name}={default}\n")
    return "\n".join(parts)


def table() -> str:
    """README's table."""
    rows = ["| name | default | |", "|---|---|---|"]
    rows += [
        f"| `{name}` | {f'`{default}`' if default else '-'} | {text} |" for name, default, text in fields()
    ]
    return "\n".join(rows) + "\n"


def readme() -> str:
    """README with its table current."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def main(arguments: list[str]) -> int:
    """Write, or check."""
    stale = [path for path, text in ((EXAMPLE, example()), (README, readme())) if _read(path) != text]
    if "--check" in arguments:
        for path in stale:
            print(
                f"{path.relative_to(PROJECT)} is not current: python -m config.settings_reference",
                file=sys.stderr,
            )
        return 1 if stale else 0
    README.write_text(readme())
    EXAMPLE.write_text(example())
    return 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
