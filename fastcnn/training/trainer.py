"""The training loop."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.data.pictures import Pictures
from fastcnn.errors import RequestError, Terminated
from fastcnn.evaluation.metrics import Metrics, Tally
from fastcnn.models.registry import ModelInfo
from fastcnn.training.augmentation import shift_and_mirror
from fastcnn.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from fastcnn.training.history import EpochRecord, plot_curves, write_csv
from fastcnn.training.recipe import Recipe

CHECKPOINT = "checkpoint.pt"
CURVES_CSV = "history.csv"
CURVES_PNG = "curves.png"

# Of evaluation: pictures at most, and input values at most (27 pictures of 3 x 224 x 224).
_EVALUATION_BATCH, _EVALUATION_VALUES = 500, 4_000_000
_SECONDS_BETWEEN_CHECKPOINTS = 60.0
_STEPS_BETWEEN_REPORTS = 20


class Progress(Protocol):
    """Hears how far a run is."""

    def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
        """`done` of the `steps` of an epoch are made; `loss` is the mean of its main output so far. Called every few steps."""

    def epoch(self, record: EpochRecord, best: bool) -> None:
        """An epoch ended."""


@dataclass(frozen=True)
class Parts:
    """The pictures of a run. `train_indices` and `validation_indices` (N,) int64 say which ones of their sets are used."""

    train: Pictures
    train_indices: Tensor
    validation: Pictures
    validation_indices: Tensor
    test: Pictures | None

    def to(self, device: torch.device) -> Parts:
        """The same pictures; those held in memory move to the device, each set once."""
        train = self.train.to(device)
        validation = train if self.validation is self.train else self.validation.to(device)
        return Parts(train, self.train_indices, validation, self.validation_indices, None if self.test is None else self.test.to(device))


@dataclass(frozen=True)
class TrainingResult:
    """A finished run; the model holds the weights of the best epoch.

    `test` counts the best weights on the pictures kept for the end; None where the dataset has none.
    """

    weights: Path
    best_epoch: int
    history: tuple[EpochRecord, ...]
    test: Metrics | None


class Trainer:
    """Trains a model of `create_model` and leaves in `folder` the best weights, the curves, and what a killed run resumes from.

    A resumed run ends with the same bits as one that was never interrupted, on a CPU with the same number of threads: all random numbers
    come from the seed and the position, or from a state that the checkpoint holds.

    Args:
        model: with a `fastcnn_info`, on the CPU; it is moved to the device and trained in place.
        parts: the pictures, brought to the size of the model's preprocessing.
        dataset: the name of the dataset, for the record.
        folder: must exist.
        device: "cpu", or a CUDA device, where the model runs in channels_last.
        autocast: compute in bfloat16, or in float16 with scaled gradients where the GPU lacks it. CUDA only.
        workers: processes that decode picture files.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        parts: Parts,
        dataset: str,
        folder: Path,
        *,
        device: torch.device,
        autocast: bool = False,
        workers: int = 0,
    ) -> None:
        self.info: ModelInfo = model.fastcnn_info  # type: ignore[assignment]
        self.recipe, self.dataset, self.folder, self.device, self.workers = recipe, dataset, folder, device, workers
        self.origin = self.info.weights
        self.parts = parts.to(device)
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model = model.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.autocast_dtype = _autocast_dtype(device) if autocast else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.autocast_dtype == torch.float16)
        self.optimizer = torch.optim.SGD(model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay)
        self.steps, self.pictures_per_epoch = _count_steps(parts.train_indices.numel(), recipe.batch_size)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, recipe.factor(recipe.epochs * self.steps))
        self.epoch, self.step = 1, 0
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # of this epoch: main loss, weighted auxiliary loss, correct
        self.history: list[EpochRecord] = []
        self.best: EpochRecord | None = None
        self._random_state: Mapping[str, Tensor | None] = {}
        self._stop_signal: int | None = None

    @property
    def weights_path(self) -> Path:
        """Where the best weights go: MODEL.safetensors in the folder."""
        return self.folder / f"{self.info.name}.safetensors"

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self, progress: Progress | None = None) -> TrainingResult:
        """Trains to the last epoch of the recipe and counts the best weights on the test pictures.

        Ctrl-C or SIGTERM ends the step at hand, writes a checkpoint and raises KeyboardInterrupt, for SIGTERM its subclass
        `fastcnn.errors.Terminated`; a second one stops at once.

        Raises:
            RequestError: the loss became infinite or not a number, a picture cannot be read, or nothing can be written.
        """
        with self._stoppable(), torch.random.fork_rng(devices=self._cuda_devices()):
            self._restore_random_state()
            if not self.history and self.step == 0:
                self.save()
            while self.epoch <= self.recipe.epochs:
                self._train_epoch(progress)
        return self._finish()

    def _train_epoch(self, progress: Progress | None) -> None:
        started = saved = time.perf_counter()
        order = self._order()
        self.model.train()
        batches = self.parts.train.batches(order[self.step * self.recipe.batch_size :], self.recipe.batch_size, self.workers)
        for pixels, labels in batches:
            self._train_step(pixels, labels)
            self.step += 1
            if progress is not None and (self.step % _STEPS_BETWEEN_REPORTS == 0 or self.step == self.steps):
                progress.step(self.epoch, self.step, self.steps, self._means(self.step)[0])
            if self.step < self.steps:
                if self._stop_signal is not None:
                    self.save()
                    raise self._stopped()
                if time.perf_counter() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                    self.save()
                    saved = time.perf_counter()
        self._end_epoch(started, progress)

    def _end_epoch(self, started: float, progress: Progress | None) -> None:
        loss, aux, accuracy = self._means(self.steps)
        if not math.isfinite(loss + aux):
            raise RequestError(
                f"training diverged in epoch {self.epoch}: the loss is {loss + aux}; try a learning rate below {self.recipe.learning_rate:g}"
            )
        validation = self.evaluate(self.parts.validation, self.parts.validation_indices)
        rate = float(self.scheduler.get_last_lr()[0])
        seconds = time.perf_counter() - started
        record = EpochRecord(self.epoch, rate, loss, accuracy, aux, validation.loss, validation.top1, seconds)
        self.history.append(record)
        better = self.best is None or record.quality > self.best.quality
        if better:
            self.best = record
            save_weights(self.model, self.describe(), self.weights_path)
        self._write_curves()
        self.epoch, self.step = self.epoch + 1, 0
        self.sums.zero_()
        self.save()
        if progress is not None:
            progress.epoch(record, better)
        if self._stop_signal is not None and self.epoch <= self.recipe.epochs:
            raise self._stopped()

    def _train_step(self, pixels: Tensor, labels: Tensor) -> None:
        if self.recipe.augment:
            pixels = shift_and_mirror(pixels, self._generator(2, self.step))
        inputs, labels = self._inputs(pixels), labels.to(self.device)
        with self._autocast():
            outputs = self._forward(inputs)
            logits, aux_logits = (outputs[0], outputs[1:]) if isinstance(outputs, tuple) else (outputs, ())
            main = F.cross_entropy(logits, labels)
            aux = self.recipe.aux_weight * sum((F.cross_entropy(head, labels) for head in aux_logits), torch.zeros_like(main))
        self.optimizer.zero_grad()
        self.scaler.scale(main + aux).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            self.sums += torch.stack([main.double() * len(labels), aux.double() * len(labels), correct.double()])

    def _forward(self, inputs: Tensor) -> Any:
        try:
            return self.model(inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RequestError(f"{self.info.name} has BatchNorm, which cannot train on a batch of {len(inputs)}: give a larger batch size") from error

    def _finish(self) -> TrainingResult:
        """The best weights, with the whole history and the test figures in their file."""
        assert self.best is not None
        from fastcnn.models.weights import load_weights

        load_weights(self.model, self.weights_path)
        test = None if self.parts.test is None else self.evaluate(self.parts.test, torch.arange(len(self.parts.test)))
        save_weights(self.model, self.describe(test), self.weights_path)
        self._write_curves()
        return TrainingResult(self.weights_path, self.best.epoch, tuple(self.history), test)

    @torch.no_grad()
    def evaluate(self, pictures: Pictures, indices: Tensor) -> Metrics:
        """Counts the model as it is, in eval mode and float32, on some pictures."""
        self.model.eval()
        tally = Tally(pictures.classes, self.device)
        batch_size = max(1, min(_EVALUATION_BATCH, _EVALUATION_VALUES // math.prod(self.info.preprocessing.output_shape)))
        for pixels, labels in pictures.batches(indices, batch_size, self.workers):
            tally.add(self.model(self._inputs(pixels)), labels.to(self.device))
        return tally.metrics()

    def _inputs(self, pixels: Tensor) -> Tensor:
        return self.info.preprocessing.normalize(pixels.to(self.device)).contiguous(memory_format=self.memory_format)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    # -- where the run stands ------------------------------------------------------------------------------------------

    def _generator(self, *stream: int) -> torch.Generator:
        """Random numbers for one purpose and place, the same whenever a run comes by."""
        mixed = 0
        for part in (self.recipe.seed, self.epoch, *stream):
            mixed = (mixed * 1_000_003 + part + 1) % 2**63
        return torch.Generator().manual_seed(mixed)

    def _order(self) -> Tensor:
        """The training pictures in the order of this epoch, the last batch of one left out."""
        indices = self.parts.train_indices
        order = indices[torch.randperm(indices.numel(), generator=self._generator(1))]
        return order[: self.pictures_per_epoch]

    def _means(self, steps: int) -> tuple[float, float, float]:
        """Main loss, weighted auxiliary loss and accuracy, over the first `steps` of this epoch."""
        pictures = min(steps * self.recipe.batch_size, self.pictures_per_epoch)
        loss, aux, correct = (self.sums / pictures).tolist()
        return loss, aux, correct

    def _cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _restore_random_state(self) -> None:
        if not self.history and self.step == 0:
            torch.manual_seed(self.recipe.seed)
            return
        for device, state in self._random_state.items():
            if state is not None and device == "cpu":
                torch.set_rng_state(state)
            elif state is not None and device == self.device.type:
                torch.cuda.set_rng_state(state, self.device)

    def save(self) -> None:
        """Writes the checkpoint."""
        state = {
            **self.identity(),
            "weights_origin": self.origin,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {key: value for key, value in self.scheduler.state_dict().items() if key != "lr_lambdas"},
            "scaler": self.scaler.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None},
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "history": [asdict(record) for record in self.history],
            "best_epoch": None if self.best is None else self.best.epoch,
        }
        save_checkpoint(state, self.folder / CHECKPOINT)

    def resume(self) -> None:
        """Goes back to where the checkpoint in `folder` was written.

        Raises:
            RequestError: there is none, it belongs to another run, or the best weights that it tells of are gone.
            FileFormatError: it is damaged.
        """
        path = self.folder / CHECKPOINT
        state = load_checkpoint(path)
        for key, value in self.identity().items():
            if state[key] != value:
                raise RequestError(f"{path} belongs to another run: its {key} is {_shortened(state[key])}, not {_shortened(value)}")
        if state["best_epoch"] is not None and not self.weights_path.is_file():
            raise RequestError(f"{self.weights_path}, the best weights of this run so far, is gone: start again with --force")
        self.origin = state["weights_origin"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **state["scheduler"]})
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._random_state = state["random"]
        self.epoch, self.step = state["epoch"], state["step"]
        self.sums.copy_(state["sums"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.best = next((record for record in self.history if record.epoch == state["best_epoch"]), None)

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        return {
            "model_name": self.info.name,
            "options": dict(self.info.options),
            "recipe": self.recipe.to_dict(),
            "dataset": self.dataset,
            "pictures": [self.parts.train_indices.numel(), self.parts.validation_indices.numel()],
        }

    def describe(self, test: Metrics | None = None) -> dict[str, Any]:
        """What the file of the weights says of them. No dates, no machine: the same run gives the same text."""
        assert self.best is not None
        return {
            "model": self.info.name,
            "options": dict(self.info.options),
            "classes": list(self.parts.train.classes),
            "preprocessing": self.info.preprocessing.to_dict(),
            "dataset": self.dataset,
            "pictures": {"train": self.parts.train_indices.numel(), "validation": self.parts.validation_indices.numel()},
            "started_from": self.origin,
            "recipe": self.recipe.to_dict(),
            "best_epoch": self.best.epoch,
            "history": [record.results() for record in self.history],
            "test": None if test is None else {"pictures": test.pictures, "correct": test.correct, "top1": test.top1, "loss": test.loss},
        }

    def _write_curves(self) -> None:
        write_csv(self.history, self.folder / CURVES_CSV)
        plot_curves(self.history, self.folder / CURVES_PNG, f"{self.info.name} on {self.dataset}")

    def _stopped(self) -> KeyboardInterrupt:
        return Terminated() if self._stop_signal == signal.SIGTERM else KeyboardInterrupt()

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM wait for the end of a step, once. Signals can be handled in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: object) -> None:
            again = self._stop_signal is not None
            self._stop_signal = number
            if again:
                raise self._stopped()

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _count_steps(pictures: int, batch_size: int) -> tuple[int, int]:
    """(steps, pictures) of an epoch: a last batch of one picture is left out."""
    if pictures > batch_size > 1 and pictures % batch_size == 1:
        pictures -= 1
    return math.ceil(pictures / batch_size), pictures


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        raise RequestError("autocast is for CUDA: a CPU trains in float32")
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:200] + "…"
