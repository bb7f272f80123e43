"""Files made to hurt: each is refused, and none takes memory to speak of. They are tried in a process whose peak is measured."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmssl.curation.check import check_shards
from mmssl.data.shards.index import ShardIndex
from tests.data.make import Record, encode, noise, pairs, write

PROGRAM = """
import resource, sys
from pathlib import Path
from mmssl.core.errors import DataError
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.shards.index import ShardIndex
from mmssl.data.modality import DecodeError

folder = Path(sys.argv[1])
image = ImageConfig(size=32).build("image")
audio = AudioConfig.model_validate_json('{"rate": 16000, "seconds": 1.0}').build("audio")
audio.decode((folder / "good.flac").read_bytes(), "flac")
image.decode((folder / "good.png").read_bytes(), "png")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(folder.glob("bomb*")):
    try:
        if path.suffix == ".tar":
            ShardIndex.open([path], salvage="salvage" in path.name)
        else:
            modality = audio if path.suffix == ".flac" else image
            modality.decode(path.read_bytes(), path.suffix[1:])
        print(path.name, "was taken")
    except (DataError, DecodeError) as error:
        print(path.name, "refused:", str(error).replace(chr(10), " "))
print("grew", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def png(width: int, height: int) -> bytes:
    """All black, one bit a pixel: kilobytes that unpack to megabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    data = bytearray(encode(noise(0)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


def webp() -> bytes:
    data = bytearray(encode(Image.new("RGBA", (20, 20), (1, 2, 3, 4)), "WEBP", lossless=True))
    if data[12:16] == b"VP8L":
        data[21:25] = ((16383 - 0) | (16383 << 14) | 1 << 28).to_bytes(4, "little")
    else:
        data[24:30] = (16383).to_bytes(3, "little") * 2
    return bytes(data)


def flac(lie: bool) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16000, np.int16), 16000, format="FLAC")
    data = bytearray(buffer.getvalue())
    if lie:  # days of silence, says the header
        data[21] |= 0x0F
        data[22:26] = b"\xff" * 4
    return bytes(data)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "good.flac").write_bytes(flac(False))
    (tmp_path / "good.png").write_bytes(png(64, 64))
    records = b"".join(b"7 %c=%c\n" % (97 + i % 26, 97 + i // 26 % 26) for i in range(140_000))
    pax = header("p", f"{len(records):011o}\0".encode(), b"x") + records + bytes(-len(records) % 512)
    flood = b"".join(b"10 %05d=\n" % i for i in range(100_000))
    flood_pax = header("p", f"{len(flood):011o}\0".encode(), b"x") + flood + bytes(-len(flood) % 512)
    bombs = {
        "bomb.png": png(20_000, 20_000),
        "bomb.jpg": jpeg(),
        "bomb.webp": webp(),
        "bomb.flac": flac(True),
        "bomb-gzip.tar": gzip.compress(bytes(50_000_000)),
        "bomb-huge.tar": header("a.txt", b"\x80" + bytes(3) + (1 << 63).to_bytes(8, "big")) + bytes(1024),
        "bomb-negative.tar": header("a.txt", b"\xff" * 12) + bytes(1024),
        "bomb-pax.tar": pax + bytes(1024),
        "bomb-flood.tar": flood_pax + bytes(1024),
        "bomb-salvage-huge.tar": header("a.txt", b"\x80" + bytes(3) + (1 << 62).to_bytes(8, "big")) + bytes(1024),
        "bomb-size.tar": header("p", f"{2**33:011o}\0".encode(), b"x") + bytes(1024),
    }
    assert len(bombs["bomb.png"]) < 60_000
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(bombs)
    assert all("refused" in line for line in lines), lines
    assert int(last.split()[1]) < 100_000, last  # kilobytes; the PNG alone would take 1.2 GB


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "pt", "dill"])
def test_pickles_are_never_opened_and_reported(tmp_path: Path, extension: str) -> None:
    records: list[Record] = pairs(0, 4)
    records[2][extension] = b"cos\nsystem\n(S'touch broken'\ntR."
    path = write(tmp_path / "a.tar", records)
    assert len(ShardIndex.open([path])) == 4
    report = check_shards([path])
    assert not report.ok
    (fault,) = [fault for fault in report.faults if fault.reason == "refused"]
    assert (fault.key, fault.field) == ("0002", extension)
    assert "code" in fault.detail


def test_keys_with_dots_are_named(tmp_path: Path) -> None:
    records = [{"__key__": f"photo.{i}", "jpg": encode(noise(i)), "txt": f"caption {i}".encode()} for i in range(4)]
    report = check_shards([write(tmp_path / "a.tar", records)])
    assert any("dots" in warning and "photo" in warning for warning in report.warnings)
    fine = check_shards([write(tmp_path / "b.tar", pairs(0, 4))])
    assert not any("dots" in warning for warning in fine.warnings)


def test_equal_names_in_two_folders_are_two_samples(tmp_path: Path) -> None:
    records = [
        {"__key__": f"{folder}/0001", "jpg": encode(noise(i)), "txt": f"caption {i}".encode()}
        for i, folder in enumerate(["cats", "dogs", "cats/old"])
    ]
    index = ShardIndex.open([write(tmp_path / "a.tar", records)])
    assert {raw.key: raw.fields["txt"] for raw in index} == {
        "cats/0001": b"caption 0",
        "dogs/0001": b"caption 1",
        "cats/old/0001": b"caption 2",
    }
