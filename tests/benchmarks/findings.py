"""What a benchmark found, and the table made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

Sense = Literal["at most", "at least", ""]


class BenchmarkFailed(Exception):
    """A benchmark could not be run, or did not do the work it was timed for."""


@dataclass(frozen=True)
class Finding:
    """One number of the table: the median of its samples, against what is asked of it.

    Attributes
    ----------
    what
        The line's name.
    samples
        Every sample taken; ratios are formed inside a round, then the median is taken.
    unit
        Written behind the number.
    sense, limit, aim
        ``at most`` or ``at least`` the limit, aiming at the aim. Without a sense the number is
        only reported.
    """

    what: str
    samples: Sequence[float]
    unit: str = ""
    sense: Sense = ""
    limit: float | None = None
    aim: float | None = None

    @property
    def value(self) -> float:
        return median(self.samples)

    @property
    def verdict(self) -> str:
        """``aim met``, ``met``, ``missed``, or nothing for a number that is only reported."""
        if self.limit is None:
            return ""
        sign = 1 if self.sense == "at least" else -1
        if self.aim is not None and sign * (self.value - self.aim) >= 0:
            return "aim met"
        return "met" if sign * (self.value - self.limit) >= 0 else "**missed**"

    @property
    def target(self) -> str:
        if self.limit is None:
            return ""
        aim = f", aim {self.aim:g}" if self.aim is not None else ""
        return f"{self.sense} {self.limit:g}{aim}"


@dataclass(frozen=True)
class Section:
    """One benchmark.

    Attributes
    ----------
    key, title, method
        Letter of the benchmark, its name, and how it was measured.
    findings
        Lines of its table.
    raw
        Every raw sample: name to values.
    """

    key: str
    title: str
    method: str
    findings: Sequence[Finding]
    raw: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self, surroundings: Mapping[str, Any]) -> dict[str, Any]:
        """The section with the machine and the commit it ran on."""
        content = asdict(self)
        for line, finding in zip(content["findings"], self.findings, strict=True):
            line.update(value=finding.value, verdict=finding.verdict.strip("*"))
        return {**content, **surroundings}


def save(sections: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Put sections beside those that an earlier run left, and write both files.

    Returns the path of RESULTS.md. A benchmark that was not run keeps its older section, which
    names the commit it came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "RESULTS.json"
    known = json.loads(samples.read_text()) if samples.exists() else {}
    known.update({section["key"]: section for section in sections})
    known = dict(sorted(known.items()))
    samples.write_text(json.dumps(known, indent=1) + "\n")
    table = folder / "RESULTS.md"
    table.write_text(render(list(known.values())))
    return table


def render(sections: Sequence[Mapping[str, Any]]) -> str:
    """RESULTS.md."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; nothing here is edited by hand. Every number is the median of the"
        " samples in brackets (smallest to largest); a ratio is formed inside one round, whose"
        " contestants take turns. All samples stand in `RESULTS.json`. A miss stays here.",
    ]
    for section in sections:
        lines += ["", f"## {section['key']}. {section['title']}", "", section["method"], ""]
        lines += ["| measured | median | samples | asked | |", "|---|--:|---|---|---|"]
        lines += [_line(finding) for finding in section["findings"]]
        lines += ["", _surroundings(section)]
    return "\n".join(lines) + "\n"


def _line(line: Mapping[str, Any]) -> str:
    finding = Finding(**{k: v for k, v in line.items() if k not in ("value", "verdict")})
    low, high = _number(min(finding.samples)), _number(max(finding.samples))
    spread = f"{low} – {high} ({len(finding.samples)})"
    value = f"{_number(finding.value)} {finding.unit}".strip()
    return f"| {finding.what} | {value} | {spread} | {finding.target} | {finding.verdict} |"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _surroundings(section: Mapping[str, Any]) -> str:
    machine = section["machine"]
    commit = section["commit"] + (" and uncommitted changes" if section["changed"] else "")
    quick = "; **a quick run: its numbers mean nothing**" if section["quick"] else ""
    return (
        f"<sub>Commit {commit}; {section['finished']}; {section['seconds']:.0f} s;"
        f" {machine['processor']}, {machine['cores']} cores, {machine['memory']},"
        f" {machine['filesystem']}, Linux {machine['kernel']}; {machine['software']};"
        f" load before {machine['load']}{quick}.</sub>"
    )
