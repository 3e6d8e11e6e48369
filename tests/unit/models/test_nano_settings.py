import pytest
from gpt4_nano.engines import open_engine
from gpt4_nano.settings import ConfigurationError, Settings, read_settings


def test_without_anything_the_real_model_is_chosen() -> None:
    settings = read_settings({}, {})
    assert (settings.engine, settings.context, settings.test_prompts) == ("llama_cpp", 2048, False)


def test_the_environment_beats_config_pbtxt_which_beats_the_default() -> None:
    assert read_settings({}, {"engine": "canned"}).engine == "canned"
    assert read_settings({"GPT4_NANO_ENGINE": "llama_cpp"}, {"engine": "canned"}).engine == "llama_cpp"
    assert read_settings({"GPT4_NANO_ENGINE": ""}, {"engine": "canned"}).engine == "canned"


def test_instances_share_the_cores() -> None:
    alone = read_settings({}, {}, instances=1).threads
    assert read_settings({}, {}, instances=alone).threads == 1
    assert read_settings({}, {}, instances=1000).threads == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPT4_NANO_SLOTS", "0"),
        ("GPT4_NANO_CONTEXT", "many"),
        ("GPT4_NANO_THREADS", "-1"),
        ("GPT4_NANO_BATCH_LATENCY_MS", "nan"),
        ("GPT4_NANO_TEST_PROMPTS", "yes"),
    ],
)
def test_an_unusable_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is '{value}'"):
        read_settings({name: value}, {})


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no engine 'gpt5'.*canned or llama_cpp"):
        open_engine(Settings(engine="gpt5"))
