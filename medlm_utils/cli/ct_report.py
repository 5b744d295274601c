"""The report of a fine-tuning on CT images as one page: no script, no network.

Knows nothing about models: what stands in ``report.json`` comes in, HTML comes out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medlm_utils.cli import ct_pictures, pages

Content = dict[str, Any]

CAUTION = (
    "Not for clinical use. A model that does well here has been tested on images like "
    "those that it learned from: the same scanners, protocols and years. Of 62 "
    "published models of this kind that were reviewed in 2021 none could be used on "
    "patients. Nobody's care may depend on this one without a study in the place where "
    "it is to be used."
)

CSS = """
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; }
.pictures figure { max-width: 20rem; }
.pictures img { display: block; max-width: 100%; height: auto; }
"""


def page(content: Content, pictures: Sequence[ct_pictures.Picture] = ()) -> str:
    """The report as an HTML page.

    Parameters
    ----------
    content
        What `medlm ct-finetune` writes into ``report.json``.
    pictures
        Of patients; none for a page without any.

    Returns
    -------
    str
        A page that needs no other file.
    """
    makers: dict[str, Callable[[Content], str]] = {
        "How good it is, patient by patient": _patients,
        "How good it is, slice by slice": _slices,
        "What is taken for what": _confusion,
        "What it sees, and where it looks": functools.partial(_pictures, pictures),
        "What was learned when": _curves,
        "Can its probabilities be trusted?": _calibration,
        "What it learned from": _data,
        "Model card": _card,
        "How it was run": _run,
    }
    lead = f"{_summary(content)}\n{pages.caution(CAUTION)}\n{_warnings(content)}"
    title = "A classifier of CT images, fine-tuned from ResNet-18"
    return pages.whole(title, lead + pages.sections(content, makers), CSS)


def outside_page(content: Content) -> str:
    """The report of a model on labelled images of elsewhere, as an HTML page.

    Parameters
    ----------
    content
        What `medlm ct-predict` writes beside its output where labels are known.

    Returns
    -------
    str
        A page that needs no other file.
    """
    makers: dict[str, Callable[[Content], str]] = {
        "How good it is, patient by patient": _outside,
        "How good it is, slice by slice": _slices,
        "What is taken for what": _confusion,
        "Can its probabilities be trusted?": _calibration,
        "What it was tested on": _data,
        "How it was run": _outside_run,
    }
    lead = f"{_summary(content)}\n{pages.caution(CAUTION)}\n{_warnings(content)}"
    title = "A classifier of CT images, tested on other images"
    return pages.whole(title, lead + pages.sections(content, makers), CSS)


def in_words(content: Content, part: str) -> str:
    """The main number of a part, by patient, beside what it must beat."""
    found = content["metrics"]
    patients = content["data"][part]["patients"]
    if f"{part}_auroc" in found:
        words = f"AUROC {_estimate(found[f'{part}_auroc'])}"
        if f"{part}_no_pixels_auroc" in found:
            blind = _estimate(found[f"{part}_no_pixels_auroc"])
            words += f"; without pixels {blind}"
    else:
        words = f"accuracy {_estimate(found[f'{part}_accuracy'])}"
        if f"{part}_majority_accuracy" in found:
            nothing = found[f"{part}_majority_accuracy"]["value"]
            words += f"; always the most frequent class {nothing:.3f}"
    return f"{words}; {patients:,} patients".replace("\u00a0", " ")


# Sections -----------------------------------------------------------------------------


def _last(content: Content) -> str:
    """Test where there is one, else validation."""
    return list(content["parts"])[-1]


def _summary(content: Content) -> str:
    part = _last(content)
    classes = content["model"]["classes"]
    words = pages.text(in_words(content, part))
    lead = f"<p>{pages.text(', '.join(classes))}; {part}: <strong>{words}</strong>.</p>"
    if len(classes) != 2:
        return lead
    return lead + (
        f"<p>Positive class: <strong>{pages.text(classes[1])}</strong> "
        f"({pages.text(content['model']['why_positive'])}). Sensitivity, specificity "
        "and AUROC are about it.</p>"
    )


def _warnings(content: Content) -> str:
    if not content["warnings"]:
        return ""
    lines = "".join(f"<li>{pages.text(line)}</li>" for line in content["warnings"])
    return f"<p><strong>Warnings</strong></p>\n<ul>{lines}</ul>\n"


def _patients(content: Content) -> str:
    how = (
        f"{_point(content)}The weights, the temperature and the operating point were "
        "chosen on the validation images, so numbers on them are somewhat too good."
    )
    if "test" in content["parts"]:
        how += " The test images were looked at once, at the end."
    blind = (
        "</p><p>A forest that sees no pixels knows only the size, format and header of "
        "each file. It should be at 0.5; where it is not, the classes were stored or "
        "scanned differently, and a network can learn that instead of disease. (How "
        "large a compressed picture is also depends a little on what it shows.)</p>"
    )
    return _metrics(content, "", "Metrics by patient") + how + blind + _roc(content)


def _outside(content: Content) -> str:
    how = (
        f"{_point(content)}Nothing was chosen on these images: weights, temperature "
        "and operating point are those of the model.</p>"
    )
    return _metrics(content, "", "Metrics by patient") + how + _roc(content)


def _point(content: Content) -> str:
    """How slices make a patient, and where he is called positive; open at its end."""
    model = content["model"]
    how = f"<p>A patient's score is made of those of his slices: {model['by']}. "
    if model["threshold"] is None:
        return how + "He is given the likeliest class. "
    return how + (
        f"At or above {model['threshold']:.3f} a patient is called "
        f"{pages.text(model['classes'][1])}; this operating point was fixed on the "
        "validation patients. Accuracy, F1 and the table of who is taken for what are "
        "at it too. "
    )


def _slices(content: Content) -> str:
    return _metrics(content, "slice_", "Metrics by slice") + (
        "<p>Slices of one patient look alike, so these intervals draw whole patients "
        "too. Doctors decide about patients: the numbers above are the ones to "
        "report.</p>"
    )


def _metrics(content: Content, prefix: str, name: str) -> str:
    parts, found = list(content["parts"]), content["metrics"]
    rows = []
    for metric, words in _rows(content, prefix).items():
        cells = [found.get(f"{part}_{prefix}{metric}") for part in parts]
        if any(cells):
            rows.append([words, *(_estimate(cell) if cell else "–" for cell in cells)])
    caption = (
        "In brackets: 95% intervals; whole patients were drawn again, 1,000 times. "
        "Without a bracket: too few patients, or a number that has no interval."
    )
    return pages.table(["", *parts], rows, caption, name)


def _rows(content: Content, prefix: str) -> dict[str, str]:
    """What a row of the table of metrics says, by the name of its metric."""
    classes, unit = content["model"]["classes"], "slices" if prefix else "patients"
    at = (
        ", the likeliest class named" if len(classes) > 2 else " at the operating point"
    )
    each = {f"auroc_{name}": f"AUROC, {name} against the others" for name in classes}
    return {
        "auroc": "AUROC",
        **each,
        "no_pixels_auroc": "AUROC of a forest that sees no pixels",
        "auprc": "AUPRC (average precision)",
        "prevalence": f"AUPRC of doing nothing: share of {classes[-1]} among {unit}",
        "accuracy": f"Accuracy{at}",
        "majority_accuracy": "Accuracy of naming the class of most training patients",
        "macro_f1": f"F1, classes alike{at}",
        "log_loss": "Log-loss, nats",
        "sensitivity": "Sensitivity at the operating point",
        "specificity": "Specificity at the operating point",
    }


def _roc(content: Content) -> str:
    parts = {n: p["roc"] for n, p in content["parts"].items() if "roc" in p}
    if not parts:
        return ""

    def draw(ax: Any) -> None:
        ax.plot([0, 1], [0, 1], color=pages.LINE, label="doing nothing")
        for (part, roc), style in zip(parts.items(), ("--", "-"), strict=False):
            ax.plot(roc["x"], roc["y"], style, label=part)
        ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        pages.finish(ax, "1 - specificity", "sensitivity")

    areas = ", ".join(
        f"{part} {content['metrics'][f'{part}_auroc']['value']:.3f}" for part in parts
    )
    figure = pages.figure(
        "roc",
        draw,
        f"ROC curves by patient. Area under them: {areas}.",
        "Sensitivity against 1 - specificity, by patient.",
    )
    return pages.figures(figure)


def _confusion(content: Content) -> str:
    part, names = _last(content), content["model"]["classes"]
    found = content["parts"][part]
    counts = np.asarray(found["confusion"])
    rows = [
        [
            name,
            *(f"{count:,}" for count in counts[number]),
            *(_share(found[what][number]) for what in ("precision", "recall", "f1")),
        ]
        for number, name in enumerate(names)
    ]
    called = [f"called {name}" for name in names]
    heads = ["truth", *called, "precision", "recall", "F1"]
    at = "named by their likeliest class"
    if content["model"]["threshold"] is not None:
        at = "at the operating point"
    caption = (
        f"{part.capitalize()} patients, {at}. A dash has no value: there is nothing to "
        "count."
    )
    return pages.table(heads, rows, caption, "Confusion matrix")


_GROUPS = {
    "seen": "What the network sees: slices after window and size, by their class.",
    "wrong": "The worst errors, a patient each, the surest first.",
    "right": "For comparison: patients who were called rightly, the surest first.",
}


def _pictures(pictures: Sequence[ct_pictures.Picture], content: Content) -> str:
    if not pictures:
        return "<p>Pictures were left out.</p>"
    part, parts = _last(content), []
    for group, words in _GROUPS.items():
        drawn = "".join(
            f'<figure><img src="{picture.source}" alt="{pages.text(picture.words)}"/>'
            f"<figcaption>{pages.text(picture.words)}</figcaption></figure>"
            for picture in pictures
            if picture.group == group
        )
        if drawn:
            parts.append(f'<p>{words}</p><div class="pictures">{drawn}</div>')
    return (
        f"<p><strong>These are images of {part} patients</strong>: keep this page "
        "where they may be kept, or run again with <code>--no-pictures</code>. "
        "Grad-CAM says where the last layer found what speaks for a class, in cells of "
        "32 pixels; it is no outline of a finding.</p>" + "".join(parts)
    )


def _curves(content: Content) -> str:
    history = content["history"]
    steps = np.arange(1, len(history["loss"]) + 1)
    stretches = np.array_split(steps, min(len(steps), 150))
    values = np.asarray(history["loss"])
    at = [stretch.mean() for stretch in stretches]
    loss = [values[stretch - 1].mean() for stretch in stretches]
    best = history["steps"][history["best"] - 1]
    said = ", ".join(f"{value:.3f}" for value in history["validation_loss"])

    def draw(ax: Any) -> None:
        ax.plot(at, loss, label="training")
        ax.plot(history["steps"], history["validation_loss"], "s--", label="validation")
        pages.finish(ax, "steps", "loss, nats a slice", best)

    return pages.figures(
        pages.figure(
            "loss",
            draw,
            f"Training loss goes from {loss[0]:.2f} to {loss[-1]:.2f} nats a slice. "
            f"Validation loss at each look: {said}.",
            f"Loss. The model is that after step {best}, where validation was best.",
        )
    )


def _calibration(content: Content) -> str:
    part, model = _last(content), content["model"]
    found = content["parts"][part]

    def draw(ax: Any) -> None:
        ax.plot([0, 1], [0, 1], color=pages.LINE, label="promise kept")
        for when, style, label in (
            ("before", "o:", "as learned"),
            ("after", "s-", "calibrated"),
        ):
            filled = [n for n, count in enumerate(found[when]["count"]) if count]
            x, y = ([found[when][what][n] for n in filled]
                    for what in ("confidence", "correct"))  # fmt: skip
            ax.plot(x, y, style, label=label)
        ax.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        pages.finish(ax, "probability of the named class", "share that was right")

    before, after = (found[when]["error"] for when in ("before", "after"))
    return (
        f"<p>Logits are divided by {model['temperature']:.3f}, the temperature that "
        "fits the validation slices best. "
        f"{pages.text(model['temperature_remark'])}</p>"
        + pages.figures(
            pages.figure(
                "calibration",
                draw,
                "Share that was right against the probability given, in ten bins. "
                f"Mean distance {before:.3f} as learned, {after:.3f} calibrated.",
                f"{part.capitalize()} slices. Below the line the model is too sure.",
            )
        )
    )


def _data(content: Content) -> str:
    names = content["model"]["classes"]
    rows = [
        [
            part,
            f"{data['images']:,}",
            f"{data['patients']:,}",
            *(f"{data['frequencies'][name]:,}" for name in names),
        ]
        for part, data in content["data"].items()
    ]
    heads = ["part", "images", "patients", *names]
    caption = "Patients of each class."
    if "images_sha256" in content:
        digest = content["images_sha256"][:12]
        caption += f" SHA-256 of all images, labels and parts: {digest}."
    table = pages.table(heads, rows, caption, "Data")
    if len(content["data"]) > 1:
        table += (
            "<p>No patient has images in two parts, as the table names them; this was "
            "checked. Whether the table is right, it cannot say.</p>"
        )
    if not content["skipped"]:
        return table
    lines = [[name, why] for name, why in content["skipped"]]
    caption = f"{len(lines)} files were left out."
    return table + pages.table(["file", "why"], lines, caption, "Skipped", words=True)


def _card(content: Content) -> str:
    model = content["model"]
    reads = f"{model['height']} x {model['width']} pixels, in grey"
    if model["window"]:
        width, level = model["window"]
        reads = (
            f"{model['height']} x {model['width']} pixels in HU, through the window of "
            f"width {width:.0f} and level {level:.0f} HU"
        )
    if model["spacing_mm"]:
        reads += f", {model['spacing_mm']:g} mm a pixel"
    if model["png_offset"] is not None:
        reads += f"; in PNG files they stand plus {model['png_offset']:g}"
    facts = {
        "What it does": "names one class for each image, with probabilities",
        "Classes": ", ".join(model["classes"]),
        "Starts from": f"{model['weights']} (SHA-256 {model['weights_sha256'][:12]})",
        "Parameters": f"{model['parameters']:,}, of which {model['trained']:,} learned",
        "Reads": reads,
        "Meant for": "research and teaching, on images like those it learned from",
        "Not meant for": "care of patients; other scanners, hospitals, organs",
        "May reveal": "parts of its training images: keep it where they may be kept",
        "Files": "safetensors, JSON and CSV; nothing in them is executed",
    }
    return pages.table([], facts.items(), "", "Model card", words=True)


def _run(content: Content) -> str:
    settings = ", ".join(f"{n} {v}" for n, v in content["settings"].items())
    versions = ", ".join(f"{n} {v}" for n, v in content["versions"].items())
    facts = {
        "Command": content["command"],
        "Settings": settings,
        "Machine": f"{content['hardware']}; processes: {content['processes']}",
        "Time": f"{content['notebook_seconds']:,.0f} s, since the start or --resume",
        "Versions": versions,
        "Date": content["date"],
    }
    return (
        pages.table([], facts.items(), "", "The run", words=True)
        + "<p>To use it: <code>medlm ct-predict --model model.safetensors --images "
        "FOLDER --output answers.csv</code>, in the folder of this page.</p>"
    )


def _outside_run(content: Content) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in content["versions"].items())
    facts = {
        "Model": content["model"]["command"],
        "Machine": content["hardware"],
        "Versions": versions,
        "Date": content["date"],
    }
    return pages.table([], facts.items(), "", "The run", words=True)


# Words --------------------------------------------------------------------------------


def _estimate(found: dict[str, Any]) -> str:
    """Such as ``0.873 (0.842 to 0.901)``; the bracket is kept on one line."""
    words = f"{found['value']:.3f}"
    if "low" in found:
        words += f" ({found['low']:.3f}\u00a0to\u00a0{found['high']:.3f})"
    return words


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
