"""METHOD[@SCHEDULE][+ATTENTION][:KEY=VALUE]...: how it is read, how it is printed, and what is said of a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from longwave.extensions.spec import parse_spec, spelled, with_options


@pytest.mark.parametrize(
    ("text", "name", "schedule", "options"),
    [
        ("yarn", "yarn", "continuous", {}),
        ("yarn@static=4+dca:local=3", "yarn+dca", "static=4", {"local": 3}),
        ("two-band:window=64:mass=0.5", "two-band", "continuous", {"window": 64, "mass": 0.5}),
        ("quest:last_page=scored", "quest", "continuous", {"last_page": "scored"}),
        ("yarn:truncate=false", "yarn", "continuous", {"truncate": False}),
    ],
)
def test_what_is_read_is_printed_so(text: str, name: str, schedule: str, options: dict[str, Any]) -> None:
    spec = parse_spec(text)
    assert (spec.name, spec.schedule.spec, spec.options) == (name, schedule, options)
    assert parse_spec(spelled(name, schedule, options)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yarn+", "'yarn\\+' names nothing after the \\+. Write METHOD"),
        ("+dca", "'\\+dca' names nothing before the \\+. Write METHOD"),
        ("yarn +dca", "'yarn \\+dca' has spaces. Write yarn\\+dca."),
        ("dca+yarn", "'dca\\+yarn' has the attention method first. Write yarn\\+dca."),
        ("yarn+yarn", "'yarn\\+yarn' names two scaling methods"),
        ("dca+self-extend", "names two attention methods"),
        ("yarn+dca+string", "names two attention methods"),
        ("a+b+c", "unknown method 'a'"),
        ("yarn+twoband", "unknown attention method 'twoband'. Did you mean 'two-band'"),
        ("yarn+dca@static=4", "has its schedule behind the attention method. Write yarn@static=4\\+dca."),
        ("two-band:window", "an option of a method is KEY=VALUE, got 'window'"),
        ("two-band:window=1:window=2", "option window is given twice"),
    ],
)
def test_what_is_not_written_so(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_spec(text)


def test_an_option_goes_to_the_methods_that_have_it() -> None:
    assert with_options(["none", "two-band", "yarn+dca"], {"window": 64}) == ("none", "two-band:window=64", "yarn+dca")
    assert with_options(["two-band:window=64"], {"window": 64}) == ("two-band:window=64",)
    with pytest.raises(ValueError, match=r"none, dca has no option 'windw'. .*local"):
        with_options(["none", "dca"], {"windw": 64})
    with pytest.raises(ValueError, match="option window is 8 in the name of the method, and 64 beside it"):
        with_options(["two-band:window=8"], {"window": 64})
