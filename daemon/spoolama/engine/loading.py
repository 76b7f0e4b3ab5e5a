"""Loads the model of a job, waits for an unreachable server, and reports why a model cannot be loaded."""

from __future__ import annotations

from spoolama.backends.base import LoadedModel
from spoolama.engine.gate import LOAD_BOUND_S, Gate, Stopping
from spoolama.engine.holder import Holder
from spoolama.engine.progress import Progress
from spoolama.errors import BackendError, ConfigError, JobError, RequestRefused, WrongServer

__all__ = ["load_model"]

_DEATHS = 5
"""Maximum deaths of the model process during the load; then the model does not fit or is damaged."""


async def load_model(holder: Holder, gate: Gate, progress: Progress) -> LoadedModel:
    """Load the model.

    Raises:
        JobError: the model cannot be loaded; the error has instructions to fix it.
        ConfigError: the server is of another kind than the settings say.
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
            mend="Free memory on the server, or use a smaller model or a smaller num_ctx.",
            code=error.code,
        ) from error
    if not loaded:
        raise Stopping
    return loaded[-1]
