"""`tlm suspects`: list the rows of a dataset whose labels are probably wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from tlm_client.console import JobId, open_client, print_result, table

_CHARS = 200


def suspects(
    job_id: JobId, limit: Annotated[int, typer.Option(min=1, max=200, help="Maximum number of rows.")] = 20
) -> None:
    """List the train and validation rows whose labels are probably wrong, most suspect first.

    tlm suspects @latest
    tlm suspects ID --limit 50 --json
    """
    with open_client() as client:
        ranking = client.suspects(job_id, limit=limit)
    rows = []
    for suspect in ranking.data:
        text = " ║ ".join(part[:_CHARS] for part in (suspect.text, suspect.text_pair) if part is not None)
        rows.append((suspect.split, suspect.row, suspect.label, suspect.suggested, f"{suspect.score:.3f}", text))
    print_result(
        ranking,
        table(("split", "row", "label", "suggested", "score", "text"), rows),
        f"{len(rows)} of {ranking.total:,} rows with a more probable label. Many labels are right: read the texts.",
    )
