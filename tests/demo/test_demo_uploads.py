"""Files that users hand in."""

import numpy as np
import pytest
from PIL import Image

from encoders import UserError
from fastervlm.demo import uploads
from fastervlm.demo.uploads import sound_picture
from tests.support.broken_pictures import BROKEN, bomb, stored


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_sound_picture_is_refused_in_a_sentence(tmp_path, name):
    data, sentence = BROKEN[name]
    path = tmp_path / "upload.png"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        sound_picture(path)
    assert str(error.value).startswith(sentence)
    assert str(error.value).count(".") == 1
    assert "Traceback" not in str(error.value)
    assert "/" not in str(error.value)


def test_nothing_is_decoded_that_is_too_large(tmp_path, monkeypatch):
    path = tmp_path / "upload.png"
    path.write_bytes(bomb(8_000, 5_001))
    monkeypatch.setattr(uploads, "read_picture", lambda _: pytest.fail("decoded"))
    with pytest.raises(UserError, match="too many pixels"):
        sound_picture(path)


def test_a_file_that_is_too_long(tmp_path):
    path = tmp_path / "upload.bmp"
    path.write_bytes(stored("BMP"))
    with path.open("ab") as file:
        file.truncate(uploads.MOST_BYTES + 1)
    with pytest.raises(UserError, match=r"^The file has 20 MB; choose one of at most 20 MB\.$"):
        sound_picture(path)


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="The picture is gone"):
        sound_picture(tmp_path / "none.png")


@pytest.mark.parametrize("kind", uploads.FORMATS)
def test_sound_pictures_are_taken_as_they_are(tmp_path, kind):
    path = tmp_path / "upload.png"
    path.write_bytes(stored(kind))
    assert sound_picture(path) == path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_stands_upright(tmp_path, orientation):
    """Whatever way the camera was held, the picture is as a viewer shows it."""
    upright = np.zeros((40, 60, 3), dtype=np.uint8)
    upright[:20, :30] = 255, 0, 0
    turns = [lambda x: x, np.fliplr, lambda x: np.rot90(x, 2), np.flipud, lambda x: np.swapaxes(x, 0, 1)]
    turns += [lambda x: np.rot90(x, 1), lambda x: np.rot90(np.swapaxes(x, 0, 1), 2), lambda x: np.rot90(x, -1)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(turns[orientation - 1](upright))).save(path, exif=exif)
    made = sound_picture(path)
    assert (made == path) == (orientation == 1)
    with Image.open(made) as picture:
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - upright).mean() < 2
    assert sound_picture(path) == made
    assert sound_picture(made) == made
    assert {each.name for each in tmp_path.iterdir()} == {path.name, made.name}


@pytest.fixture
def photo(tmp_path):
    """The file of a photograph that a camera has turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.jpg"
    Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(path, quality=50, exif=exif)
    return path


def test_our_own_copy_may_be_larger_than_an_upload(photo, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", photo.stat().st_size)
    made = sound_picture(photo)
    assert uploads.MOST_BYTES < made.stat().st_size < 400 * 300 * 3
    assert sound_picture(photo) == sound_picture(made) == made
    with Image.open(made) as picture:
        assert (picture.format, picture.size) == ("JPEG", (300, 400))


def test_a_copy_is_seen_whole_or_not_at_all(photo, monkeypatch):
    """While one user's copy is written, another who handed in the same file makes one too, and the last is whole."""
    save, seen = Image.Image.save, []

    def slow(picture, file, *given, **options):
        save(picture, file, *given, **options)
        if not seen:
            seen.append(photo.with_name("photo.upright.jpg").exists())
            seen.append(sound_picture(photo))

    monkeypatch.setattr(Image.Image, "save", slow)
    made = sound_picture(photo)
    assert seen == [False, made]
    with Image.open(made) as picture:
        picture.load()
    assert {each.name for each in photo.parent.iterdir()} == {"photo.jpg", "photo.upright.jpg"}
