"""Loading a model for a job: waiting for the server as long as it takes, and saying why it cannot be had."""

from __future__ import annotations

from spoolama.backends.base import LoadedModel
from spoolama.engine.gate import LOAD_BOUND_S, Gate, Stopping
from spoolama.engine.holder import Holder
from spoolama.engine.progress import Progress
from spoolama.errors import BackendError, ConfigError, JobError, RequestRefused, WrongServer

__all__ = ["load_model"]

_DEATHS = 5
"""A model whose process dies so often while it loads does not fit or is broken."""


async def load_model(holder: Holder, gate: Gate, progress: Progress) -> LoadedModel:
    """Load the model.

    Raises:
        JobError: it cannot be had, with the words to mend it.
        ConfigError: this is not the server that the settings say it is.
        Stopping: the service stops.
    """
    name = holder.spec.model
    progress.phase = f"loading {name}"
    loaded: list[LoadedModel] = []

    async def attempt() -> None:
        loaded.append(await holder.load())

    try:
        try:
            with progress.pulse.wait(LOAD_BOUND_S):
                await attempt()
        except RequestRefused:
            raise
        except BackendError as error:
            await gate.recover(error.message, attempt, patience=_DEATHS)
    except WrongServer as error:
        raise ConfigError(f"{error.message}. {error.mend}") from error
    except RequestRefused as error:
        raise JobError(error.message, mend=error.mend, code=error.code) from error
    except BackendError as error:
        raise JobError(
            f"{name} cannot be loaded: {error.message}",
            mend="Free memory on the server, take a smaller model or a smaller num_ctx.",
            code=error.code,
        ) from error
    if not loaded:
        raise Stopping
    return loaded[-1]
