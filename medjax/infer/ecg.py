"""A detector or regressor of ECGs ready to use: weights, preprocessing and all that makes an answer of its outputs.

A record is judged by its evaluation windows (data.ecg.signal): the outputs of its windows are averaged before anything
is made of them. Every window has the same shape, leads that are missing are masked, so one compiled program serves
records of any length and any subset of leads, and what a record gets does not depend on its neighbours in the batch.

Of a checkpoint's facts these are read; only "preprocessing" must be there:

  preprocessing  data.ecg.signal.Preprocessing
  leads          names of the leads that training saw; without it all of the preprocessing
  rules          target -> statistics.detector.DetectorRule, or for age statistics.agreement.GapCorrection
  validation     target -> AUROC on validation data: {"value", "low", "high", "records", "positive"}
  errors         target -> {"sd": of the errors on validation data, in the target's unit, "records": how many}
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from medjax.data.ecg.leads import LEADS
from medjax.data.ecg.record import EcgRecord
from medjax.data.ecg.signal import (
    Preprocessing,
    judged_windows,
    normalise,
    prepared_samples,
    prepared_windows,
    window_starts,
)
from medjax.infer.prediction import Prediction, Reading, refused
from medjax.models.predictor import Predictor, PredictorConfig
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, partition_spec, ways
from medjax.store.encoders import load_encoder

RULES = PRESETS["default"]
BATCH = 32
_READ_TOGETHER = 64  # records whose windows are held at once …
_MOST_NUMBERS = 50_000_000  # … unless their signals are larger than this: 200 MB in float32


@dataclass(frozen=True)
class Windows:
    """A record as the model sees it.

    signal  [windows, leads, samples] float32, normalised, 0 where not valid
    valid   [windows, leads, samples] bool, false throughout a lead that the model does not take
    starts  [windows] sample of the prepared record with which each begins
    samples of the prepared record
    """

    signal: np.ndarray
    valid: np.ndarray
    starts: np.ndarray
    samples: int

    @property
    def leads_used(self) -> np.ndarray:
        """[leads] bool: which hold something."""
        return np.asarray(self.valid.any(axis=(0, 2)))


class EcgModel:
    """A trained predictor with its facts; see `load`.

    config         of the model, with its targets
    preprocessing  of records
    reading        what is made of outputs
    digest         sha256 over the names and sha256 of its files
    """

    def __init__(self, config: PredictorConfig, params: Any, facts: Mapping[str, Any], mesh: Mesh, where: str):
        self.config = config
        self.params = params
        self.where = where
        self.digest = ""
        self._mesh = mesh
        try:
            self.preprocessing = Preprocessing.from_json(facts["preprocessing"])
            self.reading = Reading.from_facts(config, facts)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where}: facts: {_told(error)}; expected what a training with this version of medjax stores: train "
                "again, or use the version that wrote it."
            ) from None

    @classmethod
    def load(
        cls, path: str | Path, *, mesh: str = "", progress: Callable[[int, int], None] | None = None
    ) -> "EcgModel":
        """Load a model with everything that raw files need.

        path      folder of a training run on ECGs, or the model folder in it
        mesh      devices, for instance "data=4"; empty: every local accelerator along data, or one CPU
        progress  called with (arrays done, arrays in all)

        Raises FileNotFoundError or ValueError with one sentence that says what to do.
        """
        local = jax.local_devices()
        devices = make_mesh(mesh) if mesh else make_mesh("", local if local[0].platform != "cpu" else local[:1])
        encoder = load_encoder(path, devices, RULES, progress=progress)
        if encoder.kind != "ecg_predictor":
            raise ValueError(
                f"{path}: got a masked autoencoder, which predicts nothing yet, expected a detector or regressor; "
                f"train one from it: medjax.train with objective classify or regress and --start {path}."
            )
        model = cls(PredictorConfig.from_dict(encoder.config), encoder.params, encoder.facts, devices, str(path))
        model.digest = encoder.digest()
        return model

    def predict(self, records: Iterable[EcgRecord], *, batch_size: int = BATCH) -> list[Prediction]:
        """Judge records, in their order; one that cannot be judged comes back refused, with the reason.

        batch_size  windows that are computed together; the answers do not depend on it

        Raises ValueError when batch_size is below 1.
        """
        return list(self.predict_each(records, batch_size=batch_size))

    def predict_each(self, records: Iterable[EcgRecord], *, batch_size: int = BATCH) -> Iterator[Prediction]:
        """`predict`, a record at a time: what is read lazily is judged before the rest is read."""
        for together in _portions(records):
            seen = self.windows(together)
            rows = [each for each in seen if not isinstance(each, str)]
            outputs: Iterator[np.ndarray] = iter(())
            if rows:
                signal = np.concatenate([each.signal for each in rows])
                valid = np.concatenate([each.valid for each in rows])
                ends = np.cumsum([len(each.signal) for each in rows])[:-1]
                outputs = iter(np.split(self.outputs(signal, valid, batch_size=batch_size), ends))
            for record, each in zip(together, seen, strict=True):
                if isinstance(each, str):
                    yield refused(record, each)
                else:
                    yield self.reading.read(record, next(outputs), each.leads_used, self.preprocessing)

    def windows(self, records: Sequence[EcgRecord]) -> list[Windows | str]:
        """The windows of each record, or a sentence that says why it has none that can be judged."""
        return [self._unusable(record) or self._cut(record) for record in records]

    def outputs(
        self, signal: np.ndarray, valid: np.ndarray, *, params: Any = None, batch_size: int = BATCH
    ) -> np.ndarray:
        """Outputs [b, width] float64 of windows [b, leads, samples], however many; params: others than the model's."""
        params = self.params if params is None else params
        return self._in_batches(lambda *rows: outputs_of(self.config, params, *rows), batch_size, signal, valid)

    def gradients(
        self,
        signal: np.ndarray,
        valid: np.ndarray,
        direction: np.ndarray,
        *,
        params: Any = None,
        batch_size: int = BATCH,
    ) -> np.ndarray:
        """d (outputs . direction) / d signal of windows [b, leads, samples], float64; direction [width]."""
        params = self.params if params is None else params
        direction = np.asarray(direction, np.float32)
        return self._in_batches(
            lambda *rows: _gradients_of(self.config, params, direction, *rows), batch_size, signal, valid
        )

    def attention(self, signal: np.ndarray, valid: np.ndarray, *, params: Any = None) -> np.ndarray:
        """Attention weights of windows, mean of the heads: [layers, b, 1, t, t] float64; extra tokens come first."""
        params = self.params if params is None else params
        rows = self._in_batches(lambda *rows: _attention_of(self.config, params, *rows), 1, signal, valid)
        return np.moveaxis(rows, 0, 1)[:, :, None]

    def _in_batches(
        self, program: Callable[..., jax.Array], batch_size: int, signal: np.ndarray, valid: np.ndarray
    ) -> np.ndarray:
        """Run a program on rows in batches of one shape; the rows that fill up the last one are thrown away."""
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected 1 or more.")
        parts = ways(self._mesh, RULES.batch)
        size = -(-batch_size // parts) * parts
        found = []
        for start in range(0, len(signal), size):
            rows = [array[start : start + size] for array in (signal, valid)]
            count = len(rows[0])
            rows = [np.concatenate([array, np.zeros((size - count, *array.shape[1:]), array.dtype)]) for array in rows]
            shape = rows[0].shape
            place = NamedSharding(self._mesh, partition_spec(("batch", None, None), shape, self._mesh, RULES))
            with jax.default_matmul_precision("highest"):  # also on devices that would use TF32 or bfloat16
                found.append(np.asarray(program(*jax.device_put(rows, place)), np.float64)[:count])
        return np.concatenate(found)

    def _unusable(self, record: EcgRecord) -> str:
        """Why nothing can be said of a record before its signal is looked at, or ""."""
        measured = {lead for lead, usable in zip(LEADS, record.usable, strict=True) if usable}
        taken = self.reading.leads
        if not measured & set(taken):
            has = f"leads {' '.join(lead for lead in LEADS if lead in measured)}" if measured else "no usable lead"
            return f"got {has}, expected at least one of {' '.join(taken)}, which the model was trained on; not judged."
        return ""

    def _cut(self, record: EcgRecord) -> Windows | str:
        p, patch = self.preprocessing, self.config.vit.patch[0]
        samples = prepared_samples(record.samples, record.sampling_rate_hz, p)
        starts = np.array(window_starts(samples, p.samples))
        signal, valid = prepared_windows(record, p, starts.tolist())
        valid &= np.array([lead in self.reading.leads for lead in p.leads])[:, None]
        judged = judged_windows(valid, patch)
        if not judged.any():
            return (
                f"got {record.duration_s:.2g} s without a stretch of {patch / p.sampling_rate_hz:.2g} s in which a "
                "lead was measured throughout, expected one at least; not judged."
            )
        return Windows(normalise(signal * valid, valid, p)[judged], valid[judged], starts[judged], samples)


@partial(jax.jit, static_argnums=0)
def outputs_of(config: PredictorConfig, params: Any, signal: jax.Array, valid: jax.Array) -> jax.Array:
    """Outputs [b, width] of windows [b, leads, samples]; compiled once for all models of a config."""
    outputs: Any = Predictor(config).apply({"params": params}, signal, valid)
    return outputs


@partial(jax.jit, static_argnums=0)
def _gradients_of(
    config: PredictorConfig, params: Any, direction: jax.Array, signal: jax.Array, valid: jax.Array
) -> jax.Array:
    # a row's output depends on that row alone, so the gradient of the sum has the gradient of each
    return jax.grad(lambda rows: (outputs_of(config, params, rows, valid) @ direction).sum())(signal)


@partial(jax.jit, static_argnums=0)
def _attention_of(config: PredictorConfig, params: Any, signal: jax.Array, valid: jax.Array) -> jax.Array:
    """[b, layers, t, t]"""
    _, found = Predictor(config).apply({"params": params}, signal, valid, mutable=["attention"])
    (weights,) = jax.tree.leaves(found["attention"]["encoder"])
    return jnp.moveaxis(weights.mean(2), 0, 1)


def _portions(records: Iterable[EcgRecord]) -> Iterator[list[EcgRecord]]:
    """Records in stretches that are held in memory together."""
    portion: list[EcgRecord] = []
    for record in records:
        portion.append(record)
        if len(portion) == _READ_TOGETHER or sum(each.signal.size for each in portion) > _MOST_NUMBERS:
            yield portion
            portion = []
    if portion:
        yield portion


def _told(error: Exception) -> str:
    return f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
