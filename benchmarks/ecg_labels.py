"""What masked pre-training is worth on real recordings: linear probe, fine-tuning, and the same encoder from scratch.

  python benchmarks/ecg_labels.py --source DATA/ecg/ludb DATA/ecg/cinc2021_sample --json result.json

LUDB and a sample of CinC 2021, some 340 recordings: far too few for a detector, enough to see whether the path is
sound. Cross-validation by patient in five folds, stratified by sex. In each fold a masked autoencoder is pre-trained on
the fold's training patients alone, so that no test recording was seen by anything; the three arms share it, the
settings and the number of steps.

  sex, age      of all recordings
  lvh           left ventricular hypertrophy, LUDB only: in the sample it is rare, and a model that knows the source
                would know the label
  sinus         sinus rhythm of any rate against everything else

Figures are of test patients. AUROC: mean over folds; age: mean absolute error over all. Intervals resample patients,
the differences between arms are paired. `source alone` is what a model scores that knows where a recording is from and
nothing else: the source's own share of the label (for age its median) in the other folds.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_name

from medjax.config import load
from medjax.data.ecg.dataset import EcgDataset, open_datasets
from medjax.data.ecg.division import SplitRule, target_values
from medjax.data.ecg.splits import drop_leaks, patient_keys
from medjax.infer.ecg import EcgModel
from medjax.infer.prediction import Output
from medjax.ingest.run import ingest
from medjax.ingest.settings import IngestSettings
from medjax.statistics.bootstrap import Floats, PatientBootstrap, Statistic, difference, weighted_mean
from medjax.statistics.discrimination import Ranking
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.run import train

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "ecg"
FOLDS = 5
CLASSES, NUMBER = ("sex", "lvh", "sinus"), "age"
ARMS = {
    "probe": {"--finetune.trained": "probe", "--optimizer.learning_rate": 1e-2},
    "fine-tuned": {"--finetune.layer_decay": 0.75},
    "scratch": {"--finetune.start": "scratch"},
}
# SNOMED CT codes of the CinC headers: sinus rhythm, bradycardia, tachycardia, arrhythmia
_SINUS = {"426783006", "426177001", "427084000", "427393009"}


def main() -> None:
    options = _options()
    out = Path(options.out)
    dataset = prepared([Path(source) for source in options.source], out)
    began, found = time.monotonic(), {arm: np.full((len(dataset), len(CLASSES) + 1), np.nan) for arm in ARMS}
    fold_of = np.full(len(dataset), -1)
    for fold in range(FOLDS):
        rule = SplitRule(folds=FOLDS, fold=fold, strata=CLASSES[0])
        sets, _ = drop_leaks(dataset.index, rule.divide(dataset.index))
        fold_of[sets["test"]] = fold
        for arm, columns in run_fold(options, dataset, fold, sets["test"]).items():
            found[arm][sets["test"]] = columns
    result = scores(dataset, found, fold_of) | {
        "records": len(dataset),
        "folds": FOLDS,
        "data_digest": dataset.digest,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "device": cpu_name(),
    }
    show(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def prepared(sources: list[Path], out: Path) -> EcgDataset:
    """The recordings with labels made from the statements in their files."""
    folders = []
    for source in sources:
        plain, labelled, table = (out / f"{source.name}{end}" for end in ("-plain", "", "-labels.csv"))
        if not (labelled / "index.parquet").is_file():
            found = ingest(IngestSettings(source=str(source), out=str(plain)), say=print)
            with table.open("w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["path", "lvh", "sinus"])
                for path, codes in zip(found.index["source"], found.index["codes"], strict=True):
                    rows.writerow([path, *labels_of(codes)])
            ingest(IngestSettings(source=str(source), labels=str(table), out=str(labelled)), say=print)
        folders.append(labelled)
    return open_datasets(folders)


def labels_of(codes: tuple[str, ...]) -> tuple[int | str, int]:
    """Hypertrophy ("" where nobody looked for it) and sinus rhythm, from SNOMED CT codes or LUDB's statements."""
    is_ludb = any(code.startswith("Rhythm:") for code in codes)
    lvh: int | str = int("Left ventricular hypertrophy." in codes) if is_ludb else ""
    return lvh, int(any(code in _SINUS or code.startswith("Rhythm: Sinus") for code in codes))


def run_fold(options: argparse.Namespace, dataset: EcgDataset, fold: int, test: np.ndarray) -> dict[str, np.ndarray]:
    """Pre-train, train the arms, predict: arm -> [test records, classes and number]."""
    folder = Path(options.out) / f"fold{fold}"
    data = {"--data": tuple(str(f) for f in dataset.folders), "--data.folds": FOLDS, "--data.fold": fold}
    shared = data | {"--data.leaks": "drop", "--log.sinks": (), "--data.strata": CLASSES[0]}

    def run(name: str, config: str, changes: dict[str, Any]) -> Path:
        settings = load(EcgTrainSettings, CONFIGS / config, shared | changes | {"--out": str(folder / name)})
        print(f"fold {fold}: {name}", flush=True)
        train(settings)
        return folder / name

    start = run("mae", "mae_tiny_cpu.toml", {"--train.epochs": options.pretraining_epochs})
    records = dataset.read(test)
    found = {}
    for arm, own in ARMS.items():
        changes = {"--start": str(start), "--train.epochs": options.epochs} | own
        columns = []
        for name, objective, targets in (("classes", "classify", CLASSES), ("age", "regress", (NUMBER,))):
            which = {"--objective": objective, "--data.targets": targets}
            model = EcgModel.load(run(f"{arm}-{name}".replace(" ", "-"), "finetune_tiny_cpu.toml", changes | which))
            outputs = [each.outputs for each in model.predict(records)]
            columns += [[predicted(row[target]) if row else np.nan for row in outputs] for target in targets]
        found[arm] = np.array(columns, np.float64).T
    return found


def predicted(output: Output) -> float:
    """The logit of a class, the number in years."""
    return output.raw[0] if output.value is None else output.value


def scores(dataset: EcgDataset, found: dict[str, np.ndarray], fold_of: np.ndarray) -> dict[str, Any]:
    """Every figure with its interval, and the paired differences of the arms from scratch."""
    patients = patient_keys(dataset.index)
    result: dict[str, Any] = {"targets": {}}
    for column, name in enumerate((*CLASSES, NUMBER)):
        truth = target_values(dataset.index, name)
        known = ~np.isnan(truth) & (fold_of >= 0)
        known &= np.all([~np.isnan(values[:, column]) for values in found.values()], axis=0)
        statistics: dict[str, Statistic] = {}
        for arm, values in found.items():
            own = values[known, column]
            if name == NUMBER:
                statistics[arm] = weighted_mean(np.abs(own - truth[known]))
            else:
                statistics[arm] = mean_auroc(truth[known], own, fold_of[known])
        alone = source_alone(dataset, truth, fold_of, number=name == NUMBER)[known]
        if name == NUMBER:
            statistics["source alone"] = weighted_mean(np.abs(alone - truth[known]))
        elif name != "lvh":
            statistics["source alone"] = mean_auroc(truth[known], alone, fold_of[known])
        for arm in ("probe", "fine-tuned"):
            statistics[f"{arm} minus scratch"] = difference(statistics[arm], statistics["scratch"])
        estimates = PatientBootstrap(patients[known], seed=0).estimates(statistics)
        result["targets"][name] = {
            "metric": "mean absolute error, years" if name == NUMBER else "AUROC, mean over folds",
            "records": int(known.sum()),
            "positive": None if name == NUMBER else int(truth[known].sum()),
            "figures": {arm: estimate.to_json() for arm, estimate in estimates.items()},
        }
    return result


def mean_auroc(truth: np.ndarray, values: np.ndarray, fold_of: np.ndarray) -> Callable[[Floats], Floats]:
    """The statistic: AUROC within each fold, averaged over the folds."""
    parts = [(at, Ranking(truth[at], values[at])) for at in (fold_of == fold for fold in range(FOLDS))]
    return lambda weights: np.mean([ranking.auroc(weights[:, at]) for at, ranking in parts], axis=0)


def source_alone(dataset: EcgDataset, truth: np.ndarray, fold_of: np.ndarray, *, number: bool) -> np.ndarray:
    """For each record the mean of the target over the other folds' records of its source (the folder of its file)."""
    sources = np.array([Path(path).parent.name if "/" in path else "" for path in dataset.index["source"]])
    sources = np.char.add(np.char.add(dataset.index["folder"].astype(str), ":"), sources)
    guess = np.full(len(truth), np.nan)
    for fold in range(FOLDS):
        others = (fold_of != fold) & ~np.isnan(truth)
        middle = float(np.median(truth[others]) if number else truth[others].mean())
        for source in np.unique(sources):
            same = truth[others & (sources == source)]
            at = (fold_of == fold) & (sources == source)
            guess[at] = middle if not len(same) else np.median(same) if number else same.mean()
    return guess


def show(result: dict[str, Any]) -> None:
    """Print one table."""

    def told(figure: dict[str, Any]) -> str:
        return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"

    for name, target in result["targets"].items():
        count = f"{target['records']} records" + (f", {target['positive']} positive" if target["positive"] else "")
        print(f"\n{name}: {target['metric']}; {count}")
        for arm, figure in target["figures"].items():
            print(f"  {arm:26}{told(figure)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", required=True, help="folders of recordings")
    parser.add_argument("--out", default="runs/ecg_labels", help="folder for data sets and runs; a second call goes on")
    parser.add_argument("--pretraining-epochs", type=float, default=150.0, help="of the masked autoencoders")
    parser.add_argument("--epochs", type=float, default=30.0, help="of the arms")
    parser.add_argument("--json", help="file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
