"""Loads the model of a job, waits for an unreachable server, and reports why a model cannot be loaded."""

from __future__ import annotations

from spoolama.backends.base import LoadedModel
from spoolama.errors import BackendError, ConfigError, JobError, RequestRefused, WrongServer
from spoolama.model.gate import LOAD_BOUND_S, Gate, Stopping
from spoolama.model.residency import ModelResidency
from spoolama.progress import Progress

__all__ = ["load_model"]

_DEATHS = 5
"""Maximum deaths of the model process during the load; then the model does not fit or is damaged."""


async def load_model(residency: ModelResidency, gate: Gate, progress: Progress) -> LoadedModel:
    """Load the model.

    Raises:
        JobError: the model cannot be loaded; the error has instructions to fix it.
        ConfigError: the server is of another kind than the settings say.
        Stopping: the service stops.
    """
    name = residency.spec.model
    progress.phase = f"loading {name}"
    loaded: list[LoadedModel] = []

    async def attempt() -> None:
        loaded.append(await residency.load())

    try:
        try:
            with progress.pulse.wait(LOAD_BOUND_S):
                await attempt()
        except RequestRefused:
            raise
        except BackendError as error:
            await gate.recover(error.message, attempt, max_deaths=_DEATHS)
    except WrongServer as error:
        raise ConfigError(f"{error.message}. {error.fix}") from error
    except RequestRefused as error:
        raise JobError(error.message, fix=error.fix, code=error.code) from error
    except BackendError as error:
        raise JobError(
            f"{name} cannot be loaded: {error.message}",
            fix="Free memory on the server, or use a smaller model or a smaller num_ctx.",
            code=error.code,
        ) from error
    if not loaded:
        raise Stopping
    return loaded[-1]
