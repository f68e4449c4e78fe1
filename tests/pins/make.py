"""Make the fixtures and the pinned digests anew: ``python -m tests.pins.make``, only where a change is meant.

What has only another name is one line in ``renames.py`` instead.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import torch
import torch.fx.config

import hoplon as hp
from hoplon.cli.app import main as command_line
from tests.pins import campaigns, fixtures as files, study
from tests.pins.digests import record


def make_run_directories() -> None:
    """Five campaigns, one of them stopped after its first unit."""
    campaigns.values(store=files.VALUES)
    campaigns.half_width_values(store=files.HALF_WIDTH)
    campaigns.guards_memory().run(count=100, seed=campaigns.SEED, store=files.GUARDS)
    with contextlib.suppress(files.StoppedError):
        files.long_campaign(files.STOPPED, stop_after=1024)
    files.write_inputs_of_the_command(Path())
    with contextlib.redirect_stdout(io.StringIO()):
        status = command_line(files.command())
    if status:
        raise SystemExit(status)
    shutil.move("memory", files.MEMORY)


def make_files() -> None:
    """A bundle, ranges, scores and a study."""
    hp.save_bundle(files.hardened(), files.BUNDLE)
    campaigns.ranges().save(files.RANGES)
    campaigns.scores().save(files.SCORES)
    study.run(files.STUDY, study.found)
    about = files.STUDY / study.FOLDER / "study.json"
    manifest = files.read_json(about)
    files.write_json(about, {**manifest, "machine": {**manifest["machine"], "cpu": "a processor"}})


def make_digests() -> None:
    """What the campaigns and the fixtures hold."""
    pinned = {
        "campaigns": {
            name: {label: record(results) for label, results in run().items()}
            for name, run in campaigns.CAMPAIGNS.items()
        },
        "directories": {name: record(hp.load_results(path)) for name, path in files.COMPLETE.items()},
        "stopped": record(hp.load_results(files.STOPPED)),
        "resumed": record(files.long_campaign(None)),
        "study": record(hp.load_results(files.STUDY / study.RUN)),
        "bundle": files.read_bundle(files.BUNDLE),
        "ranges": files.read_ranges(files.RANGES),
        "scores": files.read_scores(files.SCORES),
    }
    files.write_json(files.DIGESTS, pinned)


def main() -> None:
    """Make everything, with one thread, in a folder of its own."""
    torch.set_num_threads(1)
    torch.fx.config.do_not_emit_stack_traces = True  # they name folders, in a bundle too
    shutil.rmtree(files.FIXTURES, ignore_errors=True)
    files.FIXTURES.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_run_directories()
        make_files()
        make_digests()
        os.chdir(files.HERE)


if __name__ == "__main__":
    main()
