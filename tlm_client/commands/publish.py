"""Publish finished jobs elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.console import JobId, open_client, print_result


def push(
    job_id: JobId,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository of the hub.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may read a new repository.")] = False,
) -> None:
    """Upload the model of a job to the Hugging Face hub, with the token of `hf auth login` or HF_TOKEN.

    tlm push @latest OWNER/reviews
    tlm push reviews@production OWNER/reviews --public
    """
    from tlm_client.publishing import push_to_hub

    with open_client() as client:
        address = push_to_hub(client, job_id, repository, private=not public)
    print_result({"url": address}, address)


def mlflow(
    job_id: JobId,
    experiment: Annotated[str, typer.Option(help="The experiment of the run.")] = "tlm",
    model: Annotated[bool, typer.Option("--model", help="Also log the files of the model.")] = False,
) -> None:
    """Log recipe, scores, costs and curves of a job to the MLflow server of MLFLOW_TRACKING_URI.

    tlm mlflow @latest
    tlm mlflow ID --experiment reviews --model
    """
    from tlm_client.publishing import log_to_mlflow

    with open_client() as client:
        run = log_to_mlflow(client, job_id, experiment=experiment, model=model)
    print_result({"run": run}, f"Logged run {run} of the experiment {experiment}")
