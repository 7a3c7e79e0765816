"""The `serve` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [default: 8420]")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of everything that the service keeps. [default: ~/.curvewatch]"),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Dashboard of a Ray cluster, such as http://head:8265; without it, a local Ray is started.",
        ),
    ] = None,
    ray_token_path: Annotated[
        Path | None, typer.Option(help="File that holds the token of that Ray cluster.")
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Address under which the workers reach the service.")
    ] = None,
) -> None:
    """Run the service: API, page, /metrics, and a local Ray unless one is named.

    Every setting is also read from `CURVEWATCH_<SETTING>`. The first start writes a token into the profile.
    """
    from curvewatch_service.server import serve as run_service
    from curvewatch_service.settings import load_settings

    chosen = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "ray_address": ray_address,
        "ray_token_path": ray_token_path,
        "public_url": public_url,
    }
    run_service(load_settings(**{name: value for name, value in chosen.items() if value is not None}))
