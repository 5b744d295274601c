"""image_files.py: which files are found, how pictures become grey or HU, sizes."""

import io
import math
import os
import shutil
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image

from medlm_utils import dicom, image_files
from medlm_utils.image_files import Reading
from medlm_utils.runtime import MedlmError

GREY = Reading(grey=True)


@pytest.fixture(scope="module")
def sample():
    """(128, 128), int16 in HU."""
    return dicom.read_dicom(dicom.sample_dicom()).hu.astype(np.int16)


def some_grey(shape=(12, 10), seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def save(path, values, **how):
    Image.fromarray(values).save(path, **how)
    return path


def read(folder, reading=GREY):
    names = [p.relative_to(folder).as_posix() for p in image_files.find(folder)]
    return image_files.read(folder, names, reading)


def one(path, reading=GREY):
    """(height, width), what a single file holds."""
    return image_files.read(path.parent, [path.name], reading).values[0]


def slices(folder, **changes):
    """Four DICOM files, number n with n taken from all HU."""
    for number in range(4):
        content = pydicom.dcmread(dicom.sample_dicom())
        content.RescaleIntercept = str(-1024 - number)
        content.PatientID = f"p{number}"
        for name, value in changes.items():
            setattr(content, name, value)
        content.save_as(folder / f"{number}.dcm")
    return folder


# What is found ------------------------------------------------------------------------


def test_dicom_files_need_no_ending(tmp_path):
    slices(tmp_path)
    for old, new in (("0", "IM0001"), ("1", "1.2.840.1"), ("2", "CT.0001.IMA")):
        (tmp_path / f"{old}.dcm").rename(tmp_path / new)
    data = dicom.sample_dicom().read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    (tmp_path / "bare").write_bytes(data[start:])
    (tmp_path / "README").write_text("no image")
    names = {path.name for path in image_files.find(tmp_path)}
    assert names == {"IM0001", "1.2.840.1", "CT.0001.IMA", "3.dcm", "bare"}
    assert read(tmp_path, Reading()).values.shape == (5, 128, 128)


def test_what_is_hidden_and_what_is_an_index_is_left_out(tmp_path):
    save(tmp_path / "a.PNG", some_grey())
    for name in (".b.png", "__MACOSX/a.png", ".cache/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, some_grey())
    (tmp_path / "Thumbs.db").write_bytes(b"\0" * 200)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    index = pydicom.dataset.Dataset()
    index.file_meta = meta
    for name in ("DICOMDIR", "index.dcm"):
        index.save_as(tmp_path / name, enforce_file_format=True)
    assert [path.name for path in image_files.find(tmp_path)] == ["a.PNG"]


def test_links_are_followed_and_loops_are_not(tmp_path):
    away, folder = tmp_path / "away", tmp_path / "set"
    for path in (away / "inner", folder / "normal"):
        path.mkdir(parents=True)
    save(away / "a.png", some_grey())
    save(away / "inner" / "b.png", some_grey(seed=1))
    (folder / "malignant").symlink_to(away, target_is_directory=True)
    (folder / "normal" / "c.png").symlink_to(away / "a.png")
    (away / "inner" / "up").symlink_to(away, target_is_directory=True)
    (folder / "normal" / "self").symlink_to(folder / "normal" / "self")
    found = read(folder)
    assert found.names == ("malignant/a.png", "malignant/inner/b.png", "normal/c.png")
    assert found.digests[0] == found.digests[2] != found.digests[1]
    (folder / "normal" / "d.png").symlink_to(away / "none.png")
    with pytest.raises(MedlmError, match=r"d\.png is a link to a file that is not"):
        read(folder)
    found = read(folder, Reading(grey=True, skip_bad=True))
    assert len(found.names) == 3 and found.skipped[0][0] == "normal/d.png"


def test_no_images(tmp_path):
    with pytest.raises(MedlmError, match="There is no folder"):
        image_files.find(tmp_path / "none")
    with pytest.raises(MedlmError, match="There are no images"):
        image_files.find(tmp_path)


# What is read -------------------------------------------------------------------------


def test_dicom_files_come_in_hu_with_their_patients(tmp_path, sample):
    found = read(slices(tmp_path), Reading())
    assert found.values.dtype == np.int16 and found.warnings == ()
    np.testing.assert_array_equal(found.values[3], sample - 3)
    assert found.header_patients == ("p0", "p1", "p2", "p3")
    assert len(set(found.digests)) == 4


def test_pictures_beside_dicom_files_are_refused(tmp_path):
    save(slices(tmp_path) / "a.png", some_grey())
    with pytest.raises(MedlmError, match=r"holds pictures .* and DICOM files"):
        read(tmp_path)


def test_slices_of_several_planes_or_made_of_others_are_a_warning(tmp_path):
    slices(tmp_path)
    for name, value in (
        ("ImageOrientationPatient", [1, 0, 0, 0, 0, -1]),
        ("ImageType", ["DERIVED", "PRIMARY", "MPR"]),
    ):
        content = pydicom.dcmread(tmp_path / "2.dcm")
        setattr(content, name, value)
        content.save_as(tmp_path / "2.dcm")
    planes, made = read(tmp_path, Reading()).warnings
    assert "3 axial, 1 coronal, such as 2.dcm" in planes
    assert made.startswith("1 of 4 slices were computed") and "(MPR), such as 2" in made


def damage(path):
    path.write_bytes(path.read_bytes()[:60])


def test_damaged_files_are_named_or_skipped(tmp_path):
    for number in range(6):
        save(tmp_path / f"{number}.png", some_grey(seed=number))
    damage(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("no picture")
    (tmp_path / "3.png").write_bytes(b"")
    said = r"1\.png cannot be read as a picture: it is damaged.* 2 more cannot.*6 imag"
    with pytest.raises(MedlmError, match=said):
        read(tmp_path)
    found = read(tmp_path, Reading(skip_bad=True))
    assert found.names == ("0.png", "4.png", "5.png") and len(found.values) == 3
    assert [name for name, _ in found.skipped] == ["1.png", "2.png", "3.png"]
    for path in tmp_path.iterdir():
        damage(path)
    with pytest.raises(MedlmError, match="None of the 6 images can be read"):
        read(tmp_path, Reading(skip_bad=True))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_named(tmp_path, progressive):
    path = save(tmp_path / "a.jpg", some_grey((40, 40)), progressive=progressive)
    assert one(path).shape == (40, 40)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(MedlmError, match=r"a\.jpg cannot be read"):
        one(path)


def test_a_file_with_the_name_of_another_kind(tmp_path):
    save(tmp_path / "a.jpg", some_grey(), quality=95)
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert one(tmp_path / "a.png").shape == (12, 10)
    shutil.copy(dicom.sample_dicom(), tmp_path / "b.png")
    with pytest.raises(MedlmError, match=r"is a DICOM file; .* ends in \.dcm"):
        one(tmp_path / "b.png")
    (tmp_path / "a.png").rename(tmp_path / "c.dcm")
    with pytest.raises(MedlmError, match=r"c\.dcm cannot be read as a DICOM file"):
        one(tmp_path / "c.dcm")


# Pictures -----------------------------------------------------------------------------


def test_modes_can_be_made_one(tmp_path):
    grey = some_grey()
    save(tmp_path / "a.png", grey)
    coloured = {"RGB": grey, "RGBA": grey, "LA": grey, "P": grey}
    for mode in coloured:
        Image.fromarray(grey).convert(mode).save(tmp_path / f"{mode}.png")
    with pytest.raises(MedlmError, match="differ in mode: "):
        read(tmp_path, Reading())
    found = read(tmp_path)
    assert len(found.values) == 5 and len(set(found.digests)) == 1
    for values in found.values:
        np.testing.assert_array_equal(values, grey)


def test_what_is_transparent_is_black(tmp_path):
    hidden = np.full((12, 10, 4), 200, np.uint8)
    hidden[:6, :, 3], hidden[6:, :, 3] = 0, 255
    found = one(save(tmp_path / "a.png", hidden))
    assert (found[:6] == 0).all() and (found[6:] == 200).all()


def test_cmyk_and_one_bit(tmp_path):
    grey = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 64, 0)
    colours = Image.fromarray(grey).convert("RGB").convert("CMYK")
    colours.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(one(tmp_path / "a.jpg").astype(int) - grey).max() < 12
    Image.fromarray(grey > 100).save(tmp_path / "b.png")
    np.testing.assert_array_equal(one(tmp_path / "b.png"), 255 * (grey > 100))


@pytest.mark.parametrize("turn, expected", [(6, -1), (3, 2), (1, 0)])
def test_a_picture_is_turned_as_it_says(tmp_path, turn, expected):
    exif = Image.Exif()
    exif[274] = turn
    grey = np.kron(some_grey((3, 2)), np.ones((16, 16), np.uint8))
    path = save(tmp_path / "a.jpg", grey, exif=exif, quality=100)
    found = one(path).astype(int)
    upright = np.rot90(grey, expected)
    assert found.shape == upright.shape and np.abs(found - upright).max() < 12


def test_several_frames_and_huge_pictures_are_refused(tmp_path):
    frames = [Image.fromarray(some_grey(seed=n)) for n in range(3)]
    for name in ("a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(MedlmError, match="has 3 frames or pages"):
            one(tmp_path / name)
    Image.new("1", (10_000, 10_000)).save(tmp_path / "b.png")
    with pytest.raises(MedlmError, match="has 10000 x 10000 pixels"):
        one(tmp_path / "b.png")


def test_pictures_that_show_nothing_are_a_warning(tmp_path):
    save(tmp_path / "a.png", some_grey())
    save(tmp_path / "b.png", np.full((12, 10), 90, np.uint8))
    save(tmp_path / "c.png", 255 * (some_grey() > 99).astype(np.uint8))
    for reading in (GREY, Reading(size=16)):  # padded, b has two values
        (said,) = read(tmp_path, reading).warnings
        assert said.startswith("2 of 3 images have no more than two values, such as b")


# Pictures of 16 bits ------------------------------------------------------------------


def test_all_of_16_bits_becomes_8(tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        found = one(save(tmp_path / name, grey * 257))
        np.testing.assert_array_equal(found, grey)
    save(tmp_path / "b.png", np.full((16, 16), 257 * 100, np.uint16))
    assert (one(tmp_path / "b.png") == 100).all()


@pytest.mark.parametrize("offset", [32768, 1024])
def test_hu_in_16_bits_needs_its_offset(tmp_path, sample, offset):
    path = save(tmp_path / "a.png", (sample.astype(int) + offset).astype(np.uint16))
    with pytest.raises(MedlmError, match=r"2064 of 65536 levels .*--png-offset 32768"):
        one(path)
    reading = Reading(png_offset=offset)
    found = image_files.read(tmp_path, ["a.png"], reading)
    assert found.values.dtype == np.int16 and found.header_patients == ("",)
    np.testing.assert_array_equal(found.values[0], sample)
    with pytest.raises(MedlmError, match="With the offset"):
        one(path, Reading(png_offset=33792 - offset))


def test_frames_in_16_bits_become_air(tmp_path, sample):
    framed = sample.copy()
    framed[:, :9] = -3024
    path = save(tmp_path / "a.png", (framed.astype(int) + 32768).astype(np.uint16))
    found = one(path, Reading(png_offset=32768))
    assert (found[:, :9] == -1000).all()
    np.testing.assert_array_equal(found[:, 9:], sample[:, 9:])


def test_the_range_is_that_of_all_pictures(tmp_path):
    save(tmp_path / "a.png", some_grey().astype(np.uint16))  # one dark slice of many
    save(tmp_path / "b.png", some_grey().astype(np.uint16) * 257)
    assert len(read(tmp_path).values) == 2
    with pytest.raises(MedlmError, match="of 65536 levels"):
        one(tmp_path / "a.png")


def test_an_offset_needs_16_bits_of_grey(tmp_path):
    reading = Reading(png_offset=1024)
    with pytest.raises(MedlmError, match="has 8 bits, which cannot hold"):
        one(save(tmp_path / "a.png", some_grey()), reading)
    with pytest.raises(MedlmError, match="holds DICOM files"):
        image_files.read(slices(tmp_path), ["0.dcm"], reading)
    with pytest.raises(MedlmError, match="offset is nan"):
        one(tmp_path / "a.png", Reading(png_offset=math.nan))
    path = save(tmp_path / "f.tif", np.linspace(-1000, 500, 64).reshape(8, 8))
    with pytest.raises(MedlmError, match=r"goes from -1000 to 500; .*--png-offset 0"):
        one(path)
    assert one(path, Reading(png_offset=0)).min() == -1000


def colours_of_16_bits():
    """A PNG that Pillow would cut to 8 bits without a word."""
    header = b"IHDR" + (2).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    parts = (header, b"IDAT" + zlib.compress(rows), b"IEND")
    chunks = [
        (len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
        for part in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_colours_of_16_bits_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(colours_of_16_bits())
    with pytest.raises(MedlmError, match="colours of 16 bits"):
        one(tmp_path / "a.png")


# Sizes --------------------------------------------------------------------------------


def test_sizes_can_be_made_one_without_squeezing(tmp_path):
    save(tmp_path / "a.png", some_grey())
    save(tmp_path / "b.png", np.full((40, 20), 90, np.uint8))
    with pytest.raises(MedlmError, match=r"differ in size: 1 with 10 x 12, 1 with 20 "):
        read(tmp_path)
    found = read(tmp_path, Reading(size=8)).values
    assert found.shape == (2, 8, 8) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[1][:, 3:5], 90)
    assert (found[1][:, [0, 7]] == 0).all()  # black, beside a picture half as wide
    with pytest.raises(MedlmError, match="The size is 2 pixels"):
        read(tmp_path, Reading(size=2))


def test_making_small_is_a_mean(tmp_path, sample):
    small = read(slices(tmp_path), Reading(size=32)).values[0].astype(float)
    blocks = sample.reshape(32, 4, 32, 4).mean((1, 3))
    assert np.corrcoef(small.ravel(), blocks.ravel())[0, 1] > 0.995
    assert small.mean() == pytest.approx(blocks.mean(), abs=2)


def test_hu_are_padded_with_air(tmp_path, sample):
    content = pydicom.dcmread(dicom.sample_dicom())
    content.Rows = 64
    content.PixelData = content.PixelData[: 64 * 128 * 2]
    content.save_as(tmp_path / "a.dcm")
    found = one(tmp_path / "a.dcm", Reading(size=128))
    assert (found[:32] == -1000).all() and (found[96:] == -1000).all()
    np.testing.assert_array_equal(found[32:96], sample[:64])


def test_a_spacing_makes_a_pixel_as_large_everywhere(tmp_path, sample):
    """A disc of 20 mm has its area in pixels, whatever the scanner's pixel is."""
    y, x = np.mgrid[:128, :128] - 63.5
    for name, spacing in (("a", (0.5, 0.5)), ("b", (1.0, 0.8))):
        distance = np.hypot(y * spacing[0], x * spacing[1])
        content = pydicom.dcmread(dicom.sample_dicom())
        content.PixelData = np.where(distance < 10, 1074, 24).astype("<i2").tobytes()
        content.PixelSpacing = list(spacing)
        content.save_as(tmp_path / f"{name}.dcm")
    found = read(tmp_path, Reading(size=64, spacing_mm=1)).values
    areas = ((found + 1000.0) / 1050).sum(axis=(1, 2))
    np.testing.assert_allclose(areas, math.pi * 10**2, rtol=0.03)
    same = one(tmp_path / "a.dcm", Reading(size=128, spacing_mm=0.5))
    np.testing.assert_array_equal(same, one(tmp_path / "a.dcm"))


def test_a_spacing_needs_what_it_is_made_of(tmp_path):
    content = pydicom.dcmread(dicom.sample_dicom())
    del content.PixelSpacing
    content.save_as(tmp_path / "a.dcm")
    with pytest.raises(MedlmError, match="has no usable PixelSpacing"):
        one(tmp_path / "a.dcm", Reading(size=64, spacing_mm=1))
    for reading, said in (
        (Reading(spacing_mm=1), "expected both"),
        (Reading(size=64, spacing_mm=0), "spacing is 0 mm"),
        (Reading(size=64, spacing_mm=math.inf), "spacing is inf"),
    ):
        with pytest.raises(MedlmError, match=said):
            one(tmp_path / "a.dcm", reading)
    shutil.copy(dicom.sample_dicom(), tmp_path / "b.dcm")
    with pytest.raises(MedlmError, match="expected a larger spacing"):
        one(tmp_path / "b.dcm", Reading(size=64, spacing_mm=1e-3))
    with pytest.raises(MedlmError, match=r"holds pictures, which do\s+not say"):
        one(save(tmp_path / "a.png", some_grey()), Reading(size=64, spacing_mm=1))


# Damage -------------------------------------------------------------------------------


def encoded(kind, **how):
    buffer = io.BytesIO()
    Image.fromarray(some_grey((40, 50, 3))).save(buffer, kind, **how)
    return buffer.getvalue()


PICTURES = {
    "a.png": ("PNG", {}),
    "a.jpg": ("JPEG", {"progressive": True}),
    "a.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "a.bmp": ("BMP", {}),
}


@pytest.mark.parametrize("seed", range(24))
def test_a_damaged_picture_is_read_or_refused_in_one_line(tmp_path, seed):
    rng = np.random.default_rng(seed)
    name = list(PICTURES)[seed % 4]
    kind, how = PICTURES[name]
    data = np.frombuffer(encoded(kind, **how), np.uint8).copy()
    if seed % 3:
        places = rng.integers(0, min(len(data), 700), 8)
        data[places] ^= np.uint8(1 << rng.integers(0, 8))
    else:
        data = data[: rng.integers(1, len(data))]
    (tmp_path / name).write_bytes(data.tobytes())
    try:
        assert one(tmp_path / name, Reading(size=16, grey=True)).dtype == np.uint8
    except MedlmError as error:
        assert name in str(error) and "\n" not in str(error)


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_read(tmp_path):
    save(tmp_path / "a.png", some_grey())
    (tmp_path / "b").mkdir(mode=0)
    with pytest.raises(MedlmError, match="cannot be opened"):
        image_files.find(tmp_path)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("packed", [None, "tiff_lzw"])
@pytest.mark.parametrize("turned", [2, 3, 4, 5, 6, 7, 8])
def test_tiff_files_are_turned_whole(tmp_path, turned, packed, deep):
    """Pillow by itself scrambles the pixels of a TIFF file that it maps."""
    turn = Image.Transpose
    back = dict(enumerate(
        (turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE,
         turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270), start=2))  # fmt: skip
    grey = some_grey((40, 24)).astype(np.uint16 if deep else np.uint8)
    grey[0, :2] = 0, 255
    about = Image.Exif()
    about[0x0112] = turned
    picture = Image.fromarray(grey * (257 if deep else 1)).transpose(back[turned])
    picture.save(tmp_path / "a.tif", exif=about, compression=packed)
    np.testing.assert_array_equal(one(tmp_path / "a.tif", Reading()), grey)


def test_a_size_that_no_memory_holds_is_refused(tmp_path):
    save(tmp_path / "a.png", some_grey())
    for size in (9000, 10**9):
        with pytest.raises(MedlmError, match="expected at most 8192"):
            read(tmp_path, Reading(size=size))


def test_a_spacing_that_leaves_nothing_is_refused(tmp_path):
    slices(tmp_path)  # 85 mm
    with pytest.raises(MedlmError, match=r"4 x 4 pixels of 20 mm; expected at least 8"):
        read(tmp_path, Reading(size=32, spacing_mm=20))
    assert read(tmp_path, Reading(size=32, spacing_mm=10)).values.shape == (4, 32, 32)


def test_hounsfield_units_cut_to_8_bits_are_a_warning(tmp_path, sample):
    save(tmp_path / "a.png", ((sample.astype(int) + 1024) >> 8).astype(np.uint8))
    words = read(tmp_path).warnings
    assert (
        len(words) == 1 and "1 of 1 images have no more than 16 different" in words[0]
    )
    save(tmp_path / "a.png", ((sample.astype(int) + 1024) >> 5).astype(np.uint8))
    assert not read(tmp_path).warnings
