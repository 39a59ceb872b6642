"""Publish finished jobs elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.console import AsJson, JobId, print_result, session_of


def push(
    context: typer.Context,
    job_id: JobId,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository of the hub.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody may read a new repository.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload the model of a job to the Hugging Face hub, with the token of `hf auth login` or HF_TOKEN.

    tlm push @latest OWNER/reviews
    tlm push reviews@production OWNER/reviews --public
    """
    from tlm_client.publishing import push_to_hub

    with session_of(context).client() as client:
        address = push_to_hub(client, job_id, repository, private=not public)
    print_result({"url": address}, address, as_json=as_json)


def mlflow(
    context: typer.Context,
    job_id: JobId,
    experiment: Annotated[str, typer.Option(help="The experiment of the run.")] = "tlm",
    model: Annotated[bool, typer.Option("--model", help="Also log the files of the model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Log recipe, scores, costs and curves of a job to the MLflow server of MLFLOW_TRACKING_URI.

    tlm mlflow @latest
    tlm mlflow ID --experiment reviews --model
    """
    from tlm_client.publishing import log_to_mlflow

    with session_of(context).client() as client:
        run = log_to_mlflow(client, job_id, experiment=experiment, model=model)
    print_result({"run": run}, f"Logged run {run} of the experiment {experiment}", as_json=as_json)
