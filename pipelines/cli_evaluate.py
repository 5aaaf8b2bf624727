"""Commands about language models' answers: evaluate, rescore, predictions."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nan_merge.errors import ConfigError
from pipelines.cli_app import Debug, app, explain_errors, open_console

predictions = typer.Typer(no_args_is_help=True, help="Read what models answered.")
app.add_typer(predictions, name="predictions")

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the data: of one benchmark, or with a folder for each.",
        envvar="NAN_MERGE_DATA",
    ),
]


MovedData = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder of the data, if it is not where it was."),
]


class BackendName(StrEnum):
    """What a model can run on."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"


class DtypeName(StrEnum):
    """Types of a model's arithmetic."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class EngineName(StrEnum):
    """Who asks and scores."""

    NAN_MERGE = "nan-merge"
    OPENCOMPASS = "opencompass"


class DeviceName(StrEnum):
    """Where transformers computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ScorerChoice(StrEnum):
    """A profile's scorers."""

    COMPAT = "compat"
    STRICT = "strict"


@app.command(
    epilog="Examples:\n\nnan-merge evaluate merged/ --benchmarks mmlu,gsm8k --data data/\n\n"
    "nan-merge evaluate merged/ --benchmarks mmlu --profile mmlu=oc-gen-5shot --limit 10\n\n"
    "nan-merge evaluate org/model@main --benchmarks gsm8k --backend transformers --dtype float32"
    "\n\nnan-merge evaluate merged/ --benchmarks mmlu --subsets anatomy,astronomy"
    "\n\nnan-merge evaluate merged/ --benchmarks bbh --engine opencompass"
)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder or hub id.")],
    benchmarks: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated: mmlu, ceval, ceval-test, bbh, gsm8k; of pictures mathvista, "
            "wemath, ai2d, geoqa; or a YAML file that describes your own.",
        ),
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BENCHMARK=PROFILE", help="How a benchmark is asked; may be given repeatedly."
        ),
    ] = None,
    data: Data = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Ask only the first N samples of each subset."),
    ] = None,
    subsets: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Ask only these subsets; there is no average then."),
    ] = None,
    backend: Annotated[
        BackendName, typer.Option(help="What the model runs on.")
    ] = BackendName.VLLM,
    dtype: Annotated[DtypeName, typer.Option(help="Type of the arithmetic.")] = DtypeName.BFLOAT16,
    device: Annotated[DeviceName, typer.Option(help="For transformers.")] = DeviceName.AUTO,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="For vLLM: GPUs that the model is spread over.")
    ] = 1,
    eager: Annotated[
        bool | None,
        typer.Option(
            "--eager/--compile", help="For vLLM: start at once, or compile the model first."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Most tokens of a prompt and its answer together."),
    ] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option(
            "--chat-template/--no-chat-template",
            help="Apply the model's chat template or not, whatever the profile says.",
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(help="Who asks and scores: this program, or OpenCompass as it is."),
    ] = EngineName.NAN_MERGE,
    opencompass_python: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For --engine opencompass: the interpreter of the environment that has it; "
            ".venv-opencompass/bin/python if absent.",
            envvar="NAN_MERGE_OPENCOMPASS",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of results; runs/evaluations/MODEL if absent."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Ask a language model the questions of benchmarks, and score its answers.

    What was answered before is not asked again; an interrupted evaluation goes on where it stood.
    """
    with explain_errors(debug):
        from pipelines.language_command import evaluate_command
        from pipelines.language_config import BackendSpec, BenchmarkSpec, EngineSpec

        if not _names(benchmarks):
            raise ConfigError("--benchmarks names none; give some, e.g. --benchmarks mmlu,gsm8k.")
        profiles = _profiles(profile or (), _names(benchmarks))
        specs = [
            BenchmarkSpec(
                name=name,
                profile=profiles.get(name),
                limit=limit,
                subsets=tuple(_names(subsets or "")),
                chat_template=chat_template,
            )
            for name in _names(benchmarks)
        ]
        spec = BackendSpec.model_validate(
            {
                "name": backend.value,
                "dtype": dtype.value,
                "device": device.value,
                "tensor_parallel": tensor_parallel,
                "eager": eager,
                "max_length": max_length,
            }
        )
        asker = EngineSpec(name=engine.value, python=opencompass_python)
        evaluate_command(model, specs, spec, open_console(), data=data, output=output, engine=asker)


@app.command(
    epilog="Examples:\n\nnan-merge rescore runs/evaluations/merged\n\n"
    "nan-merge rescore runs/table2 --data /elsewhere/data\n\n"
    "nan-merge rescore runs/table3 --judge Qwen/Qwen2.5-7B-Instruct\n\n"
    "nan-merge rescore runs/table3 --judge ./judge --backend transformers --dtype float32"
)
def rescore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of an evaluation or a run.")],
    data: MovedData = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Checkpoint folder or hub id of a language model that reads those answers to "
            "mathvista, wemath, ai2d and geoqa in which the rules find none; scores with it have "
            "another name.",
        ),
    ] = None,
    backend: Annotated[
        BackendName, typer.Option(help="What the judge runs on.")
    ] = BackendName.VLLM,
    dtype: Annotated[
        DtypeName, typer.Option(help="Type of the judge's arithmetic.")
    ] = DtypeName.BFLOAT16,
    device: Annotated[
        DeviceName, typer.Option(help="For a judge on transformers.")
    ] = DeviceName.AUTO,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="For vLLM: GPUs that the judge is spread over.")
    ] = 1,
    debug: Debug = False,
) -> None:
    """Score answers again, with the scorers of today; no model is asked anything, unless --judge
    names one.
    """
    with explain_errors(debug):
        from pipelines.judging import JudgeSpec
        from pipelines.language_command import rescore_command
        from pipelines.language_config import BackendSpec

        options = {"name": backend, "dtype": dtype, "device": device}
        spec = BackendSpec.model_validate(
            {key: value.value for key, value in options.items()}
            | {"tensor_parallel": tensor_parallel}
        )
        if judge is not None and not judge.strip():
            raise ConfigError("--judge is empty: name a checkpoint folder or a hub id.")
        asked = JudgeSpec(judge, spec) if judge is not None else None
        rescore_command(folder, data, open_console(), asked)


@app.command(
    name="import",
    epilog="Examples:\n\nnan-merge import lm_eval_results/ imported/\n\n"
    "nan-merge import outputs/default/20260101_120000 imported/\n\n"
    "nan-merge predictions show imported/ --wrong",
)
def import_results(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Results of lm-evaluation-harness or OpenCompass."),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the records.")],
    debug: Debug = False,
) -> None:
    """Take results of lm-evaluation-harness or OpenCompass into records of ours.

    Their prompts, completions and verdicts stay as they are; nothing is scored anew.
    """
    with explain_errors(debug):
        from pipelines.language_command import import_command

        import_command(folder, output, open_console())


@predictions.command(
    epilog="Examples:\n\nnan-merge predictions show runs/evaluations/merged --wrong --limit 3\n\n"
    "nan-merge predictions show runs/table2 --benchmark mmlu --sample anatomy/17\n\n"
    "nan-merge predictions show runs/quickstart/predictions/ties --flips comparison/flips.jsonl"
)
def show(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of an evaluation or a run.")],
    benchmark: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only of this benchmark.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this sample, e.g. anatomy/17.")
    ] = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only what was answered wrong.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most samples of each benchmark and model.")
    ] = 10,
    scorer: Annotated[
        ScorerChoice | None,
        typer.Option(help="Whose verdicts; the one that tables show if absent."),
    ] = None,
    flips: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Only the samples of a flips.jsonl that `compare --output` wrote."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Show what this judge read, and its verdicts."),
    ] = None,
    data: MovedData = None,
    debug: Debug = False,
) -> None:
    """Show prompts, completions, what was extracted, the right answers and the verdicts.

    Of images: the right answer, the model's and its probability.
    """
    with explain_errors(debug):
        from pipelines.flips import read_flips
        from pipelines.image_view import holds_images, show_image_predictions

        only = read_flips(flips) if flips is not None else None
        if holds_images(folder):
            show_image_predictions(
                folder, open_console(), benchmark=benchmark, sample=sample, wrong=wrong,
                limit=limit, flips=only,
            )  # fmt: skip
            return
        from pipelines.predictions_view import show_predictions

        show_predictions(
            folder,
            open_console(),
            benchmark=benchmark,
            sample=sample,
            wrong=wrong,
            limit=limit,
            scorer=scorer.value if scorer is not None else None,
            data=data,
            flips=only,
            judge=judge,
        )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _profiles(pairs: list[str] | tuple[()], names: list[str]) -> dict[str, str]:
    profiles: dict[str, str] = {}
    for pair in pairs:
        name, equals, profile = pair.partition("=")
        if not equals or name not in names:
            raise ConfigError(
                f"--profile {pair}: expected BENCHMARK=PROFILE with one of the benchmarks asked "
                f"({', '.join(names)}), e.g. --profile {names[0] if names else 'mmlu'}=oc-ppl."
            )
        profiles[name] = profile
    return profiles
