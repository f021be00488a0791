"""The one error a person can cause: what is wrong, where, and what to do about it."""

from __future__ import annotations

from llmlab.readable import bounded


class LabError(Exception):
    """Something the person asked for cannot be done. Parts that are too long to be read are shortened.

    Attributes:
        what: what is wrong, with the offending value.
        where: the option, file or row it is about ("" when `what` already says it).
        remedy: what to do ("" when there is nothing to add).
        exit_code: 2, "what was asked cannot be done"; 1 where the run itself failed.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", exit_code: int = 2):
        self.what = bounded(what)
        self.where = bounded(where)
        self.remedy = bounded(remedy)
        self.exit_code = exit_code
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}: {self.remedy}" if self.remedy else text

    def at(self, where: str) -> LabError:
        """Returns the same error with its place named more widely (a file around an option)."""
        place = f"{where}: {self.where}" if self.where else where
        return LabError(self.what, where=place, remedy=self.remedy, exit_code=self.exit_code)


class ProcessLost(LabError):
    """Another process of the job is gone, or does not come: the cause is there.

    Attributes:
        late: whether it did not come in time.
    """

    def __init__(self, what: str, *, where: str, remedy: str, late: bool):
        super().__init__(what, where=where, remedy=remedy, exit_code=1)
        self.late = late
