"""Compiles the modules of a request's path to C for the wheel. Off unless HATCH_BUILD_HOOK_ENABLE_CUSTOM=true.

mypyc translates them, the machine's C compiler does the rest. The sources stay in the wheel beside what comes of them;
Python takes the compiled module where both are.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

GROUP = "promptbus"
"""All of it is in one shared library beside the packages: promptbus__mypyc."""
MYPY_OPTIONS = (
    # The same C comes out wherever it is built: no settings of mypy's, and no types of what happens to be installed.
    *("--config-file=", "--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent"),
    *("--explicit-package-bases", f"--cache-dir={os.devnull}"),
)


class CompiledModules(BuildHookInterface[BuilderConfig]):
    """Its table in pyproject.toml names the modules and what compiles them."""

    _work: "TemporaryDirectory[str] | None" = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add what comes of it. An editable install runs the sources that are being edited."""
        if version == "editable":
            return
        self._work = TemporaryDirectory(prefix="promptbus-compiled-")
        work = Path(self._work.name)
        command = [sys.executable, "-P", __file__, str(work), *self.config["modules"]]
        # Without a compiler's many lines, unless it fails.
        done = subprocess.run(
            command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode != 0:
            self._work.cleanup()
            self.app.abort(
                f"{done.stdout[-4000:]}\nThe modules could not be compiled, see above. It takes mypy, setuptools, a C "
                "compiler and Python.h; without HATCH_BUILD_HOOK_ENABLE_CUSTOM the wheel is made of the sources alone."
            )
        for library in sorted(path for path in _libraries(work).rglob("*") if path.is_file()):
            build_data["force_include"][str(library)] = str(library.relative_to(_libraries(work)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        if self._work is not None:
            self._work.cleanup()


def _libraries(work: Path) -> Path:
    return work / "libraries"


def compile_modules(work: Path, modules: list[str]) -> None:
    """Leave shared libraries in a folder of `work`, where the wheel has its packages."""
    # They read this when they are imported or called.
    os.environ["MYPYPATH"] = os.pathsep.join(("producer", "consumer"))
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    # mypyc asks whether there is setuptools when it is imported.
    from mypyc.build import mypycify  # isort: skip

    class SideBySide(build_ext):  # type: ignore[misc]  # setuptools comes without types
        """One compiler per processor. Setuptools has that for libraries only, and nearly everything is in one."""

        def build_extensions(self) -> None:
            one_by_one = self.compiler.compile

            def compile_all(sources: list[str], **options: Any) -> list[str]:
                with ThreadPoolExecutor(os.cpu_count()) as threads:
                    parts = threads.map(lambda source: one_by_one([source], **options), sources)
                    return [name for names in parts for name in names]

            self.compiler.compile = compile_all
            super().build_extensions()

    # -O3 and one large C file take longer to compile, and what comes out is no faster.
    extensions = mypycify(
        [*MYPY_OPTIONS, *modules],
        opt_level="2",
        debug_level="0",
        multi_file=True,
        group_name=GROUP,
        target_dir=str(work / "c"),
    )
    command = SideBySide(Distribution({"name": GROUP, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(_libraries(work)), str(work / "objects")
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    compile_modules(Path(sys.argv[1]), sys.argv[2:])
