"""Slots that samples enter at any step, and static batching by the same engine and the same rows, for comparison."""

from __future__ import annotations

from runtime.serve.slots import Slots


class StaticBatches(Slots):
    """A batch begins when the one before it has ended, with whatever waits then, of any number of steps.

    It is better than what is usual: each request is answered when its own samples are done, not when the batch is.
    """

    def _admit(self) -> None:
        if not self.occupied:
            super()._admit()


class StaticBatchesOfOneTable(StaticBatches):
    """A batch of requests with the same sampler and the same steps, as a pipeline that is called with a batch needs.

    The request that came first says which.
    """

    def _admit(self) -> None:
        if self.occupied:
            return
        first = self._order.next()
        if first is None:
            return
        others = [ticket for ticket in self._order if ticket.table is not first.table]
        for ticket in others:
            self._order.remove(ticket)
        super()._admit()
        for ticket in others:
            self._order.put_back(ticket)


POLICIES: dict[str, type[Slots]] = {
    "slots": Slots,
    "static": StaticBatches,
    "static, one table": StaticBatchesOfOneTable,
}
