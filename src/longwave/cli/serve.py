"""`longwave serve`: answer the requests of OpenAI clients."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import typer

from longwave.cli.evaluating import Device, Dtype
from longwave.cli.generating import Method, To
from longwave.cli.options import Model, Options, check_inputs
from longwave.cli.settings import with_settings
from longwave.serving.settings import API_KEY, ServeSettings

if TYPE_CHECKING:
    from longwave.serving.service import Service


@with_settings(ServeSettings)
def serve(
    model: Model,
    method: Method = None,
    option: Options = None,
    to: To = None,
    dtype: Dtype = "auto",
    device: Device = None,
    **settings: Any,
) -> None:
    """Answer the requests of OpenAI clients, each at the length factor that its length asks for.

    Prompts within the trained length run on the plain model. Needs: pip install 'longwave[serve]'. SIGTERM or Ctrl-C
    stops it once requests under way are answered.

    Examples:

    longwave serve out

    longwave serve MODEL --method two-band --to 32768 --port 0
    """
    if settings["api_key"] is None:
        settings["api_key"] = os.environ.get(API_KEY)
    how = ServeSettings.create(**settings)
    check_inputs(model)

    from longwave.serving import vllm_server
    from longwave.serving.engines import engine_of, served_name

    if engine_of(model, how) == "vllm":
        if method is not None or option or to is not None:
            raise ValueError("vLLM serves the profiles of a folder: leave --method, --option and --to out.")
        if device is not None:
            raise ValueError("vLLM chooses its device itself. Leave --device out.")
        vllm_server.run(model, how, dtype=dtype)

    from longwave.serving.sockets import listen, url_of

    listener = listen(how.host, how.port)

    from longwave.cli import generating
    from longwave.serving.server import serve as answer
    from longwave.serving.service import Service

    method = generating.chosen(method, option)
    loaded = generating.load(model, method=method, to=to, dtype=dtype, device=device)
    service = Service.of(loaded.model, loaded.tokenizer, served_name(model, how), how)
    answer(service, listener, lambda: typer.echo(greeting(service, url_of(listener)), err=True))


def greeting(service: Service, url: str) -> str:
    """What the server says once it listens."""
    facts, key = service.admission, service.settings.api_key
    header = "" if key is None else f' -H "Authorization: Bearer ${API_KEY}"'
    return (
        f"Serving {service.name} at {url} (trained length {facts.original_length:,}, prompts with answers of up to "
        f"{facts.limit:,} tokens, t up to {facts.max_factor:g}). Ctrl-C stops it. Try:\n"
        f"curl {url}/v1/completions{header} -H 'Content-Type: application/json' "
        """-d '{"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}'"""
    )
