"""The study covid_ct: its split, images brought to one, its choices, the test last."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as theirs
from study_runs import a_study, run_tiny, tracked
from test_studies import without_times

from medlm_utils import data, metrics, resnet
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core, covid_ct

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The folder of made images."""
    return covid_ct.write_stand_in(tmp_path_factory.mktemp("covid-ct"))


@pytest.fixture
def own(tmp_path):
    """Made images that a test may change."""
    return covid_ct.write_stand_in(tmp_path / "covid-ct")


def table(folder, name="COVID"):
    return folder / "Info" / f"{name}-CT-MetaInfo.csv"


class TestSplit:
    def test_parts_labels_and_patients(self, stand_in):
        split = covid_ct.read_split(stand_in)
        assert list(split) == ["train", "val", "test"]
        for part, files in split.items():
            assert all(path.is_file() for path in files.path)
            assert all(path.name.startswith(part) for path in files.path)
            folders = [path.parent.name for path in files.path]
            named = ["CT_NonCOVID" if one == 0 else "CT_COVID" for one in files.label]
            assert folders == named
        train = split["train"]
        assert len(train) == 18 and train.patient[2] == train.patient[1]
        assert train.patient[0] == "NonCOVID train 0"

    def test_no_patient_in_two_parts(self, own):
        text = table(own).read_text(encoding="utf-8")
        table(own).write_text(text.replace("val 0", "train 3"), encoding="utf-8")
        with pytest.raises(MedlmError, match="COVID train 3 in both train and val"):
            covid_ct.read_split(own)

    def test_the_same_name_in_two_classes_is_two_patients(self, stand_in):
        files = covid_ct.read_split(stand_in)["val"]
        assert len(set(files.patient)) == 8

    def test_an_image_without_a_patient(self, own):
        text = table(own, "NonCOVID").read_text(encoding="utf-8")
        lines = text.splitlines()[:-1]
        table(own, "NonCOVID").write_text("\n".join(lines), encoding="utf-8")
        with pytest.raises(MedlmError, match=r"no patient of test4%0\.png"):
            covid_ct.read_split(own)

    def test_a_table_without_its_columns(self, own):
        table(own).write_text("File name,Age\na.png,40\n", encoding="utf-8")
        with pytest.raises(MedlmError, match="without 'File name' and 'Patient ID'"):
            covid_ct.read_split(own)

    def test_a_missing_list(self, own):
        (own / "Data-split" / "COVID" / "valCT_COVID.txt").unlink()
        with pytest.raises(MedlmError, match=r"valCT_COVID\.txt.*medlm data fetch"):
            covid_ct.read_split(own)

    def test_other_counts_are_refused(self, stand_in):
        with pytest.raises(MedlmError, match=r"\[9, 9\] images .* in train"):
            covid_ct.check_counts(covid_ct.read_split(stand_in))

    def test_the_real_split_has_the_published_counts(self):
        if not data.verify("covid-ct", hashes=False).complete:
            pytest.skip("COVID-CT is not here: `medlm data fetch covid-ct`")
        split = covid_ct.read_split(data.fetch("covid-ct"))
        covid_ct.check_counts(split)
        assert [len(files) for files in split.values()] == [425, 118, 203]
        patients = [len(set(files.patient)) for files in split.values()]
        assert patients == [233, 56, 95]


class TestImages:
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
    def test_the_same_picture_in_every_mode(self, mode):
        levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
        image = Image.fromarray(levels)
        image = image.convert("RGB").convert(mode) if mode == "CMYK" else image
        image = image.convert(mode)
        assert np.abs(covid_ct.grey(image).astype(int) - levels).max() <= 1

    def test_sixteen_bits(self):
        levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
        file = io.BytesIO()
        Image.fromarray(levels * 257).save(file, "PNG")
        image = Image.open(file)
        assert image.mode.startswith("I")
        assert np.array_equal(covid_ct.grey(image), levels)

    def test_what_is_transparent_is_black(self):
        levels = np.full((4, 4, 4), 200, np.uint8)
        levels[..., 3] = np.array([0, 0, 255, 255])[:, None]
        got = covid_ct.grey(Image.fromarray(levels))
        assert (got[:2] == 0).all() and (got[2:] == 200).all()

    def test_one_size_and_one_encoding(self):
        rng = np.random.default_rng(0)
        levels = rng.integers(0, 256, (37, 61), dtype=np.uint8)
        same, coded = covid_ct.uniform(levels, 24)
        assert same.shape == (24, 24) and same.dtype == np.uint8
        smooth, fewer = covid_ct.uniform(np.full((37, 61), 99, np.uint8), 24)
        assert abs(int(smooth.mean()) - 99) <= 1 and fewer < coded

    def test_a_damaged_image_is_named(self, own):
        files = covid_ct.read_split(own)["val"]
        content = files.path[0].read_bytes()
        files.path[0].write_bytes(content[: len(content) // 2])
        with pytest.raises(MedlmError, match=files.path[0].name):
            covid_ct.look(files, 16)
        files.path[0].write_bytes(b"no image")
        with pytest.raises(MedlmError, match=files.path[0].name):
            covid_ct.look(files, 16)


class TestForests:
    def test_the_facts_of_a_file(self, tmp_path):
        levels = np.full((20, 30, 3), 100, np.uint8)
        path = tmp_path / "a.png"  # its name lies, as some of the collection's do
        Image.fromarray(levels).save(path, "JPEG")
        files = covid_ct.Files((path,), np.array([1]), np.array(["a"]))
        seen = covid_ct.look(files, 16)
        assert seen.table("file").tolist() == [[path.stat().st_size, 30, 20, 3, 1]]
        assert seen.table("sizes")[0, :2].tolist() == [30, 20]
        assert seen.table("grey_levels").sum() == pytest.approx(1)
        assert seen.facts["level_06"][0] == 1  # 100 / 16

    def test_facts_without_pixels_do_not_change_with_them(self, tmp_path):
        rng = np.random.default_rng(0)
        paths = []
        for name in "ab":
            levels = rng.integers(0, 256, (20, 30), dtype=np.uint8)
            paths.append(tmp_path / f"{name}.bmp")
            Image.fromarray(levels).save(paths[-1])
        files = covid_ct.Files(tuple(paths), np.array([0, 1]), np.array(["a", "b"]))
        seen = covid_ct.look(files, 16)
        first, second = seen.table("file")
        assert np.array_equal(first, second)
        assert seen.facts["uniform_bytes"][0] != seen.facts["uniform_bytes"][1]

    def test_a_forest_finds_the_format(self, stand_in):
        split = covid_ct.read_split(stand_in)
        known, asked = (covid_ct.look(split[part], 24) for part in ("train", "test"))
        files = known.files
        telling = {**known.facts, "is_jpeg": files.label.astype(float)}
        known = dataclasses.replace(known, facts=telling)
        telling = {**asked.facts, "is_jpeg": asked.files.label.astype(float)}
        asked = dataclasses.replace(asked, facts=telling)
        said = covid_ct.forest(known, asked, "file", 50)
        assert metrics.auroc(asked.files.label, said) == 1
        again = covid_ct.forest(known, asked, "file", 50)
        assert np.array_equal(said, again)


class TestJudging:
    def test_as_scikit_learn_has_it(self, stand_in):
        rng = np.random.default_rng(0)
        files = covid_ct.read_split(stand_in)["test"]
        scores = [rng.random(len(files)) for _ in range(2)]
        got = covid_ct.judged(files, *scores)
        label, said = files.label, [score >= 0.5 for score in scores]
        for name, of, given in (
            ("accuracy", theirs.accuracy_score, said),
            ("f1", theirs.f1_score, said),
            ("auroc", theirs.roc_auc_score, scores),
        ):
            expected = np.mean([of(label, one) for one in given])
            assert got[name]["value"] == pytest.approx(expected)
            assert got[name]["low"] <= expected <= got[name]["high"]
            assert got[name]["n"] == len(set(files.patient)) == 10

    def test_a_gain_is_the_difference_of_means(self, stand_in):
        rng = np.random.default_rng(0)
        files = covid_ct.read_split(stand_in)["test"]
        new, old = ([rng.random(len(files)) for _ in range(n)] for n in (3, 1))
        got = covid_ct.gain(files, new, old)
        means = [
            np.mean([theirs.roc_auc_score(files.label, one) for one in scores])
            for scores in (new, old)
        ]
        assert got["value"] == pytest.approx(means[0] - means[1])
        nothing = covid_ct.gain(files, new, new)
        assert nothing["value"] == nothing["low"] == nothing["high"] == 0

    def test_the_smallest_loss_chooses_then_the_first(self):
        losses = [0.7, 0.5, 0.5, 0.6]
        found = [{"loss": loss, "place": n} for n, loss in enumerate(losses)]
        assert covid_ct.best_of(found)["place"] == 1


@pytest.fixture
def task(tmp_path):
    """A tiny task whose study makes its parts in a folder of the test."""
    made = covid_ct._task(a_study(tmp_path, "covid_ct", tiny=True))
    return dataclasses.replace(made, precision="float32")


def in_a_part(study, make):
    """What `make` returns as a part of a study."""
    return study.run([core.Part("part", {}, 1.0, make)])[0]


class TestNetwork:
    def test_what_is_kept_is_what_was_judged(self, task):
        settings = task.settings(covid_ct.SIMULATED, 0.02, 1)
        found = in_a_part(
            task.study, lambda: covid_ct.train(task, covid_ct.SIMULATED, settings)
        )
        model = task.build(covid_ct.SIMULATED)
        core.load_weights(model, task.study.work / found["weights"])
        label, score = task.asked.files.label, task.probabilities(model, task.asked)
        loss = metrics.log_loss(label, np.column_stack([1 - score, score]))
        assert loss == pytest.approx(found["loss"], abs=1e-5)
        assert found["auroc"] == theirs.roc_auc_score(label, score)
        assert found["loss"] == min(found["loss_by_epoch"])
        assert len(found["loss_by_epoch"]) == task.plan.epochs

    def test_only_a_start_with_features_fits_its_head_first(self, task):
        assert not task.settings(covid_ct.RANDOM, 0.01, 0).head_first
        assert task.settings(covid_ct.SIMULATED, 0.01, 0).head_first
        assert task.settings(covid_ct.IMAGENET, 0.01, 0).head_first

    def test_starts(self, task):
        made = resnet.load_int8(task.weights[covid_ct.SIMULATED])[0]
        start = task.build(covid_ct.SIMULATED).state_dict()
        assert torch.equal(
            start["layer1.0.conv1.weight"], made["layer1.0.conv1.weight"]
        )
        assert start["fc.weight"].shape == (2, 512)
        one, other = (task.build(covid_ct.RANDOM, seed) for seed in (0, 1))
        assert not torch.equal(one.conv1.weight, other.conv1.weight)

    def test_other_weights_are_another_part(self, task):
        def part():
            return covid_ct._train_part(task, covid_ct.SIMULATED, 0.01, 0).settings

        before, random = part(), covid_ct._train_part(task, covid_ct.RANDOM, 0.01, 0)
        path = task.weights[covid_ct.SIMULATED]
        resnet.save_int8(resnet.build(3, seed=7), path, {"is": "another"})
        assert part() != before and random.settings["weights"] == "None"

    def test_imagenet_where_it_may_be_had(self, tmp_path, monkeypatch):
        tried = []
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(resnet, "build", lambda *given: tried.append(given))
        monkeypatch.setenv("MEDLM_OFFLINE", "1")
        assert not covid_ct.has_imagenet() and not tried
        kept = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
        kept.parent.mkdir()
        kept.touch()
        assert covid_ct.has_imagenet() and tried == [(2, "imagenet")]
        kept.unlink()
        monkeypatch.delenv("MEDLM_OFFLINE")
        assert covid_ct.has_imagenet()

        def refused(*given):
            raise MedlmError("no network")

        monkeypatch.setattr(resnet, "build", refused)
        assert not covid_ct.has_imagenet()


METRICS = {
    *(
        f"{who}_{name}"
        for who in (*(f"forest_{s}" for s in covid_ct.SIGHTS), "random", "simulated")
        for name in ("accuracy", "f1", "auroc")
    ),
    *(
        f"{start}_{name}"
        for start in ("random", "simulated")
        for name in ("less_file_forest_auroc", "rate", "validation_auroc")
    ),
    "simulated_gain_auroc",
    "forest_file_validation_auroc",
    "majority_accuracy",
    "all_called_ill_f1",
    "training_hours",
}


def opened_in_order(monkeypatch):
    """The first letters of the parts whose images are opened, and of who trains."""
    order = []
    look, finetune = covid_ct.look, resnet.finetune

    def noted(files, size):
        order.append(files.path[0].name[:4])
        return look(files, size)

    def trained(*given, **more):
        order.append("train a network")
        return finetune(*given, **more)

    monkeypatch.setattr(covid_ct, "look", noted)
    monkeypatch.setattr(resnet, "finetune", trained)
    return order


@pytest.mark.slow
class TestTiny:
    def test_the_record_the_test_last_and_taken_up_again(self, tmp_path, monkeypatch):
        before, order = tracked(), opened_in_order(monkeypatch)
        record = run_tiny(covid_ct, tmp_path)
        assert sorted(order[:2]) == ["trai", "val0"]
        assert order[2:] == [*["train a network"] * 6, "test"]
        assert set(record["metrics"]) == METRICS
        for name, metric in record["metrics"].items():
            if "low" in metric:
                assert metric["low"] <= metric["value"] <= metric["high"], name
        series = record["series"]
        assert not series["imagenet"] and series["published"] == list(
            covid_ct.PUBLISHED
        )
        assert series["images"] == {"train": 18, "val": 12, "test": 14}
        assert series["patients"] == {"train": 12, "val": 8, "test": 10}
        test = series["test"]["networks"]["simulated"]
        by_seed = [one["auroc"]["value"] for one in test["by_seed"]]
        mean = record["metrics"]["simulated_auroc"]["value"]
        assert mean == pytest.approx(np.mean(by_seed)) and len(by_seed) == 2
        chosen = min(
            (one for one in series["trials"] if one["start"] == "random"),
            key=lambda one: one["loss"],
        )
        assert record["metrics"]["random_rate"]["value"] == chosen["rate"]
        text = json.dumps(record)
        assert ".png" not in text and ".safetensors" not in text and len(text) < 40_000
        assert tracked() == before
        again = run_tiny(covid_ct, tmp_path)
        assert order.count("train a network") == 6
        assert without_times(again) == without_times(record)
