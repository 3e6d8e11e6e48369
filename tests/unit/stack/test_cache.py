import os
import threading
from pathlib import Path

import pytest

from stack import contents, downloads
from stack.cache import Entry, cache_root, digest
from stack.errors import NotInstalled


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_cache_follows_xdg_and_ignores_a_relative_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_root() == tmp_path / "promptbus"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_root() == Path("/home/somebody/.cache/promptbus")


def test_a_key_changes_with_every_part_and_with_their_borders() -> None:
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("ab", "d")}) == 4


def test_an_entry_is_built_once() -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "file").write_text("content")

    entry = Entry("thing", "1")
    assert (entry.ensure(build) / "file").read_text() == "content"
    entry.ensure(build)
    assert len(built) == 1


def test_a_failed_build_leaves_nothing() -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("the line broke")

    entry = Entry("thing", "1")
    with pytest.raises(OSError, match="the line broke"):
        entry.ensure(build)
    assert not entry.present
    assert [path for path in cache_root().iterdir() if path.is_dir()] == []


def test_what_a_killed_build_left_is_removed_by_the_next() -> None:
    abandoned = cache_root() / ".thing-1.abandoned"
    abandoned.mkdir(parents=True)
    Entry("thing", "1").ensure(lambda folder: None)
    assert not abandoned.exists()


def test_a_second_builder_waits_and_builds_nothing() -> None:
    started, finish = threading.Event(), threading.Event()
    built = []

    def slow(folder: Path) -> None:
        built.append("first")
        started.set()
        assert finish.wait(10)

    entry = Entry("thing", "1")
    first = threading.Thread(target=entry.ensure, args=(slow,))
    first.start()
    assert started.wait(10)
    second = threading.Thread(target=entry.ensure, args=(lambda folder: built.append("second"),))
    second.start()
    finish.set()
    first.join(10)
    second.join(10)
    assert built == ["first"]


def test_a_missing_entry_names_the_command() -> None:
    with pytest.raises(NotInstalled, match="make setup"):
        Entry("thing", "1").require()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jar").write_bytes(b"not what was promised")
    with pytest.raises(contents.ChecksumMismatch, match=r"a\.jar has the SHA-256"):
        contents.check_sums([f"{'0' * 64}  a.jar"], tmp_path)


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(contents.ChecksumMismatch, match=r"b\.jar did not come"):
        contents.check_sums([f"{'0' * 64}  b.jar"], tmp_path)


def test_every_coordinate_has_a_checksum() -> None:
    jars = set()
    for coordinate in contents.COORDINATES.read_text().split():
        _group, artifact, version = coordinate.split(":")
        jars.add(f"{artifact}-{version}.jar")
    assert jars == {line.split()[1] for line in contents.JAR_SUMS.read_text().splitlines()}


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "nothing was installed"),
        ("Max retries exceeded: Connection refused\nERROR: No matching distribution found", "network"),
        ("ERROR: No matching distribution found for x==1", "no file for this Python"),
        ("something else", "network"),
    ],
)
def test_a_failed_download_says_why_and_what_to_do(
    output: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    sentence = downloads.failed_sentence("the thing", output)
    assert sentence.startswith("Downloading the thing failed. ")
    assert says in sentence


def test_a_failed_download_names_the_proxy_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert "through the proxy in HTTPS_PROXY" in downloads.failed_sentence("the thing", "ProxyError")


def test_a_failing_downloader_raises_and_leaves_no_scratch(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(downloads.DownloadFailed, match="Connection refused"):
        downloads.run(["sh", "-c", "echo Connection refused >&2; exit 1"], "the thing", folder)
    assert list(folder.iterdir()) == []


def test_progress_is_told_while_folders_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kept", "removed"):
        (tmp_path / name).mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"x" * 1_500_000)
    look = os.scandir

    def too_late(path: Path | str) -> object:
        if Path(path).name == "removed":
            raise FileNotFoundError(path)
        return look(path)

    monkeypatch.setattr(os, "scandir", too_late)
    assert downloads._megabytes(tmp_path) == 1.5
