"""Check picture folders, store their index, or print their fingerprint.

drconv data check --root /data/imagenet --name imagenet
drconv data index --root /data/imagenet --name imagenet     # once; later starts read the index
drconv data fingerprint --root DIR

Faces: class folders into RecordIO as MS1M-V2 has it, and back; crops by five points.

drconv data pack FOLDER DIR/train.rec [--shuffle SEED]
drconv data unpack DIR/train.rec FOLDER
drconv data align FOLDER FOLDER_OUT --landmarks points.csv [--columns 96]     # path, x1, y1, ..., x5, y5
"""

import argparse
import json
import sys
import time
from pathlib import Path

from drconv.config import DataConfig
from drconv.data import DataError
from drconv.data.index import save_index, scan_class_folders
from drconv.errors import printable
from drconv.tasks.classification import build_dataset
from drconv.tasks.classification.check import find_problems, summarise
from drconv.tasks.classification.imagenet import is_flat
from drconv.tasks.identification.alignment import align_folder
from drconv.tasks.identification.pack import pack_folders, unpack_records

SPLITS = ("train", "val")
FACE_ACTIONS = ("pack", "unpack", "align")


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in FACE_ACTIONS:
        return face_action(given)
    options = parse_options(given)
    actions = {"check": check, "index": write_index, "fingerprint": print_fingerprint}
    config = DataConfig(
        name=options.name, root=options.root, train_split=options.train_split, val_split=options.val_split
    )
    try:
        return actions[options.action](config, options.decodes)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("check", "index", "fingerprint"))
    parser.add_argument("--root", required=True, help="folder that holds the splits")
    parser.add_argument("--name", choices=("imagefolder", "imagenet"), default="imagefolder", help="the layout")
    parser.add_argument("--train-split", default="train", help="folder of the training pictures below the root")
    parser.add_argument("--val-split", default="val", help="folder of the validation pictures below the root")
    parser.add_argument("--decodes", type=int, default=100, help="check: pictures to decode in each split")
    return parser.parse_args(arguments)


def face_action(arguments: list[str]) -> int:
    """Pack, unpack or align faces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=FACE_ACTIONS)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--shuffle", type=int, help="pack: seed of a random order, without records of identities")
    parser.add_argument("--landmarks", type=Path, help="align: file of five points for each picture")
    parser.add_argument("--columns", type=int, choices=(112, 96), default=112, help="align: width of the crops")
    options = parser.parse_args(arguments)
    try:
        if options.action == "align":
            if options.landmarks is None:
                parser.error("align needs --landmarks")
            return align_faces(options)
        if options.action == "pack":
            pictures, classes = pack_folders(options.source, options.target, options.shuffle)
        else:
            pictures, classes = unpack_records(options.source, options.target)
    except (DataError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    print(f"{options.target}: {pictures:,} pictures of {classes:,} identities")
    return 0


def align_faces(options: argparse.Namespace) -> int:
    """Crops of all pictures with landmarks; 1 if a row gave none."""
    written, bad = align_folder(options.source, options.landmarks, options.target, (112, options.columns))
    for row in bad:
        print(printable(f"no crop of {row.name}: {row.reason}"))
    print(f"{options.target}: {written:,} crops of 112x{options.columns}, {len(bad):,} rows without one")
    return int(bool(bad))


def check(config: DataConfig, decodes: int) -> int:
    """Print what is there and what is wrong; 1 if anything is."""
    num_problems = 0
    for split in existing_splits(config):
        dataset = build_dataset(config, split)
        print(summarise(dataset))
        for problem in find_problems(dataset, config, split, decodes):
            print(f"problem: {problem}")
            num_problems += 1
    print("no problems found" if not num_problems else f"{num_problems} problems")
    return int(num_problems > 0)


def write_index(config: DataConfig, decodes: int) -> int:
    """Store the index of each split that has class folders; a flat validation folder needs none."""
    for split in existing_splits(config):
        folder = split_path(config, split)
        if is_flat(folder):
            print(f"{folder} is flat: no index needed")
            continue
        begin = time.monotonic()
        index = scan_class_folders(folder)
        print(f"{save_index(index)}: {len(index):,} pictures, {time.monotonic() - begin:.1f} s")
    return 0


def print_fingerprint(config: DataConfig, decodes: int) -> int:
    """Print JSON with the fingerprint of each split, as in result records."""
    print(json.dumps({split: build_dataset(config, split).fingerprint() for split in existing_splits(config)}))
    return 0


def existing_splits(config: DataConfig) -> list[str]:
    """The splits whose folder exists."""
    found = [split for split in SPLITS if split_path(config, split).is_dir()]
    if not found:
        folders = " nor ".join(str(split_path(config, split)) for split in SPLITS)
        raise FileNotFoundError(f"neither {folders} exists; correct --root, --train-split or --val-split")
    return found


def split_path(config: DataConfig, split: str) -> Path:
    return Path(str(config.root)) / (config.train_split if split == "train" else config.val_split)
