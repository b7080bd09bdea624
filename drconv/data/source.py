"""What a data set reads from: pictures by position, labels, and where they come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from drconv.data.decode import MAX_PIXELS, read_picture
from drconv.data.index import FileIndex, load_index, scan_class_folders, visible_entries
from drconv.errors import DataError
from drconv.interfaces import Fingerprint


class Source(Protocol):
    """Pictures in a fixed order."""

    @property
    def name(self) -> str:
        """Where the pictures come from, for messages."""

    @property
    def classes(self) -> list[str]: ...

    @property
    def labels(self) -> Tensor:
        """Integers (N,)."""

    def read(self, position: int) -> Tensor:
        """One picture, uint8 RGB (3, H, W)."""

    def fingerprint(self) -> Fingerprint:
        """What identifies the data in a result record."""


@dataclass(frozen=True)
class FileSource:
    """Picture files listed in an index; one of more than ``max_pixels`` is broken."""

    index: FileIndex
    max_pixels: int = MAX_PIXELS

    @property
    def name(self) -> str:
        return str(self.index.folder)

    @property
    def classes(self) -> list[str]:
        return self.index.classes

    @property
    def labels(self) -> Tensor:
        return self.index.labels

    def read(self, position: int) -> Tensor:
        return read_picture(self.index.path(position), max_pixels=self.max_pixels)

    def fingerprint(self) -> Fingerprint:
        return self.index.fingerprint()


def class_folders(folder: Path) -> FileIndex:
    """The stored index of a folder of class folders if it is up to date, else a fresh one."""
    return load_index(folder) or scan_class_folders(folder)


def split_folder(root: str | None, train_split: str, val_split: str, split: str) -> Path:
    """The folder of one split.

    Raises:
        FileNotFoundError: no root was given, or the folder does not exist; the message has the expected tree.
    """
    tree = f"expected <root>/{train_split}/<class>/<picture>.jpg and <root>/{val_split}/<class>/<picture>.jpg"
    if root is None:
        raise FileNotFoundError(f"data.root is not set; {tree}")
    folder = Path(root) / (train_split if split == "train" else val_split)
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root={root}: the folder {folder} does not exist; {tree}")
    return folder


def check_same_classes(classes: list[str], folder: Path, other: Path) -> None:
    """Compare the classes of a split's folder with the class folders of the other split, where it exists.

    Raises:
        DataError: they differ; the message names up to three classes, and the split that lacks them.
    """
    if not other.is_dir():
        return
    theirs = {entry.name for entry in visible_entries(other) if entry.is_dir()}
    for lacking, present, missing in ((other, folder, set(classes) - theirs), (folder, other, theirs - set(classes))):
        if missing:
            names = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
            raise DataError(
                f"{lacking} lacks {len(missing)} class folders of {present} ({names}); both splits need the same ones"
            )
