"""RecordIO and what stands in a file of faces: framing, order, damage, labels, processes."""

import io
import multiprocessing
import os
import struct
import zlib
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drconv.commands import data as command
from drconv.errors import DataError
from drconv.tasks.identification.pack import pack_folders, unpack_records
from drconv.tasks.identification.pictures import RecordSource
from drconv.tasks.identification.recordio import (
    MAGIC_BYTES,
    RecordReader,
    RecordWriter,
    frame,
    pack_payload,
    unpack_payload,
)
from drconv.tasks.identification.records import FaceIndex, class_names, number_of_classes, open_faces, scan

M = MAGIC_BYTES
SPLIT_HEADER = struct.pack("<IfQQ", 0, 5.0, 1, 0) + M + b"ab"


def jpeg(level: int = 100, size: tuple[int, int] = (112, 112)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (level, 0, 255 - level)).save(file, "JPEG")
    return file.getvalue() + bytes(-len(file.getvalue()) % 4)  # zeros behind a JPEG's end are nothing to a decoder


def write(path: Path, records: list[tuple[int, bytes]]) -> Path:
    with RecordWriter(path) as writer:
        for key, payload in records:
            writer.write(key, payload)
    return path


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Three pictures of two identities, two identity records, and a header at the end, as in MS1M-V2."""
    records = [(key, pack_payload(float(label), key, jpeg(key))) for key, label in ((1, 0), (2, 0), (3, 1))]
    records += [(4, pack_payload([1, 3], 4, b"")), (5, pack_payload([3, 4], 5, b""))]
    return write(tmp_path / "train.rec", [*records, (0, pack_payload([4, 6], 0, b"", second=1))])


def without_stored(path: Path) -> Path:
    path.with_name(path.name + ".faces.npz").unlink(missing_ok=True)
    return path


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", "0a23d7ce00000000"),
        (M, "0a23d7ce00000020 0a23d7ce00000060"),
        (M + M, "0a23d7ce00000020 0a23d7ce00000040 0a23d7ce00000060"),
        (b"abcd" + M, "0a23d7ce04000020 61626364 0a23d7ce00000060"),
        (M + b"abcd", "0a23d7ce00000020 0a23d7ce04000060 61626364"),
        (b"x" + M + b"yyy", "0a23d7ce08000000" + (b"x" + M + b"yyy").hex()),
    ],
)
def test_framing_is_dmlcs(payload: bytes, expected: str) -> None:
    assert frame(payload) == bytes.fromhex(expected)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.lists(st.sampled_from([M, b"abcd", b"x", b"", b"\n#\xd7\xce"]), max_size=6), max_size=6))
def test_payloads_come_back_wherever_the_magic_stands(
    pieces: list[list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    payloads = [b"".join(piece) for piece in pieces]
    path = write(tmp_path_factory.mktemp("rec") / "a.rec", list(enumerate(payloads)))
    reader = RecordReader(path)
    assert [reader.read(offset) for offset in scan(path)] == payloads


def test_a_header_split_by_the_magic_is_joined_before_it_is_read(tmp_path: Path) -> None:
    header = struct.pack("<IfQQ", 0, 5.0, struct.unpack("<Q", M + M)[0], 0)
    path = write(tmp_path / "a.rec", [(7, header + b"jpeg"), (8, SPLIT_HEADER)])
    assert len(frame(SPLIT_HEADER)) == 44
    index = open_faces(path)
    assert index.labels.tolist() == [5, 5]
    assert unpack_payload(RecordReader(path).read(int(index.offsets[0]))).picture == b"jpeg"


def test_identities_and_header_are_no_pictures(faces: Path) -> None:
    index = open_faces(faces)
    assert (index.keys.tolist(), index.labels.tolist()) == ([1, 2, 3], [0, 0, 1])
    assert (index.identities, index.headers) == (2, 1)
    assert number_of_classes(faces, index.labels) == 2
    assert open_faces(faces).fingerprint() == index.fingerprint()  # from what was stored


@pytest.mark.parametrize("first", [0, 1, 5])
def test_no_key_is_special(first: int, tmp_path: Path) -> None:
    records = [(first + i, pack_payload([float(i), 9.0] if i else float(i), 0, jpeg())) for i in range(3)]
    index = open_faces(write(tmp_path / "a.rec", records))
    assert (index.keys.tolist(), index.labels.tolist()) == ([first, first + 1, first + 2], [0, 1, 2])
    assert (index.identities, index.headers) == (0, 0)


def test_a_missing_index_is_made_from_the_ids(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    idx = faces.with_suffix(".idx")
    before = sorted(idx.read_text().splitlines())
    idx.unlink()
    index = open_faces(faces)
    assert "going through" in caplog.text
    assert sorted(idx.read_text().splitlines()) == before  # record 0, last in the file, keeps its key
    assert index.keys.tolist() == [1, 2, 3]


def test_an_index_in_file_order_makes_no_identity_a_picture(faces: Path) -> None:
    idx = faces.with_suffix(".idx")
    offsets = sorted(int(line.split()[1]) for line in idx.read_text().splitlines())
    idx.write_text("".join(f"{number}\t{offset}\n" for number, offset in enumerate(offsets)))  # as rec2idx numbers
    index = open_faces(faces)
    assert (index.keys.tolist(), index.labels.tolist()) == ([0, 1, 2], [0, 0, 1])


@pytest.mark.parametrize("line", ["9\t18446744073709551615", "9\t2", "1\t0", "9\t0", "9", "nine\t8", "-1\t-4"])
def test_senseless_lines_are_replaced_by_a_scan(line: str, faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    idx = faces.with_suffix(".idx")
    idx.write_text(idx.read_text() + line + "\n")
    assert open_faces(faces).keys.tolist() == [1, 2, 3]
    assert "cannot be right" in caplog.text


@pytest.mark.parametrize(
    ("bytes_cut", "with_index"), [(1, True), (4, True), (40, True), (1, False), (4, False)]
)  # 40 bytes are a whole record: without the index it is not missed
def test_a_cut_file_is_refused_at_the_start(bytes_cut: int, with_index: bool, faces: Path) -> None:
    faces.write_bytes(faces.read_bytes()[:-bytes_cut])
    if not with_index:
        faces.with_suffix(".idx").unlink()
    with pytest.raises(DataError, match=r"train\.rec"):
        open_faces(faces)


def test_only_the_last_padding_may_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.rec", [(0, pack_payload(0.0, 0, b"abc"))])
    path.write_bytes(path.read_bytes()[:-1])
    assert unpack_payload(RecordReader(path).read(int(open_faces(path).offsets[0]))).picture == b"abc"
    path.with_suffix(".idx").unlink()
    open_faces(path)
    assert caplog.text.count("lacks the padding") == 3


def test_the_index_of_another_file_is_refused(faces: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.rec", [(key, pack_payload(0.0, key, bytes(100 + 8 * key))) for key in range(6)])
    faces.with_suffix(".idx").write_bytes(other.with_suffix(".idx").read_bytes())
    with pytest.raises(DataError, match=r"train\.rec: key 1 at offset 132 is no record of a picture"):
        open_faces(faces)


def test_damage_in_the_middle_names_key_and_offset(faces: Path) -> None:
    data = bytearray(faces.read_bytes())
    offset = int(open_faces(faces).offsets[1])
    data[offset] ^= 1
    faces.write_bytes(data)
    with pytest.raises(DataError, match=rf"key 2 at offset {offset} .*damaged record at offset {offset}"):
        open_faces(without_stored(faces))
    with pytest.raises(DataError, match=f"offset {offset}"):
        RecordReader(faces).read(offset)


@pytest.mark.parametrize(("flag", "message"), [(2, "flag 2"), (3, "flag 3"), (4, "flag 4"), (7, "flag 7")])
def test_a_record_does_not_begin_in_its_middle(flag: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    path.write_bytes(M + struct.pack("<I", flag << 29 | 4) + b"abcd")
    with pytest.raises(DataError, match=message):
        RecordReader(path).read(0)


def test_a_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    path.write_bytes(M + struct.pack("<I", (1 << 29) - 1) + b"abcd")
    with pytest.raises(DataError, match="536870911 bytes announced, the file ends at 12"):
        RecordReader(path).read(0)
    path.write_bytes(M + struct.pack("<I", 1 << 29 | 4) + b"abcd")
    with pytest.raises(DataError, match="inside the record"):
        RecordReader(path).read(0)


def test_more_labels_than_bytes_is_damage(tmp_path: Path) -> None:
    payload = struct.pack("<IfQQ", 10, 0.0, 1, 0) + b"abcdef"
    with pytest.raises(DataError, match=r"key 1 at offset 0 .*10 labels in 64 bytes, the record has 30"):
        open_faces(write(tmp_path / "a.rec", [(1, payload)]))


@pytest.mark.parametrize("label", [1.5, -1.0, float("nan"), float(1 << 24)])
def test_a_label_that_is_no_class_is_named(label: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.rec", [(3, pack_payload(0.0, 3, jpeg())), (4, pack_payload(label, 4, jpeg()))])
    with pytest.raises(DataError, match=r"key 4 at offset \d+ has the label"):
        open_faces(path)


def test_property_and_labels_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path / "a.rec", [(key, pack_payload(float(key), key, jpeg())) for key in range(1, 11)])
    labels = open_faces(path).labels
    assert number_of_classes(path, labels) == 11
    (tmp_path / "property").write_text("10,112,112\n11\nshuffled\n")
    with pytest.raises(DataError, match=r"property says 10 classes, the labels of a\.rec go from 1 to 10"):
        number_of_classes(path, labels)
    (tmp_path / "property").write_text("11,112,112\n11\nshuffled\n")
    assert number_of_classes(path, labels) == 11


def _checksum(reader: RecordReader, offsets: list[int], results: "multiprocessing.Queue[int]") -> None:
    results.put(sum(zlib.crc32(reader.read(offset)) for offset in offsets))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_no_position(method: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    payloads = [random.bytes(int(n)) for n in random.integers(1, 40_000, 50)]
    path = write(tmp_path / "a.rec", list(enumerate(payloads)))
    reader, offsets = RecordReader(path), list(scan(path))
    assert reader.read(offsets[3]) == payloads[3]  # opens the file before the fork
    context = multiprocessing.get_context(method)
    count = 4 if method == "fork" else 1
    results = context.Queue()
    orders = [random.permutation(50).tolist() for _ in range(count)]
    workers = [context.Process(target=_checksum, args=(reader, [offsets[i] for i in o], results)) for o in orders]
    for worker in workers:
        worker.start()
    expected = sum(zlib.crc32(payload) for payload in payloads)
    assert [results.get(timeout=300) for _ in workers] == [expected] * count
    for worker in workers:
        worker.join()


def test_a_loader_process_gets_no_copy_of_the_index(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to a process does not grow with the file."""

    def sent(pictures: int) -> int:
        numbers = np.arange(pictures)
        index = FaceIndex(numbers, numbers, np.zeros(pictures, np.int32), 0, 0)
        monkeypatch.setattr("drconv.tasks.identification.pictures.open_faces", lambda path: index)
        return len(ForkingPickler.dumps(RecordSource(faces)))

    assert abs(sent(100_000) - sent(10)) < 100


def insightface_pictures(path: Path) -> list[tuple[int, bytes]]:
    """(class, picture) by the rules of insightface's readers: record 0 is a header if it has an array of labels, whose
    first is the end of the pictures' keys; else every key is a picture."""
    lines = (line.split("\t") for line in path.with_suffix(".idx").read_text().splitlines())
    places = {int(key): int(offset) for key, offset in lines}

    def read(key: int) -> tuple[int, list[float], bytes]:
        with open(path, "rb") as file:
            file.seek(places[key])
            magic, word = struct.unpack("<II", file.read(8))
            assert (magic, word >> 29) == (0xCED7230A, 0)
            data = file.read(word & 0x1FFFFFFF)
        flag, label, _, _ = struct.unpack("<IfQQ", data[:24])
        labels = list(struct.unpack(f"<{flag}f", data[24 : 24 + 4 * flag])) if flag else [label]
        return flag, labels, data[24 + 4 * flag :]

    flag, labels, _ = read(0)
    keys = range(1, int(labels[0])) if flag > 0 else sorted(places)
    if flag > 0:
        ranges = [read(identity)[1] for identity in range(int(labels[0]), int(labels[1]))]
        assert [int(b) for _, b in ranges[:-1]] == [int(a) for a, _ in ranges[1:]]
        for number, (begin, end) in enumerate(ranges):
            assert {read(key)[1][0] for key in range(int(begin), int(end))} == {number}
    return [(int(labels[0]), picture) for _, labels, picture in map(read, keys)]


@pytest.mark.parametrize("shuffle", [None, 3])
def test_packed_folders_suit_insightface_and_come_back(
    shuffle: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected: dict[str, list[bytes]] = {}
    for name, count in (("10", 2), ("2", 3), ("b", 1)):  # in the order of text
        for number in range(count):
            file = tmp_path / "in" / name / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(40 * number))
            expected.setdefault(name, []).append(file.read_bytes())
    path = tmp_path / "out" / "train.rec"
    chosen = [] if shuffle is None else ["--shuffle", str(shuffle)]
    assert command.main(["pack", str(tmp_path / "in"), str(path), *chosen]) == 0
    assert capsys.readouterr().out == f"{path}: 6 pictures of 3 identities\n"
    assert (path.parent / "property").read_text() == "3,112,112\n"
    pictures = insightface_pictures(path)
    index = open_faces(path)
    assert class_names(path, number_of_classes(path, index.labels)) == ["10", "2", "b"]
    assert (index.identities, index.headers) == ((3, 1) if shuffle is None else (0, 0))
    for number, name in enumerate(["10", "2", "b"]):
        assert sorted(picture for label, picture in pictures if label == number) == sorted(expected[name])
    assert [label for label, _ in pictures] == index.labels.tolist()
    assert (index.labels.tolist() == sorted(index.labels.tolist())) == (shuffle is None)
    assert unpack_records(path, tmp_path / "back") == (6, 3)
    for name, files in expected.items():
        assert sorted(file.read_bytes() for file in (tmp_path / "back" / name).iterdir()) == sorted(files)


@pytest.mark.parametrize(
    ("content", "message"), [(b"text", "neither JPEG nor PNG"), (jpeg(size=(96, 112)), r"96x112 pixels, .* 112x112")]
)
def test_a_picture_that_does_not_fit_is_named_and_nothing_is_left(content: bytes, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(jpeg())
    (folder / "2.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"2\.jpg.*{message}"):
        pack_folders(tmp_path / "in", tmp_path / "out" / "train.rec")
    assert os.listdir(tmp_path / "out") == []


def test_descriptors_are_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.rec", [(0, b"x")])
    before = len(os.listdir("/proc/self/fd"))
    readers: list[Callable[[int], bytes]] = [RecordReader(path).read for _ in range(5)]
    assert [read(0) for read in readers] == [b"x"] * 5
    del readers
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Four pictures of the classes a and b."""
    for number in range(4):
        path = tmp_path / "in" / "ab"[number // 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    pack_folders(tmp_path / "in", tmp_path / "out" / "train.rec")
    return tmp_path / "out" / "train.rec"


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "property", "classes.txt"])
def test_packing_takes_the_place_of_no_file(name: str, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_text("precious")
    with pytest.raises(DataError, match=f"{name} is there already"):
        pack_folders(tmp_path / "in", tmp_path / "new" / "train.rec")
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [(name, "precious")]


def test_names_that_packing_cannot_keep_are_refused_before_the_work(packed: Path, tmp_path: Path) -> None:
    for target in ("train.idx", "train"):  # the records were written over by their own index
        with pytest.raises(DataError, match=r"must end in \.rec"):
            pack_folders(tmp_path / "in", tmp_path / "new" / target)
    for name in (b"a\nb", b"\xff", "d\u2028e".encode()):
        strange = os.path.join(os.fsencode(tmp_path), b"in", name)
        os.rename(tmp_path / "in" / "b", strange)
        with pytest.raises(DataError, match=r"cannot stand in classes\.txt"):
            pack_folders(tmp_path / "in", tmp_path / "new" / "train.rec")
        os.rename(strange, tmp_path / "in" / "b")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "names",
    [b"a\n\n", b"a\n..\n", b"a\n../x\n", b"a\n.b\n", b"a\n\0\n", b"a\na\n", b"a\n" + b"b" * 300, b"a\n\xff\n\n"],
)
def test_classes_that_are_no_folders_write_nothing(names: bytes, packed: Path, tmp_path: Path) -> None:
    packed.with_name("classes.txt").write_bytes(names)
    with pytest.raises(DataError, match=r"classes\.txt"):
        unpack_records(packed, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_unpacking_takes_the_place_of_no_file(packed: Path, tmp_path: Path) -> None:
    before = (tmp_path / "in" / "a" / "0.jpg").read_bytes()
    with pytest.raises(DataError, match="in is not empty"):
        unpack_records(packed, tmp_path / "in")
    assert (tmp_path / "in" / "a" / "0.jpg").read_bytes() == before
    packed.with_name("property").write_text("²,112,112")
    with pytest.raises(DataError, match="the first line must be classes"):
        unpack_records(packed, tmp_path / "back")


def test_a_stored_index_that_was_never_stored_is_made_again(packed: Path) -> None:
    """Cut, of other lengths, types and numbers, or a pipe: each was a trace, wrong classes or a wait for ever."""
    expected = open_faces(packed)
    stored = packed.with_name("train.rec.faces.npz")
    whole, arrays = stored.read_bytes(), dict(np.load(stored))
    labels = arrays["labels"]
    for content in (whole[: len(whole) // 2], b"PK\3\4" + bytes(99), b""):
        stored.write_bytes(content)
        assert open_faces(packed).labels.tolist() == expected.labels.tolist()
    for wrong in (labels - 1, labels.astype(float), labels[None], labels[:-1], labels + (1 << 24)):
        np.savez(stored, **{**arrays, "labels": wrong})
        assert open_faces(packed).fingerprint() == expected.fingerprint()
    np.savez(stored, **{**arrays, "offsets": arrays["offsets"] + (1 << 20)})
    assert open_faces(packed).fingerprint() == expected.fingerprint()
    stored.unlink()
    os.mkfifo(stored)
    assert open_faces(packed).fingerprint() == expected.fingerprint()
