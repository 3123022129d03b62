"""Tiny random predictors of ECGs, and data whose labels follow what one says, with noise: figures are not flat."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tiny_predictors import config_of, facts_of, made_record

from medjax.data.ecg.builder import write_dataset
from medjax.data.ecg.dataset import EcgDataset
from medjax.data.ecg.division import SplitRule
from medjax.data.ecg.seen import Seen
from medjax.infer.ecg import EcgModel
from medjax.models.predictor import abstract_variables
from medjax.store.encoders import save_encoder

RULE = SplitRule(seed=3, validation=0.2, test=0.5)
RECORDS = 150


def write_model(run: Path, facts: dict[str, Any], *, seed: int = 0) -> Path:
    """RUN/model with random parameters of their own for each seed."""
    rng = np.random.default_rng(seed)

    def drawn(path, leaf):
        # scales of norms lie around one; drawn without JAX, which would compile the initialisation
        middle = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return (middle + 0.2 * rng.normal(size=leaf.shape)).astype(np.float32)

    shapes = nn.unbox(abstract_variables(config_of()))["params"]
    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    save_encoder(run / "model", "ecg_predictor", config_of().to_dict(), params, facts)
    return run


def write_data(folder: Path, model: EcgModel, *, records: int = RECORDS, first: int = 0) -> EcgDataset:
    """Records of patients with two records each, from two hospitals; every tenth has no label, and no patient."""
    made = [made_record(number, age_years=float(20 + number % 70)) for number in range(first, first + records)]
    said = [prediction.outputs for prediction in model.predict(made)]
    rng = np.random.default_rng(first)
    logits = np.array([outputs["lvsd"].raw[0] for outputs in said])
    noisy = logits + 0.7 * logits.std() * rng.normal(size=records)
    ages = np.array([outputs["age"].value for outputs in said])
    grades = np.array([outputs["grade"].value for outputs in said])
    rows = []
    for i, record in enumerate(made):
        number = first + i
        labels = {
            "lvsd": float(noisy[i] > np.quantile(noisy, 0.6)),
            "age": float(np.clip(ages[i] + 8 * rng.normal(), 0, 110)),
            "grade": float(np.clip(grades[i] + rng.integers(-1, 2), 0, 2)),
        }
        if i % 10 == 9:
            labels.pop("lvsd")
        rows.append(
            replace(
                record,
                age_years=labels["age"],
                sex=("female", "male", None)[number % 3],
                patient=None if i % 10 == 9 else f"p{number // 2}",
                device=f"cart {number % 2}",
                source=f"/records/{'east' if number % 4 else 'west'}/{number:04}.hea",
                labels=labels,
            )
        )
    return write_dataset(folder, rows)


def write_run(run: Path, dataset: EcgDataset, *, seed: int = 0, rule: SplitRule | None = RULE, rules=None) -> Path:
    """The folder of a training run on these data, with seen.json."""
    facts = facts_of() | {"training": {"digest": dataset.digest}}
    facts |= {"split": rule.to_json()} if rule else {}
    facts |= {"rules": rules} if rules is not None else {}
    write_model(run, facts, seed=seed)
    if rule:
        sets = rule.divide(dataset.index)
        Seen.of(dataset.index, np.r_[sets["train"], sets["validation"]]).write(run)
        results = {"data": {"folders": [str(folder) for folder in dataset.folders]}}
        (run / "results.json").write_text(json.dumps(results), "utf-8")
    return run
