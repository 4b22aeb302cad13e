"""What decides which parameters a training reaches, beside its data: recipes, and how flags, recipe
and checkpoint become one."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Optional

from ssr.errors import SetupError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a training; each is a flag of train.py. The defaults are the faithful recipe,
    which trains as the retired scripts did. num_devices is that of all machines together."""

    recipe: str = "faithful"
    # the model, see nets.SequenceSemanticRetrieval
    embedding_dim: int = 128
    hidden_size: int = 128
    user_encoder: str = "gru"
    pooling: str = "max"
    item_encoder: str = "fc"
    dropout: float = 0.0
    members: int = 1
    # items by content
    item_tokens: Optional[str] = None
    item_vectors: Optional[str] = None
    id_dropout: float = 0.2
    # the objective
    targets: str = "last"
    loss: str = "hinge"
    negatives: str = "sampled"
    sampled_weight: float = 1.0
    num_negatives: int = 1
    neg_alpha: float = 0.0
    scale: float = 16.0
    # beside the towers
    repeats: str = "cosine"
    # its optimization
    optimizer: str = "adagrad"
    base_lr: float = 0.01
    lr_schedule: str = "constant"
    batch_size: int = 50
    epochs: int = 10
    max_len: Optional[int] = None
    seed: int = 0
    num_devices: int = 1
    enable_ce: bool = False
    step_num: int = 1000

    def architecture(self):
        """The keyword arguments of nets.SequenceSemanticRetrieval that are settings."""
        return {name: getattr(self, name) for name in ARCHITECTURE}

    def to_meta(self):
        """{name: value} of those that are not of the architecture, for a checkpoint's "run"."""
        return {name: value for name, value in dataclasses.asdict(self).items()
                if name not in ARCHITECTURE}

    @classmethod
    def from_meta(cls, meta):
        """The settings that the checkpoint with this metadata was trained with. Raises
        SetupError."""
        saved = {name: value for name, value in {**meta["model"], **meta["run"]}.items()
                 if name in NAMES}
        for name, value in saved.items():
            default = getattr(cls, name)
            if not isinstance(value, (int, float) if isinstance(default, (int, float))
                              else (str, int, type(None))) or value != value:
                raise SetupError(f"the checkpoint is damaged: its {name} is {value!r:.40}")
        return cls(**saved)


NAMES = tuple(field.name for field in dataclasses.fields(Settings))
ARCHITECTURE = ("embedding_dim", "hidden_size", "user_encoder", "pooling", "item_encoder",
                "dropout", "members")
# Of the sessions, for --repeats fitted: fewer tell too little (benchmarks/README.md).
HELD_OUT_SHARE, FEWEST_HELD_OUT, MAX_HELD_OUT = 0.02, 100, 2000
CONTENT = ("item_tokens", "item_vectors")  # files, which may lie elsewhere the next time

# benchmarks/README.md says what each part is worth.
_STRONG_V1 = {
    "targets": "all", "loss": "softmax", "num_negatives": 2000, "neg_alpha": 0.5,
    "pooling": "max_last_clicks", "item_encoder": "tied", "dropout": 0.25,
    "optimizer": "adam", "lr_schedule": "linear", "base_lr": 0.004, "batch_size": 128,
    "epochs": 5, "max_len": 20}
RECIPES = {
    "faithful": {},
    "strong": {**_STRONG_V1, "pooling": "max_unit_clicks", "repeats": "fitted"},
    "strong_v1": _STRONG_V1,  # what "strong" was, for figures that were made with it
}
# Steps that a recipe needs at least, on however few sessions. Chosen on validation sessions:
# benchmarks/README.md has the table.
MIN_STEPS = {"faithful": 0, "strong": 90, "strong_v1": 90}


def merge(given, num_devices=1, resumed=None, initial=None):
    """The Settings of a run: the flags that are given, then those of a checkpoint or of the recipe.

    given: {name: value}, the flags that were given; what is no setting is ignored
    num_devices: of the run, however it was said
    resumed: the metadata of the checkpoint that --resume goes on with: all of its settings stay but
        the number of epochs
    initial: the metadata of the checkpoint that --init_from begins with: its architecture stays
    Raises SetupError where the settings do not go together, or a flag contradicts the checkpoint.
    """
    given = {name: value for name, value in given.items() if name in NAMES}
    if resumed is not None:
        return _of_resumed(given, num_devices, resumed)
    if initial is not None:
        base = dataclasses.replace(Settings.from_meta(initial), **dict.fromkeys(CONTENT))
        _refuse_other(given, base, (*ARCHITECTURE, "recipe"))
    else:
        recipe = given.get("recipe", "faithful")
        base = Settings(**{"recipe": recipe, **RECIPES[recipe]})
    settings = dataclasses.replace(base, **{**given, "num_devices": num_devices})
    _check_given(given, settings)
    return settings


def with_enough_epochs(settings, steps_per_epoch):
    """The Settings of a new run whose epochs nobody chose: more of them where the sessions are so
    few that the recipe's would be fewer steps than it needs."""
    epochs = max(settings.epochs, math.ceil(MIN_STEPS[settings.recipe] / steps_per_epoch))
    if epochs > settings.epochs:
        logger.info("%d epochs in place of %d, since an epoch of these sessions has %d steps and "
                    "--recipe %s needs at least %d (--epochs says otherwise)", epochs,
                    settings.epochs, steps_per_epoch, settings.recipe,
                    MIN_STEPS[settings.recipe])
    return dataclasses.replace(settings, epochs=epochs)


def num_held_out(settings, sessions):
    """How many of the sessions a run is not trained on, for --repeats fitted."""
    if settings.repeats != "fitted":
        return 0
    count = min(int(HELD_OUT_SHARE * sessions), MAX_HELD_OUT)
    if count >= FEWEST_HELD_OUT:
        return count
    logger.info("%d sessions are too few to fit --repeats: items of a session score their cosine",
                sessions)
    return 0


def _of_resumed(given, num_devices, meta):
    if "trainers" in meta["run"]:
        raise SetupError("the checkpoint is one of cluster_train.py, whose trainers keep the "
                         "optimizer's state to themselves: train anew without --resume")
    saved = Settings.from_meta(meta)
    if saved.num_devices != num_devices:
        raise SetupError(f"the checkpoint was trained on {saved.num_devices} devices: add "
                         f"--parallel 1 --num_devices {saved.num_devices} (now it is "
                         f"{num_devices})")
    _refuse_other(given, saved, [name for name in NAMES
                                 if name not in ("epochs", *CONTENT, "num_devices")])
    settings = dataclasses.replace(
        saved, **{name: given.get(name, getattr(saved, name)) for name in ("epochs", *CONTENT)})
    _check_given(given, settings)
    if saved.lr_schedule == "linear" and settings.epochs != saved.epochs:
        logger.warning("the learning rate falls as in a run of %d epochs from here on, it was one "
                       "of %d", settings.epochs, saved.epochs)
    return settings


def _refuse_other(given, saved, fixed):
    """Raises SetupError where a flag says something else than the checkpoint's settings."""
    for name in fixed:
        if name in given and given[name] != getattr(saved, name):
            raise SetupError(
                f"--{name} {given[name]} contradicts the checkpoint, which was trained with "
                f"{getattr(saved, name)}: leave the flag out, or train anew without --resume or "
                "--init_from")


def _check_given(given, settings):
    """Raises SetupError for a flag that would have no effect, and for settings that do not go
    together. Of the architecture the model says what does not (ssr.architecture)."""
    if settings.loss == "hinge" and not settings.num_negatives:
        raise SetupError("--loss hinge needs --num_negatives 1 or more")
    if "id_dropout" in given and not (settings.item_tokens or settings.item_vectors):
        raise SetupError("--id_dropout needs --item_tokens or --item_vectors")
    if "scale" in given and settings.loss == "hinge":
        raise SetupError("--scale is one of --loss softmax")
    if "sampled_weight" in given and (settings.loss, settings.negatives) != ("softmax",
                                                                             "impressions"):
        raise SetupError("--sampled_weight needs --loss softmax and --negatives impressions")


def difference(settings, other):
    """What makes two Settings those of different runs, for a message; "" where nothing does. The
    same run may be done on another number of devices."""
    names = [name for name in NAMES if name != "num_devices"
             and getattr(settings, name) != getattr(other, name)]
    return ", ".join(f"--{name} {getattr(settings, name)} and not {getattr(other, name)}"
                     for name in names[:3])
