"""Verification, devkit files, alignment, cached embeddings: against literal loops and files written byte by byte."""

import io
import json
import math
import os
import pickle
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drconv.commands import data, megaface
from drconv.config import Config
from drconv.errors import ConfigError, DataError
from drconv.tasks.identification.alignment import (
    TEMPLATE,
    align,
    align_folder,
    read_landmarks,
    similarity,
    template,
)
from drconv.tasks.identification.curves import cmc, ranks_and_rates, write_picture, write_result
from drconv.tasks.identification.drawn import draw_face
from drconv.tasks.identification.embedder import Embedder, stamps
from drconv.tasks.identification.extraction import extract, fingerprint_of
from drconv.tasks.identification.megaface import (
    check_trials,
    clean_probes,
    read_feature,
    read_features,
    read_list,
    read_noises,
    size_of_list,
    write_feature,
    write_list,
)
from drconv.tasks.identification.pairs import read_pairs
from drconv.tasks.identification.pictures import decode_face, fit_face
from drconv.tasks.identification.rank import normalise, rank1
from drconv.tasks.identification.verification import drawn_pairs, verify

PICTURES = [bytes([200 + i, 10, 255]) for i in range(4)]


def as_arrays() -> list[np.ndarray]:
    return [np.frombuffer(picture, np.uint8).reshape(-1, 1).copy() for picture in PICTURES]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["bytes", "arrays", "numpy flags"])
def test_verification_pickles_of_every_protocol(protocol: int, kind: str, tmp_path: Path) -> None:
    pictures: Any = as_arrays() if kind == "arrays" else PICTURES
    flags: Any = [np.bool_(True), np.bool_(False)] if kind == "numpy flags" else [True, False]
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps((pictures, flags), protocol=protocol))
    encoded, same = read_pairs(path)
    assert (encoded, same.tolist()) == (PICTURES, [True, False])


def test_python_2_strings_stay_bytes(tmp_path: Path) -> None:
    strings = b"".join(b"U" + bytes([len(p)]) + p for p in PICTURES)  # SHORT_BINSTRING, as Python 2 wrote them
    path = tmp_path / "lfw.bin"
    path.write_bytes(b"\x80\x02](" + strings + b"e](\x88\x89e\x86.")
    assert read_pairs(path)[0] == PICTURES


class _Attack:
    def __reduce__(self) -> tuple:
        return os.system, ("touch attacked",)


def test_nothing_in_a_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "lfw.bin"
    for content in (_Attack(), ([_Attack()], [True]), ([np.array([object()])], [True])):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=r"it names (posix\.system|builtins\.object)|an array of O8"):
            read_pairs(path)
    assert os.listdir(tmp_path) == ["lfw.bin"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((PICTURES[:3], [True]), "3 pictures for 1 pairs"),
        ((PICTURES[:2], [1.5]), "1.5 where a boolean"),
        (([PICTURES[0], None], [True]), "picture 2 of pair 0 is NoneType"),
        (([], []), "0 pictures"),
        ([1, 2, 3], "no verification set"),
        (([np.zeros(2)], [True]), "an array of f8"),
    ],
)
def test_wrong_verification_sets_are_explained(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        read_pairs(path)


def test_a_number_in_a_pickle_takes_no_memory(tmp_path: Path) -> None:
    """Eight bytes took four GiB with this number, and would take 64 with the largest."""
    path = tmp_path / "lfw.bin"
    for number in (b"r\xff\xff\xff\x0f", b"p268435455\n"):
        path.write_bytes(b"\x80\x02]" + number + b".")
        with pytest.raises(DataError, match="it numbers an object 268435455"):
            read_pairs(path)


def literal_ten_fold(distances: np.ndarray, same: np.ndarray, folds: int) -> list[float]:
    """As insightface describes it, one threshold at a time."""
    bounds, start = [], 0
    for fold in range(folds):
        length = len(same) // folds + (fold < len(same) % folds)
        bounds.append((start, start + length))
        start += length
    result = []
    for begin, end in bounds:
        best, chosen = -1, 0.0
        for step in range(400):
            right = sum((distances[i] < step * 0.01) == same[i] for i in range(len(same)) if not begin <= i < end)
            if right > best:
                best, chosen = right, step * 0.01
        result.append(100 * sum((distances[i] < chosen) == same[i] for i in range(begin, end)) / (end - begin))
    return result


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), count=st.sampled_from([2, 6, 13, 40]), sort=st.booleans())
def test_ten_folds_are_the_literal_loop(seed: int, count: int, sort: bool) -> None:
    random = np.random.default_rng(seed)
    same = random.random(count) < 0.5
    if sort:
        same = np.sort(same)  # folds of one class
    first = random.normal(size=(count, 8))
    second = np.where(same[:, None], first + 0.7 * random.normal(size=(count, 8)), random.normal(size=(count, 8)))
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
    expected = literal_ten_fold(((a - b) ** 2).sum(1), same, min(10, count))
    assert verify(first, second, same).folds == pytest.approx(expected)


def test_separated_pairs_and_undefined_rates() -> None:
    first = np.tile([1.0, 0.0], (20, 1))
    second = np.where(np.arange(20)[:, None] % 2 == 0, first, -first)
    result = verify(first * 7, second, np.arange(20) % 2 == 0)
    assert (result.accuracy, result.std, result.rate) == (100, 0, 100)  # repeated distances; all negatives at 4
    assert result.cosine == 1 - result.threshold / 2
    assert verify(first, second, np.arange(20) % 2 == 0, folds=20).rate is None  # a fold without positives
    with pytest.raises(DataError, match="at least two pairs"):
        verify(first[:1], second[:1], np.ones(1, bool))
    with pytest.raises(DataError, match="pair 0 is zero"):
        verify(first * 0, second, np.ones(20, bool))


def test_drawn_pairs_alternate() -> None:
    positions, same = drawn_pairs(np.repeat(np.arange(5), 3), 20)
    assert same.tolist() == [True, False] * 10
    assert len({tuple(pair) for pair in positions.tolist()}) == 20


def test_devkit_files_byte_by_byte(tmp_path: Path) -> None:
    vector = np.arange(1, 4, dtype=np.float32)
    write_feature(tmp_path / "a@N00" / "1.png_x.bin", vector)
    expected = struct.pack("<4i", 3, 1, 4, 5) + struct.pack("<3f", 1, 2, 3)
    assert (tmp_path / "a@N00" / "1.png_x.bin").read_bytes() == expected
    double = tmp_path / "double.bin"
    double.write_bytes(struct.pack("<4i", 3, 1, 4, 6) + struct.pack("<3d", 1, 2, 3))  # with the devkit's stride
    assert read_feature(double).tolist() == [1, 2, 3]
    for content, message in (
        (expected[:-1], "27 bytes"),
        (b"abc", "fewer"),
        (struct.pack("<4i", 1, 1, 4, 0) + bytes(4), "the type 0"),
    ):
        double.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_feature(double)


def test_features_of_a_list(tmp_path: Path) -> None:
    names = ["p/1.jpg", "p/2.png"]
    for name, length in zip(names, (5, 30), strict=True):
        write_feature(tmp_path / f"{name}_x.bin", np.array([length, 0], np.float32))
    assert read_features(tmp_path, names, "_x.bin").tolist() == [[1, 0], [1, 0]]
    with pytest.raises(DataError, match=r"1 of 3 files of the list are not in .*, first p/3\.jpg_x\.bin"):
        read_features(tmp_path, [*names, "p/3.jpg"], "_x.bin")
    write_feature(tmp_path / "p/2.png_x.bin", np.ones(3, np.float32))
    with pytest.raises(DataError, match=r"has 3 features, p/1\.jpg has 2"):
        read_features(tmp_path, names, "_x.bin")


def test_lists_and_noises(tmp_path: Path) -> None:
    path = tmp_path / "megaface_features_list.json_1000_1"
    write_list(path, ["a/1.jpg", "a/2.jpg", "b/1.jpg"], ["a", "a", "b"])
    assert json.loads(path.read_text())["id"] == ["a", "a", "b"]
    found = read_list(path)
    assert (size_of_list(path), found.identities.tolist()) == (1000, [0, 0, 1])
    noises = tmp_path / "noises.txt"
    noises.write_text("2.jpg\n\nb/1.jpg\nx/1.jpg\n")
    assert read_noises(noises, found.paths).tolist() == [False, True, True]
    for content, message in (
        ("[]", "no list of the devkit"),
        ('{"path": []}', "names no picture"),
        ('{"path": ["a/b", "a//b"]}', "a//b twice"),
        ('{"path": ["a/../../b"]}', r"a/../../b leaves the folder"),
        ('{"path": ["/a"]}', "/a leaves the folder"),
        ('{"path": ["a", "a"]}', "a twice"),
        ('{"path": ["a"], "id": []}', "1 paths and 0 ids"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_list(path)


def test_rank_1_of_feature_files_raw_and_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script from the devkit's files to its results, against a loop over pairs."""
    random = np.random.default_rng(7)
    probes = random.normal(size=(4, 6))[np.arange(12) // 3] + 0.7 * random.normal(size=(12, 6))
    distractors = random.normal(size=(150, 6))
    names = [f"p{i // 3}/{i}.jpg" for i in range(12)], [f"d/{i}.jpg" for i in range(150)]
    for kind, rows, entries in zip(("probe", "distractor"), (probes, distractors), names, strict=True):
        ids = [name.split("/")[0] for name in entries]
        write_list(tmp_path / f"{kind}.json", entries, ids if kind == "probe" else None)
        for name, row in zip(entries, rows, strict=True):
            write_feature(tmp_path / f"{name}_x.bin", row)
    (tmp_path / "noises.txt").write_text("".join(f"{i}.jpg\n" for i in range(0, 150, 2)))
    common = ["--suffix", "_x.bin", "--curves", "--out", str(tmp_path / "out"), "--distractor-noises"]
    common += [str(tmp_path / "noises.txt")]
    for kind in ("probe", "distractor"):
        common += [f"--{kind}s", str(tmp_path), f"--{kind}-list", str(tmp_path / f"{kind}.json")]
    megaface.identify(megaface.parse_options(common))
    found = json.loads((tmp_path / "out/rank1.json").read_text())
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (probes, distractors)]
    for name, used in (("raw", unit[1]), ("cleaned", unit[1][1::2])):
        hits = [
            unit[0][i] @ unit[0][j] > (used @ unit[0][i]).max()
            for i in range(12)
            for j in range(12)
            if i != j and i // 3 == j // 3
        ]
        assert found[name]["rank1"][str(len(used))] == pytest.approx(100 * np.mean(hits))
        curve = json.loads((tmp_path / f"out/cmc_probes_megaface_{name}_{len(used)}_1.json").read_text())
        assert 100 * curve["cmc"][1][0] == pytest.approx(100 * np.mean(hits))
    assert found["raw"]["rank1"]["150"] < found["cleaned"]["rank1"]["75"]
    assert "meet 0 of 12 probes and 75 of 150 distractors" in capsys.readouterr().out
    write_list(tmp_path / "distractor.json", [*names[1], names[0][0]])
    with pytest.raises(ConfigError, match="1 pictures are probe and distractor"):
        megaface.identify(megaface.parse_options(common))


def test_a_long_list_that_names_one_twice_is_refused_at_once(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(100_000)]
    write_list(tmp_path / "list", [*names, names[-1]])
    began = time.process_time()
    with pytest.raises(DataError, match=r"99999\.jpg twice"):
        read_list(tmp_path / "list")
    assert time.process_time() - began < 20  # a count for each name took minutes


def test_noise_lists_of_other_kinds(tmp_path: Path) -> None:
    noises = tmp_path / "noises.txt"
    noises.write_bytes(b"\xef\xbb\xbf1.jpg\r\n\xff\r\n")
    assert read_noises(noises, ["1.jpg", "2.jpg"]).tolist() == [True, False]
    noises.unlink()
    os.mkfifo(noises)
    with pytest.raises(OSError, match="not a regular file"):
        read_noises(noises, ["1.jpg"])


@pytest.mark.parametrize(
    ("ids", "mode", "probes", "distractors", "message"),
    [
        ([0, 1, 2, 3], "keep", [], [], "no identity of the probe list has two pictures; "),
        ([0, 0, 1, 1], "drop", [0, 2], [], "two pictures that are not noisy"),
        ([0, 0, 1, 1], "replace", [2, 3], [], "1 identities are noisy, first that of probe 2"),
        ([0, 0, 1, 1], "keep", [], [0, 1, 2, 3], "names all distractors"),
    ],
)
def test_what_gives_no_figure_is_refused_before_the_work(
    ids: list[int], mode: str, probes: list[int], distractors: list[int], message: str
) -> None:
    noisy = [np.isin(np.arange(4), named) for named in (probes, distractors)]
    with pytest.raises(DataError, match=message):
        check_trials(np.array(ids), noisy, mode)
    check_trials(np.array([0, 0, 1]), [np.array([True, False, True]), np.zeros(1, bool)], "keep")


def test_a_file_in_the_place_of_the_results_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    common = ["--suffix", "_x", "--out", str(tmp_path / "out")]
    for kind in ("probe", "distractor"):
        common += [f"--{kind}s", str(tmp_path), f"--{kind}-list", str(tmp_path / kind)]
        for number in range(2):
            (tmp_path / f"{kind}{number}_x").write_text("not read before the check")
        write_list(tmp_path / kind, [f"{kind}0", f"{kind}1"], ["a", "a"])
    with pytest.raises(NotADirectoryError, match="out"):
        megaface.identify(megaface.parse_options(common))
    with pytest.raises(ConfigError, match="with --suffix the features are files"):
        megaface.identify(megaface.parse_options([*common, "--write-features", "_y"]))


def test_a_feature_that_is_not_finite_is_named(tmp_path: Path) -> None:
    for number, value in enumerate((1.0, np.nan)):
        write_feature(tmp_path / f"{number}_x", np.array([1, value], np.float32))
    with pytest.raises(DataError, match="1_x is zero or not finite"):
        read_features(tmp_path, ["0", "1"], "_x")


def test_noisy_probes() -> None:
    features, identities = normalise(np.eye(4)), np.array([0, 0, 0, 1])
    noisy = np.array([False, True, False, False])
    assert len(clean_probes(features, identities, noisy, "drop")[0]) == 3
    replaced, _ = clean_probes(features, identities, noisy, "replace")
    np.testing.assert_allclose(replaced[1], [math.sqrt(0.5), 0, math.sqrt(0.5), 0], atol=1e-7)
    assert clean_probes(features, identities, noisy, "keep")[0] is features
    with pytest.raises(DataError, match="identity 1 are noisy"):
        clean_probes(features, identities, np.array([False, False, False, True]), "replace")


def test_curves_begin_at_rank_1_and_end_at_1(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    identities = np.repeat(np.arange(6), 3)
    probes = normalise(random.normal(size=(6, 8))[identities] + 0.5 * random.normal(size=(18, 8)))
    distractors = normalise(random.normal(size=(300, 8)))
    ranks, roc = ranks_and_rates(probes, identities, distractors)
    scores = probes @ distractors.T
    expected = sorted(
        int((scores[i] >= probes[i] @ probes[j]).sum())
        for i in range(18)
        for j in range(18)
        if i != j and identities[i] == identities[j]
    )
    assert ranks.tolist() == expected
    result = rank1(probes, identities, distractors, [10, 300])
    curve = cmc(ranks, result.hits[-1])
    write_result(tmp_path / "cmc.json", curve, roc)
    stored = json.loads((tmp_path / "cmc.json").read_text())
    assert 100 * stored["cmc"][1][0] == pytest.approx(result.rank1)
    assert (stored["cmc"][0][0], stored["cmc"][1][-1]) == (0, 1)
    assert (stored["roc"][0][-1], stored["roc"][1][-1]) == (1, 1)
    assert (np.diff(stored["roc"][0]) >= 0).all()
    write_picture(tmp_path / "cmc.svg", result.by_size(), curve)
    assert "polyline" in (tmp_path / "cmc.svg").read_text()


@settings(max_examples=25, deadline=None)
@given(angle=st.floats(-3, 3), scale=st.floats(0.1, 5), x=st.floats(-300, 300), y=st.floats(-300, 300))
def test_the_similarity_is_found(angle: float, scale: float, x: float, y: float) -> None:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = TEMPLATE @ turn.T + [x, y]
    matrix = similarity(points, TEMPLATE)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], TEMPLATE, atol=1e-6)


def test_the_similarity_has_the_least_squares() -> None:
    points = TEMPLATE * 1.3 + np.random.default_rng(0).normal(size=(5, 2)) * 3
    rows = np.concatenate(
        [
            np.stack([points[:, 0], -points[:, 1], np.ones(5), np.zeros(5)], 1),
            np.stack([points[:, 1], points[:, 0], np.zeros(5), np.ones(5)], 1),
        ]
    )
    a, b, x, y = np.linalg.lstsq(rows, TEMPLATE.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(similarity(points, TEMPLATE), [[a, -b, x], [b, a, y]], atol=1e-9)


def test_both_crops_of_one_face_agree_and_pixels_do_not_shift() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8))
    whole = np.asarray(align(noise, TEMPLATE, (112, 112)))
    np.testing.assert_array_equal(whole, np.asarray(noise))  # aligned already: not a pixel changes
    narrow = np.asarray(align(noise, TEMPLATE, (112, 96)))
    np.testing.assert_array_equal(narrow, whole[:, 8:104])
    np.testing.assert_array_equal(template((112, 96)), TEMPLATE - [8, 0])


def test_a_face_of_112_columns_loses_eight_on_each_side() -> None:
    grid = torch.arange(112).expand(3, 112, 112).to(torch.uint8)
    assert fit_face(grid, None, "grid")[0, 0].tolist() == list(range(8, 104))
    assert fit_face(grid[:, :, :96], None, "grid").shape == (3, 112, 96)
    assert fit_face(torch.zeros(3, 154, 154, dtype=torch.uint8), [133, 114], "x").shape == (3, 112, 96)
    with pytest.raises(DataError, match=r"x has 50x50 pixels.*data\.faces\.window"):
        fit_face(torch.zeros(3, 50, 50, dtype=torch.uint8), None, "x")
    with pytest.raises(DataError, match="cannot decode key 3"):
        decode_face(b"broken", "key 3")


def test_grey_of_16_bits_and_slivers(tmp_path: Path) -> None:
    """Dark grey of 16 bits was white where it came from a record or a verification set."""
    Image.fromarray(np.full((112, 96), 10 << 8, np.uint16)).save(tmp_path / "grey.png")
    assert decode_face((tmp_path / "grey.png").read_bytes(), "x")[:, 50, 50].tolist() == [10, 10, 10]
    assert fit_face(torch.zeros(3, 100, 1, dtype=torch.uint8), [10, 1000], "x").shape == (3, 112, 96)


def test_red_stays_red() -> None:
    file = io.BytesIO()
    Image.new("RGB", (96, 112), (255, 0, 0)).save(file, "JPEG", quality=100)
    assert decode_face(file.getvalue(), "x")[:, 50, 50].tolist() == [254, 0, 0]


def test_bad_landmarks_are_listed(tmp_path: Path) -> None:
    Image.new("RGB", (112, 112), (9, 9, 9)).save(tmp_path / "a.png")
    good = ",".join(f"{value}" for value in TEMPLATE.ravel())
    swapped = ",".join(f"{value}" for value in TEMPLATE[[1, 0, 2, 4, 3]].ravel())
    rows = ["path,x1,y1", f"a.png,{good}", "a.png," + ",".join(["7"] * 10), "a.png," + ",".join(["nan"] * 10)]
    rows += [f"a.png,{swapped}", "a.png," + ",".join(["900"] * 10), f"gone.jpg,{good}", "a.png,1,2"]
    (tmp_path / "points.csv").write_text("\n".join(rows))
    written, bad = align_folder(tmp_path, tmp_path / "points.csv", tmp_path / "out", (112, 96))
    assert written == 1
    assert Image.open(tmp_path / "out" / "a.jpg").size == (96, 112)
    assert [row.reason.split(" ")[:3] for row in bad] == [
        ["the", "points", "are"],
        ["a", "point", "is"],
        ["the", "points", "miss"],
        ["the", "points", "lie"],
        ["cannot", "decode", str(tmp_path / "gone.jpg")],
        ["not", "ten", "numbers"],
    ]
    arguments = [str(tmp_path), str(tmp_path / "out"), "--landmarks", str(tmp_path / "points.csv")]
    assert data.main(["align", *arguments]) == 1
    (tmp_path / "points.csv").write_text(f"a.png,{good}")
    arguments[1] = str(tmp_path / "second")
    assert data.main(["align", *arguments, "--columns", "96"]) == 0
    (tmp_path / "points.csv").write_text(f"../a.png,{good}")
    with pytest.raises(DataError, match="leaves the folder"):
        align_folder(tmp_path, tmp_path / "points.csv", tmp_path / "out", (112, 96))


def test_crops_take_the_place_of_no_file(tmp_path: Path) -> None:
    """Neither of the originals, where both folders are one, nor of one another."""
    good = ",".join(f"{value}" for value in TEMPLATE.ravel())
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (112, 112), (9, 9, 9)).save(tmp_path / name)
    before = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "points.csv").write_text(f"a.png,{good}\na.jpg,{good}\n")
    written, bad = align_folder(tmp_path, tmp_path / "points.csv", tmp_path, (112, 96))
    assert (written, len(bad), "is there already" in bad[0].reason) == (0, 2, True)
    assert (tmp_path / "a.jpg").read_bytes() == before
    written, bad = align_folder(tmp_path, tmp_path / "points.csv", tmp_path / "out", (112, 96))
    assert (written, [row.name for row in bad]) == (1, ["a.jpg"])


def test_no_row_of_a_landmark_file_is_lost(tmp_path: Path) -> None:
    """A first row of too few numbers is no heading; a mark at the beginning of the file is no part of a name; a number
    that is missing is not made up for by one behind it."""
    good = ",".join(f"{value}" for value in TEMPLATE.ravel())
    path = tmp_path / "points.csv"
    for content, expected in (
        (f"a.png,1,2\nb.png,{good}", [("a.png", False), ("b.png", True)]),
        (f"\ufeffa.png,{good}", [("a.png", True)]),
        (f"path,x1\na.png,{good.replace(',', ',,', 1)}", [("a.png", False)]),
        (f"a.png\t{good.replace(',', chr(9))}", [("a.png", True)]),
        (f"a.png  {good.replace(',', '  ')}", [("a.png", True)]),
    ):
        path.write_text(content)
        assert [(name, points is not None) for name, points in read_landmarks(path)] == expected
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        list(read_landmarks(path))


@pytest.mark.filterwarnings("error")
def test_pictures_and_points_of_any_size_are_listed(tmp_path: Path) -> None:
    """A picture of 20,000 x 20,000 ended in a trace; grey of 16 bits became white; 1e308 warned of overflow."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    Image.fromarray(np.full((112, 112), 100 << 8, np.uint16)).save(tmp_path / "grey.png")
    good = ",".join(f"{value}" for value in TEMPLATE.ravel())
    far = ",".join(["1e308"] * 10)
    (tmp_path / "points.csv").write_text(f"huge.png,{good}\ngrey.png,{far}\ngrey.png,{good}\n")
    written, bad = align_folder(tmp_path, tmp_path / "points.csv", tmp_path / "out", (112, 112))
    assert (written, [row.name for row in bad]) == (1, ["huge.png", "grey.png"])
    assert "not finite, or beyond" in bad[1].reason
    assert abs(int(np.asarray(Image.open(tmp_path / "out" / "grey.jpg"))[50, 50, 0]) - 100) < 3


def test_an_interrupted_extraction_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drconv.tasks.identification.extraction.PART", 4)
    rows = torch.randn(10, 3)
    asked: list[int] = []

    def embed(positions: range) -> torch.Tensor:
        asked.extend(positions)
        if positions.start >= 8 and len(asked) < 11:
            raise KeyboardInterrupt
        return rows[list(positions)]

    key = fingerprint_of("weights", ["list"], {"mean": 1})
    with pytest.raises(KeyboardInterrupt):
        extract(embed, range(10), tmp_path, key, batch_size=3, say=lambda line: None)
    lines: list[str] = []
    found = extract(embed, range(10), tmp_path, key, batch_size=3, say=lines.append)
    np.testing.assert_array_equal(found, rows.numpy())
    assert asked == [*range(10), 8, 9]  # what was there is not asked for again
    assert lines == ["embeddings: 10 of 10, 0:00:00 left"]
    next(tmp_path.rglob("000000004-*")).write_bytes(b"damaged")
    extract(embed, range(10), tmp_path, key, say=lines.append)
    assert asked[-4:] == [4, 5, 6, 7]
    extract(embed, range(10), tmp_path, fingerprint_of("other weights"), say=lines.append)
    assert len(asked) == 26  # other weights meet nothing of it
    with pytest.raises(DataError, match="picture 0 is not finite"):
        extract(lambda positions: torch.full((len(positions), 2), torch.nan), range(4), tmp_path, "n" * 20)


def test_kept_embeddings_are_of_these_pictures_or_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is asked for again when its pictures change, when a bit of it turns, when its numbers are of another kind;
    the parts beside it are not."""
    monkeypatch.setattr("drconv.tasks.identification.extraction.PART", 4)
    rows, asked = torch.randn(10, 3), []

    def embed(positions: range) -> torch.Tensor:
        asked.extend(positions)
        return rows[list(positions)]

    def check(entries: list[Any], expected: list[int]) -> None:
        asked.clear()
        np.testing.assert_array_equal(
            extract(embed, entries, tmp_path, "key", say=lambda line: None), rows[: len(entries)]
        )
        assert asked == expected

    entries = [(f"{number}.jpg", 100, 7) for number in range(10)]
    check(entries, [*range(10)])
    check(entries, [])
    check([*entries[:5], ("5.jpg", 100, 8), *entries[6:]], [4, 5, 6, 7])
    check(entries[:8], [])  # a shorter list of the same pictures
    check(entries[8:] + entries[:2], [*range(4)])
    first = next(path for path in tmp_path.rglob("000000004-*"))
    whole = first.read_bytes()
    for turned in (whole.replace(rows[4:8].numpy().tobytes(), rows[4:8].neg().numpy().tobytes()), whole[:-9]):
        first.write_bytes(turned)
        for path in tmp_path.rglob("000000004-*"):
            path.write_bytes(turned)
        check(entries, [4, 5, 6, 7])
    for kind in (rows[4:8].double(), rows[4:8, 0], rows[4:8].int(), rows[4:7]):
        for path in tmp_path.rglob("000000004-*"):
            with open(path, "wb") as file:
                np.savez(file, rows=kind.numpy())
        check(entries, [4, 5, 6, 7])
    for path in tmp_path.rglob("000000004-*"):
        with open(path, "wb") as file:
            np.savez(file, rows=rows[4:8, :2].numpy())
    with pytest.raises(DataError, match="rows of 2 numbers, others 3; remove"):
        check(entries, [])


def test_embeddings_are_kept_for_a_folder_and_its_files(tmp_path: Path) -> None:
    """Another folder with the same names, and another picture under the same name, have another hash."""
    (tmp_path / "weights").write_bytes(b"1")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.jpg").write_bytes(b"first")
    embedder = Embedder(torch.nn.Linear(1, 1), Config(), tmp_path / "weights")
    assert embedder.fingerprint(tmp_path / "a") == embedder.fingerprint(tmp_path / "b" / ".." / "a")
    assert embedder.fingerprint(tmp_path / "a") != embedder.fingerprint(tmp_path / "b")
    before = stamps(tmp_path / "a", ["0.jpg"])
    assert before == stamps(tmp_path / "a", ["0.jpg"])
    os.utime(tmp_path / "a" / "0.jpg", ns=(0, 5))
    assert stamps(tmp_path / "a", ["0.jpg"]) != before


def test_drawn_faces_depend_on_both_numbers() -> None:
    first = draw_face(3, 5)
    assert first.shape == (112, 96, 3)
    np.testing.assert_array_equal(first, draw_face(3, 5))
    other_picture, other_face = (np.abs(first.astype(int) - draw_face(*key)).mean() for key in ((3, 6), (4, 5)))
    assert min(other_picture, other_face) > 5
