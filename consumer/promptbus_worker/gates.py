"""Which models may be called now: each has a breaker, and a budget of dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from promptbus.messages import ErrorCode
from promptbus_worker.batcher import Batch
from promptbus_worker.breaker import Breaker
from promptbus_worker.dead_letter_budget import IN_A_ROW, TRY_EVERY_S, WINDOW, DeadLetterBudget
from promptbus_worker.record import Pending

log = logging.getLogger(__name__)


class Gates:
    """One gate for each model."""

    def __init__(self, models: Collection[str]) -> None:
        self.breakers = {model: Breaker() for model in models}
        self._budgets = {model: DeadLetterBudget() for model in models}

    def calm(self, now: float) -> bool:
        """Whether every model may be called, and nothing has to be done about any."""
        for model, breaker in self.breakers.items():
            if not breaker.may_call(now) or self._budgets[model].exhausted:
                return False
        return True

    def blocked(self, now: float) -> list[str]:
        """Models of which no batch may go out."""
        return [
            model
            for model, breaker in self.breakers.items()
            if not (breaker.may_call(now) and self._budgets[model].may_dispatch(now))
        ]

    def resumes_in(self, now: float) -> float | None:
        """Seconds until a batch or a probe may go out that may not now; None if no time is being waited for."""
        times = [breaker.resumes_in(now) for breaker in self.breakers.values()]
        times += [budget.resumes_in(now) for budget in self._budgets.values()]
        return min((time for time in times if time is not None), default=None)

    @property
    def breaker_open(self) -> bool:
        """Whether a model's breaker is."""
        return any(breaker.is_open for breaker in self.breakers.values())

    @property
    def budget_exhausted(self) -> bool:
        """Whether a model's budget of dead letters is."""
        return any(budget.exhausted for budget in self._budgets.values())

    def all_closed(self, waits: Callable[[str], bool], now: float) -> bool:
        """Whether no record is worth fetching. `waits`: whether a model has requests for a trial already."""
        return all(
            self.breakers[model].is_down
            or (budget.exhausted and (waits(model) or not budget.may_dispatch(now)))
            for model, budget in self._budgets.items()
        )

    def starts(self, batch: Batch) -> None:
        """This batch goes out."""
        budget = self._budgets[batch.model]
        if budget.exhausted:
            batch.is_trial = True
            budget.begin_trial()

    def ended(self, batch: Batch, now: float) -> None:
        """All of its requests are answered or wait again."""
        if batch.is_trial and self._budgets[batch.model].end_trial(now):
            log.warning("the model answers again: going on", extra={"model": batch.model})

    def answered(self, requests: Sequence[Pending], now: float) -> None:
        """Requests of one model have their outcome, the same `request.code`."""
        model = requests[0].model
        if requests[0].code is None and model is not None:
            self._budgets[model].note_answers(len(requests))
            return
        for request in requests:
            self._answered_with_error(request, now)

    def _answered_with_error(self, request: Pending, now: float) -> None:
        if request.code is ErrorCode.REPLY_TOO_LARGE:
            dead_lettered = False
        elif request.code is not None and request.code.operator_side:
            dead_lettered = True
        else:
            return  # it says nothing about the model
        # A defect of ours that shows before a model is known is nobody's in particular.
        models = self._budgets if request.model is None else (request.model,)
        for model in models:
            if self._budgets[model].note(dead_lettered, now):
                log.error(
                    f"dead letters: {IN_A_ROW} in a row, or more than half of the last {WINDOW} outcomes. Pausing, "
                    f"so as not to move the whole topic there; one batch is tried every {TRY_EVERY_S:g} s",
                    extra={"model": model, "code": request.code},
                )
