"""The peer: a service of diffusers' `DDPMPipeline`, as its documentation has one ("Create a server", examples/server).

As there, a request gets a pipeline of its own that shares the weights, with a scheduler of its own, in a thread of the
default executor. Answers are PNGs, as ours are.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from commands.program import say
from runtime.serve.server import listen, url_of


class PipelineBody(BaseModel):
    """The fields of `runtime.serve.bodies.ImagesBody` that a pipeline has."""

    seed: int = 0
    start: int = 0
    steps: Annotated[int, Field(ge=1, le=1000)] = 50


def make_pipeline_app(checkpoint: Path) -> FastAPI:
    """The service of a checkpoint folder."""
    import torch
    from diffusers import DDPMPipeline

    shared = DDPMPipeline.from_pretrained(checkpoint, use_safetensors=True)
    app = FastAPI()

    @app.post("/v1/images")
    async def images(body: PipelineBody) -> Response:
        scheduler = shared.scheduler.from_config(shared.scheduler.config)
        pipeline = DDPMPipeline.from_pipe(shared, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(body.seed + body.start)

        def draw() -> bytes:
            buffer = io.BytesIO()
            pipeline(num_inference_steps=body.steps, generator=generator).images[0].save(buffer, "PNG")
            return buffer.getvalue()

        content = await asyncio.get_running_loop().run_in_executor(None, draw)
        return Response(content, media_type="image/png")

    return app


def main(checkpoint: Path) -> None:
    """Serve on a free port until a signal comes; the URL is said on standard error."""
    import uvicorn

    app = make_pipeline_app(checkpoint)
    with contextlib.closing(listen("127.0.0.1", 0)) as sock:
        say(f"{checkpoint}: DDPMPipeline: {url_of(sock)}")
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
