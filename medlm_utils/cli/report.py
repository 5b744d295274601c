"""The report of a fine-tuning as one page: figures inside, no script, no network.

Knows nothing about models: what stands in ``report.json`` comes in, HTML comes out.
Colours follow the reader's light or dark mode, the figures' too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medlm_utils.cli import pages

Content = dict[str, Any]

MOST_CLASSES = 25  # that a table on a page can show
_POINTS = 150  # of a loss curve: more cannot be seen

CAUTION = (
    "Not for clinical use. A model that does well here has been tested on notes like "
    "those that it learned from: the same hospitals, authors and years. Elsewhere, or "
    "next year, it may fail without a sign. It does not know what it has not read, and "
    "its probabilities hold only where diseases are as frequent as here. Nobody's care "
    "may depend on it without a study in the place where it is to be used."
)

_METRICS = {
    "accuracy": "Accuracy",
    "majority_accuracy": "Accuracy of the most frequent class",
    "word_counts_accuracy": "Accuracy of counting words",
    "gain_over_word_counts": "Gain in accuracy over counting words",
    "weighted_f1": "F1, classes by frequency",
    "macro_f1": "F1, classes alike",
    "log_loss": "Log-loss, nats a note",
}
_METRICS_OF_SEVERAL = {
    "macro_average_precision": "Average precision, mean of the labels",
    "word_counts_macro_average_precision": "The same, of counting words",
    "gain_over_word_counts": "Gain in it over counting words",
    "macro_prevalence": "The same, of guessing: the mean prevalence",
    "macro_auroc": "AUROC, mean of the labels",
    "word_counts_macro_auroc": "The same, of counting words",
    "macro_f1": "F1, mean of the labels",
    "word_counts_macro_f1": "The same, of counting words",
    "micro_f1": "F1, all answers together",
    "word_counts_micro_f1": "The same, of counting words",
    "all_labels_right": "Share of notes with every label right",
    "log_loss": "Log-loss, nats a label",
}


def page(content: Content) -> str:
    """The report as an HTML page.

    Parameters
    ----------
    content
        What `medlm finetune` writes into ``report.json``.

    Returns
    -------
    str
        A page that needs no other file.
    """
    makers: dict[str, Callable[[Content], str]] = {
        "How good it is": _metrics,
        "What was learned when": _curves,
        "What is taken for what": _confusion,
        "Can its probabilities be trusted?": _calibration,
        "Each class": _classes,
        "What it learned from": _data,
        "Model card": _card,
        "How it was run": _run,
    }
    if _has_several_labels(content):
        del makers["What is taken for what"]
        makers["Each class"] = _labels
    title = f"A classifier of notes, fine-tuned from {content['model']['base']}"
    lead = f"{_summary(content)}\n{pages.caution(CAUTION)}\n{_warnings(content)}"
    return pages.whole(title, lead + pages.sections(content, makers))


def in_words(content: Content, part: str) -> str:
    """The accuracy on a part of the data, beside what it must beat."""
    found = content["metrics"]
    if _has_several_labels(content):
        reached = _estimate(found[f"{part}_macro_average_precision"])
        reached = reached.replace("\u00a0", " ")
        counting = found[f"{part}_word_counts_macro_average_precision"]["value"]
        nothing = found[f"{part}_macro_prevalence"]["value"]
        return (
            f"average precision, mean of the labels, {reached}; counting words "
            f"{counting:.3f}, guessing {nothing:.3f}"
        )
    counting = found[f"{part}_word_counts_accuracy"]["value"]
    nothing = found[f"{part}_majority_accuracy"]["value"]
    accuracy = _estimate(found[f"{part}_accuracy"]).replace("\u00a0", " ")
    return (
        f"accuracy {accuracy}; counting words {counting:.3f}, always the most frequent "
        f"class {nothing:.3f}"
    )


# Sections -----------------------------------------------------------------------------


def _summary(content: Content) -> str:
    part = _last_part(content)
    data = content["data"][part]
    counted = f"{data['notes']:,} {part} notes"
    if data["patients"] is not None:
        counted += f" of {data['patients']:,} patients"
    return (
        f"<p>{len(_names(content)):,} classes, {counted}: "
        f"<strong>{in_words(content, part)}</strong>.</p>"
    )


def _warnings(content: Content) -> str:
    if not content["warnings"]:
        return ""
    lines = "".join(f"<li>{pages.text(line)}</li>" for line in content["warnings"])
    return f"<p><strong>Warnings</strong></p>\n<ul>{lines}</ul>\n"


def _metrics(content: Content) -> str:
    parts = list(content["parts"])
    rows = []
    several = _has_several_labels(content)
    for name, words in (_METRICS_OF_SEVERAL if several else _METRICS).items():
        found = [content["metrics"][f"{part}_{name}"] for part in parts]
        rows.append([words, *map(_estimate, found)])
    for when, words in {"before": "as learned", "after": "calibrated"}.items():
        errors = [content["parts"][part][when]["error"] for part in parts]
        rows.append([f"Calibration error, {words}", *(f"{e:.3f}" for e in errors)])
    drawn = f"were drawn again, {content['draws']:,} times."
    caption = (
        f"In brackets: 95% intervals; whole patients {drawn}"
        if content["interval_unit"] == "patient"
        else f"In brackets: 95% intervals; notes {drawn} The "
        "files name no patients; several notes of one make the intervals too narrow."
    )
    once = " The test notes were used once, at the end." if "test" in parts else ""
    text = (
        "<p>Counting words: a logistic regression on how often one, two and three "
        "words in a row occur (TF-IDF). A model that does no better is not worth its "
        "cost. The epoch and the temperature were chosen on the validation notes, so "
        f"numbers on them are somewhat too good.{once}{_how_named(content)}</p>"
    )
    return pages.table(["", *parts], rows, caption, "Metrics") + text


def _how_named(content: Content) -> str:
    """What turns probabilities into labels, where that is not the largest one."""
    if not _has_several_labels(content):
        return ""
    return (
        " A note has a label if its probability reaches the label's threshold, which "
        "has the best F1 on the validation notes; so it is for counting words. Means "
        "are over the labels that occur; AUROC and average precision need no threshold."
    )


def _curves(content: Content) -> str:
    history = content["history"]
    epochs = history["epochs"]
    ends = np.arange(1, len(epochs) + 1)
    best = history["best_epoch"]
    losses = [epoch["loss"] for epoch in epochs]
    at, loss = _smoothed(history["loss"], history["steps_per_epoch"])

    def draw_losses(ax: Any) -> None:
        ax.plot(at, loss, label="training")
        ax.plot(ends, losses, "s--", label="validation")
        pages.finish(ax, "epochs", f"loss, {unit}", best)

    def draw_shares(ax: Any) -> None:
        lines: list[tuple[str, str, str]] = [
            ("accuracy", "accuracy", "o-"),
            ("weighted_f1", "weighted F1", "s--"),
        ]
        for name, label, style in lines:
            ax.plot(ends, [epoch[name] for epoch in epochs], style, label=label)
        pages.finish(ax, "epochs", "share, validation", best)

    unit = _loss_unit(content)
    in_words = ", ".join(f"{value:.3f}" for value in losses)
    shares = ", ".join(f"{epoch['accuracy']:.3f}" for epoch in epochs)
    return f"<p>{pages.text(history['remark'])}</p>" + pages.figures(
        pages.figure(
            "loss",
            draw_losses,
            f"Training loss goes from {loss[0]:.2f} to {loss[-1]:.2f} {unit}. "
            f"Validation loss after each epoch: {in_words}.",
            f"Loss. The model is that of epoch {best}, where validation was best.",
        ),
        pages.figure(
            "shares",
            draw_shares,
            f"Validation accuracy after each epoch: {shares}.",
            "Share of right answers, and F1 weighted by frequency, on the validation "
            f"notes: {_answered(content)}.",
        ),
    )


def _loss_unit(content: Content) -> str:
    unit = "nats a label" if _has_several_labels(content) else "nats a note"
    return unit + (", weighted by class" if _is_weighted(content) else "")


def _answered(content: Content) -> str:
    if _has_several_labels(content):
        return "a label is named where its probability is above 0.5"
    return "the most probable class is named"


def _confusion(content: Content) -> str:
    part, names = _last_part(content), _names(content)
    counts = np.asarray(content["parts"][part]["confusion"])
    shown, remark = _shown_classes(content)
    head = "".join(f'<th scope="col">{pages.text(names[c])}</th>' for c in shown)
    rows = "".join(
        f'<tr><th scope="row">{pages.text(names[row])}</th>'
        + "".join(_shaded(counts[row, c], counts[row].sum()) for c in shown)
        + "</tr>"
        for row in shown
    )
    table = (
        f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    caption = (
        f"{part.capitalize()} notes: the truth in rows, what was predicted in columns. "
        f"The stronger the colour, the larger the share of the row.{remark}"
    )
    return pages.captioned(table, caption, "Confusion matrix")


def _shaded(count: int, total: int) -> str:
    share = 45 * count / max(total, 1)
    return f'<td style="--share: {share:.0f}%">{count:,}</td>'


def _calibration(content: Content) -> str:
    part = _last_part(content)
    found = content["parts"][part]
    of = "a label" if _has_several_labels(content) else "the named class"

    def draw(ax: Any) -> None:
        ax.plot([0, 1], [0, 1], color=pages.LINE, label="promise kept")
        for when, style, label in (
            ("before", "o:", "as learned"),
            ("after", "s-", "calibrated"),
        ):
            ax.plot(*_points(found[when]), style, label=label)
        ax.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        pages.finish(ax, f"probability of {of}", "share that was right")

    temperature = content["model"]["temperature"]
    remark = content["model"]["temperature_remark"]
    before, after = (found[when]["error"] for when in ("before", "after"))
    return (
        f"<p>Logits are divided by {temperature:.3f}, the temperature that fits the "
        f"validation notes best. {pages.text(remark)}{_too_high(content)}</p>"
        + pages.figures(
            pages.figure(
                "calibration",
                draw,
                "Share that was right against the probability given, in ten bins. "
                f"Mean distance {before:.3f} as learned, {after:.3f} calibrated.",
                f"{part.capitalize()} notes. On the diagonal, of 100 answers with a "
                "probability of 0.8, 80 are right. Below it the model is too sure.",
            ),
            _bins_table(found["after"]),
        )
    )


def _too_high(content: Content) -> str:
    """What class weights do to probabilities."""
    if not _is_weighted(content):
        return ""
    if _has_several_labels(content):
        return (
            " <strong>The labels were weighted</strong>: each probability is what it "
            "would be if half of all notes had the label; for a rare one it is far too "
            "high, and the temperature cannot mend that."
        )
    return (
        " <strong>The classes were weighted</strong>: each probability is what it "
        "would be if all classes were equally frequent; for a rare one it is too high, "
        "and the temperature cannot mend that."
    )


def _bins_table(found: dict[str, Any]) -> str:
    rows = [
        [f"{number / 10:.1f} to {(number + 1) / 10:.1f}", f"{count:,}", f"{c:.2f}"]
        for number, (count, c) in enumerate(
            zip(found["count"], found["correct"], strict=True)
        )
        if count
    ]
    heads = ["probability", "notes", "right"]
    caption = "Calibrated: how many notes lie behind each point."
    return pages.table(heads, rows, caption, "Calibration")


def _classes(content: Content) -> str:
    part = _last_part(content)
    found, names = content["parts"][part], _names(content)
    frequency = content["data"][part]["frequencies"]
    shown, remark = _shown_classes(content)
    rows = [
        [
            names[c],
            f"{content['data']['training']['frequencies'][names[c]]:,}",
            f"{frequency[names[c]]:,}",
            *(_number(found[name][c]) for name in ("precision", "recall", "f1")),
        ]
        for c in shown
    ]
    heads = ["class", "training notes", f"{part} notes", "precision", "recall", "F1"]
    caption = (
        f"{part.capitalize()} notes. A dash has no value: nothing to count.{remark}"
    )
    return pages.table(heads, rows, caption, "Each class")


def _labels(content: Content) -> str:
    """The table of each label, where a note may have several."""
    part, names = _last_part(content), _names(content)
    found = content["parts"][part]["labels"]
    training = content["data"]["training"]
    shown, remark = _shown_classes(content)
    rows = [
        [
            names[n],
            f"{training['frequencies'][names[n]]:,}",
            f"{found[n]['notes']:,} ({found[n]['prevalence']:.3f})",
            *(
                _estimate(found[n][name]) if found[n][name] else "–"
                for name in (
                    *("auroc", "average_precision"),
                    *("word_counts_average_precision", "f1"),
                )
            ),
            f"{content['model']['thresholds'][n]:.3f}",
        ]
        for n in shown
    ]
    heads = [
        *("label", "training notes", f"{part} notes (share)", "AUROC"),
        *("average precision", "of counting words", "F1", "threshold"),
    ]
    caption = (
        f"{part.capitalize()} notes. A dash has no value: nothing to count. Guessing "
        "has an AUROC of 0.5 and an average precision of the share. F1: at the "
        f"threshold, which was chosen on the validation notes.{remark}"
    )
    return pages.table(heads, rows, caption, "Each label")


def _data(content: Content) -> str:
    rows = []
    for part, data in content["data"].items():
        patients = "not named" if data["patients"] is None else f"{data['patients']:,}"
        cut = f"{data['cut']:,}"
        fingerprint = data["sha256"][:12]
        rows.append(
            [part, data["file"], f"{data['notes']:,}", patients, cut, fingerprint]
        )
    caption = (
        f"Cut: notes longer than {content['model']['longest']} tokens, of which the "
        "model read only the beginning. SHA-256: its first twelve digits."
    )
    heads = ["part", "file", "notes", "patients", "cut", "SHA-256"]
    text = (
        "<p>No patient has notes in two parts; this was checked.</p>"
        if content["interval_unit"] == "patient"
        else "<p>The files name no patients: whether one has notes in two parts could "
        "not be checked. If so, the numbers above are too good.</p>"
    )
    return pages.table(heads, rows, caption, "Data") + text + _split(content)


def _split(content: Content) -> str:
    """How one file became three parts."""
    split = content["split"]
    if split is None:
        return ""
    return (
        f"<p>One file, {pages.text(split['file'])}, was split by {split['by']}: 60, 20 "
        "and 20%, and the same of each label as far as it goes "
        f"({pages.text(split['how'])}). split.csv says which note is in which part; "
        "<code>--split split.csv</code> takes the same parts again.</p>"
    )


def _card(content: Content) -> str:
    model = content["model"]
    names = ", ".join(_names(content)[:MOST_CLASSES])
    if len(_names(content)) > MOST_CLASSES:
        names += f", ... ({len(_names(content)):,} in all)"
    facts = {
        "What it does": (
            "names all labels of a note that reach their threshold, with probabilities"
            if _has_several_labels(content)
            else "names one class for each note, with probabilities"
        ),
        "Classes": names,
        "Starts from": f"{model['base']} (SHA-256 {model['base_sha256'][:12]})",
        "Parameters": f"{model['parameters']:,}, of which {model['trained']:,} learned",
        "Reads": f"the first {model['longest']} tokens of a note",
        "A note becomes": model["pooling"],
        "Temperature": f"{model['temperature']:.3f}",
        "Meant for": "research and teaching, on notes like those it learned from",
        "Not meant for": "care of patients; other languages, hospitals, kinds of text",
        "May reveal": "parts of its training notes: keep it where they may be kept",
        "Files": "safetensors and JSON; nothing in them is executed",
    }
    return pages.table([], facts.items(), "", "Model card", words=True)


def _run(content: Content) -> str:
    seconds = content["notebook_seconds"]
    settings = ", ".join(f"{n} {v}" for n, v in content["settings"].items())
    versions = ", ".join(f"{n} {v}" for n, v in content["versions"].items())
    facts = {
        "Command": content["command"],
        "Settings": settings,
        "Machine": f"{content['hardware']}; processes: {content['processes']}",
        "Time": f"{seconds:,.0f} s, since the start or the last --resume",
        "Versions": versions,
        "Date": content["date"],
    }
    return (
        pages.table([], facts.items(), "", "The run", words=True)
        + "<p>To use it: <code>medlm predict --model model --input notes.csv --output "
        "out.csv</code>, in the folder of this page.</p>"
    )


# Words, tables, figures ---------------------------------------------------------------


def _names(content: Content) -> list[str]:
    return content["model"]["classes"]


def _has_several_labels(content: Content) -> bool:
    return content["model"]["thresholds"] is not None


def _is_weighted(content: Content) -> bool:
    return "class_weights" in content["settings"]


def _last_part(content: Content) -> str:
    """Test where there is one, else validation."""
    return list(content["parts"])[-1]


def _shown_classes(content: Content) -> tuple[list[int], str]:
    """The classes of the tables, and a remark if others are left out."""
    names = _names(content)
    if len(names) <= MOST_CLASSES:
        return list(range(len(names))), ""
    frequency = content["data"]["training"]["frequencies"]
    order = sorted(range(len(names)), key=lambda c: -frequency[names[c]])
    remark = f" Only the {MOST_CLASSES} most frequent of {len(names):,} classes."
    return sorted(order[:MOST_CLASSES]), f"{remark} All are in report.json."


def _estimate(found: dict[str, Any]) -> str:
    """Such as ``0.873 (0.842 to 0.901)``; the bracket is kept on one line."""
    words = f"{found['value']:.3f}"
    if "low" in found:
        words += f" ({found['low']:.3f}\u00a0to\u00a0{found['high']:.3f})"
    return words


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _smoothed(loss: Sequence[float], per_epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Where, in epochs, and how large the loss was: means over stretches of steps."""
    steps = np.arange(1, len(loss) + 1)
    stretches = np.array_split(steps, min(len(loss), _POINTS))
    values = np.asarray(loss)
    means = [values[stretch - 1].mean() for stretch in stretches]
    return np.array([s.mean() for s in stretches]) / per_epoch, np.array(means)


def _points(found: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Confidence and share right of the bins that are not empty."""
    filled = [place for place, count in enumerate(found["count"]) if count]
    return (
        [found["confidence"][place] for place in filled],
        [found["correct"][place] for place in filled],
    )
