"""Run by setup in jgo's own environment: `fetch_jars.py COORDINATES FOLDER`.

Every jar is named with its version and fetched by itself. Left to resolve the tree, jgo's resolver picks a
kafka-clients of 3.8.0 for the 4.3.1 server, and the broker dies with NoSuchMethodError.
"""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jgo.maven import MavenContext  # type: ignore[import-not-found]  # in an environment of its own


def main(coordinates: Path, folder: Path) -> None:
    repository = folder / "repository"
    maven = MavenContext(repo_cache=repository, timeout=30)

    def fetch(coordinate: str) -> None:
        group, artifact, version = coordinate.split(":")
        jar = maven.project(group, artifact).at_version(version).artifact().resolve()
        shutil.move(jar, folder / jar.name)

    with ThreadPoolExecutor(6) as pool:
        for _ in pool.map(fetch, coordinates.read_text().split()):
            pass
    shutil.rmtree(repository)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
