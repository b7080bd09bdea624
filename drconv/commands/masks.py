"""Draws which region every position of a picture belongs to, for a trained network.

    drconv masks run=outputs/small/imagenette/drconv_shufflenetv2_0.5x/seed0 --out masks.png
    drconv masks run=... --images dog.jpg cat.jpg --guides 'stage3.*' --overlay --out masks.svg

For classification, faces and detection. Without --images the pictures are taken evenly from the run's first evaluation
set; data.root= says where that lies now. A colour holds across a row: a region has the colour of the region before it
with which it shares most positions.
"""

import argparse
from pathlib import Path

from drconv.commands.run_pictures import choose_pictures, load_network, masks_of, read_pictures
from drconv.compose import config_of_run
from drconv.errors import ConfigError
from drconv.figures.canvas import write_figure
from drconv.figures.mask_figure import draw_figure
from drconv.figures.masks import choose_masks
from drconv.messages import exit_with


def main() -> None:
    """The command line."""
    options = parse_options()
    try:
        draw(options)
    except Exception as error:
        exit_with(error)


def draw(options: argparse.Namespace) -> None:
    """Writes the figure."""
    config = config_of_run(options.settings)
    if config is None:
        raise ConfigError("give run=<folder> of a finished run; its own model is drawn")
    network = load_network(config)
    pictures = read_pictures(options.images, config) if options.images else choose_pictures(config, options.count)
    masks = choose_masks(masks_of(network, pictures, config), options.guides)
    write_figure(options.out, *draw_figure(pictures, masks, options.cell, options.overlay))
    print(f"{options.out}: {len(pictures)} pictures, guides {', '.join(mask.name for mask in masks)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="run=<folder>, and overrides like data.root=")
    parser.add_argument("--images", nargs="+", type=Path, default=[], help="picture files")
    parser.add_argument("--count", type=int, default=6, help="pictures from the validation set")
    parser.add_argument(
        "--guides", nargs="+", default=[], help="patterns of guides; default: the middle one at each resolution"
    )
    parser.add_argument("--overlay", action="store_true", help="lay the masks on their picture")
    parser.add_argument("--cell", type=int, default=160, help="pixels of the longer side of a picture in the figure")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .png or .svg")
    return parser.parse_args()
