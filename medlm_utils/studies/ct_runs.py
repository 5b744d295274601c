"""What the studies of chapter 5 share: patients, trainings, scores by patient.

A score of a patient is the mean over the slices, as the exact log likelihood ratio of
a patient is the sum over them. Higher is more abnormal.

Source: chapter 5.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from medlm_utils import ct, metrics, phantom, resnet, runtime
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import core

TEST_SEED = 51  # of the patients whom every study of this chapter asks
SHARES = (0.8, 0.2)  # of labelled patients: to learn from, to choose weights
FOLDS = 5
LEAST_SPREAD = 0.3  # of a feature, as a share of the root mean square of all
PENALTIES = (
    1.0,
    3.0,
    10.0,
    30.0,
    100.0,
)  # of a head on frozen features, to choose from
DRAWS = 1000  # of patients, for intervals


def precision_of(study: core.Study) -> str:
    """The fast precision of this machine; in a tiny run the profile's own."""
    if study.tiny:
        return study.profile.precision
    return runtime.fast_precision(study.profile)


# Patients -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Known:
    """Test patients, one row each, and what readers who know the truth say of them.

    Parameters
    ----------
    patient
        (patients,) names, sorted.
    label
        (patients,) 1 if abnormal.
    readers
        Name to (patients,) scores, from the best reader to the simplest.
    """

    patient: np.ndarray
    label: np.ndarray
    readers: dict[str, np.ndarray]


def known(cohort: phantom.Cohort) -> Known:
    """Labels by patient, and the scores of the readers to compare a network with."""
    scores = {
        "oracle": (cohort.log_ratio, "mean"),
        "given_masks": (phantom.reader_given_masks(cohort), "mean"),
        "largest_opacity": (phantom.largest_opacity(cohort), "max"),
        "mean_lung_hu": (phantom.mean_lung_hu(cohort), "mean"),
    }
    patient, label = ct.by_patient(cohort.patient, cohort.label, "max")
    readers = {
        name: ct.by_patient(cohort.patient, score, how)[1]
        for name, (score, how) in scores.items()
    }
    return Known(patient, label.astype(int), readers)


@functools.lru_cache(maxsize=4)
def patients(
    count: int, seed: int, hospital: str = "A", size: int = 128
) -> phantom.Cohort:
    """A cohort of three slices a patient; drawn once for all parts of a study."""
    return phantom.draw(count, seed, hospital, size=size)


def first(cohort: phantom.Cohort, count: int) -> phantom.Cohort:
    """The slices of the first so many patients, so that more patients include fewer.

    Raises
    ------
    MedlmError
        If there are not so many.
    """
    _, place = np.unique(cohort.patient, return_index=True)
    if not 1 <= count <= len(place):
        raise MedlmError(
            f"{count} of {len(place)} patients are wanted; expected 1 to all of them."
        )
    names = cohort.patient[np.sort(place)[:count]]
    return cohort[np.isin(cohort.patient, names)]


# Trainings ----------------------------------------------------------------------------


def epochs_for(slices: int, passes: int, least: int) -> int:
    """So many that each slice is seen `least` times, and `passes` are seen in all."""
    return max(least, math.ceil(passes / slices))


def tune(
    study: core.Study,
    cohort: phantom.Cohort,
    weights: Any,
    settings: resnet.FineTuning,
) -> tuple[resnet.ResNet18, resnet.Tuned]:
    """Train a network on labelled patients, a fifth of whom choose the weights.

    One with weights begins with the head of `fit_frozen`, which does not see them, and
    keeps the means and spreads of its batch normalisations.

    Parameters
    ----------
    study
        Whose part is being made: it has a checkpoint.
    cohort
        All labelled patients.
    weights
        As of `resnet.build`; None from scratch.
    settings
        Their seed is that of the split and of the new weights, too.
    """
    train, val = parts(cohort, settings.seed)
    if weights is None:
        model = resnet.build(2, seed=settings.seed).to(study.profile.device)
    else:
        model, _ = fit_frozen(study, train, weights, settings.seed)
        keep_norms(model)
    tuned = resnet.finetune(
        model,
        train.images,
        train.label,
        val.images,
        val.label,
        settings,
        checkpoint=study.file(".checkpoint"),
        resume=True,
    )
    return model, tuned


def parts(cohort: phantom.Cohort, seed: int) -> tuple[phantom.Cohort, phantom.Cohort]:
    """Patients to learn from, and patients to choose by."""
    train, val = ct.split(cohort.patient, SHARES, seed, cohort.label)
    return cohort[train], cohort[val]


class StillNorm(nn.BatchNorm2d):
    """A batch normalisation that uses and keeps its running means, in training too."""

    def train(self, mode: bool = True) -> StillNorm:
        """Evaluation mode, whatever is asked for."""
        del mode
        return super().train(False)


def keep_norms(model: nn.Module) -> None:
    """Make every batch normalisation a `StillNorm`; gains and biases still learn.

    The head is fitted to features in evaluation mode. With the statistics of a batch of
    few patients the same weights give other features, and the head is lost.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = StillNorm
            module.eval()


def fit_frozen(
    study: core.Study, cohort: phantom.Cohort, weights: Any, seed: int
) -> tuple[resnet.ResNet18, float]:
    """A head on features as they are; its penalty is chosen by cross-validation.

    Parameters
    ----------
    study
        Whose machine counts.
    cohort
        The labelled patients; each is in one fold.
    weights
        As of `resnet.build`.
    seed
        Of the folds.

    Returns
    -------
    tuple
        The network and the penalty, as of `resnet.fit_head`.
    """
    model = resnet.build(2, weights, seed=seed).to(study.profile.device)
    seen = resnet.features(model, cohort.images, precision=precision_of(study))
    penalty = best_penalty(seen, cohort.label, cohort.patient, seed)
    weight, bias = head(seen, cohort.label, penalty)
    both = np.stack([-weight, weight]) / 2
    with torch.no_grad():
        model.fc.weight.copy_(torch.from_numpy(both))
        model.fc.bias.copy_(torch.tensor([-bias / 2, bias / 2]))
    return model, penalty


def best_penalty(
    seen: np.ndarray, label: np.ndarray, patient: np.ndarray, seed: int
) -> float:
    """The penalty with the lowest log-loss on patients who are left out in turn.

    Parameters
    ----------
    seen
        (slices, 512) features.
    label, patient
        (slices,)
    seed
        Of the folds.
    """
    shares = [1 / FOLDS] * FOLDS
    folds = ct.split(patient, shares, seed, label)
    losses = np.zeros(len(PENALTIES))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(label)), fold)
        for number, penalty in enumerate(PENALTIES):
            weight, bias = head(seen[rest], label[rest], penalty)
            margin = seen[fold] @ weight + bias
            both = np.stack([-margin, margin], axis=1) / 2
            nats = metrics.surprisal(label[fold], metrics.softmax(both))
            losses[number] += nats.sum()
    return PENALTIES[int(losses.argmin())]


def head(
    seen: np.ndarray, label: np.ndarray, penalty: float
) -> tuple[np.ndarray, float]:
    """Weights (512,) and bias of a logistic regression on features of any scale."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = seen.mean(axis=0), seen.std(axis=0)
    # A channel that hardly ever answers would get a weight that any change blows up.
    spread = np.maximum(spread, LEAST_SPREAD * np.sqrt(np.square(spread).mean()))
    found = LogisticRegression(C=1 / (100 * penalty), max_iter=2000)
    found.fit((seen - mean) / spread, label)
    weight = found.coef_[0] / spread
    return weight, float(found.intercept_[0] - weight @ mean)


# Scores -------------------------------------------------------------------------------


def scores(
    study: core.Study, model: resnet.ResNet18, cohort: phantom.Cohort
) -> np.ndarray:
    """(patients,) the mean logit of "abnormal" over the slices of each, sorted by name.

    The logit is that of the second class less that of the first.
    """
    logits = resnet.predict(model, cohort.images, precision=precision_of(study))
    return ct.by_patient(cohort.patient, logits[:, 1] - logits[:, 0], "mean")[1]


def gain(label: np.ndarray, score: np.ndarray, oracle: np.ndarray) -> float:
    """(AUROC - 1/2) / (ceiling - 1/2), both of the same patients."""
    ceiling = metrics.auroc(label, oracle)
    return (metrics.auroc(label, score) - 0.5) / (ceiling - 0.5)


def auroc_of(label: np.ndarray, *runs: np.ndarray) -> metrics.Estimate:
    """The mean AUROC of one training or several, with its interval by patient.

    Parameters
    ----------
    label
        (patients,)
    runs
        (patients,) scores of each training.
    """

    def of(label: np.ndarray, *runs: np.ndarray) -> float:
        return float(np.mean([metrics.auroc(label, score) for score in runs]))

    who = np.arange(len(label))
    return metrics.interval_by_patient(of, who, label, *runs, draws=DRAWS)


def gain_of(
    label: np.ndarray, oracle: np.ndarray, *runs: np.ndarray
) -> metrics.Estimate:
    """The mean `gain` of one training or several, with its interval by patient.

    Parameters
    ----------
    label, oracle
        (patients,)
    runs
        (patients,) scores of each training.
    """

    def of(label: np.ndarray, oracle: np.ndarray, *runs: np.ndarray) -> float:
        return float(np.mean([gain(label, score, oracle) for score in runs]))

    who = np.arange(len(label))
    return metrics.interval_by_patient(of, who, label, oracle, *runs, draws=DRAWS)


def lead_of(
    label: np.ndarray, score: np.ndarray, other: np.ndarray
) -> metrics.Estimate:
    """AUROC less that of another score of the same patients, with its interval."""

    def of(label: np.ndarray, score: np.ndarray, other: np.ndarray) -> float:
        return metrics.auroc(label, score) - metrics.auroc(label, other)

    who = np.arange(len(label))
    return metrics.interval_by_patient(of, who, label, score, other, draws=DRAWS)
