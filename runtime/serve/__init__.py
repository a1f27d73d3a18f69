"""The service: requests join the chain at any step. `Client` is for whoever asks it for images."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.serve.client import Client, Progress, ServiceError
else:

    def __getattr__(name: str) -> object:
        """Imported when asked for: the service itself needs no client."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from runtime.serve import client

        return getattr(client, name)


__all__ = ["Client", "Progress", "ServiceError"]
