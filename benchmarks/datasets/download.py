"""Download of CUB-200-2011 from Caltech: checked, and unpacked whole or not at all."""

from __future__ import annotations

import http.client
import os
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from torch.hub import download_url_to_file
from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from benchmarks.datasets.annotation_files import path_below
from benchmarks.datasets.records import DatasetError


@dataclass(frozen=True)
class Archive:
    """A tar archive on the web.

    Args:
        url (str): where it is.
        md5 (str): its checksum, in hexadecimal.
        folder (str): the one folder in it that is wanted.
    """

    url: str
    md5: str
    folder: str


CUB_IMAGES = Archive(
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    "97eceeb196236b17998738112f37df78",
    "CUB_200_2011",
)
CUB_SEGMENTATIONS = Archive(
    "https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz",
    "4d47ba1228eae64f2fa547c47bc65255",
    "segmentations",
)


def download_cub(
    root: Path | str,
    *,
    images: Archive = CUB_IMAGES,
    segmentations: Archive | None = CUB_SEGMENTATIONS,
    progress: bool = True,
) -> Path:
    """Fetch CUB-200-2011 (1.2 GB) and its segmentations (39 MB), unless they are there.

    The images may be used for non-commercial research and education only.

    Args:
        root (Path or str): folder that ``CUB_200_2011/`` is put in; made if need be.
        images (Archive): the data set; a mirror's or a local ``file://`` URL will do.
        segmentations (Archive, optional): its masks; None leaves them out.
        progress (bool): show bars.

    Returns:
        Path: of ``CUB_200_2011/``, for `load_cub`.

    Raises:
        DatasetError: the server can't be reached, the checksum is wrong, or an archive holds
            something else. Nothing is left behind then.
    """
    root = Path(root)
    target = root / images.folder
    _fetch_folder(images, target, progress=progress)
    if segmentations is not None:
        _fetch_folder(segmentations, target / segmentations.folder, progress=progress)
    return target


def _fetch_folder(archive: Archive, target: Path, *, progress: bool) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as temporary:
        path = Path(temporary) / "archive"
        _download(archive, path, progress=progress)
        _unpack(archive, path, Path(temporary) / "unpacked", progress=progress)
        os.replace(Path(temporary) / "unpacked" / archive.folder, target)


def _download(archive: Archive, path: Path, *, progress: bool) -> None:
    if not archive.url.startswith(("https://", "file://")):
        raise DatasetError(f"{archive.url}: only https and file URLs are fetched")
    try:
        download_url_to_file(archive.url, str(path), progress=progress)
    except (http.client.HTTPException, OSError) as error:
        raise DatasetError(
            f"{archive.url}: can't be fetched ({error}); fetch it by other means, unpack it and "
            "give the folder"
        ) from error
    if (md5 := calculate_md5(path)) != archive.md5:
        raise DatasetError(
            f"{archive.url}: the checksum of what came is {md5}, not {archive.md5}: broken off, or "
            "another file; try again"
        )


def _unpack(archive: Archive, path: Path, folder: Path, *, progress: bool) -> None:
    """Unpack the wanted folder: plain files only, each inside it, with plain permissions."""
    try:
        with tarfile.open(path) as tar:
            for member in tqdm(tar, f"unpacking {archive.folder}", disable=not progress):
                if PurePosixPath(member.name).parts[:1] != (archive.folder,) or member.isdir():
                    continue
                target = path_below(folder, member.name, archive.url)
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise DatasetError(f"{archive.url}: {member.name!r} is not a plain file")
                _write(content, target)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DatasetError(f"{archive.url}: can't be unpacked ({error})") from error
    if not (folder / archive.folder).is_dir():
        raise DatasetError(f"{archive.url}: there is no folder {archive.folder} in the archive")


def _write(content: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)
