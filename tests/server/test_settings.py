"""Settings: from the environment, overridden by options, and refused with the variable's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import Settings, documented, load_settings
from tuner.errors import InputError


def complaint(**given: object) -> InputError:
    with pytest.raises(InputError) as error:
        load_settings(**given)
    return error.value


def test_the_defaults_are_safe() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8000, Path("accutune-data"))
    assert (settings.database_url, settings.artifacts_url) == (None, None)
    assert (settings.jobs, settings.parallel, settings.requests_per_minute) == (1, 4, 0)


def test_the_environment_sets_and_an_option_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCUTUNE_PORT", "9000")
    monkeypatch.setenv("ACCUTUNE_JOBS", "3")
    monkeypatch.setenv("ACCUTUNE_DATA_DIR", "/srv/a")
    settings = load_settings(port=9001)
    assert (settings.port, settings.jobs, settings.data_dir) == (9001, 3, Path("/srv/a"))


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCUTUNE_PORT", "")
    monkeypatch.setenv("ACCUTUNE_DATABASE_URL", "")
    assert (load_settings().port, load_settings().database_url) == (8000, None)


def test_a_wrong_variable_is_named_with_its_value_and_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCUTUNE_PORT", "70000")
    error = complaint()
    assert str(error) == (
        "ACCUTUNE_PORT is '70000': Input should be less than or equal to 65535. "
        "Its meaning: Port to listen on; 0 takes a free one. Its default: 8000."
    )
    assert error.field == "port"


def test_every_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCUTUNE_JOBS", "many")
    monkeypatch.setenv("ACCUTUNE_LOG_FORMAT", "xml")
    text = str(complaint())
    assert "ACCUTUNE_JOBS is 'many': Input should be a valid integer" in text
    assert "ACCUTUNE_LOG_FORMAT is 'xml': Input should be 'text' or 'json'" in text


def test_an_option_is_not_called_a_variable() -> None:
    assert str(complaint(jobs=0)).startswith("setting 'jobs' is '0': Input should be greater than or equal to 1.")


def test_an_unknown_setting_lists_the_known() -> None:
    assert str(complaint(prot=1)).startswith("there is no setting 'prot'; the settings are host, port, data_dir, ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trial_memory_gb", "0"),
        ("trial_memory_gb", "nan"),
        ("max_upload_gb", "inf"),
        ("max_stored_gb", "nan"),
        ("lease_seconds", "0.1"),
        ("lease_seconds", "nan"),
        ("upload_seconds", "-1"),
        ("requests_per_minute", "-1"),
        ("root_path", "accutune"),
        ("root_path", "/accutune/"),
        ("log_level", "loud"),
        ("host", " "),
    ],
)
def test_values_that_make_no_sense_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCUTUNE_{name.upper()}", value)
    assert complaint().field == name


def test_the_database_password_is_not_shown() -> None:
    url = "postgresql+psycopg://a:s3cret@host/db"
    settings = load_settings(database_url=url)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == url
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(complaint(database_url=[url]))


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_is_documented_in_one_line() -> None:
    rows = {row.variable: row for row in documented()}
    assert list(rows) == [f"ACCUTUNE_{name.upper()}" for name in Settings.model_fields]
    assert (rows["ACCUTUNE_PORT"].default, rows["ACCUTUNE_ROOT_PATH"].default, rows["ACCUTUNE_ARTIFACTS_URL"].default) == (
        "8000",
        "unset",
        "unset",
    )
    assert [row.variable for row in rows.values() if len(row.help) < 15 or "\n" in row.help or not row.help.endswith(".")] == []
