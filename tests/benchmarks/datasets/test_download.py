import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.datasets import DatasetError
from benchmarks.datasets.download import Archive, download_cub

Fill = Callable[[tarfile.TarFile], None]


def add_file(tar: tarfile.TarFile, name: str, content: bytes = b"text") -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o6777
    tar.addfile(member, io.BytesIO(content))


def add_link(tar: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    tar.addfile(member)


def archive(path: Path, folder: str, fill: Fill) -> Archive:
    with tarfile.open(path, "w:gz") as tar:
        fill(tar)
    return Archive(path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest(), folder)


def fill_images(tar: tarfile.TarFile) -> None:
    add_file(tar, "attributes.txt", b"beside the folder")
    add_file(tar, "./CUB_200_2011/images.txt", b"1 a/b.jpg\n")
    add_file(tar, "CUB_200_2011/images/a/b.jpg", b"pixels")


@pytest.fixture
def images(tmp_path: Path) -> Archive:
    return archive(tmp_path / "images.tgz", "CUB_200_2011", fill_images)


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def test_unpacks_the_wanted_folders_and_nothing_else(tmp_path: Path, images: Archive) -> None:
    masks = archive(
        tmp_path / "masks.tgz", "segmentations", lambda tar: add_file(tar, "segmentations/a/b.png")
    )
    root = tmp_path / "data"
    target = download_cub(root, images=images, segmentations=masks, progress=False)
    assert target == root / "CUB_200_2011"
    assert files_below(root) == [
        "CUB_200_2011/images.txt",
        "CUB_200_2011/images/a/b.jpg",
        "CUB_200_2011/segmentations/a/b.png",
    ]
    assert (target / "images" / "a" / "b.jpg").read_bytes() == b"pixels"
    assert (target / "images.txt").stat().st_mode & 0o7111 == 0


def test_what_is_there_is_not_fetched_again(tmp_path: Path, images: Archive) -> None:
    root = tmp_path / "data"
    download_cub(root, images=images, segmentations=None, progress=False)
    (tmp_path / "images.tgz").unlink()
    download_cub(root, images=images, segmentations=None, progress=False)
    assert len(files_below(root)) == 2


def refuse(root: Path, images: Archive, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        download_cub(root, images=images, segmentations=None, progress=False)
    assert files_below(root) == []
    assert not list(root.iterdir())


def test_wrong_checksum_leaves_nothing(tmp_path: Path, images: Archive) -> None:
    wrong = Archive(images.url, "0" * 32, images.folder)
    refuse(tmp_path / "data", wrong, f"checksum of what came is {images.md5}, not 0000")


def test_unreachable_url_is_named(tmp_path: Path, images: Archive) -> None:
    (tmp_path / "images.tgz").unlink()
    refuse(tmp_path / "data", images, r"images\.tgz: can't be fetched")


@pytest.mark.parametrize("url", ["http://example.org/a.tgz", "ftp://example.org/a.tgz", "a.tgz"])
def test_only_safe_urls_are_fetched(tmp_path: Path, url: str) -> None:
    refuse(tmp_path / "data", Archive(url, "0" * 32, "a"), "only https and file URLs")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda tar: add_file(tar, "CUB_200_2011/../../../out.txt"), "is not a file name below"),
        (lambda tar: add_link(tar, "CUB_200_2011/out", "/etc"), "is not a plain file"),
        (
            lambda tar: add_link(tar, "CUB_200_2011/out", "../../x", tarfile.LNKTYPE),
            "is not a plain file|can't be unpacked",
        ),
        (
            lambda tar: add_link(tar, "CUB_200_2011/fifo", "", tarfile.FIFOTYPE),
            "is not a plain file",
        ),
        (lambda tar: add_file(tar, "other/a.txt"), "there is no folder CUB_200_2011"),
    ],
)
def test_archive_that_reaches_out_is_refused(tmp_path: Path, fill: Fill, message: str) -> None:
    (tmp_path / "out.txt").write_text("kept")
    hostile = archive(tmp_path / "hostile.tgz", "CUB_200_2011", fill)
    refuse(tmp_path / "data", hostile, message)
    assert (tmp_path / "out.txt").read_text() == "kept"


def test_absolute_names_are_left_out(tmp_path: Path) -> None:
    outside = tmp_path / "out.txt"

    def fill(tar: tarfile.TarFile) -> None:
        fill_images(tar)
        add_file(tar, outside.as_posix())

    images = archive(tmp_path / "images.tgz", "CUB_200_2011", fill)
    download_cub(tmp_path / "data", images=images, segmentations=None, progress=False)
    assert not outside.exists()


def test_truncated_archive_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "images.tgz"
    archive(
        path, "CUB_200_2011", lambda tar: add_file(tar, "CUB_200_2011/a", bytes(range(256)) * 99)
    )
    path.write_bytes(path.read_bytes()[:-40])
    broken = Archive(path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest(), "CUB_200_2011")
    refuse(tmp_path / "data", broken, "can't be unpacked")
