"""What ``demo`` and ``compare`` share: announce, assess, write, print."""

from __future__ import annotations

from collections.abc import Mapping

from typer import Context

from hoplon.cli.console import interruptible, print_status, progress_bars, show
from hoplon.cli.options.command_line import command_of
from hoplon.cli.output_folder import OutputFolder
from hoplon.comparison.assessment import ArmPlan, AssessmentPlan, announcement, assess, standard_arms
from hoplon.program.capturing import capture
from hoplon.report.document import write_document
from hoplon.report.page import write_page
from hoplon.report.verdicts import verdict
from hoplon.zoo.entries import ZooData, ZooModel


def run_assessment(
    context: Context,
    model: ZooModel,
    data: ZooData,
    plan: AssessmentPlan,
    *,
    out: OutputFolder,
    arms: Mapping[str, ArmPlan] | None = None,
) -> None:
    """Assess a model on data; leave page, document and runs in the folder; print tables and verdict, or the document.

    Args:
        context: of the command, which has ``as_json`` and ``resume`` among its options.
        arms: by name; the standard ones by default.
    Raises:
        HoplonError: bad input of any kind, with one clear message.
        KeyboardInterrupt: after saying what is kept.
    """
    chosen = arms or standard_arms()
    page, resume = out.path / "report.html", context.params["resume"]
    with interruptible(lambda: out.kept):
        program = capture(model.module, model.for_data(data.held_out).example, name=model.name)
        print_status(announcement(program, data.held_out, plan, arms=len(chosen)))
        with out.runs(resume=resume) as runs:
            with progress_bars() as report_progress:
                found = assess(
                    program,
                    calibration=data.calibration,
                    held_out=data.held_out,
                    plan=plan,
                    arms=chosen,
                    store=runs,
                    resume=resume,
                    progress=report_progress,
                )
            document = {**found.to_dict(), "command": command_of(context), "report": str(page)}
            write_page(page, document)
            write_document(out.path / "results.json", document)
    verdicts = [(part.title, part.sentences) for part in verdict(document)]
    show(document, found.comparison.tables(), verdicts, as_json=context.params["as_json"])
    print_status(f"wrote {page}, {out.path / 'results.json'} and {out.path / 'runs'}")
