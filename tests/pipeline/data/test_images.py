"""Image folders and zips of them, read without extracting anything."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from growpipe.data.images import decode, open_images, read_images
from growpipe.graph_ops.errors import UsageError


def encoded(value: int, form: str = "PNG", size: tuple[int, int] = (4, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(buffer, form)
    return buffer.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


MEMBERS = {
    "dog/2.png": encoded(20),
    "dog/1.jpg": encoded(10, "JPEG"),
    "cat/b.PNG": encoded(30),
    "cat/notes.txt": b"not an image",
    "cat/.hidden.png": b"",
}


def test_a_zip_and_a_folder_give_the_same_images(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {f"top/{name}": data for name, data in MEMBERS.items()})
    for name, data in MEMBERS.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    zipped, plain = open_images(archive), open_images(tmp_path / "folder")
    assert zipped.classes == plain.classes == ("cat", "dog")
    assert plain.names == ("cat/b.PNG", "dog/1.jpg", "dog/2.png")
    assert zipped.labels.tolist() == plain.labels.tolist() == [0, 1, 1]
    pixels = read_images(plain)
    assert pixels.shape == (3, 3, 6, 4)
    assert pixels.dtype == np.uint8
    assert pixels[0, :, 0, 0].tolist() == [30, 0, 225]
    assert np.array_equal(pixels, read_images(zipped))


def test_an_image_set_travels_to_a_loader_process(tmp_path: Path) -> None:
    images = open_images(write_zip(tmp_path / "a.zip", MEMBERS))
    before = images.read(0)
    assert pickle.loads(pickle.dumps(images)).read(0) == before
    assert images.subset([2, 0]).labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["../out.png", "/absolute/x/out.png", "a/../../out.png", "a\\..\\out.png"])
def test_a_member_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="leads out of it"):
        open_images(write_zip(tmp_path / "a.zip", {name: encoded(1)}))


def test_faults_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"image folder or zip .* No such file"):
        open_images(tmp_path / "absent")
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(UsageError, match="cannot be read: File is not a zip file"):
        open_images(tmp_path / "a.zip")
    with pytest.raises(UsageError, match="holds no images"):
        open_images(write_zip(tmp_path / "b.zip", {"cat/readme.txt": b""}))
    with pytest.raises(UsageError, match="side by side"):
        open_images(write_zip(tmp_path / "c.zip", {"train/cat/1.png": b"", "cat/1.png": b""}))
    with pytest.raises(UsageError, match=r"'cat/1.png' cannot be read: it is not a JPEG or PNG image"):
        read_images(open_images(write_zip(tmp_path / "d.zip", {"cat/1.png": b"\x89PNG nonsense"})))
    sizes = {"cat/1.png": encoded(1), "cat/2.png": encoded(1, size=(5, 5))}
    with pytest.raises(UsageError, match="resize them first"):
        read_images(open_images(write_zip(tmp_path / "e.zip", sizes)))


def test_a_picture_that_claims_to_be_huge_is_refused() -> None:
    with pytest.raises(UsageError, match="pixels; at most 67,108,864 are read"):
        decode(encoded(0, size=(65_536, 1_025)), "a.png")


def test_other_formats_are_not_opened() -> None:
    with pytest.raises(UsageError, match="not a JPEG or PNG image"):
        decode(encoded(0, "GIF"), "a.gif")
