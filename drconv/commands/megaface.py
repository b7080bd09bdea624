"""Rank-1 among MegaFace's distractors for the network of a run, or for features in the devkit's files.

    drconv megaface run=outputs/... --probes facescrub --probe-list facescrub_features_list.json \
        --distractors megaface --distractor-list megaface_features_list.json_1000000_1 \
        --probe-noises facescrub_noises.txt --distractor-noises megaface_noises.txt --out results_1000000_1
    drconv megaface --suffix _algo.bin --probes FEATURES --probe-list ... --distractors FEATURES ...

Both figures are given, raw and cleaned. Embeddings are kept in --cache: an interrupted run goes on. Lists are checked
before anything is computed. --write-features writes the devkit's files, so that the official tool can check ours.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from drconv.commands.predict import load_embedder
from drconv.compose import config_of_run
from drconv.config import Config
from drconv.errors import ConfigError
from drconv.files import check_writable, replace_file
from drconv.messages import exit_with
from drconv.tasks.identification.curves import cmc, ranks_and_rates, write_picture, write_result
from drconv.tasks.identification.embedder import stamps
from drconv.tasks.identification.extraction import extract
from drconv.tasks.identification.megaface import (
    TemplateList,
    check_files,
    check_trials,
    clean_probes,
    read_features,
    read_list,
    read_noises,
    write_feature,
)
from drconv.tasks.identification.rank import Floats, normalise, rank1


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parse_options(arguments)
    try:
        identify(options)
    except Exception as error:
        exit_with(error)


def identify(options: argparse.Namespace) -> None:
    """From lists to rank-1."""
    config = config_of_run(options.settings) if options.settings else None
    if (config is None) == (options.suffix is None):
        raise ConfigError("give either run=<folder> (pictures) or --suffix (feature files of the devkit)")
    lists = read_list(options.probe_list), read_list(options.distractor_list)
    if (lists[0].identities < 0).any():
        raise ConfigError(f"{options.probe_list} has no ids, which the probes need")
    folders = options.probes, options.distractors
    for folder, entries in zip(folders, lists, strict=True):
        check_files(folder, entries.paths, options.suffix or "")
    named = [
        {os.path.normpath(os.path.join(real, name)) for name in entries.paths}
        for real, entries in zip(map(os.path.realpath, folders), lists, strict=True)
    ]
    both = named[0] & named[1]
    if both:
        raise ConfigError(f"{len(both)} pictures are probe and distractor, such as {min(both)}; remove one")
    noises = [
        read_noises(file, entries.paths) if file else np.zeros(len(entries.paths), bool)
        for file, entries in zip((options.probe_noises, options.distractor_noises), lists, strict=True)
    ]
    met = [f"{noise.sum()} of {len(noise)}" for noise in noises]
    print(f"noise lists meet {met[0]} probes and {met[1]} distractors")
    check_trials(lists[0].identities, noises, options.noisy_probes)
    check_out(options)
    probes, distractors = (features_of(config, options, *pair) for pair in zip(folders, lists, strict=True))
    found = {"raw": evaluate(probes, lists[0].identities, distractors, options, "raw")}
    if any(noise.any() for noise in noises):
        cleaned, identities = clean_probes(probes, lists[0].identities, noises[0], options.noisy_probes)
        found["cleaned"] = evaluate(cleaned, identities, distractors[~noises[1]], options, "cleaned")
    replace_file(options.out / "rank1.json", json.dumps(found, indent=2) + "\n")


def check_out(options: argparse.Namespace) -> None:
    """Before hours of extraction: results can be written, and features of probes and distractors apart."""
    if options.write_features and options.suffix:
        raise ConfigError("--write-features needs pictures and run=; with --suffix the features are files already")
    if options.write_features and options.probes.resolve().name == options.distractors.resolve().name:
        raise ConfigError(
            f"--write-features puts features under the folder's name, and --probes and --distractors are both called "
            f"{options.probes.resolve().name}; rename one"
        )
    check_writable(options.out)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="run=<folder>, and overrides")
    parser.add_argument("--suffix", help="read features <path><suffix> in place of pictures")
    for name in ("probes", "distractors"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder that the list's paths are relative to")
        parser.add_argument(f"--{name[:-1]}-list", type=Path, required=True, help="list of the devkit")
        parser.add_argument(f"--{name[:-1]}-noises", type=Path, help="names of noisy pictures, one a line")
    parser.add_argument("--noisy-probes", choices=("replace", "drop", "keep"), default="replace")
    parser.add_argument("--memory", type=int, default=64, help="MiB of scores that are held at once")
    parser.add_argument("--cache", type=Path, default=Path("outputs/embeddings"), help="folder of kept embeddings")
    parser.add_argument("--curves", action="store_true", help="CMC and ROC of the last size too (minutes at full size)")
    parser.add_argument("--write-features", help="suffix of feature files to write into --out")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    return parser.parse_args(arguments)


def features_of(config: Config | None, options: argparse.Namespace, folder: Path, entries: TemplateList) -> Floats:
    """Unit rows of a list."""
    if config is None:
        return read_features(folder, entries.paths, options.suffix)
    embedder = load_embedder(config)
    paths = [folder / name for name in entries.paths]
    rows = extract(
        lambda part: embedder.pictures([paths[i] for i in part]),
        stamps(folder, entries.paths),
        options.cache,
        embedder.fingerprint(folder),
    )
    features = normalise(rows, str(folder))
    if options.write_features:
        for name, row in zip(entries.paths, features, strict=True):
            write_feature(options.out / "features" / folder.resolve().name / f"{name}{options.write_features}", row)
    return features


def evaluate(
    probes: Floats, identities: np.ndarray, distractors: Floats, options: argparse.Namespace, name: str
) -> dict[str, object]:
    """Rank-1 at 10, 100, ... distractors and at all; prints a line, writes the curves."""
    total = len(distractors)
    sizes = [size for size in (10**k for k in range(1, 7)) if size < total] + [total]
    result = rank1(probes, identities, distractors, sizes, memory_mib=options.memory)
    print(f"{name}: rank-1 {result.rank1:.4f} % of {result.trials:,} trials among {total:,} distractors")
    if options.curves:
        ranks, roc = ranks_and_rates(probes, identities, distractors)
        curve = cmc(ranks, result.hits[-1])
        write_result(options.out / f"cmc_probes_megaface_{name}_{total}_1.json", curve, roc)
        write_picture(options.out / f"{name}.svg", result.by_size(), curve)
    return {"rank1": result.by_size(), "trials": result.trials, "identities_of_one_picture": result.single}
