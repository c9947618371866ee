"""What can be set: each field is an environment variable, and most are options of `tuner serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from search_spaces.schemes import Frozen
from tuner.errors import InputError

PREFIX = "ACCUTUNE_"
GB = 10**9

Gigabytes = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The settings of a server. The first line of each field's help is its row in the documentation."""

    # An empty variable is an unset one: that is what a compose file passes on for what nobody has set.
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", pattern=r"^\S+$", description="Address to listen on; any but a loopback one needs API keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(Path("accutune-data"), description="Folder of the server's data: database, artefacts, logs of jobs.")
    database_url: SecretStr | None = Field(None, description="postgresql+psycopg://… or sqlite:///…; unset: a file in the data folder.")
    artifacts_url: str | None = Field(None, description="Folder or fsspec URL (s3://…) of the artefacts; unset: in the data folder.")
    jobs: int = Field(1, ge=1, le=256, description="Jobs that run at once.")
    parallel: int = Field(4, ge=1, le=256, description="Trials of one job that run at once, at most; caps budget.parallel.")
    trial_memory_gb: Gigabytes = Field(8.0, description="Address space that one trial may add, mapped data files included, in GB.")
    max_upload_gb: Gigabytes = Field(2.0, description="Largest file that may be uploaded, in GB.")
    upload_seconds: Seconds = Field(3600, description="Time within which an upload must be complete, in seconds.")
    inspect_memory_gb: Gigabytes = Field(8.0, description="Address space that looking at an upload or a job may add, in GB.")
    inspect_seconds: Seconds = Field(120, description="Time that looking at an uploaded file may take, in seconds.")
    max_unpacked_gb: Gigabytes = Field(64.0, description="Most that one uploaded data file may unpack to, in GB.")
    lease_seconds: Annotated[float, Field(ge=1, le=3600)] = Field(
        30, description="Time after which another server takes over a job whose server no longer reports, in seconds."
    )
    requests_per_minute: int = Field(0, ge=0, le=10**6, description="Requests that one key may make per minute; 0: no limit.")
    max_active_jobs: int = Field(0, ge=0, le=10**6, description="Jobs that one key may have queued or running; 0: no limit.")
    max_stored_gb: float = Field(0.0, ge=0, le=1e6, description="Uploads that one key may keep on the server, in GB; 0: no limit.")
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="Prefix that a proxy in front takes off, like /accutune.")
    log_format: Literal["text", "json"] = Field("text", description="Lines of the log: text, or one JSON object each.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least grave lines that are logged.")


class SettingDoc(Frozen):
    """One row of the documentation."""

    variable: str
    default: str
    help: str


def load_settings(**given: Any) -> Settings:
    """The settings of the environment, overridden by `given`. InputError names every variable that breaks a rule."""
    try:
        return Settings(**given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise InputError("; ".join(_complaint(item, given) for item in found), field=str(found[0]["loc"][0])) from None


def documented() -> tuple[SettingDoc, ...]:
    """Every setting, as the documentation lists them."""
    return tuple(
        SettingDoc(variable=variable(name), default=_shown(field.default), help=field.description or "")
        for name, field in Settings.model_fields.items()
    )


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def _complaint(item: Any, given: dict[str, Any]) -> str:
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        return f"there is no setting '{name}'; the settings are {', '.join(Settings.model_fields)}"
    where = f"setting '{name}'" if name in given else variable(name)
    # A URL may hold a password.
    value = "a hidden value" if "url" in name else f"'{item['input']}'"
    field = Settings.model_fields[name]
    return f"{where} is {value}: {item['msg']}. Its meaning: {field.description} Its default: {_shown(field.default)}."


def _shown(default: object) -> str:
    return "unset" if default in (None, "") else str(default)
