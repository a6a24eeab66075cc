"""Programs that speak to a cluster: what they answer, or in one line why they do not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from depthscope.storage.errors import RequestError

#: Seconds after which a program counts as stuck.
PATIENCE = 60


class NoAnswer(RequestError):
    """The cluster did not answer in time; the next question would take as long."""


@dataclass(frozen=True)
class ClusterProgram:
    """The programs of one kind of cluster.

    Attributes
    ----------
    who
        Who is asked, for messages.
    absent
        What to say of a program, ``{program}``, that is not on the path.
    refusal
        Makes one line of what a program says on stderr when it refuses.
    """

    who: str
    absent: str
    refusal: Callable[[str], str]

    def ask(self, command: Sequence[str], text: str | None = None) -> str:
        """Run a program.

        Parameters
        ----------
        command
            Its words, the name first.
        text
            What it reads.

        Returns
        -------
        str
            What it prints.

        Raises
        ------
        NoAnswer
            It took too long.
        RequestError
            It is not there, or refuses.
        """
        if shutil.which(command[0]) is None:
            raise RequestError(self.absent.format(program=command[0]))
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise NoAnswer(
                f"{self.who} did not answer within {PATIENCE} s: try again later"
            ) from None
        if done.returncode:
            raise RequestError(self.refusal(done.stderr))
        return done.stdout
