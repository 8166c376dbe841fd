import pytest

from vidgen import config
from vidgen.errors import InputError


def test_overrides_take_the_type_of_the_setting():
    settings = config.load("toy", "dit", ["steps=7", "learning-rate=0.5", "compile=true", "optimizer=muon"])
    assert (settings.steps, settings.learning_rate, settings.compile, settings.optimizer) == (7, 0.5, True, "muon")


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("toy", "learning_rat=1", "learning_rate"),
        ("toy", "steps=many", "int"),
        ("toy", "bottleneck_arguments=1", "no setting 'bottleneck_arguments'"),
        ("toy", "steps", "key=value"),
        ("toy", "compile=maybe", "bool"),
        ("tabletop-cp", "steps=1", "tabletop-cpu"),
    ],
)
def test_mistakes_are_named_with_what_was_meant(preset, override, message):
    with pytest.raises(InputError, match=message):
        config.load(preset, "vae3d", [override])
