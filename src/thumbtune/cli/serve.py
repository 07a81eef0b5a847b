"""`thumbtune serve`: the gateway, from one process on this machine to a team's service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = """
[bold]Examples[/bold]

  thumbtune serve --model packaged:smollm2-135m-instruct

  thumbtune serve --model ./my-model --adapter runs/kto --store votes.db

  thumbtune serve --upstream http://127.0.0.1:8000/v1 --store postgresql://votes@db/votes --host 0.0.0.0

  thumbtune serve --config gateway.toml
"""


def serve(
    model: Annotated[
        str | None, typer.Option(help="Model to serve: folder, hub name or packaged:….", show_default=False)
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            help="PEFT adapter to serve beside it; the first is put in service if none is yet.",
            show_default=False,
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="OpenAI-compatible server that answers instead.", show_default=False
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="SQLite file or postgresql://… (default thumbtune.db)")
    ] = None,
    secrets: Annotated[Path | None, typer.Option(help="File of signing secrets.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind to (default 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one (default 8400)")] = None,
    page: Annotated[
        bool | None, typer.Option("--page/--no-page", help="Serve the page (default: yes)")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer where the request is silent (default 512)")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of settings; options and THUMBTUNE_… come before it.", show_default=False
        ),
    ] = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print every setting with its value, and stop.")
    ] = False,
) -> None:
    """Serve a model over OpenAI's protocol, with a page to chat and vote on, and keep every vote.

    On this machine alone, unless --host says otherwise; then API keys are needed (`thumbtune keys create`).
    """
    from thumbtune.gateway.settings import read_gateway_settings

    settings = read_gateway_settings(
        config,
        model=model,
        adapters=adapter or None,
        upstream=upstream,
        store=store,
        secrets=secrets,
        host=host,
        port=port,
        page=page,
        max_new_tokens=max_new_tokens,
    )
    if show_settings:
        print(json.dumps(_hide_secrets(settings.model_dump(mode="json")), indent=2))
        return
    from thumbtune.gateway.run import run_gateway

    run_gateway(settings)


def _hide_secrets(values: dict[str, Any]) -> dict[str, Any]:
    from thumbtune.store.database import read_url

    return values | {
        "upstream_key": "***" if values["upstream_key"] else None,
        "store": read_url(values["store"]).render_as_string(hide_password=True),
    }
