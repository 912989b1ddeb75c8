"""Settings of `longwave serve`. Its help is made from this file: no torch here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from longwave.settings import Settings, setting

API_KEY = "LONGWAVE_API_KEY"  # the environment variable: a list of processes shows options, and not this
ENGINES = ("auto", "vllm", "transformers")


@dataclass(frozen=True)
class ServeSettings(Settings):
    """Where and how a model is served."""

    host: str = setting("127.0.0.1", "Address to listen at; one beyond this machine needs an API key.")
    port: int = setting(8000, "Port to listen at; 0 takes a free one, and says it.", least=0, most=65535)
    name: str | None = setting(None, "Name of the model for clients; default its folder or its name on the hub.")
    engine: str = setting(
        "auto", "auto: vllm where it is installed and the folder has profiles, else transformers.", choices=ENGINES
    )
    api_key: str | None = setting(None, f"Key that clients must send; better in the variable {API_KEY}.")
    default_max_tokens: int = setting(
        256, "Tokens of an answer for a request that names none; they count for t.", least=1
    )
    max_body: int = setting(8_388_608, "Largest body of a request, in bytes.", least=1024)
    queue: int = setting(64, "Prompts that may wait; more of them get status 429.", least=1)
    drain: float = setting(30.0, "Seconds for requests under way after SIGTERM or Ctrl-C.", least=0)
    prefill_chunk: int | None = setting(None, "Read prompts N tokens at a time: less memory, same result.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        key = self.api_key
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
            raise ValueError(f"the API key (--api-key or {API_KEY}) must be printable ASCII, and not empty.")
        if not self.is_loopback and self.api_key is None:
            raise ValueError(
                f"--host {self.host!r} lets other machines in, and there is no API key. Set {API_KEY}, or leave "
                "--host out."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
