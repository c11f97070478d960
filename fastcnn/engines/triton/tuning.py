"""Chooses the fastest of the implementations of a convolution by running them, each first held against the library's
answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from fastcnn.engines.triton.choices import Choice, ChoiceStore, Variant
from fastcnn.engines.triton.compile_ahead import CompileJob, compile_jobs, note_jobs
from fastcnn.engines.triton.device_clock import device_milliseconds
from fastcnn.engines.triton.implementations.base import Implementation
from fastcnn.engines.triton.implementations.group import ConvGroup, GroupChoice, bind_group, group_configs, may_group
from fastcnn.engines.triton.implementations.table import BY_NAME, implementations
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.problem import ConvProblem
from fastcnn.engines.triton.steps import ConvolutionStep
from fastcnn.engines.triton.streams import run_side_by_side
from fastcnn.engines.triton.trial import LOSES_NAN, Trial, compile_candidates
from fastcnn.errors import BackendError
from fastcnn.kernels.convolution_configs import ConvConfig

log = logging.getLogger(__name__)

# Of the time for measuring, what is kept for groups where there may be any: without it the first process, which measures
# convolutions for as long as it may, would group nothing, and the next one would.
_SHARE_FOR_GROUPS = 1 / 3
# Of the time for measuring, what compiling ahead may take at most.
_SHARE_FOR_COMPILING = 0.7


class Timing(NamedTuple):
    """What one candidate took. The smallest is the fastest."""

    milliseconds: float
    implementation: str
    variant: Variant


class Chooser:
    """Chooses for the problems of one network on one device: from the store, by measuring while there is time, by
    prediction after that."""

    def __init__(self, device: torch.device, options: TritonOptions, store: ChoiceStore) -> None:
        self.device, self.options, self.store = device, options, store
        self._candidates = implementations(options.implementations)
        self._deadline = self._end = 0.0
        self._untimed: set[str] = set()
        self._streams: list[torch.cuda.Stream] = []

    def start_clock(self) -> None:
        """From now on `tuning_seconds` may be spent, a third of them on groups only."""
        self._end = time.monotonic() + self.options.tuning_seconds
        kept = _SHARE_FOR_GROUPS if self._may_group() and self.options.grouped == "measured" else 0.0
        self._deadline = self._end - kept * self.options.tuning_seconds

    def start_groups(self) -> None:
        """What follows may take the time that was kept for groups, and what convolutions have left."""
        self._deadline = self._end

    def compile_ahead(self, wanted: Iterable[tuple[ConvProblem, ConvolutionStep]]) -> None:
        """Compile in parallel what `choose_all` will measure for these problems, the best guesses for all of them
        first."""
        if self.device.type == "cuda" and self._can_measure():
            compile_candidates(wanted, self._candidates, self.device, _SHARE_FOR_COMPILING * (self._deadline - time.monotonic()))

    def compile_groups_ahead(self, groups: Iterable[ConvGroup]) -> None:
        """Compile in parallel what `choose_group` will measure."""
        jobs: list[CompileJob] = []
        for group in groups:
            if self.device.type == "cuda" and self._can_measure() and self._is_tried(group):
                jobs += note_jobs([run for _, run in self._bind_group(group)])
        if jobs:
            compile_jobs(jobs, _SHARE_FOR_COMPILING * (self._deadline - time.monotonic()))

    def choose_all(self, wanted: Iterable[tuple[ConvProblem, ConvolutionStep]]) -> list[Choice]:
        """The implementation for each convolution, in order; one that is measured is measured with the weights of its
        step. Each implementation's best guess is measured for all of them before anyone's second for the first: what is
        left undone when time is over matters least.

        Raises:
            BackendError: none of those that may be used can compute one of them; names each and its reason.
        """
        wanted = list(wanted)
        unknown = {problem.key: (problem, step) for problem, step in wanted if self._known(problem) is None}
        if unknown and self._can_measure():
            kept = f"; the choices are kept in {self.store.path}" if self.store.path else ""
            log.info("measuring the implementations of %d convolutions, for at most %.0f s%s", len(unknown), self._deadline - time.monotonic(), kept)
        self.compile_ahead(unknown.values())
        timed: dict[str, list[Timing]] = {key: [] for key in unknown}
        variants = {
            key: [(implementation, implementation.variants(problem, self.device)) for implementation in self._able(problem)]
            for key, (problem, _) in unknown.items()
        }
        for rank in range(max((len(some) for pairs in variants.values() for _, some in pairs), default=0)):
            for key, (problem, step) in unknown.items():
                candidates = [(implementation, some[rank]) for implementation, some in variants[key] if rank < len(some)]
                if candidates and self._can_measure():
                    timed[key] += self._measure(problem, step, candidates)
        for key, results in timed.items():
            if results:
                self.store.put(key, _fastest(results))
        return [self._known(problem) or self._predicted(problem) for problem, _ in wanted]

    def _known(self, problem: ConvProblem) -> Choice | None:
        """What needs no measuring: a stored choice that can still be had, or the only one that can."""
        able = self._able(problem)
        stored = self.store.get(problem.key)
        # The variant too: one that another version measured may be refused by this one.
        if stored is not None and any(
            stored.implementation == implementation.name and stored.variant in implementation.variants(problem, self.device, most=None)
            for implementation in able
        ):
            return stored
        only = able[0].variants(problem, self.device)
        return Choice(able[0].name, only[0], None, "the only one that can") if len(able) == len(only) == 1 else None

    def _predicted(self, problem: ConvProblem) -> Choice:
        first = self._able(problem)[0]
        return Choice(first.name, first.variants(problem, self.device)[0], None, "predicted, not measured")

    def choose_group(self, group: ConvGroup) -> GroupChoice | None:
        """How to launch a group together, or None where its convolutions are faster one by one, or not known to be
        slower."""
        found = self.store.get(group.key)
        if not self._is_tried(group):
            stored = GroupChoice.from_stored(found) if found is not None and self._may_group() else None
            return stored if stored is not None and stored.config is not None else None
        if self.options.grouped == "measured" and not self._can_measure():
            return None
        if not self._can_measure():
            return GroupChoice(group_configs(group.problems, self.device)[0], None, "asked for")
        timed: list[tuple[float, int, ConvConfig]] = []
        for rank, (config, run) in enumerate(self._bind_group(group)):
            try:
                milliseconds = self._time(run, f"group with {config}")
            except torch.cuda.OutOfMemoryError:
                break
            if milliseconds is not None:
                timed.append((milliseconds, rank, config))
        if not timed:
            return None
        best, _, config = min(timed)
        alone = self._time_alone(group)
        if alone is not None and best >= alone and self.options.grouped == "measured":
            separate = GroupChoice(None, best, f"{best / alone:.2f}× the time of {len(group.steps)} launches")
            self.store.put(group.key, separate.to_store())
            return None
        choice = GroupChoice(config, best, "" if alone is None else f"{alone / best:.2f}× as fast as {len(group.steps)} launches")
        self.store.put(group.key, choice.to_store())
        return choice

    def _time_alone(self, group: ConvGroup) -> float | None:
        """Milliseconds of the convolutions of a group without it, as the network would run them: where launches of one
        level run side by side, the time of all of them at once, which is less than the sum of their times."""
        if not self.options.concurrent or group.alone is None or not group.choices:
            return group.alone
        try:
            calls = [
                Trial(problem, step, self.device).bind(BY_NAME[choice.implementation], choice.variant)
                for problem, step, choice in zip(group.problems, group.steps, group.choices, strict=True)
            ]
            together = self._time(lambda: self._run_side_by_side(calls), f"{len(calls)} launches side by side")
        except torch.cuda.OutOfMemoryError:
            together = None
        return group.alone if together is None else min(together, group.alone)

    def _run_side_by_side(self, calls: Sequence[Callable[[], object]]) -> None:
        if self.device.type != "cuda":
            for call in calls:
                call()
            return
        while len(self._streams) < len(calls) - 1:
            self._streams.append(torch.cuda.Stream(self.device))
        run_side_by_side(calls, self._streams)

    def _may_group(self) -> bool:
        return self.options.grouped != "never" and may_group(self.options.implementations)

    def _is_tried(self, group: ConvGroup) -> bool:
        """Whether a group is timed, or taken untimed where that was asked for."""
        if self.options.grouped == "measured" and (group.alone is None or self.store.get(group.key) is not None):
            return False
        return self._may_group()

    def _bind_group(self, group: ConvGroup) -> list[tuple[ConvConfig, Callable[[], object]]]:
        """The configurations worth timing, each with the launch of random operands."""
        try:
            trials = [Trial(problem, step, self.device) for problem, step in zip(group.problems, group.steps, strict=True)]
        except torch.cuda.OutOfMemoryError as error:
            log.warning("%s is not measured: %s", group.key, str(error).partition("\n")[0])
            return []
        weights, operands = [trial.weights for trial in trials], [trial.operands for trial in trials]
        return [(config, bind_group(group.problems, weights, operands, config)) for config in group_configs(group.problems, self.device)]

    def _able(self, problem: ConvProblem) -> list[Implementation]:
        reasons = {implementation.name: implementation.why_not(problem, self.device) for implementation in self._candidates}
        able = [implementation for implementation in self._candidates if reasons[implementation.name] is None]
        if not able:
            raise BackendError(f"backend 'triton' has no implementation for {problem.key}: " + "; ".join(f"{n}: {why}" for n, why in reasons.items()))
        return able

    def _has_time(self) -> bool:
        return time.monotonic() < self._deadline

    def _can_measure(self) -> bool:
        return self.device.type == "cuda" and self._has_time()

    def _measure(self, problem: ConvProblem, step: ConvolutionStep, candidates: Sequence[tuple[Implementation, Variant]]) -> list[Timing]:
        """Of each candidate that is right, as far as there is time and memory: a trial takes more of it than the network."""
        timed: list[Timing] = []
        try:
            self._measure_into(timed, Trial(problem, step, self.device), candidates)
        except torch.cuda.OutOfMemoryError as error:
            log.warning("%s is measured no further: %s", problem.key, str(error).partition("\n")[0])
        return timed

    def _measure_into(self, timed: list[Timing], trial: Trial, candidates: Sequence[tuple[Implementation, Variant]]) -> None:
        for implementation, variant in candidates:
            if not self._has_time():
                break
            if implementation.name in self._untimed:
                continue
            what = f"{implementation.label(trial.problem, variant)} on {trial.problem.key}"
            try:
                reason = trial.check(implementation, variant)
            except Exception as error:
                log.info("%s does not run: %s", what, error)
                continue
            if reason:
                log.log(logging.INFO if reason == LOSES_NAN else logging.WARNING, "%s is left out: %s", what, reason)
                continue
            milliseconds = self._time(trial.bind(implementation, variant), what)
            if milliseconds is None:
                # It runs and cannot be captured: neither could the network with it be, and each failure may cost more.
                log.warning("%s is measured no further", implementation.name)
                self._untimed.add(implementation.name)
                continue
            timed.append(Timing(milliseconds, implementation.name, variant))

    def _time(self, run: Callable[[], object], what: str) -> float | None:
        try:
            return device_milliseconds(run, self.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            log.info("%s could not be timed: %s", what, error)
            return None


def _fastest(timed: Sequence[Timing]) -> Choice:
    """The choice among these."""
    ordered = sorted(timed)
    best, name, variant = ordered[0]
    others = {other: milliseconds for milliseconds, other, _ in reversed(ordered) if other != name}
    why = f"fastest of {len(ordered)}" + "".join(f"; {other} {milliseconds / best:.2f}× its time" for other, milliseconds in others.items())
    return Choice(name, variant, best, why)
