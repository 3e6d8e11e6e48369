"""The locked requirements hold everything that pip will look for, years from now too."""

import re
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from stack.cache import PROJECT

DEV = (PROJECT / "requirements" / "dev.txt").read_text()
LOCKED = {name.lower() for name in re.findall(r"^[a-zA-Z0-9._-]+(?:\[[^]]*\])?(?===)", DEV, re.MULTILINE)}


def _asked_for() -> list[Requirement]:
    names = sorted(name.partition("[")[0] for name in LOCKED)
    found = []
    for name in names:
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # for another system or Python
            continue
        wanted = (Requirement(line) for line in lines)
        found += [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_extras_that_packages_ask_of_each_other_are_locked() -> None:
    """pip looks for "coverage[toml]" beside "coverage", and takes the newest, which has no hash here."""
    with_extras = [each for each in _asked_for() if each.extras]
    assert any(each.name == "coverage" for each in with_extras), "the check looks at nothing"
    locked = {name.partition("[")[0]: name for name in LOCKED}
    for each in with_extras:
        extras = set(re.split(r"[\[\], ]+", locked[each.name.lower()])[1:])
        assert each.extras <= extras, f"requirements/dev.txt lacks an extra of {each}"
