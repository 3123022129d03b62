"""What `python -m medjax.train` can be told when it trains an encoder of ECGs: objective mae, classify or regress."""

from dataclasses import dataclass

from medjax.config import field
from medjax.data.ecg.augment import Augmentation
from medjax.data.ecg.signal import Preprocessing
from medjax.parallel.distributed import DistributedSettings
from medjax.train.settings import (
    CheckpointSettings,
    LogSettings,
    MeshSettings,
    OptimizerSettings,
    StepsSettings,
    TrainSettings,
)

LANGUAGE = "language"
ECG_OBJECTIVES = ("mae", "classify", "regress")
SIZES = ("nano", "Ti", "S", "B", "L", "H")
_DISTRIBUTED = DistributedSettings()


@dataclass(frozen=True)
class EcgDataSettings:
    """The recordings, and which of them are kept apart: by patient, by a hash that never moves."""

    folders: tuple[str, ...] = field((), help="folders that `python -m medjax.ingest ecg` wrote", alias="--data")
    targets: tuple[str, ...] = field(
        (),
        help="classify, regress: labels by name; `sex` (1: male) and `age` are always there; `code:` and a code of the "
        "files: 1 where a record has it, 0 where it has others only. mae: with folds only, to be stratified as later",
        alias="--targets",
    )
    split_seed: int = field(0, help="of the hash that divides patients; another seed is another division")
    validation: float = field(0.15, help="share of patients for the held-out loss, thresholds and calibration")
    test: float = field(0.15, help="share of patients that training never sees, for medjax.eval")
    folds: int = field(0, help="cross-validation instead of shares: so many parts, stratified by `strata`")
    strata: str = field(
        "",
        help="folds: the label that is spread evenly over them; default: the first target. Runs agree on their folds "
        "where they name the same one",
    )
    fold: int = field(0, help="the part that is the test set; the next one is the validation set")
    label_fraction: float = field(1.0, help="share of the training patients whose labels are used")
    held_out_most: int = field(512, help="validation records, at most, that the held-out loss is computed on")
    leaks: str = field(
        "refuse",
        help="a patient or recording in two of the sets, or in the test set and seen by the run that is started from: "
        "stop, leave it out (of the training set, or where `start` saw it of the test set), or keep it and say so",
        choices=("refuse", "drop", "allow"),
    )
    threads: int = field(0, help="that read and prepare records; 0: as many as this machine has cores")

    def __post_init__(self):
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise ValueError(
                f"validation: got validation={self.validation} and test={self.test}, expected shares of 0 or more that "
                "leave something to train on."
            )
        if self.folds and (self.folds < 3 or not 0 <= self.fold < self.folds):
            raise ValueError(
                f"fold: got fold {self.fold} of {self.folds}, expected 3 folds or more (one to test, one to validate, "
                "the others to train), and a fold counted from 0."
            )
        if not 0 < self.label_fraction <= 1:
            raise ValueError(f"label_fraction: got {self.label_fraction}, expected a share above 0, 1 at most.")
        if self.threads < 0:
            raise ValueError(f"threads: got {self.threads}, expected 1 or more, or 0 for as many as there are cores.")


@dataclass(frozen=True)
class EncoderSettings:
    """The vision transformer over lead x time patches; taken from the pre-trained run where `start` names one."""

    size: str = field("S", help="Ti 192 x 12 layers, S 384 x 12, B 768 x 12, L 1024 x 24, H 1280 x 32", choices=SIZES)
    patch: int = field(125, help="samples of one lead in a patch")
    registers: int = field(0, help="tokens without a place, which attention may use as scratch space")
    class_token: bool = field(False, help="a token of its own for the summary")
    position_base: float = field(
        10000.0, help="of the sin-cos positions; about five times the patches of a lead learns sooner on little data"
    )
    aligned_keys: bool = field(True, help="keys begin as copies of queries: learns sooner on little data")
    drop_path: float = field(0.0, help="share of residual branches dropped in training, rising to it with depth")
    dtype: str = field(
        "float32",
        help="of computation; weights and losses are float32",
        alias="--dtype",
        choices=("float32", "bfloat16"),
    )


@dataclass(frozen=True)
class MaeSettings:
    """Masked autoencoding (objective mae)."""

    masked: float = field(0.75, help="share of the patches that are masked")
    masking: str = field("random", help="over all patches, or the same share of each lead", choices=("random", "lead"))
    decoder: str = field("full", help="attends to all leads, or to its own only", choices=("full", "lead"))
    decoder_embed: int = field(256, help="width of the decoder")
    decoder_layers: int = field(4, help="blocks of the decoder")
    decoder_heads: int = field(8, help="heads of the decoder")
    normalised_targets: bool = field(False, help="each patch is predicted after taking its mean and dividing by its sd")

    def __post_init__(self):
        if not 0 < self.masked < 1:
            raise ValueError(f"masked: got {self.masked}, expected a share between 0 and 1; 0.75 is usual.")


@dataclass(frozen=True)
class FinetuneSettings:
    """How an encoder becomes a detector or a regressor (objectives classify and regress)."""

    start: str = field("scratch", help="run folder of a masked autoencoder, or scratch", alias="--start")
    trained: str = field(
        "full", help="all parameters, or the head on a frozen encoder (linear probe)", choices=("full", "probe")
    )
    layer_decay: float = field(1.0, help="a layer's learning rate is so many times that of the layer above it")
    pooling: str = field("mean", help="of tokens", choices=("mean", "class", "attention"))
    balance: bool = field(False, help="classify: weigh positives as much as negatives in the loss")
    classes: tuple[str, ...] = field(
        (), help="names of a target's classes from 0 on, such as lvsd=normal/reduced,grade=none/mild/severe"
    )
    calibration: str = field(
        "platt", help="of probabilities, fitted on the validation set", choices=("platt", "temperature", "none")
    )
    sensitivity: float = field(0.9, help="the threshold is the highest that has this sensitivity in the validation set")

    def __post_init__(self):
        if not 0 < self.sensitivity <= 1:
            raise ValueError(f"sensitivity: got {self.sensitivity}, expected a share above 0, 1 at most; 0.9 is usual.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"layer_decay: got {self.layer_decay}, expected a share above 0, 1 at most; 0.75 is usual."
            )
        for text in self.classes:
            target, equals, names = text.rpartition("=")
            if not (target and equals and all(names.split("/")) and len(set(names.split("/"))) > 1):
                raise ValueError(
                    f"classes: got {text!r}, expected a target and different names of its classes, such as "
                    "lvsd=normal/reduced."
                )

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Target -> names of its classes, where the user gives any."""
        parts = (text.rpartition("=") for text in self.classes)
        return {target: tuple(names.split("/")) for target, _, names in parts}


@dataclass(frozen=True)
class EcgTrainSettings:
    """Everything that training an encoder of ECGs can be told."""

    objective: str = field("mae", help="what is learned", choices=ECG_OBJECTIVES)
    data: EcgDataSettings = EcgDataSettings()
    signal: Preprocessing = Preprocessing()
    augment: Augmentation = Augmentation()
    encoder: EncoderSettings = EncoderSettings()
    mae: MaeSettings = MaeSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    train: StepsSettings = StepsSettings(batch_size=64, remat="none")
    optimizer: OptimizerSettings = OptimizerSettings(beta2=0.95, weight_decay=0.05)
    mesh: MeshSettings = MeshSettings()
    distributed: DistributedSettings = _DISTRIBUTED
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    compilation_cache: bool = field(True, help="keep compiled programs on disk for the next run")
    out: str | None = field(None, help="run folder; default: runs/train/<name>", alias="--out")
    name: str | None = field(None, help="of the run; default: made from objective, size and data")

    def __post_init__(self):
        if self.objective != "mae" and not self.data.targets:
            raise ValueError(
                f"data.targets: got nothing for objective {self.objective}, expected names of labels; give --targets."
            )
        if self.objective == "mae" and self.data.targets and not self.data.folds:
            raise ValueError(
                f"data.targets: got {', '.join(self.data.targets)} for objective mae without data.folds, expected "
                "none: it learns no labels, and only folds are stratified by one; leave it out, or take --objective "
                "classify or regress."
            )
        if unknown := sorted(set(self.finetune.class_names) - set(self.data.targets)):
            raise ValueError(
                f"finetune.classes: got {', '.join(unknown)}, expected some of data.targets: "
                f"{', '.join(self.data.targets) or 'none'}."
            )


def settings_class(objective: str | None) -> type:
    """The settings of an objective, those of language models where nobody names one. Raises ValueError for others."""
    if objective in ECG_OBJECTIVES:
        return EcgTrainSettings
    if objective in (None, LANGUAGE):
        return TrainSettings
    raise ValueError(
        f"objective: got {objective}, expected {LANGUAGE} for a language model, or {', '.join(ECG_OBJECTIVES[:-1])} or "
        f"{ECG_OBJECTIVES[-1]} for ECGs."
    )
