"""Intervals, tests and agreement, pure arithmetic: no torch, no files, no clock."""
from redlite.stats.agreement import UNDEFINED, agreement_matrix, alpha, kappa, percent_agreement
from redlite.stats.correction import (
    Corrected,
    PredictionPowered,
    allocate,
    bands,
    corrected,
    label_half_width,
    labels_needed,
    prediction_powered,
)
from redlite.stats.paired import (
    Paired,
    bootstrap_difference,
    detectable_difference,
    holm,
    mcnemar,
    paired,
    questions_needed,
    sign_flip,
)
from redlite.stats.proportions import (
    asr_at_k,
    bounds,
    clustered,
    effective_size,
    mean_stderr,
    score_interval,
    wilson,
)

__all__ = [
    "UNDEFINED", "Corrected", "Paired", "PredictionPowered", "agreement_matrix", "allocate", "alpha",
    "asr_at_k", "bands",
    "bootstrap_difference", "bounds", "clustered", "corrected", "detectable_difference", "effective_size",
    "holm", "kappa", "label_half_width", "labels_needed", "mcnemar", "mean_stderr", "paired",
    "percent_agreement", "prediction_powered", "questions_needed", "score_interval", "sign_flip", "wilson"]
