"""`pipeline demo`: a page on this machine to try a trained network."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def demo(
    checkpoint: Annotated[
        str | None,
        typer.Option(help="File, folder or models:/NAME@ALIAS; by default the best variant of results/."),
    ] = None,
    port: Annotated[int, typer.Option(help="To listen on; 0 for a free one.", min=0, max=65535)] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    window: Annotated[int | None, typer.Option(help="Show pictures to the network in such windows.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    params: Annotated[Path, typer.Option("--params", help="The settings file of the project.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Open a page to try a trained network: drop a photograph, see its classes, ask for some of them only."""
    from pipeline.demo.serve import address, allowed_hosts, open_port, require_libraries

    require_libraries()
    with open_port(host, port) as listening:
        from pipeline.cli.store import use_project_store
        from pipeline.inference.locate import best_variant

        project = params.resolve().parent
        use_project_store(project)
        source = checkpoint or str(best_variant(project))

        import uvicorn

        from pipeline.demo.app import make_app
        from pipeline.inference.predictor import Predictor
        from pipeline.inference.windows import Views
        from pipeline.runtime.device import set_threads

        set_threads("auto")
        predictor = Predictor.load(source, device=device, views=Views(window=window))
        app = make_app(predictor, allowed_hosts(host))
        typer.echo(
            f"{source}, {predictor.label_space.num_classes:,} classes: {address(listening)} (Ctrl-C ends it)"
        )
        if open_browser:
            webbrowser.open(address(listening))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run(sockets=[listening])
