"""Which files count as images, what is said of the others, and what is refused since it was not fetched."""

import os

import pytest
import torch
from PIL import Image, ImageOps

from glue_cli.data import read_dataset
from glue_cli.data.image_files import ENDINGS, find_image_files
from glue_cli.data.images import _FORMATS, EncodedImage, decode_all, sizes_of
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Noted, silent
from glue_cli.spec.schema import DataSpec

DATA = DataSpec(format="image-folder", root=".")


def paint(path, colour=(200, 100, 50), **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path, **settings)


@pytest.fixture
def root(tmp_path):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            paint(tmp_path / split / name / "0.png")
    return tmp_path


def test_the_endings_are_those_of_the_formats_that_are_decoded():
    Image.init()
    known = {ending for ending, form in Image.registered_extensions().items() if form in _FORMATS}
    assert known - {".pfm", ".mpo"} <= set(ENDINGS), (
        "an ending of Pillow's is passed over"
    )  # a pfm has 32 bits a channel
    assert set(ENDINGS) <= known | {".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"}


def test_folders_in_a_class_folder_are_read_and_what_is_no_image_is_counted(root, events):
    for path in ("more/1.tif", "more/deep/2.gif", "3.BMP", ".hidden/4.png", ".5.png"):
        paint(root / "test/bee" / path)
    for path in ("bee/notes.txt", "bee/more/list.TXT", "ant/LICENSE", "ant/Thumbs.db", "labels.csv", "stray.png"):
        (root / "test" / path).touch()
    found = read_dataset(DATA, "test", root=root, progress=events.append)
    assert found.targets.tolist() == [0, 1, 1, 1, 1]
    notes = {event.text: event.warning for event in events if isinstance(event, Noted)}
    assert notes == {
        f"'{root}/test': 5 files passed over: 2 beside the class folders, 2 .txt, 1 without an ending": True,
        f"'{root}/test' has images of several kinds: 2 .png, 1 .bmp, 1 .tif, 1 .gif": False,
    }


def test_nothing_is_said_where_nothing_is_passed_over(root, events):
    paint(root / "train/ant/1.jpg")
    paint(root / "train/bee/1.JPEG")
    (root / "train/ant/0.png").unlink()
    (root / "train/bee/0.png").unlink()
    read_dataset(DATA, "train", root=root, progress=events.append)
    assert not [event for event in events if isinstance(event, Noted)]


def test_what_is_passed_over_is_said_when_the_images_come_from_the_cache_too(root, tmp_path, events):
    (root / "train/ant/notes.txt").touch()
    for _ in range(2):
        events.clear()
        read_dataset(DATA, "train", root=root, cache=tmp_path / "cache", progress=events.append)
        assert [event.text for event in events if isinstance(event, Noted) and event.warning] == [
            f"'{root}/train': 1 file passed over: 1 .txt"
        ]


def test_an_image_that_moves_into_another_folder_is_not_taken_from_the_cache(root, tmp_path):
    paint(root / "train/ant/a/1.png", (1, 1, 1))
    paint(root / "train/ant/b/1.png", (2, 2, 2))
    for path in (root / "train/ant").rglob("1.png"):
        os.utime(path, ns=(0, 0))
    first = read_dataset(DATA, "train", root=root, cache=tmp_path / "cache").inputs
    assert first[:3, 0, 0, 0].tolist() == [200, 1, 2]
    (root / "train/ant/b").rename(root / "train/ant/A")
    second = read_dataset(DATA, "train", root=root, cache=tmp_path / "cache").inputs
    assert second[:3, 0, 0, 0].tolist() == [200, 2, 1]


def test_a_folder_that_links_back_is_read_once(root):
    (root / "train/ant/again").symlink_to(root / "train/ant")
    (root / "train/ant/linked").symlink_to(root / "test/bee")
    found = find_image_files(root / "train/ant").images
    assert [path.relative_to(root / "train/ant").as_posix() for path in found] == ["0.png", "linked/0.png"]


def test_links_to_nothing_are_faults_of_the_data_each_named(root):
    for number in range(7):
        (root / f"train/ant/{number + 1}.png").symlink_to("../../.git/annex/objects/x")
    with pytest.raises(DataError, match="train/ant' has 7 link") as caught:
        read_dataset(DATA, "train", root=root)
    assert caught.value.items[0] == f"'{root}/train/ant/1.png' is a link to '../../.git/annex/objects/x'"
    assert len(caught.value.items) == 7 and "git annex get" in caught.value.hint


def test_a_class_folder_that_links_to_nothing_is_no_class_less(root):
    (root / "test/cow").symlink_to("/nowhere/cow")
    with pytest.raises(DataError, match="test' has 1 link"):
        read_dataset(DATA, "test", root=root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all folders")
def test_a_folder_that_may_not_be_read(root):
    (root / "train/ant/more").mkdir(mode=0)
    with pytest.raises(DataError, match="more' cannot be read: Permission denied"):
        read_dataset(DATA, "train", root=root)


@pytest.mark.parametrize(
    ("content", "what", "command"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs", "git lfs pull"),
        (b"/annex/objects/SHA256E-s9--00.png\n", "git-annex", "git annex get"),
    ],
)
def test_a_pointer_is_called_by_its_name(root, content, what, command):
    (root / "train/bee/0.png").write_bytes(content)
    with pytest.raises(DataError, match=f"bee/0.png' is a {what} pointer, not the image") as caught:
        read_dataset(DATA, "train", root=root)
    assert command in caught.value.hint


def test_a_file_of_the_data_that_goes_missing_is_a_fault_of_the_data(root, monkeypatch):
    from glue_cli.data.formats import image_folder

    def find(*args, **settings):
        (root / "train/ant/0.png").stat()
        raise OSError(5, "Input/output error", str(root / "train/ant/0.png"))

    monkeypatch.setattr(image_folder, "find_image_files", find)
    with pytest.raises(DataError, match="0.png' cannot be read: Input/output error"):
        read_dataset(DATA, "train", root=root)


@pytest.mark.parametrize("number", [12, 24, 28])  # no memory, too many open files, a full disk
def test_what_the_machine_lacks_is_no_fault_of_the_data(root, monkeypatch, number):
    from glue_cli.data.formats import image_folder

    def find(*args, **settings):
        raise OSError(number, os.strerror(number), str(root / "train/ant/0.png"))

    monkeypatch.setattr(image_folder, "find_image_files", find)
    with pytest.raises(OSError, match=os.strerror(number)):
        read_dataset(DATA, "train", root=root)


def painted(path, orientation, form):
    """Save an image of six different columns with a turn in its EXIF."""
    image = Image.new("RGB", (6, 4))
    image.putdata([(x * 40, y * 60, 9) for y in range(4) for x in range(6)])
    exif = Image.Exif()
    exif[274] = orientation
    image.save(path, form, exif=exif)


@pytest.mark.parametrize("form", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path, orientation, form):
    path = tmp_path / f"turned.{form}"
    painted(path, orientation, form)
    with Image.open(path) as opened:
        wanted = ImageOps.exif_transpose(opened).convert("RGB")
    found = decode_all([EncodedImage(str(path))], None, silent)
    assert found.shape == (1, 3, wanted.height, wanted.width)
    assert sizes_of([EncodedImage(str(path))]) == {(wanted.height, wanted.width)}
    reference = torch.tensor(list(wanted.tobytes()), dtype=torch.uint8).view(wanted.height, wanted.width, 3)
    assert torch.equal(found[0].permute(1, 2, 0), reference)
    assert wanted.height == (6 if orientation > 4 else 4)


@pytest.mark.parametrize("orientation", [0, 9, 200])
def test_a_turn_that_exif_does_not_know_is_none(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png", exif=exif)
    assert decode_all([EncodedImage(str(tmp_path / "a.png"))], None, silent).shape == (1, 3, 4, 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # of Pillow, which goes on
def test_damaged_exif_does_not_take_the_image_away(tmp_path):
    for number, damaged in enumerate(
        [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + b"\7" * 40]
    ):
        Image.new("RGB", (6, 4)).save(tmp_path / f"{number}.jpg", exif=damaged)
        assert decode_all([EncodedImage(str(tmp_path / f"{number}.jpg"))], None, silent).shape == (1, 3, 4, 6)


@pytest.mark.parametrize("ending", ["gif", "tif", "tiff", "dib", "pgm", "pbm", "jp2", "avif", "jfif", "apng"])
def test_other_kinds_of_images_are_read(tmp_path, ending):
    Image.init()
    if Image.registered_extensions().get(f".{ending}") not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {ending}")
    path = tmp_path / "train/ant" / f"a.{ending}"
    path.parent.mkdir(parents=True)
    Image.new("1" if ending == "pbm" else "L" if ending == "pgm" else "RGB", (8, 8), 1).save(path)
    assert read_dataset(DATA, "train", root=tmp_path).inputs.shape == (1, 3, 8, 8)
