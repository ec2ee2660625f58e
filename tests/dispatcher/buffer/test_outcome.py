"""Outcomes, and what they raise."""

import pytest

from dispatcher.buffer import DropReason, ItemDropped, ItemFailed, Outcome, OutcomeError, Status
from dispatcher.buffer.outcome import Ticket


class TestUnwrap:
    def test_returns_the_result(self) -> None:
        assert Outcome(Status.DELIVERED, "result").unwrap() == "result"
        assert Outcome(Status.DELIVERED).unwrap() is None

    def test_raises_the_error_behind_a_fresh_one(self) -> None:
        """One exception shared by a thousand receipts would pile up a thousand tracebacks."""
        error = ValueError("no")
        outcome: Outcome[None] = Outcome(Status.FAILED, error=error)
        raised = []
        for _ in range(2):
            with pytest.raises(ItemFailed) as caught:
                outcome.unwrap()
            raised.append(caught.value)

        assert raised[0] is not raised[1]
        assert [failed.error for failed in raised] == [error, error]
        assert raised[0].__cause__ is error
        assert error.__traceback__ is None
        assert str(raised[0]) == "the item failed: ValueError('no')"

    @pytest.mark.parametrize("reason", DropReason)
    def test_raises_the_reason_of_a_drop(self, reason: DropReason) -> None:
        with pytest.raises(ItemDropped) as caught:
            Outcome(Status.DROPPED, reason=reason).unwrap()
        assert caught.value.reason is reason
        assert str(caught.value) == f"the item was dropped: {reason.value}"

    def test_both_are_outcome_errors(self) -> None:
        assert issubclass(ItemFailed, OutcomeError)
        assert issubclass(ItemDropped, OutcomeError)


class TestTicket:
    def test_tells_only_who_listens(self) -> None:
        told: list[object] = []

        class Listening(Ticket):
            def tell(self) -> None:
                told.append(self.outcome)

        outcome: Outcome[None] = Outcome(Status.DELIVERED)
        unheard, heard = Listening(), Listening()
        heard.listeners = "somebody"
        unheard.settle(outcome)
        heard.settle(outcome)

        assert unheard.outcome is heard.outcome is outcome
        assert told == [outcome]
