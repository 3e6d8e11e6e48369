"""`make setup` starts a broker once: that shows that Kafka runs here, and leaves what halves the work of later starts.

Java writes an archive of the classes it loaded, and the node's storage metadata serves as the next one's.
"""

import shutil
from pathlib import Path

from stack import broker
from stack.kafka import QUICK_COMPILER, Kafka


def install() -> None:
    """Fill the cache's entry if it is missing. Raises StartFailed if Kafka does not run."""
    if not broker.warm().present:
        print("→ starting Kafka once", flush=True)
        broker.warm().ensure(_fill)


def _fill(folder: Path) -> None:
    archive = folder / broker.ARCHIVE
    with Kafka(java_options=[QUICK_COMPILER, f"-XX:ArchiveClassesAtExit={archive}"]) as kafka:
        data = kafka.brokers[0].folder / "data"
        shutil.copy2(data / broker.CHECKPOINT, folder / broker.CHECKPOINT)
        kafka.stop()
