"""The models of finished jobs, their aliases, and predictions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import ConfigDict, Field, StringConstraints

from services.api.auth import Tenant
from services.api.job_artifacts import served_model
from services.api.parts import AfterId, Limit, PartsDep, RequestBody, problems
from tlm_core.names import ALIAS, NOT_BLANK
from tlm_core.wire import FinishedModel, Page, PredictingModel, Predictions

router = APIRouter(prefix="/v1/models", tags=["models"])

Alias = Annotated[str, Path(pattern=ALIAS, description="NAME@NAME, such as reviews@production.")]
MAX_TEXTS = 256  # of a prediction request
ModelId = Annotated[str, Path(max_length=200, description="Id of a job, or an alias.")]


class AliasBody(RequestBody):
    """The job that an alias points to."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"job": "job_1m82kq0c5w9g2h7t4xa"}]})

    job: str = Field(max_length=200)


class PredictBody(RequestBody):
    """Texts to classify. pairs: the second text of each pair, for a model that reads text pairs.

    min_confidence: a text whose highest probability is lower gets no label. Invalid for regression.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["We evaluate on SciERC."]}]})

    texts: tuple[Annotated[str, StringConstraints(pattern=NOT_BLANK)], ...] = Field(min_length=1, max_length=MAX_TEXTS)
    pairs: tuple[str, ...] | None = Field(None, max_length=MAX_TEXTS)
    min_confidence: float | None = Field(None, ge=0, le=1)


@router.get("", summary="List models", responses=problems())
def list_models(parts: PartsDep, tenant: Tenant, after: AfterId = None, limit: Limit = 20) -> Page[FinishedModel]:
    """Return the models of succeeded jobs with their aliases, newest first. `after` is the id of a job."""
    return parts.models.list(tenant, after, limit)


@router.get("/{model}", summary="Get a model", responses=problems(404, 409))
def get(model: ModelId, parts: PartsDep, tenant: Tenant) -> FinishedModel:
    """Return the model of a succeeded job, by its id or an alias."""
    return parts.models.get(tenant, parts.models.job_id(tenant, model))


@router.put("/{alias}", summary="Set an alias", responses=problems(404, 409, 413, 415))
def put_alias(alias: Alias, body: AliasBody, parts: PartsDep, tenant: Tenant) -> FinishedModel:
    """Point an alias to the model of a succeeded job. From then on, requests with the alias use this model."""
    return parts.models.put_alias(tenant, alias, body.job)


@router.delete("/{alias}", status_code=204, summary="Delete an alias", responses=problems(404))
def delete_alias(alias: Alias, parts: PartsDep, tenant: Tenant) -> Response:
    """Delete an alias, but not its model."""
    parts.models.delete_alias(tenant, alias)
    return Response(status_code=204)


@router.post("/{model}/predict", summary="Classify texts", responses=problems(404, 409, 413, 415))
def predict(model: ModelId, body: PredictBody, parts: PartsDep, tenant: Tenant) -> Predictions:
    """Classify texts with the final model of a job. Until this model exists, use the linear model of the job.

    `model.final` in the response states whether the model is final.
    """
    served = served_model(parts.jobs, parts.jobs.get(tenant, parts.models.job_id(tenant, model)))
    used, data = parts.predictor.predict(served.ref, body.texts, body.pairs, body.min_confidence)
    return Predictions(data=data, model=PredictingModel(name=used.name, final=served.final, note=served.note))
