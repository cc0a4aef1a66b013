from pathlib import Path

import pytest
from pydantic import ValidationError

from app.detection.store_path import Stores
from app.serving.settings import PREFIX, Settings, SettingsError, missing_in_store, read_settings, unknown_variables

GOOD = {
    "store": ("/tmp/store", Stores((Path("/tmp/store"),))),
    "model": ("kmnist", "kmnist"),
    "version": ("3", 3),
    "device": ("cpu", "cpu"),
    "threads": ("2", 2),
    "max_body_bytes": ("1000", 1000),
    "max_pixels": ("784", 784),
    "body_timeout_s": ("0.5", 0.5),
    "log_format": ("json", "json"),
    "access_log": ("false", False),
}


def test_nothing_set_is_a_server_with_sane_limits():
    """The defaults are those of the contract: 10 MiB, 128 MiB for arrays, 64 images, 100,000 in an array, 25 megapixels."""
    settings = read_settings({})
    assert settings.max_body_bytes == 10 * 2**20
    assert settings.max_array_bytes == 128 * 2**20
    assert settings.max_images == 64
    assert settings.max_array_images == 100_000
    assert settings.max_pixels == 25_000_000
    assert (settings.store.roots[0].name, settings.model, settings.version) == ("model_store", "mnist", None)


@pytest.mark.parametrize("field", GOOD)
def test_each_variable_sets_its_field(field):
    """ODDIGIT_<FIELD> is the field of that name, in its type."""
    text, value = GOOD[field]
    assert getattr(read_settings({PREFIX + field.upper(): text}), field) == value


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("THREADS", "0"),
        ("THREADS", "two"),
        ("THREADS", "1.5"),
        ("VERSION", "0"),
        ("MAX_BODY_BYTES", "-1"),
        ("MAX_BODY_BYTES", "10MB"),
        ("MAX_IMAGES", "0"),
        ("MAX_PIXELS", "783"),
        ("MAX_BATCH_SIZE", "0"),
        ("BODY_TIMEOUT_S", "0"),
        ("BODY_TIMEOUT_S", "nan"),
        ("DRIFT_LEVEL", "inf"),
        ("LOG_FORMAT", "xml"),
        ("ACCESS_LOG", "perhaps"),
        ("TRUSTED_PROXIES", "nonsense"),
        ("TRUSTED_PROXIES", "10.0.0.1, 10.0.0.0/99"),
        ("TRUSTED_PROXIES", "10.1.2.3/8"),
        ("TRUSTED_PROXIES", "127.0.0.1, *"),
        ("CORS_ORIGINS", "example.org"),
        ("CORS_ORIGINS", "https://a.example/"),
        ("ROOT_PATH", "/digits/"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(variable, value):
    """Out of range or of the wrong type: one sentence that names the variable."""
    with pytest.raises(SettingsError) as caught:
        read_settings({PREFIX + variable: value})
    assert PREFIX + variable in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_variable_is_a_warning_that_names_the_nearest_setting():
    """It has no effect, and is not an error."""
    assert read_settings({"ODDIGIT_TREADS": "2"}) == Settings()
    (sentence,) = unknown_variables({"ODDIGIT_TREADS": "2", "ODDIGIT_THREADS": "2", "ODDIGIT_DATA": "/data"})
    assert sentence.startswith("ODDIGIT_TREADS ")
    assert "did you mean ODDIGIT_THREADS?" in sentence


def test_a_store_that_does_not_exist_is_a_warning_that_names_it(tmp_path):
    """Where it was asked for: a misspelt folder would leave the shipped detector in service."""
    environment = {"ODDIGIT_STORE": f"{tmp_path / 'nothing'}:{tmp_path}:shipped"}
    (sentence,) = missing_in_store(read_settings(environment), environment)
    assert str(tmp_path / "nothing") in sentence
    assert missing_in_store(read_settings({}), {}) == []


def test_a_detector_that_does_not_exist_is_a_warning_that_names_it():
    """A misspelt one would never be served."""
    (sentence,) = missing_in_store(read_settings({"ODDIGIT_MODELS": "mnist-vae, nope"}), {})
    assert "detector nope" in sentence


def test_empty_and_foreign_variables_do_not_count():
    """An empty value is an unset one; other programs' variables and the tests' own are left alone."""
    environment = {"ODDIGIT_THREADS": "", "THREADS": "7", "ODDIGIT_DATA": "/data", "PATH": "/bin"}
    assert read_settings(environment) == Settings()
    assert unknown_variables(environment) == []


@pytest.mark.parametrize("prefix", ["odd", "/odd/", "/odd?", "/", "//odd", "/\u00e9", "/o d"])
def test_a_root_path_begins_with_a_slash_and_does_not_end_with_one(prefix):
    """As ASGI has it."""
    with pytest.raises(SettingsError, match="ODDIGIT_ROOT_PATH"):
        read_settings({"ODDIGIT_ROOT_PATH": prefix})


def test_settings_cannot_be_changed():
    """They are frozen, and every one says what it is for."""
    with pytest.raises(ValidationError):
        Settings().threads = 2
    assert all(field.description for field in Settings.model_fields.values())
