"""Bad files, made by a script: each with what its reader must do, use it or refuse it with a reason."""

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

USED = ""  # in place of a reason


def write_pictures(folder: Path) -> dict[str, str]:
    """Writes pictures, good, odd and broken; by name, a pattern of the reason of those that must be refused."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, content, reason in _pictures():
        (folder / name).write_bytes(content)
        expected[name] = reason
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nothing.jpg").symlink_to(folder / "missing")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    (folder / "forbidden\n\x1b[31m.jpg").write_bytes(b"?")
    return expected | {
        "pipe.jpg": "not a regular file",
        "nothing.jpg": "No such file",
        "circle.jpg": "symbolic links",
        "device.png": "not a regular file",
        "folder.jpg": "not a regular file",
        "forbidden\n\x1b[31m.jpg": "not one of JPEG",
    }


def _pictures() -> Iterator[tuple[str, bytes, str]]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    colour = Image.fromarray(noise)
    jpeg = _encoded(colour, "JPEG")
    png = _encoded(colour, "PNG")
    yield from ((f"{mode}.jpg", _encoded(colour.convert(mode), "JPEG"), USED) for mode in ("RGB", "L", "CMYK"))
    yield from ((f"{mode}.png", _encoded(colour.convert(mode), "PNG"), USED) for mode in ("P", "RGBA", "LA", "1"))
    yield from ((f"colour.{kind.lower()}", _encoded(colour, kind), USED) for kind in ("WEBP", "BMP", "PPM", "TIFF"))
    yield "png_called_jpeg.JPEG", png, USED
    yield "turned.jpg", _encoded(colour, "JPEG", exif=_turned()), USED
    yield "one_pixel.png", _encoded(Image.new("RGB", (1, 1)), "PNG"), USED
    yield "thread.png", _encoded(Image.new("RGB", (1, 20_000)), "PNG"), USED
    yield "animated.webp", _encoded(colour, "WEBP", save_all=True, append_images=[colour.rotate(90)]), USED
    yield "animated.png", _encoded(colour, "PNG", save_all=True, append_images=[colour.rotate(90)]), USED
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    yield "16_bits.png", _encoded(Image.fromarray(ramp), "PNG"), USED
    yield "16_bits.tif", _encoded(Image.fromarray(ramp), "TIFF"), USED
    yield "32_bits.tif", _encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF"), "no fixed white"
    yield "float.tif", _encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF"), "no fixed white"
    yield from (
        (f"{kind}.jpg", _encoded(colour, kind), "not one of JPEG") for kind in ("GIF", "EPS", "ICO", "TGA", "PDF")
    )
    yield "text.jpg", b"<html>not found</html>", "not one of JPEG"
    yield "empty.jpg", b"", "not one of JPEG"
    yield "zeros.png", bytes(100_000), "not one of JPEG"
    yield "cut.jpg", jpeg[: len(jpeg) // 2], "(?i)truncated"
    yield "cut.png", png[: len(png) // 2], "(?i)truncated"
    yield "header_alone.png", png[:30], "."
    yield "flipped.png", png[:60] + bytes([png[60] ^ 255]) + png[61:], "."
    yield "bomb.png", _png(13_300, 13_300), "13300 x 13300 pixels, and data.max_pixels allows 67108864"
    yield "lies.png", _png(2**31 - 1, 2**31 - 1), "."
    yield "text_bomb.png", _png(8, 8, _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 9))), "."


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _png(width: int, height: int, more: bytes = b"") -> bytes:
    """A PNG of zeros that says it is so large; its data end early."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + _chunk(b"IDAT", zlib.compress(bytes(10_000))) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


class _Bad:
    """A pickle that runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def write_weights(folder: Path, good: bytes, trace: Path) -> list[Path]:
    """Writes weights files of which not one may be loaded, from the bytes of a good one; code would leave a trace."""
    folder.mkdir(parents=True, exist_ok=True)
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    contents = {
        "empty": b"",
        "text": b"not weights",
        "cut": good[:-100],
        "cut_header": good[:20],
        "long_header": (2**62).to_bytes(8, "little") + good[8:],
        "outside": _with(header, good, name, data_offsets=[0, 2**40]),
        "negative": _with(header, good, name, data_offsets=[-8, 8]),
        "huge_shape": _with(header, good, name, shape=[2**40, 2**40]),
        "other_shape": _with(header, good, name, shape=[1]),
        "other_type": _with(header, good, name, dtype="F128"),
        "no_json": (4).to_bytes(8, "little") + b"{{{{",
        "deep": (20_000).to_bytes(8, "little") + b"[" * 20_000,
        "pickle": pickle.dumps(_Bad(f"touch {trace}")),
    }
    paths = [folder / f"{key}.safetensors" for key in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    os.mkfifo(folder / "pipe.safetensors")
    return [*paths, folder / "pipe.safetensors", folder / "missing.safetensors", folder]


def _with(header: dict[str, dict], good: bytes, name: str, **changes: object) -> bytes:
    text = json.dumps({**header, name: {**header[name], **changes}}).encode()
    return len(text).to_bytes(8, "little") + text + good[8 + int.from_bytes(good[:8], "little") :]


def damages(content: bytes) -> dict[str, bytes]:
    """What can become of a file: by name, its content then."""
    middle = len(content) // 2
    return {
        "empty": b"",
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :] if content else b"?",
        "text": b"something else",
        "no text": b"\xff\xfe\x00" * 100,
        "zeros": bytes(len(content)),
        "deep": b"[" * 200_000,
        "numbers": b'{"step": NaN, "split": Infinity, "metrics": 1e999}',
        "long number": b'{"step": ' + b"9" * 10_000 + b"}",
        "list": b"[]",
        "null": b"null",
        "pickle": pickle.dumps(_Bad("touch /tmp/never")),
    }
