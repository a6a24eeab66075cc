"""`depthscope demo`: from a generated corpus to a page that shows how a model uses its depth."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from depthscope.analysis import analyze, findings, open_result, write_report
from depthscope.pipeline.demo_corpus import make_demo_corpus

from .extraction import extract
from .progress import Progress
from .spec import ExtractSpec

#: Documents that get lens values: enough for a clear curve, few enough for two cores.
_LENS_DOCUMENTS = "32"


def demo(out: Path, *, engine: Literal["ray", "process"], progress: Progress) -> Path:
    """Generate a corpus, extract, analyse, report; prints where the report is and what it found.

    Parameters
    ----------
    out
        Folder for corpus, store and report; what is there already is continued.

    Returns
    -------
    Path
        The report.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus, store, report = out / "corpus.jsonl", out / "store", out / "report.html"
    make_demo_corpus(corpus, seed=0)
    extract(
        ExtractSpec(
            model="demo",
            data=(str(corpus),),
            text_field="text",
            out=store,
            lens_rows=_LENS_DOCUMENTS,
            engine=engine,
        ),
        progress=progress,
    )
    results = {
        name: open_result(path)
        for name, path in analyze(store, ["contributions", "lens"], report=progress.message).items()
    }
    write_report([store], report)
    print(f"Report: {report.resolve().as_uri()}")
    for sentence in findings(results["contributions"], results["lens"]):
        print(sentence)
    return report
