"""Models are drawn at random and trained, one a trial of Optuna, by as many processes and hosts as there are."""

import math
import os
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from telescopic.data import Dataset, load
from telescopic.extras import needs
from telescopic.files import make_folder
from telescopic.nested import Nested
from telescopic.papers import shrinknets
from telescopic.papers.paper import sizes
from telescopic.provenance import commit
from telescopic.quantities import one_of
from telescopic.train import History, Recipe, fit

if TYPE_CHECKING:
    import optuna

FAILURES = 3  # trials in a row that may fail before a process gives up
SILENCE = 3600.0  # seconds without a finished epoch after which a trial of another host is taken to be dead


def open_study(storage: str, name: str) -> "optuna.Study":
    """A study in a storage, made if it is not there.

    Args:
        storage: the path of an SQLite database, which is made; the path of a journal, `<name>.journal`, which several
            hosts may share on a network file system; or a database's URL, such as `postgresql://host/name`.
        name: of the study.

    Raises:
        ImportError: if Optuna is not installed.
        ValueError: if the storage cannot be opened.
    """
    if "://" not in storage:
        make_folder(Path(storage).parent)
    with _opened(storage) as kept:
        import optuna

        return optuna.create_study(storage=kept, study_name=name, direction="maximize", load_if_exists=True)


def known_study(storage: str, name: str) -> "optuna.Study | None":
    """A study that is in a storage; None if it is not, and then nothing is made.

    Raises:
        ImportError: if Optuna is not installed.
        ValueError: if the storage cannot be opened.
    """
    if "://" not in storage and not Path(storage).exists():
        return None
    with _opened(storage) as kept:
        import optuna

        try:
            return optuna.load_study(storage=kept, study_name=name)
        except KeyError:
            return None


@contextmanager
def _opened(storage: str) -> "Iterator[str | optuna.storages.BaseStorage]":
    """What Optuna takes for a storage; says which one it is that cannot be opened inside."""
    with needs("search"):
        import optuna
        from optuna.storages.journal import JournalFileBackend
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if "://" in storage:
            yield storage
        elif Path(storage).suffix == ".journal":
            yield optuna.storages.JournalStorage(JournalFileBackend(storage))
        else:
            yield f"sqlite:///{Path(storage)}"
    except ImportError as error:
        raise ImportError(f"the storage {storage} needs a driver that is not installed: {error}") from error
    except Exception as error:  # of SQLAlchemy, of the operating system, or of Optuna itself
        text = " ".join(str(error).split())
        raise ValueError(f"the storage {storage} cannot be opened: {text[:300]}") from error


def study_name(data: str, network: str, kind: str, epochs: int | None, precision: str = "fp32") -> str:
    """What one cell of Figure 2 is called: models that are trained longer, or in another precision, are in others.

    Raises:
        ValueError: if there is no such network, kind or precision.
    """
    one_of("network", network, ("mlp", "lenet"))
    one_of("kind", kind, shrinknets.KINDS)
    one_of("precision", precision, ("fp32", "bf16"))
    name = f"{Path(data).stem}-{network}-{kind}-{epochs or shrinknets.EPOCHS[network]}"
    return name if precision == "fp32" else f"{name}-{precision}"


def trained_for(name: str) -> tuple[int, str]:
    """Epochs and precision, from what `study_name` has made."""
    plain = name.removesuffix("-bf16")
    return int(plain.rpartition("-")[2]), "fp32" if plain == name else "bf16"


def search(
    storage: str,
    *,
    data: str,
    network: str = "mlp",
    kind: str = "shrinknets",
    models: int = 50,
    epochs: int | None = None,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] | str = "fp32",
    data_dir: Path | None = None,
    cpu: bool = False,
    told: Callable[[str], None] | None = None,
) -> "optuna.Study":
    """Train random models until there are as many as wanted; those that are there are not trained again.

    A trial that was stopped or whose process was killed is begun anew, with what it had drawn. One that fails is
    recorded with its error, and another one drawn in its place. What a trial draws depends on the study's name, the
    seed and the trial's number alone. A fifth of the training images serve for validation, as in the paper.

    Args:
        storage: see `open_study`; several processes may share it.
        data: name or path of the data.
        network: `mlp` or `lenet`.
        kind: `fixed`, `fixed-l2` or `shrinknets`.
        models: how many are wanted in all.
        epochs: passes over the training images; default: the paper's, 100, or 200 for `lenet`.
        seed: of what is drawn, and of training.
        precision: fp32 or bf16, see `telescopic.fit`.
        data_dir: where the data are.
        cpu: stay on the CPU even if there is a GPU.
        told: called with a sentence after each model.

    Raises:
        ImportError: if Optuna is not installed.
        ValueError: if the storage cannot be opened, something asked for is unknown, or models fail again and again.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the model under way is begun anew by the next search.
    """
    study = open_study(storage, study_name(data, network, kind, epochs, precision))
    epochs = epochs or shrinknets.EPOCHS[network]
    _pick_up(study)
    if _missing(study, models) <= 0:
        return study
    import optuna

    whole = load(data, data_dir=data_dir, validation=0)
    images = load(data, data_dir=data_dir, validation=len(whole.train) // 5, seed=seed)
    build = partial(shrinknets.random_model, kind, network, epochs=epochs, **sizes(images))
    failed = 0

    def objective(trial: optuna.Trial) -> float:
        # Neighbouring numbers, or the same number in another study, must not draw alike.
        number = zlib.crc32(f"{study.study_name}/{seed}/{trial.number}".encode())
        study.sampler = optuna.samplers.RandomSampler(seed=number)
        _note(trial, {"pid": os.getpid(), "seen": time.time(), "commit": commit(), "host": socket.gethostname()})
        if _missing(study, models, before=trial.number) <= 0:  # others have begun as many since this process looked
            raise optuna.TrialPruned
        try:
            torch.manual_seed(number)
            options = {"seed": number, "precision": precision, "cpu": cpu, "keep": "best", "progress": False}
            return _train(trial, images, kind, network, build, options)
        except KeyboardInterrupt:
            trial.set_user_attr("error", "stopped")
            study.enqueue_trial(trial.params)
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:500])
            raise

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal failed
        if trial.state != optuna.trial.TrialState.PRUNED:
            failed = failed + 1 if trial.state == optuna.trial.TrialState.FAIL else 0
            if told is not None:
                told(_sentence(study, trial, models))
            if failed == FAILURES:
                raise ValueError(
                    f"{failed} models in a row failed, the last with {trial.user_attrs.get('error', 'no message')}; "
                    "what is trained so far is kept"
                )
        if _missing(study, models) <= 0:
            study.stop()

    study.optimize(objective, catch=(Exception,), callbacks=[after])
    return study


def _train(
    trial: "optuna.Trial",
    images: Dataset,
    kind: str,
    network: str,
    build: Callable[..., tuple[Nested, Recipe]],
    options: dict[str, Any],
) -> float:
    """Train what a trial draws; returns the best validation accuracy, and notes the rest."""
    space, (channels, hidden) = shrinknets.space(Path(images.name).stem), shrinknets.NETWORKS[network]
    penalty, widths = 0.0, None
    if kind != "fixed":
        penalty = trial.suggest_float("penalty", *space.penalties, log=True)
    if kind != "shrinknets":
        drawn = [trial.suggest_int(f"channels{i}", *space.channels) for i in range(len(channels))]
        powers = [trial.suggest_float(f"hidden{i}", *space.hidden) for i in range(len(hidden))]
        widths = [*drawn, *(round(2**power) for power in powers)]
    net, recipe = build(penalty=penalty, widths=widths)
    began = time.monotonic()

    def sign_of_life(history: History) -> None:
        if time.time() - float(trial.user_attrs["seen"]) > SILENCE / 60:
            trial.set_user_attr("seen", time.time())

    best = fit(net, images, recipe, on_epoch=sign_of_life, **options).best()
    price = shrinknets.price(net, recipe, images)
    facts = {
        "test": best.test[0],
        "epoch": best.epoch,
        "widths": list(best.widths or widths or ()),
        "macs": price.macs,
        "params": price.params,
        "seconds": round(time.monotonic() - began, 1),
    }
    _note(trial, facts)
    value = best.validation[0]
    if math.isnan(value):
        raise ValueError("there are no validation images to choose an epoch on")
    return value


def _note(trial: "optuna.Trial", facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        trial.set_user_attr(key, value)


def _missing(study: "optuna.Study", models: int, before: float = math.inf) -> int:
    """How many models nobody has trained or is training, going by the trials with lower numbers than one."""
    import optuna

    states = [trial.state for trial in study.get_trials(deepcopy=False) if trial.number < before]
    return models - sum(s in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING) for s in states)


def _pick_up(study: "optuna.Study") -> None:
    """Trials whose process is gone are failed, and wait to be begun anew."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        silent = time.time() - float(trial.user_attrs.get("seen", begun)) > SILENCE
        here = trial.user_attrs.get("host") == socket.gethostname()
        if silent or (here and not _lives(int(trial.user_attrs["pid"]))):
            try:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            except ValueError:  # another process was first
                continue
            if trial.params:
                study.enqueue_trial(trial.params)


def _lives(process: int) -> bool:
    """Whether a process of this machine is there."""
    if sys.platform == "win32":  # where a signal of 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sentence(study: "optuna.Study", trial: "optuna.trial.FrozenTrial", models: int) -> str:
    """What became of a trial."""
    done = models - _missing(study, models)
    if trial.value is None:
        return f"{study.study_name}: model {trial.number} failed: {trial.user_attrs.get('error')}"
    facts = trial.user_attrs
    return (
        f"{study.study_name}: {done} of {models} models trained or under way; {trial.number}: "
        f"{facts['test']:.2%} of the test images, {facts['params']:,} parameters, {facts['seconds']:.0f} s"
    )
