"""What ``demo`` and ``compare`` share: announce, assess, write, print."""

from __future__ import annotations

from collections.abc import Mapping

from hoplon.cli.console import print_status, progress_bars, show, show_json
from hoplon.cli.output_folder import OutputFolder
from hoplon.comparison.assessment import AssessmentPlan, MakeArm, announcement, assess
from hoplon.program.capturing import capture
from hoplon.report.document import write_document
from hoplon.report.page import write_page
from hoplon.report.verdicts import verdict
from hoplon.zoo.entries import ZooData, ZooModel


def run_assessment(
    model: ZooModel,
    data: ZooData,
    plan: AssessmentPlan,
    *,
    out: OutputFolder,
    command: str,
    as_json: bool,
    resume: bool = False,
    more_arms: Mapping[str, MakeArm] | None = None,
) -> None:
    """Assess a model on data; leave page, document and runs in the folder; print tables and verdict, or the document.

    Args:
        command: gives these results again.
        resume: take the finished arms of an earlier run in the folder.
        more_arms: beside the standard ones.
    Raises:
        HoplonError: bad input of any kind, with one clear message.
        KeyboardInterrupt: after saying what is kept.
    """
    page = out.path / "report.html"
    try:
        program = capture(model.module, model.example, name=model.name)
        print_status(announcement(program, data.held_out, plan, more_arms=len(more_arms or {})))
        with out.runs(resume=resume) as runs:
            with progress_bars() as report_progress:
                found = assess(
                    program,
                    calibration=data.calibration,
                    held_out=data.held_out,
                    plan=plan,
                    more_arms=more_arms,
                    store=runs,
                    resume=resume,
                    progress=report_progress,
                )
            document = {**found.to_dict(), "command": command, "report": str(page)}
            write_page(page, document)
            write_document(out.path / "results.json", document)
    except KeyboardInterrupt:
        print_status(f"Interrupted. Saved: {out.kept}")
        raise
    if as_json:
        show_json(document)
    else:
        show(found.comparison.tables(), [(part.title, part.sentences) for part in verdict(document)])
    print_status(f"wrote {page}, {out.path / 'results.json'} and {out.path / 'runs'}")
