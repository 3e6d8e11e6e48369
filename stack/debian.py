"""A package of Debian's, unpacked into a folder and not installed. Needs apt-get and dpkg-deb, but not root."""

import shutil
from pathlib import Path

from stack import downloads
from stack.errors import StackError


def unpack(package: str, what: str, folder: Path) -> Path:
    """The folder with the package's files, inside of `folder`. Raises StackError.

    No checksum is pinned: archives drop a version when the next one comes, and every release has another. apt checks
    the archive's signature, and by it the package.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise StackError(f"There is no apt-get that could fetch {package}.")
    apt = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    options = (
        f"Dir::State::lists={apt / 'lists'}",
        f"Dir::Cache={apt / 'cache'}",
        "APT::Sandbox::User=root",  # root's apt would otherwise download as a user who may not write here
    )
    apt_get = ["apt-get", "-q", *(f"-o{option}" for option in options)]
    downloads.run([*apt_get, "update"], what, folder)
    downloads.run([*apt_get, "download", package], what, folder, cwd=apt)
    (file,) = apt.glob(f"{package}_*.deb")
    unpacked = folder / "unpacked"
    downloads.run(["dpkg-deb", "-x", file, unpacked], what, folder)
    shutil.rmtree(apt)
    return unpacked
