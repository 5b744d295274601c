"""note_reader.py and its study: tags against spans, a loss by hand, the file."""

import json

import numpy as np
import pytest
import torch
from study_runs import a_study, run_tiny, tracked
from torch.nn import functional as F

from medlm_utils import anomaly_worlds, bert, clinic, note_reader, text
from medlm_utils.clinic import MENTIONS
from medlm_utils.note_reader import NoteReader, Sizes, TaggedBatches, tags_of
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import anomaly_encoder

SMALL = Sizes(d_model=16, heads=2, d_ff=32, blocks=1, longest=256)


@pytest.fixture(scope="module")
def usual():
    return anomaly_worlds.usual_clinic()


@pytest.fixture(scope="module")
def notes(usual):
    return usual.draw(30, seed=3)


@pytest.fixture
def reader(usual, notes):
    torch.manual_seed(0)
    words = text.WordTokenizer.train(notes.text).words
    findings = [finding.name for finding in usual.world.findings]
    return NoteReader(words, usual.diseases, findings, SMALL)


def batches(usual, notes, reader, size=8):
    tags = [tags_of(usual, note) for note in notes.text]
    return TaggedBatches(reader.rows(notes.text), tags, notes.label, size)


class TestTags:
    def test_a_row_has_a_tag_for_each_token(self, usual, notes, reader):
        for note, row in zip(notes.text, reader.rows(notes.text), strict=True):
            assert len(tags_of(usual, note)) == len(row)

    def test_the_tags_of_a_note_are_what_it_mentions(self, usual, notes):
        for row, note in enumerate(notes.text):
            tags = set(tags_of(usual, note).tolist()) - {0}
            said = {
                1 + finding * 4 + kind - 1
                for finding, kind in enumerate(notes.mentions[row])
                if kind != MENTIONS.index("silent")
            }
            assert tags == said

    def test_each_tagged_word_stands_in_its_span(self, usual, notes):
        note = notes.text[0]
        words = ["", *text.split_words(note), ""]
        for word, tag in zip(words, tags_of(usual, note).tolist(), strict=True):
            finding, assertion = divmod(tag - 1, 4)
            inside = any(
                word in note[span.start : span.end].lower()
                for span in usual.spans(note)
                if span.finding == usual.world.findings[finding].name
                and span.assertion == note_reader.ASSERTIONS[assertion]
            )
            assert tag == 0 or inside

    def test_a_text_of_another_place_is_refused(self, usual):
        with pytest.raises(MedlmError, match="no note of this clinic"):
            tags_of(usual, "No such clinic writes this.")


class TestBatches:
    def test_padding_has_no_tag(self, usual, notes, reader):
        ids, mask, tags, labels = batches(usual, notes, reader).at(0)
        assert ids.shape == mask.shape == tags.shape and len(labels) == len(ids)
        assert torch.equal(tags == text.IGNORED, ids == text.PAD)
        assert torch.equal(mask == 0, ids == text.PAD)

    def test_rows_and_labels_stay_together(self, usual, notes, reader):
        rows = reader.rows(notes.text)
        label_of = {
            tuple(r.tolist()): n for r, n in zip(rows, notes.label, strict=True)
        }
        for ids, mask, _, labels in batches(usual, notes, reader).epoch(0):
            for row, real, label in zip(ids, mask, labels, strict=True):
                assert label_of[tuple(row[real > 0].tolist())] == label

    @pytest.mark.parametrize("missing", ["tags", "labels", "token"])
    def test_lengths_must_agree(self, usual, notes, reader, missing):
        rows = reader.rows(notes.text)
        tags = [tags_of(usual, note) for note in notes.text]
        labels = notes.label
        if missing == "tags":
            tags = tags[1:]
        elif missing == "labels":
            labels = labels[1:]
        else:
            tags[0] = tags[0][:-1]
        with pytest.raises(MedlmError, match="expected"):
            TaggedBatches(rows, tags, labels, 4)


class TestReading:
    def test_the_loss_is_two_means(self, usual, notes, reader):
        batch = batches(usual, notes, reader).at(0)
        ids, mask, tags, labels = batch
        states = reader.encoder(ids, mask)
        logits = reader.tag_head(states).log_softmax(-1)
        real = tags != text.IGNORED
        by_hand = -logits[real].gather(1, tags[real][:, None]).mean()
        mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        by_hand = by_hand + F.cross_entropy(reader.head(mean), labels)
        loss, count = note_reader.reading_loss(reader.eval(), batch)
        assert count == len(labels)
        torch.testing.assert_close(loss / count, by_hand, rtol=1e-5, atol=1e-5)

    def test_it_embeds_and_answers_as_any_classifier(self, notes, reader):
        rows = reader.rows(notes.text[:5])
        vectors = bert.embed(reader, rows)
        logits = bert.predict_logits(reader, rows)
        weight, bias = (p.detach().numpy() for p in reader.head.parameters())
        np.testing.assert_allclose(vectors @ weight.T + bias, logits, atol=1e-4)

    def test_unknown_words_and_long_texts_can_be_read(self, reader):
        rows = reader.rows(["qwertz " * 400, "Emergency note."])
        assert len(rows[0]) == SMALL.longest
        assert np.isfinite(bert.embed(reader, rows)).all()
        with pytest.raises(MedlmError):
            reader.rows([""])

    def test_tag_accuracy_counts_tokens_inside_findings(self, usual, notes, reader):
        every = batches(usual, notes, reader)
        with torch.no_grad():
            reader.tag_head.weight.zero_()
            reader.tag_head.bias.zero_()
            reader.tag_head.bias[7] = 1.0
        tags = torch.cat([tags[tags > 0] for _, _, tags, _ in every.epoch(0)])
        expected = (tags == 7).float().mean().item()
        assert note_reader.tag_accuracy(reader, every) == pytest.approx(expected)


class TestFile:
    def test_saved_and_loaded_it_says_the_same(self, notes, reader, tmp_path):
        path = tmp_path / "deeper" / "reader.safetensors"
        note_reader.save(reader, path, {"steps": 3})
        again = note_reader.load(path)
        rows = again.rows(notes.text[:4])
        assert again.recipe == {"steps": 3} and not again.training
        assert again.labels == reader.labels and again.findings == reader.findings
        np.testing.assert_array_equal(
            bert.embed(again, rows), bert.embed(reader, reader.rows(notes.text[:4]))
        )
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize("damage", ["cut", "other", "missing"])
    def test_a_damaged_file_is_named(self, reader, tmp_path, damage):
        path = tmp_path / "reader.safetensors"
        note_reader.save(reader, path, {})
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-100])
        elif damage == "other":
            path.write_bytes(b"no reader")
        else:
            path.unlink()
        with pytest.raises(MedlmError, match="anomaly_encoder") as caught:
            note_reader.load(path)
        assert str(path) in str(caught.value)

    def test_a_folder_that_cannot_be_written(self, reader, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(MedlmError, match="Cannot write"):
            note_reader.save(reader, tmp_path / "file" / "reader.safetensors", {})


class TestShipped:
    def test_it_reads_what_the_record_says(self, usual):
        """On other patients than the study's, within what patients vary."""
        record = json.loads(
            (
                note_reader.shipped().parent.parent / "studies" / "anomaly_encoder.json"
            ).read_text(encoding="utf-8")
        )
        model = note_reader.load()
        fresh = usual.draw(150, seed=77)
        logits = bert.predict_logits(model, model.rows(fresh.text))
        known = np.flatnonzero(usual.prior)
        right = (known[logits.argmax(axis=1)] == fresh.label).mean()
        assert abs(right - record["metrics"]["accuracy"]["value"]) < 0.1
        assert note_reader.shipped().stat().st_size < 2e6

    def test_it_never_saw_the_unseen_disease(self):
        model = note_reader.load()
        assert "meningitis" not in model.labels and len(model.labels) == 11
        assert model.recipe["train_seed"] == anomaly_encoder.TRAIN_SEED


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    before = tracked(), note_reader.shipped().read_bytes()
    folder = tmp_path_factory.mktemp("encoder")
    record = run_tiny(anomaly_encoder, folder)
    assert (tracked(), note_reader.shipped().read_bytes()) == before
    return record, folder


class TestStudy:
    def test_the_record_has_its_metrics(self, record):
        metrics = record[0]["metrics"]
        shipped = json.loads(
            (
                note_reader.shipped().parent.parent / "studies" / "anomaly_encoder.json"
            ).read_text(encoding="utf-8")
        )
        assert set(metrics) == set(shipped["metrics"])
        assert metrics["accuracy"]["n"] == anomaly_encoder.PLANS["tiny"].test_patients
        assert [arm["arm"] for arm in record[0]["series"]["arms"]] == [
            *anomaly_encoder.ARMS
        ]

    def test_the_reader_lies_beside_the_record(self, record):
        model = note_reader.load(record[1] / "weights" / "note_reader.safetensors")
        assert model.sizes == anomaly_encoder.PLANS["tiny"].sizes

    def test_training_and_test_share_nobody(self):
        material = anomaly_encoder.draw(anomaly_encoder.PLANS["tiny"])
        assert not set(material.train.patient) & set(material.test.patient)
        unseen = material.usual.diseases.index("meningitis")
        assert not (material.train.label == unseen).any()

    def test_the_twin_learns_the_disease_alone(self, tmp_path):
        plan = anomaly_encoder.PLANS["tiny"]
        material = anomaly_encoder.draw(plan)
        reader = anomaly_encoder.new_reader(material, plan.sizes)
        every = anomaly_encoder.batches_of(reader, material, material.train, 4)
        loss, count = anomaly_encoder.disease_loss(reader, every.at(0))
        loss.backward()
        assert count == 4 and reader.tag_head.weight.grad is None

    def test_the_study_can_be_made_in_a_folder(self, tmp_path):
        study = a_study(tmp_path, tiny=True)
        assert anomaly_encoder._target(study).name == note_reader.shipped().name


def test_the_labels_of_usual_patients_are_numbered_in_order():
    material = anomaly_encoder.draw(anomaly_encoder.PLANS["tiny"])
    names = [clinic.WORLD.diseases[label].name for label in material.train.label]
    assert [material.labels[n] for n in material.number(material.train)] == names
