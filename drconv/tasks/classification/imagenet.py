"""ImageNet (ILSVRC2012): class folders, or the flat validation folder with one of its ground-truth files."""

import csv
import io
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from drconv.data.index import PICTURE_ENDINGS, FileIndex, list_pictures, pack, visible_entries
from drconv.errors import DataError
from drconv.files import open_regular

SOLUTION_FILE = "LOC_val_solution.csv"
GROUND_TRUTH_FILE = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS_FILE = "ILSVRC2012_synsets.txt"
NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1000, 1_281_167, 50_000

_WNID = re.compile(r"n\d{8}")


def is_flat(folder: Path) -> bool:
    """Whether a validation folder has pictures and no class folders."""
    entries = visible_entries(folder)
    return any(entry.name.lower().endswith(PICTURE_ENDINGS) for entry in entries) and not any(
        entry.is_dir() for entry in entries
    )


def index_flat_validation(root: Path, folder: Path) -> FileIndex:
    """Index a flat ``folder`` of ILSVRC2012_val_*.JPEG, labelled by a ground-truth file in ``root`` or nearby.

    Classes are the wnids in sorted order, as with class folders.

    Raises:
        FileNotFoundError: no ground-truth file.
        DataError: it does not fit the pictures.
    """
    files = sorted(list_pictures(folder))
    wnids = _validation_wnids(root, folder, files)
    classes = sorted(set(wnids.values()))
    labels = {wnid: label for label, wnid in enumerate(classes)}
    missing = [name for name in files if Path(name).stem not in wnids]
    if missing:
        raise DataError(f"{len(missing)} pictures of {folder} are not in the ground truth, {missing[0]} for one")

    def groups() -> Iterator[tuple[int, list[str]]]:
        for label, group in groupby(files, key=lambda name: labels[wnids[Path(name).stem]]):
            yield label, list(group)

    return pack(folder, classes, groups())


def is_wnid(text: str) -> bool:
    """Whether a text has the form of a WordNet id, like n01440764."""
    return _WNID.fullmatch(text) is not None


def read_solution(path: Path) -> dict[str, str]:
    """Read LOC_val_solution.csv: picture name to wnid.

    Raises:
        DataError: a line that is not ``name,wnid ...``.
    """
    try:
        rows = list(csv.reader(io.StringIO(_read_text(path), newline="")))
    except csv.Error as error:
        raise DataError(f"{path} is no table of comma-separated values ({error})") from None
    wnids = {}
    for number, row in enumerate(rows[1:], start=2):
        wnid = row[1].split(maxsplit=1)[0] if len(row) > 1 and row[1].strip() else ""
        if not is_wnid(wnid):
            raise DataError(f"{path}, line {number}: expected 'ImageId,PredictionString' and found {','.join(row)!r}")
        wnids[row[0]] = wnid
    return wnids


def read_ground_truth(path: Path, synsets: Path, files: list[str]) -> dict[str, str]:
    """Read one ILSVRC id (1 to 1000) per line for the sorted pictures; ``synsets`` gives the wnid of each id.

    Raises:
        DataError: the numbers of lines and pictures differ, an id without a wnid, or a sorted list of wnids:
            ILSVRC ids are not in sorted order, and such a list would silently mix up the classes.
    """
    wnids = read_synsets(synsets)
    ids = _read_text(path).split()
    if len(ids) != len(files):
        raise DataError(
            f"{path} has {len(ids)} lines for {len(files)} pictures; all pictures are needed with this file"
        )
    if not all(text.isdecimal() and len(text) < 9 and 1 <= int(text) <= len(wnids) for text in ids):
        raise DataError(f"{path} must have one number from 1 to {len(wnids)} (the wnids of {synsets}) per line")
    return {Path(name).stem: wnids[int(text) - 1] for name, text in zip(files, ids, strict=True)}


def read_synsets(path: Path) -> list[str]:
    """Read one wnid per line, in the order of the ILSVRC ids (text after the wnid is ignored)."""
    wnids = [line.split()[0] for line in _read_text(path).splitlines() if line.strip()]
    wrong = [wnid for wnid in wnids if not is_wnid(wnid)]
    if wrong or len(set(wnids)) != len(wnids):
        raise DataError(f"{path} must have one wnid (n01440764) per line, each once; found {(wrong or ['repeats'])[0]}")
    if len(wnids) > 1 and wnids == sorted(wnids):
        raise DataError(
            f"{path} is sorted, but the ids of {GROUND_TRUTH_FILE} follow the devkit's meta.mat, which is not: the "
            "classes would be mixed up; write the wnids in the order of ILSVRC2012_ID (docs/data.md has the command)"
        )
    return wnids


def _validation_wnids(root: Path, folder: Path, files: list[str]) -> dict[str, str]:
    solution = _find(root, folder, SOLUTION_FILE)
    if solution:
        return read_solution(solution)
    ground_truth, synsets = _find(root, folder, GROUND_TRUTH_FILE), _find(root, folder, SYNSETS_FILE)
    if ground_truth and synsets:
        return read_ground_truth(ground_truth, synsets, files)
    raise FileNotFoundError(
        f"{folder} has no class folders, so its labels must be in {root}: {SOLUTION_FILE}, or {GROUND_TRUTH_FILE} "
        f"together with {SYNSETS_FILE} (one wnid per line in the order of the ILSVRC ids; see docs/data.md)"
    )


def _read_text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error})") from None


def _find(root: Path, folder: Path, name: str) -> Path | None:
    places = (root, folder.parent, folder, root / "ILSVRC2012_devkit_t12" / "data")
    return next((place / name for place in places if (place / name).is_file()), None)
