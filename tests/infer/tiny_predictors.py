"""Tiny random predictors of ECGs with facts as training stores them, and records made by rule."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax.data.ecg.leads import LEADS, derive
from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.signal import Preprocessing
from medjax.models.predictor import PredictorConfig, Target, abstract_variables
from medjax.models.vit import VitConfig
from medjax.parallel.sharding import is_box
from medjax.statistics.agreement import GapCorrection
from medjax.statistics.detector import fit_detector
from medjax.store.encoders import save_encoder

PREPROCESSING = Preprocessing(sampling_rate_hz=100.0, samples=400)
LVSD = Target("lvsd", "binary", classes=("normal", "reduced"))
AGE = Target("age", "regression", mean=60.0, sd=12.0, unit="years")
GRADE = Target("grade", "ordinal", classes=("none", "mild", "severe"))
GAP = GapCorrection(0.4, 35.0, 50, "validation")
AGE_SD = 9.5


def config_of(targets: Sequence[Target] = (LVSD, AGE, GRADE), **choices: Any) -> PredictorConfig:
    pooling = choices.pop("pooling", "mean")
    return PredictorConfig(VitConfig((50,), 16, 3, 2, 32, lead_count=12, **choices), tuple(targets), pooling)


def rule():
    """A detector's rule fitted on made validation data."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 200)
    logits = 0.5 * rng.normal(size=200) + 0.6 * labels - 0.4
    return fit_detector(labels, logits, np.arange(200), threshold="sensitivity", at=0.9, seed=0)


def facts_of(preprocessing: Preprocessing = PREPROCESSING) -> dict[str, Any]:
    return {
        "preprocessing": preprocessing.to_json(),
        "rules": {"lvsd": rule().to_json(), "age": GAP.to_json()},
        "errors": {"age": {"sd": AGE_SD}},
        "validation": {"lvsd": {"value": 0.871, "low": 0.82, "high": 0.914, "records": 1200, "positive": 130}},
        "training": {"digest": "0" * 64},
    }


def params_of(config: PredictorConfig, seed: int = 0) -> Any:
    """Random parameters under which records differ: norms about 1, all else about 0."""
    rng = np.random.default_rng(seed)

    def drawn(path: Any, box: Any) -> np.ndarray:
        values = 0.2 * rng.normal(size=box.value.shape)
        return (values + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, abstract_variables(config)["params"], is_leaf=is_box)


def write_predictor(run: Path, config: PredictorConfig, facts: dict[str, Any], seed: int = 0) -> Path:
    save_encoder(run / "model", "ecg_predictor", config.to_dict(), params_of(config, seed), facts)
    return run


def made_record(
    number: int,
    *,
    seconds: float = 4.0,
    rate: float = 200.0,
    leads: Sequence[str] = LEADS,
    age_years: float | None = None,
) -> EcgRecord:
    """Beats of a shape and rate of the record's own, on a wandering line; leads that are not named are missing."""
    rng = np.random.default_rng(number)
    time = np.arange(round(seconds * rate)) / rate
    beats = np.exp(-0.5 * ((time[:, None] - np.arange(0.3, seconds, 0.6 + 0.4 * rng.random())) / 0.02) ** 2).sum(1)
    signal = rng.normal(size=(12, 1)) * beats + 0.1 * rng.normal(size=(12, 1)) * np.sin(2 * np.pi * 5 * time)
    signal[2:6] = np.nan
    signal = derive(signal).astype(np.float32)
    signal[[lead not in leads for lead in LEADS]] = np.nan
    status = tuple("measured" if lead in leads else "missing" for lead in LEADS)
    return EcgRecord(f"r{number}", signal, rate, status, age_years=age_years, source=f"made/{number}")
