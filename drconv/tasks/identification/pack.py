"""Class folders of aligned faces into one RecordIO file that insightface's readers accept, and back; bytes pass as they
are."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from drconv.data.hashing import permutation
from drconv.data.index import FileIndex, scan_class_folders
from drconv.errors import DataError, printable
from drconv.files import open_regular, replace_file
from drconv.tasks.identification.recordio import RecordReader, RecordWriter, pack_payload, unpack_payload
from drconv.tasks.identification.records import CLASSES_FILE, class_names, number_of_classes, open_faces

ENDINGS = {"JPEG": ".jpg", "PNG": ".png"}


def pack_folders(folder: Path, target: Path, shuffle: int | None = None) -> tuple[int, int]:
    """Writes ``target`` (a ``.rec``) with its ``.idx``, ``property`` and ``classes.txt`` from ``<folder>/<class>/*``.

    Sorted, as MS1M-V2 is: pictures by class from key 1 on, a record for each identity with the range of its keys, and a
    header with key 0 that has the range of the identities, last in the file. Shuffled: pictures alone from key 0 on, so
    that reading the file from its beginning gives a random order.

    Args:
        folder: has one folder for each class; classes are numbered in the order of their names as text.
        target: the ``.rec`` file.
        shuffle: seed of the order, or None for the sorted form.

    Returns:
        Numbers of pictures and of classes.

    Raises:
        DataError: a file is no JPEG or PNG, its size differs from the first one's, a class cannot be named in a list,
            or one of the files that would be written is there already.
    """
    if target.suffix != ".rec":
        raise DataError(f"{target} must end in .rec; its index is called .idx")
    for file in (target, target.with_suffix(".idx"), target.with_name("property"), target.with_name(CLASSES_FILE)):
        if os.path.lexists(file):
            raise DataError(f"{file} is there already; pack into another folder")
    index = scan_class_folders(folder)
    for name in index.classes:
        if printable(name) != name:
            raise DataError(f"{folder}: the class {name} cannot stand in {CLASSES_FILE}; rename the folder")
    size = _picture(index, 0)[1]
    target.parent.mkdir(parents=True, exist_ok=True)
    with RecordWriter(target) as writer:
        if shuffle is None:
            _write_sorted(writer, index, size)
        else:
            for key, position in enumerate(permutation(shuffle, len(index)).tolist()):
                writer.write(key, pack_payload(float(index.labels[position]), key, _checked(index, position, size)))
    width, height = size
    replace_file(target.with_name("property"), f"{len(index.classes)},{height},{width}\n")
    replace_file(target.with_name(CLASSES_FILE), "".join(f"{name}\n" for name in index.classes))
    return len(index), len(index.classes)


def _write_sorted(writer: RecordWriter, index: FileIndex, size: tuple[int, int]) -> None:
    for position, label in enumerate(index.labels.tolist()):
        writer.write(position + 1, pack_payload(float(label), position + 1, _checked(index, position, size)))
    ends = np.cumsum(np.bincount(index.labels.numpy(), minlength=len(index.classes))) + 1
    first, begin = len(index) + 1, 1
    for number, end in enumerate(ends.tolist()):
        writer.write(first + number, pack_payload([begin, end], first + number, b""))
        begin = end
    writer.write(0, pack_payload([first, first + len(ends)], 0, b"", second=1))


def _checked(index: FileIndex, position: int, size: tuple[int, int]) -> bytes:
    data, found = _picture(index, position)
    if found != size:
        raise DataError(
            f"{index.path(position)} has {found[0]}x{found[1]} pixels, {index.path(0)} has {size[0]}x{size[1]}; "
            f"faces must be cut alike: see scripts/data.py align"
        )
    return data


def _picture(index: FileIndex, position: int) -> tuple[bytes, tuple[int, int]]:
    """Bytes and size (width, height) of a file."""
    path = Path(index.path(position))
    try:
        with open_regular(path) as file:
            data = file.read()
        with Image.open(io.BytesIO(data), formats=list(ENDINGS)) as picture:
            return data, picture.size
    except Exception as error:
        raise DataError(f"{path} is neither JPEG nor PNG; convert or remove it") from error


def unpack_records(path: Path, folder: Path) -> tuple[int, int]:
    """Writes the pictures of a ``.rec`` file as ``<folder>/<class>/<key>.jpg``; returns the numbers of both.

    Raises:
        DataError: the file is damaged, a picture is neither JPEG nor PNG, a class has no name that a folder can have,
            two have one, or the folder has something in it.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; unpack into a new folder")
    index, reader = open_faces(path), RecordReader(path)
    names = class_names(path, number_of_classes(path, index.labels))
    for name in names:
        if not name or name.startswith(".") or "/" in name or printable(name) != name or len(os.fsencode(name)) > 255:
            raise DataError(f"{path.with_name(CLASSES_FILE)}: {name[:60]!r} is no name of a folder")
    for key, offset, label in zip(index.keys.tolist(), index.offsets.tolist(), index.labels.tolist(), strict=True):
        picture = unpack_payload(reader.read(offset)).picture
        ending = ".png" if picture.startswith(b"\x89PNG") else ".jpg"
        if ending == ".jpg" and not picture.startswith(b"\xff\xd8"):
            raise DataError(f"{path}: key {key} at offset {offset} is neither JPEG nor PNG")
        target = folder / names[label] / f"{key:08}{ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, picture)
    return len(index.keys), len(names)
