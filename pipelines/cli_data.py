"""Commands about benchmarks' data and about serving a model: data, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_app import Debug, app, explain_errors, open_console
from pipelines.cli_evaluate import DtypeName

data = typer.Typer(no_args_is_help=True, help="Fetch and check benchmarks' data.")
app.add_typer(data, name="data")


@data.command(
    epilog="Examples:\n\nnan-merge data fetch gsm8k data/\n\nnan-merge data fetch mathvista data/"
    "\n\nnan-merge data fetch SUN397 data/\n\nnan-merge data fetch ai2d data/ --revision main"
)
def fetch(
    benchmark: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARK",
            help="mmlu, ceval, bbh, gsm8k; of pictures mathvista, wemath, ai2d, geoqa; or an image "
            "set: SUN397, Cars, RESISC45, EuroSAT, SVHN, GTSRB, MNIST, DTD.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Its files go to DIR/BENCHMARK.")],
    train: Annotated[
        bool, typer.Option("--train", help="Of an image set, fetch its training images too.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REV",
            help="Branch or commit of the hub's repository; the commit that this version was "
            "written for if absent, where there is one, else the main branch.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Fetch a benchmark from the Hugging Face hub: questions in the layout that their authors use,
    pictures and images as parquet.

    Files that were fetched whole stay in the hub's cache: killed, the same command goes on.
    """
    with explain_errors(debug):
        from pipelines.data_verify import fetch_command

        target = fetch_command(benchmark, folder, train=train, revision=revision)
        open_console().print(
            f"{target}   (nan-merge data verify {folder})", markup=False, highlight=False
        )


@data.command(
    epilog="Examples:\n\nnan-merge data verify data/\n\n"
    "nan-merge data verify data/ --classes\n\n"
    "DIR holds a folder for each benchmark: DIR/mmlu, DIR/gsm8k, DIR/SUN397, ..."
)
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="With a folder per benchmark.")],
    classes: Annotated[
        bool, typer.Option("--classes", help="Of image sets, count the images of each class.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Check that data is whole and every question can be scored; print counts and digests.

    Every image is decoded.
    """
    with explain_errors(debug):
        from pipelines.data_verify import verify_command

        verify_command(folder, open_console(), classes=classes)


@data.command(epilog="Examples:\n\nnan-merge data convert-geoqa GeoQA/data/test.pk data/geoqa")
def convert_geoqa(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A split of GeoQA, test.pk.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where geoqa_test.tsv goes.")],
    debug: Debug = False,
) -> None:
    """Make a table of GeoQA's own pickle, which is read as data and never run."""
    with explain_errors(debug):
        from evaluators.geoqa_convert import convert_geoqa as convert

        target = convert(source, folder)
        open_console().print(str(target), markup=False, highlight=False)


@app.command(
    epilog="Examples:\n\nnan-merge serve merged/\n\nnan-merge serve merged/ --port 8001 "
    "--tensor-parallel 2\n\n"
    "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' "
    '-d \'{"model": "merged", "messages": [{"role": "user", "content": "Hello"}]}\''
)
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder or hub id.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Of 127.0.0.1; 0 is any.")
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model's name in requests; the folder's if absent."),
    ] = None,
    dtype: Annotated[DtypeName, typer.Option(help="Type of the arithmetic.")] = DtypeName.BFLOAT16,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="GPUs that the model is spread over.")
    ] = 1,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Most tokens of a prompt and its answer together."),
    ] = None,
    log: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the server's output goes.")
    ] = Path("serve.log"),
    debug: Debug = False,
) -> None:
    """Serve a model on this machine's own address, by OpenAI's protocol, until Ctrl-C."""
    with explain_errors(debug):
        from pipelines.serve import serve_command

        serve_command(
            model,
            open_console(),
            log=log,
            name=name,
            port=port,
            dtype=dtype.value,
            tensor_parallel=tensor_parallel,
            max_length=max_length,
        )
