"""Commands that decide: compare, gate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nan_merge.errors import ConfigError
from pipelines.cli_app import Debug, app, explain_errors, load_run, open_console, split_output
from pipelines.cli_evaluate import MovedData, ScorerChoice

if TYPE_CHECKING:
    from evaluators.profiles import ScorerName
    from pipelines.gate_config import Gate


Judge = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Count what this judge read (`rescore --judge`), of the benchmarks that it read and "
        "of no other.",
    ),
]


@app.command(
    epilog="Examples:\n\nnan-merge compare runs/quickstart\n\n"
    "nan-merge compare runs/quickstart --baseline TIES --flips letters\n\n"
    "nan-merge compare runs/evaluations/base runs/evaluations/merged --json\n\n"
    "nan-merge compare imported/ --output comparison/"
)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, evaluations or imports."),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model to compare with; by default the first run's first merge by Task "
            "Arithmetic, else its first model.",
        ),
    ] = None,
    flips: Annotated[
        str | None,
        typer.Option(metavar="BENCHMARK", help="List the samples of a benchmark that flipped."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --flips: most samples of each model.")
    ] = 10,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write comparison.html, .md and .json, and flips.jsonl there."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    resamples: Annotated[
        int, typer.Option(min=100, metavar="N", help="Resamples of each bootstrap.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the bootstraps.")] = 0,
    scorer: Annotated[
        ScorerChoice | None,
        typer.Option(help="Whose verdicts on language models; those of tables if absent."),
    ] = None,
    judge: Judge = None,
    data: MovedData = None,
    debug: Debug = False,
) -> None:
    """Compare models with a baseline, paired by sample: differences, intervals, tests, flips."""
    with explain_errors(debug):
        from pipelines.compare_command import compare_command

        compare_command(
            runs,
            open_console(),
            baseline=baseline,
            flips=flips,
            limit=limit,
            output=output,
            as_json=as_json,
            resamples=resamples,
            seed=seed,
            scorer=_scorer(scorer, judge),
            data=data,
            judge=judge,
        )


@app.command(
    epilog="Examples:\n\nnan-merge gate run.yaml\n\n"
    "nan-merge gate run.yaml gate.margin=2 gate.decide_on=average\n\n"
    "nan-merge gate --candidate 'runs/new:TIES' --baseline 'runs/release:TIES' --margin 1\n\n"
    "nan-merge gate run.yaml --junit gate.xml --markdown gate.md --json gate.json\n\n"
    "nan-merge gate --simulate 1000\n\n"
    "Exit codes: 0 pass, 1 fail, 3 inconclusive, 2 an error. docs/gate.md has CI jobs to copy."
)
def gate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            show_default=False,
            help="Run file with a section `gate:`, and changes to it; without a file, changes to "
            "the gate alone, e.g. decide_on=average margins.gsm8k=3.",
        ),
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The new model: FOLDER, FOLDER:MODEL, or a name."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that it must not fall behind.")
    ] = None,
    margin: Annotated[
        str | None,
        typer.Option(metavar="POINTS", help="Loss that is accepted, in percentage points."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JUnit XML (.xml).")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write JSON (.json).")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write Markdown for a pull request (.md).")
    ] = None,
    scorer: Annotated[
        ScorerChoice | None,
        typer.Option(help="Whose verdicts on language models; those of tables if absent."),
    ] = None,
    judge: Judge = None,
    data: MovedData = None,
    simulate: Annotated[
        int | None,
        typer.Option(
            min=100, metavar="N", help="Print the gate's own error rates over N simulated cases."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Decide whether a new model may take another's place: it loses less than a margin, surely.

    Reads finished runs, evaluations or imports; asks no model anything.
    """
    code = 0
    with explain_errors(debug):
        from pipelines.gate_command import EXIT_CODES, gate_command
        from pipelines.gate_view import GateFiles, errors_in

        if simulate is not None:
            from pipelines.gate_simulation import print_error_rates

            print_error_rates(simulate, open_console())
            return
        from pipelines.compared_models import AnswerReader

        files = GateFiles(json_file, junit, markdown)
        files.check()
        options = {"candidate": candidate, "baseline": baseline, "margin": margin}
        reader = AnswerReader(_scorer(scorer, judge), data, judge)
        with errors_in(files):
            section, folder = _gate_section(arguments or (), options)
            report = gate_command(section, folder, reader, open_console(), files)
        code = EXIT_CODES[report.verdict]
    raise typer.Exit(code)


def _scorer(scorer: ScorerChoice | None, judge: str | None) -> ScorerName | None:
    if scorer is not None and judge is not None:
        raise ConfigError("--judge brings a scorer of its own; leave --scorer out.")
    return scorer.value if scorer is not None else None


def _gate_section(
    arguments: Sequence[str], options: Mapping[str, str | None]
) -> tuple[Gate, Path | None]:
    """The gate to decide, and the folder of the run that its file tells."""
    from nan_merge.yaml_config import check_document
    from nan_merge.yaml_text import Document
    from pipelines.gate_config import Gate

    config, overrides = split_output(arguments)
    # JSON is YAML: a model's name may hold anything.
    given = {
        name: value if name == "margin" else json.dumps(value)
        for name, value in options.items()
        if value is not None
    }
    if config is None:
        changes = [f"{name}={value}" for name, value in given.items()]
        document = Document("the command line", {})
        return check_document(document, Gate, [*overrides, *changes]), None
    changes = [f"gate.{name}={value}" for name, value in given.items()]
    checked = load_run(Path(config), [*overrides, *changes])
    if checked.gate is None:
        raise ConfigError(
            f"{config} has no section `gate:`. Add one with `candidate`, `baseline` and `margin`, "
            "or give --candidate, --baseline and --margin."
        )
    return checked.gate, checked.folder
