"""dicom.py: HU against hand numbers and pydicom's own, odd tags, what is refused."""

import os
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, get_decoder
from scipy import ndimage

from medlm_utils import dicom
from medlm_utils.runtime import MedlmError


@pytest.fixture(scope="module")
def sample():
    return dicom.read_dicom(dicom.sample_dicom())


@pytest.fixture(scope="module")
def stored():
    """(128, 128), the numbers in the sample."""
    return pydicom.dcmread(dicom.sample_dicom()).pixel_array


def changed(path, pixels=None, raw=None, padding="SS", **changes):
    """The sample with other pixels or tags; None takes a tag out.

    `raw` are tags whose bytes are no value of their type; `padding` is the type of
    padding tags, which depends on that of the pixels.
    """
    content = pydicom.dcmread(dicom.sample_dicom())
    for name, value in changes.items():
        if value is None:
            delattr(content, name)
        elif "Padding" in name:
            content.add_new(name, padding, value)
        else:
            setattr(content, name, value)
    if pixels is not None:
        content.Rows, content.Columns = pixels.shape
        content.PixelData = pixels.tobytes()
    for name, value in (raw or {}).items():
        tag = pydicom.tag.Tag(name)
        kind = pydicom.datadict.dictionary_VR(tag)
        content[tag] = pydicom.dataelem.RawDataElement(
            tag, kind, len(value), value.encode("latin-1"), 0, False, True
        )
    content.save_as(path)
    return path


def refused(path):
    """What is said of a file that is refused, in one line that names it."""
    with pytest.raises(MedlmError) as caught:
        dicom.read_dicom(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# What is in a slice -------------------------------------------------------------------


def test_the_sample_is_read_as_its_header_says(sample, stored):
    np.testing.assert_array_equal(sample.hu, stored * 1.0 - 1024)
    assert sample.hu.dtype == np.float32 and sample.hu.shape == (128, 128)
    assert sample.spacing_mm == (0.661468, 0.661468) and sample.thickness_mm == 5
    assert sample.patient == "1CT1" and sample.series.startswith("1.3.6.1.4.1.5962")
    assert sample.scanner == "GE MEDICAL SYSTEMS RHAPSODE"
    assert sample.kernel == "STANDARD" and not sample.shown_inverted
    assert sample.plane == "axial" and sample.derived == ""
    assert not sample.padding.any()


def test_slope_and_intercept_are_used(tmp_path, stored):
    path = changed(tmp_path / "a.dcm", RescaleSlope="0.5", RescaleIntercept="-600")
    np.testing.assert_allclose(dicom.read_dicom(path).hu, stored * 0.5 - 600)


def test_monochrome1_is_about_the_screen_alone(tmp_path, sample):
    path = changed(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    found = dicom.read_dicom(path)
    assert found.shown_inverted
    np.testing.assert_array_equal(found.hu, sample.hu)


def test_what_a_file_does_not_say_is_empty(tmp_path):
    names = ("PixelSpacing", "PatientID", "SliceThickness", "ImageOrientationPatient",
             "Modality", "ImageType")  # fmt: skip
    found = dicom.read_dicom(changed(tmp_path / "a.dcm", **dict.fromkeys(names)))
    assert found.spacing_mm is None and found.thickness_mm is None
    assert found.patient == found.plane == found.derived == ""


@pytest.mark.parametrize(
    "direction, plane",
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([1, 0, 0, 0, 0.87, -0.5], "axial"),  # the gantry is tilted by 30 degrees
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0], ""),
    ],
)
def test_the_plane(tmp_path, direction, plane):
    path = changed(tmp_path / "a.dcm", ImageOrientationPatient=direction)
    assert dicom.read_dicom(path).plane == plane


@pytest.mark.parametrize(
    "kind, derived",
    [
        (["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], ""),
        (["DERIVED", "PRIMARY", "AXIAL"], ""),  # such as a file made anonymous
        (["DERIVED", "PRIMARY", "MPR"], "MPR"),
        (["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"], "REFORMATTED"),
        (["DERIVED", "SECONDARY"], "SECONDARY"),
    ],
)
def test_a_slice_that_was_computed_says_so(tmp_path, kind, derived):
    path = changed(tmp_path / "a.dcm", ImageType=kind)
    assert dicom.read_dicom(path).derived == derived
    capture = "1.2.840.10008.5.1.4.1.1.7.2"
    path = changed(tmp_path / "b.dcm", SOPClassUID=capture, ImageType=["DERIVED"])
    assert dicom.read_dicom(path).derived == "secondary capture"


# Padding ------------------------------------------------------------------------------


def framed(stored, value):
    """Pixels whose corners are outside of a circle, and which pixels those are."""
    y, x = np.mgrid[:128, :128] - 63.5
    outside = y**2 + x**2 > 64**2
    return np.where(outside, value, stored).astype(np.int16), outside


@pytest.mark.parametrize(
    "value, kind, tag",
    [(-2000, "SS", -2000), (-2000, "US", 63536), (-2000, "SS", None),
     (-2000, "SS", 0), (0, "SS", None)],
    ids=["as the pixels", "unsigned", "no tag", "another value", "lowest of 12 bits"],
)  # fmt: skip
def test_the_circle_of_the_field_of_view_becomes_air(
    tmp_path, stored, value, kind, tag
):
    pixels, outside = framed(stored, value)
    path = changed(tmp_path / "a.dcm", pixels, padding=kind, PixelPaddingValue=tag)
    found = dicom.read_dicom(path)
    np.testing.assert_array_equal(found.padding, outside)
    assert (found.hu[outside] == -1000).all()
    np.testing.assert_array_equal(found.hu[~outside], stored[~outside] - 1024.0)


def test_padding_below_zero_in_unsigned_pixels(tmp_path, stored):
    pixels, outside = framed(stored, -2000)
    path = changed(tmp_path / "a.dcm", pixels.view(np.uint16), PixelRepresentation=0,
                   PixelPaddingValue=-2000)  # fmt: skip
    np.testing.assert_array_equal(dicom.read_dicom(path).padding, outside)


def test_padding_of_the_other_sign_is_found_by_its_tag_alone(tmp_path, stored):
    pixels, outside = framed(stored - 1024, -1000)
    path = changed(tmp_path / "a.dcm", pixels, padding="US", RescaleIntercept="0",
                   PixelPaddingValue=2**16 - 1000)  # fmt: skip
    np.testing.assert_array_equal(dicom.read_dicom(path).padding, outside)


def test_a_range_of_padding(tmp_path, stored):
    tags = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 190}
    found = dicom.read_dicom(changed(tmp_path / "a.dcm", **tags))
    assert found.padding.any()
    np.testing.assert_array_equal(found.padding, stored <= 190)


def test_padding_that_tissue_has_too_is_padding_at_the_border_alone(tmp_path, stored):
    pixels, outside = framed(np.where(stored == 1024, 1025, stored), 1024)  # 0 HU
    pixels[60:64, 60:64] = 1024
    found = dicom.read_dicom(
        changed(tmp_path / "a.dcm", pixels, PixelPaddingValue=1024)
    )
    np.testing.assert_array_equal(found.padding, outside)
    assert (found.hu[60:64, 60:64] == 0).all()


def test_nothing_is_thinner_than_air(tmp_path, stored):
    pixels = stored.copy()
    pixels[30, 30], pixels[0, 0] = -900, -300  # a streak, and noise in a corner
    path = changed(tmp_path / "a.dcm", pixels, PixelPaddingValue=None)
    found = dicom.read_dicom(path)
    assert found.hu[30, 30] == found.hu[0, 0] == -1024 and not found.padding.any()


# Tags that are not as the standard has them -------------------------------------------


@pytest.mark.parametrize(
    "written, numbers",
    [
        ("1,25", (1.25,)),
        ("120 kV", (120,)),
        ("5.0\\5.0", (5, 5)),
        ("-1e3", (-1000,)),
        (" .5 ", (0.5,)),
        ("\\2", (2,)),
        ("", ()),
        ("nan", ()),
        ("1e999", ()),
        ("thin", ()),
    ],
)
def test_numbers_of_a_tag(tmp_path, written, numbers):
    path = changed(tmp_path / "a.dcm", raw={"SliceThickness": written})
    content = pydicom.dcmread(path)
    assert dicom.numbers(content, "SliceThickness") == numbers
    assert dicom.number(content, "SliceThickness") == (numbers or (None,))[0]
    assert dicom.read_dicom(path).thickness_mm == (numbers or (None,))[0]


def test_odd_tags_do_not_stop_the_pixels(tmp_path, sample):
    raw = {
        "RescaleSlope": "1,0 ",
        "RescaleIntercept": "-1024\\-1024 ",
        "PixelSpacing": "0,66",
        "SliceThickness": "5 mm",
        "KVP": "120 kV",
        "NumberOfFrames": "1\\1 ",
    }
    found = dicom.read_dicom(changed(tmp_path / "a.dcm", raw=raw))
    np.testing.assert_array_equal(found.hu, sample.hu)
    assert found.spacing_mm == (0.66, 0.66) and found.thickness_mm == 5


def test_facts_of_a_header_never_raise(tmp_path):
    raw = {"KVP": "120 kV", "SliceThickness": "5,0", "PixelSpacing": "one"}
    facts = dicom.header_facts(changed(tmp_path / "a.dcm", raw=raw))
    found = [facts[name] for name in ("KVP", "SliceThickness", "PixelSpacing")]
    assert found == [120, 5, None]
    assert facts["Columns"] == 128 and facts["ConvolutionKernel"] == "STANDARD"
    (tmp_path / "text").write_text("no image")
    for path in (tmp_path / "text", tmp_path / "none", tmp_path):
        assert not any(dicom.header_facts(path).values())


def in_groups(path, frames=1):
    """The sample as an enhanced file has it, its tags in groups."""
    content = pydicom.dcmread(dicom.sample_dicom())
    shared, each = Dataset(), Dataset()
    places = {
        "PixelValueTransformationSequence": (each, "RescaleSlope RescaleIntercept"),
        "PixelMeasuresSequence": (shared, "PixelSpacing SliceThickness"),
        "PlaneOrientationSequence": (shared, "ImageOrientationPatient"),
    }
    for name, (group, tags) in places.items():
        inner = Dataset()
        for tag in tags.split():
            setattr(inner, tag, getattr(content, tag))
            delattr(content, tag)
        setattr(group, name, [inner])
    content.SharedFunctionalGroupsSequence = [shared]
    content.PerFrameFunctionalGroupsSequence = [each] * frames
    content.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    content.NumberOfFrames = frames
    content.PixelData *= frames
    content.save_as(path)
    return path


def test_an_enhanced_file_of_one_frame_is_a_slice(tmp_path, sample):
    found = dicom.read_dicom(in_groups(tmp_path / "a.dcm"))
    np.testing.assert_array_equal(found.hu, sample.hu)
    assert found.spacing_mm == sample.spacing_mm and found.thickness_mm == 5
    assert found.plane == "axial"
    said = refused(in_groups(tmp_path / "b.dcm", frames=2))
    assert "2 frames" in said and "Save each frame" in said


# Files that are odd -------------------------------------------------------------------


def without_preamble(path, syntax):
    """The data set alone, as some archives write it."""
    content = pydicom.dcmread(dicom.sample_dicom())
    content.file_meta.TransferSyntaxUID = syntax
    content.save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    path.write_bytes(data[start:])
    return path


@pytest.mark.parametrize(
    "syntax",
    [pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian],
)
def test_a_file_without_a_preamble_is_read(tmp_path, sample, syntax):
    path = without_preamble(tmp_path / "a", syntax)
    assert dicom.is_dicom(path)
    np.testing.assert_array_equal(dicom.read_dicom(path).hu, sample.hu)


def test_what_is_no_dicom_file(tmp_path):
    for number, content in enumerate((b"", b"no image", b"PK\3\4" * 90, b"\0" * 900)):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content)
        assert not dicom.is_dicom(path)
        assert "cannot be read as a DICOM file" in refused(path)
    with pytest.raises(MedlmError, match="There is no file"):
        dicom.read_dicom(tmp_path / "none.dcm")


def test_a_compressed_file_is_read_or_its_package_is_named(tmp_path, sample):
    content = pydicom.dcmread(dicom.sample_dicom())
    content.compress(pydicom.uid.RLELossless)
    content.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(
        dicom.read_dicom(tmp_path / "a.dcm").hu, sample.hu
    )  # pydicom's own
    content.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    content.save_as(tmp_path / "b.dcm")
    said = refused(tmp_path / "b.dcm")
    if get_decoder(pydicom.uid.JPEGLosslessSV1).is_available:
        assert "cannot be decoded" in said
    else:
        assert 'pip install "medlm-utils[dicom]"' in said and "JPEG Lossless" in said


@pytest.mark.parametrize("kept", [40, 3000, 20_000])
def test_a_file_that_was_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "cut.dcm"
    path.write_bytes(dicom.sample_dicom().read_bytes()[:kept])
    assert any(w in refused(path) for w in ("cut short", "no pixel data"))


# What is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"RescaleSlope": None}, "no RescaleSlope"),
        ({"RescaleIntercept": None}, "no RescaleSlope or no RescaleIntercept"),
        ({"RescaleSlope": "0"}, "RescaleSlope 0; expected one number above 0"),
        ({"raw": {"RescaleSlope": "nan "}}, "RescaleSlope nan; expected one number"),
        ({"raw": {"RescaleSlope": "1\\2 "}}, "RescaleSlope 1, 2; expected one number"),
        ({"raw": {"RescaleIntercept": "none"}}, "RescaleIntercept none; expected one"),
        ({"RescaleSlope": "1e-2"}, "16 bits, which reach over 655 HU"),
        ({"BitsStored": 8}, "8 bits, which reach over 256 HU"),
        ({"RescaleIntercept": "-30000"}, "goes from"),
        ({"RescaleSlope": "50"}, "pixels above 2500 HU"),
        ({"RescaleIntercept": "0"}, "RescaleIntercept is wrong"),
        ({"RescaleType": "Z_EFF"}, "the RescaleType Z_EFF; expected HU"),
        ({"raw": {"RescaleType": "HU\\Z_EFF"}}, "the RescaleType Z_EFF"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "the type LOCALIZER"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "SCREEN SAVE"),
        ({"PixelData": None}, "has no pixel data; expected a CT slice"),
        ({"Modality": "MR"}, "has the modality MR; expected CT"),
        ({"NumberOfFrames": 3}, "3 frames of 1 colours"),
        ({"SamplesPerPixel": 3}, "1 frames of 3 colours"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "a palette of colours"),
        ({"BitsAllocated": 12}, "cannot be decoded"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels"),
        ({"Rows": None}, "128 x 0 pixels"),
        ({"pixels": np.full((9, 9), 1050, np.int16)}, "one value everywhere"),
        ({"pixels": np.full((9, 9), -2000, np.int16)}, "one value everywhere"),
    ],
)
def test_a_file_that_is_no_slice_is_refused(tmp_path, changes, said):
    assert said in refused(changed(tmp_path / "a.dcm", **changes))


@pytest.mark.parametrize(
    "unit", ["", "HU", "Houndsfield Unit", "hounsfield", "US", ["HU", "HU"]]
)
def test_units_that_scanners_write(tmp_path, sample, unit):
    path = changed(tmp_path / "a.dcm", RescaleType=unit)
    np.testing.assert_array_equal(dicom.read_dicom(path).hu, sample.hu)


def test_a_table_instead_of_a_slope_is_named(tmp_path):
    path = changed(tmp_path / "a.dcm", RescaleSlope=None, ModalityLUTSequence=[])
    assert "ModalityLUTSequence" in refused(path)


def test_twelve_bits_that_wrapped_are_refused(tmp_path, stored):
    wrapped = ((stored - 1024) % 4096).astype(np.uint16)
    assert wrapped.max() == 4095
    tags = {"PixelRepresentation": 0, "BitsStored": 12, "RescaleIntercept": "0"}
    said = refused(changed(tmp_path / "a.dcm", wrapped, **tags))
    assert "wrapped around" in said


# Files of others ----------------------------------------------------------------------


def files_of_pydicom():
    """What comes with pydicom: nothing is downloaded."""
    folder = Path(pydicom.data.__file__).parent
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    )


def test_the_files_of_pydicom_are_read_as_pydicom_has_them_or_refused(capfd):
    files, read = files_of_pydicom(), []
    assert len(files) > 150
    for path in files:
        dicom.header_facts(path)
        try:
            found = dicom.read_dicom(path)
        except MedlmError as error:
            assert "\n" not in str(error)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = pydicom.dcmread(path, force=True)
            theirs = apply_modality_lut(content.pixel_array, content)
        inside = ~found.padding
        expected = np.maximum(theirs, dicom.LOWEST_HU)[inside]
        np.testing.assert_array_equal(found.hu[inside], expected)
        read.append(path.name)
    assert {"CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"} <= set(read)
    assert capfd.readouterr().err == ""


def real(name):
    """Files of a set that cannot be shipped."""
    folder = Path(os.environ.get("MEDLM_DATA_DIR", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"MEDLM_DATA_DIR has no folder {name}")
    return folder


def median_hu(found):
    """Of the air around a body, its lungs, its fat and its soft tissue."""
    solid = ndimage.binary_opening(found.hu > -300, iterations=3)
    parts, count = ndimage.label(ndimage.binary_fill_holes(solid))
    sizes = ndimage.sum_labels(parts > 0, parts, range(1, count + 1))
    body = parts == 1 + np.argmax(sizes)
    hu, around = found.hu[body], found.hu[~body & ~found.padding]
    ranges = ((-1024, -700), (-150, -50), (0, 80))
    inside = [np.median(hu[(hu > low) & (hu < high)]) for low, high in ranges]
    return [np.median(around), *inside]


@pytest.mark.parametrize("series", ["A0001_L", "A0001_B", "A0002_B70f", "A0002_B40f"])
def test_real_series_have_the_hu_of_lung_fat_and_muscle(series):
    files = sorted((real("ct-lungdx") / series).glob("*.dcm"))
    middle = [dicom.read_dicom(path) for path in files[len(files) // 2 :][:3]]
    for found in middle:
        air, lung, fat, soft = median_hu(found)
        assert -1024 <= air < -960
        assert -920 < lung < -780 and -115 < fat < -80 and 20 < soft < 60
        assert found.plane == "axial" and found.derived == ""


def test_real_slices_of_two_makers_lose_their_frames():
    files = sorted(real("ct-sbu").rglob("*.dcm"))
    found = {path: dicom.read_dicom(path) for path in files}
    for path, one in found.items():
        name = path.parent.name
        assert one.plane == name  # the folder says it too
        if name == "axial" and not one.derived:
            assert 0.2 < one.padding.mean() < 0.25  # the circle leaves 1 - pi / 4
        assert one.hu.min() >= -1024
    assert sum(bool(one.derived) for one in found.values()) == 4


# Damage -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(36))
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path / "a.dcm"
    if seed % 3 == 2:
        in_groups(path)
    data = np.frombuffer((path if path.is_file() else dicom.sample_dicom())
                         .read_bytes(), np.uint8).copy()  # fmt: skip
    if seed % 2:
        places = rng.integers(128, 2500, 12)  # the header
        data[places] ^= 1 << rng.integers(0, 8, len(places)).astype(np.uint8)
    else:
        start = rng.integers(100, len(data))
        data = np.delete(data, slice(start, start + rng.integers(1, 900)))
    path.write_bytes(data.tobytes())
    dicom.header_facts(path)
    try:
        assert np.isfinite(dicom.read_dicom(path).hu).all()
    except MedlmError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_grey_levels_in_16_bits_are_no_hounsfield_units(tmp_path, stored):
    grey = np.linspace(0, 255, stored.size).reshape(stored.shape).astype(np.int16)
    path = changed(tmp_path / "a.dcm", grey, RescaleIntercept="0")
    assert "goes from 0 to 255 HU" in refused(path)
    water = (grey // 60).astype(np.int16) * 8  # 0 to 32 HU, such as a part of a brain
    path = changed(tmp_path / "b.dcm", water, RescaleIntercept="0")
    assert dicom.read_dicom(path).hu.max() == 32


def test_an_intercept_that_was_taken_twice_is_refused(tmp_path, sample):
    said = refused(changed(tmp_path / "a.dcm", RescaleIntercept="-2048"))
    assert "below -1500 HU" in said and "most likely by 1024" in said
    clipped = np.maximum(sample.hu, 0).astype(np.int16)
    said = refused(changed(tmp_path / "b.dcm", clipped, RescaleIntercept="0"))
    assert "at 0 HU, and nothing below" in said
