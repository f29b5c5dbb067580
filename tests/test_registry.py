"""Names with options, for methods, refinements, vision models and backbones alike."""

import pytest

from clearclip.errors import UserError
from clearclip.registry import Registry, import_modules, split


def build(
    size: int,
    count: int = 3,
    weight: float = 0.5,
    on: bool = False,
    name: str = "a",
    path: str | None = None,
    limit: float | None = None,
    places: tuple[int, ...] = (8, 16),
    loose=2,
):
    return (size, count, weight, on, name, path, limit, places, loose)


DEFAULTS = dict(count=3, weight=0.5, on=False, name="a", path=None, limit=None, places=(8, 16), loose=2)


@pytest.fixture
def things():
    registry = Registry("thing", "clearclip.errors")  # a module that registers nothing
    registry.register("Thing", build, "what it is", "Somebody, 2024")
    registry.register("Heavy", build, "the same, heavy", weight=9.0, name="b")
    return registry


def test_defaults_are_those_of_the_signature_and_of_the_name(things):
    thing, heavy = things.entries()
    assert (thing.name, thing.summary, thing.paper) == ("Thing", "what it is", "Somebody, 2024")
    assert thing.options == DEFAULTS
    assert heavy.options == DEFAULTS | {"weight": 9.0, "name": "b"}
    assert things.create("heavy", 7) == (7, 3, 9.0, False, "b", None, None, (8, 16), 2)
    assert things.create("Heavy:weight=1,name=c", 7) == (7, 3, 1.0, False, "c", None, None, (8, 16), 2)


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("count=-4", "count", -4),
        ("weight=2", "weight", 2.0),
        ("weight=1e-3", "weight", 0.001),
        ("on=true", "on", True),
        ("on=0", "on", False),
        ("name=5", "name", "5"),
        ("name=a=b", "name", "a=b"),
        ("path=None", "path", None),
        ("path=none/of.them", "path", "none/of.them"),
        ("limit=none", "limit", None),
        ("limit=2", "limit", 2.0),
        ("places=(1,2,3)", "places", (1, 2, 3)),
        ("places=[4]", "places", (4,)),
        ("places=4", "places", (4,)),
        ("loose=5", "loose", 5),
    ],
)
def test_options_are_read_as_their_type(written, key, value, things):
    choice = things.parse(f"thing: {written} ")
    assert choice.options == {key: value}
    assert type(choice.options[key]) is type(value)
    assert choice.settings == DEFAULTS | {key: value}
    assert things.parse(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other", "unknown thing 'other'; use one of Thing, Heavy"),
        ("", "unknown thing ''; use one of Thing, Heavy"),
        ("Thing:count", "option 'count' of 'Thing:count' must be written key=value; its options are count, limit, loo"),
        ("Thing:size=3", "thing 'Thing:size=3' has no option size; its options are count"),
        ("Thing:on=1,on=0", "option on is there twice; give it once"),
        ("Thing:count=1.5", "option count must be a whole number, not '1.5'"),
        ("Thing:loose=much", "option loose must be a whole number, not 'much'"),
        ("Thing:weight=much", "option weight must be a finite number, not 'much'"),
        ("Thing:weight=nan", "option weight must be a finite number, not 'nan'"),
        ("Thing:limit=inf", "option limit must be a finite number, not 'inf'"),
        ("Thing:on=2", "option on must be True or False, not '2'"),
        ("Thing:places=(1.5,2)", r"option places must be whole numbers, such as \(8,16\), not '\(1.5,2\)'"),
        ("Thing:places=a", r"option places must be whole numbers"),
        ("Thing:places=(True,2)", r"option places must be whole numbers"),
    ],
)
def test_what_is_wrong_is_named(text, message, things):
    with pytest.raises(UserError, match=message):
        things.parse(text)


def test_what_a_builder_refuses_is_a_user_error(things):
    def picky(width: int = 3):
        raise ValueError(f"width {width} is too wide")

    things.register("Picky", picky, "refuses all")
    with pytest.raises(UserError, match="thing 'Picky:width=9': width 9 is too wide; its options are width"):
        things.create("Picky:width=9")
    things.register("Bare", lambda: 1 / len([]), "no options")
    with pytest.raises(ZeroDivisionError):  # a bug is no user's mistake
        things.create("Bare")
    with pytest.raises(UserError, match="has no option a; its options are none"):
        things.parse("Bare:a=1")


def test_a_preset_must_be_an_option(things):
    with pytest.raises(TypeError, match="thing Wrong: colour is no option"):
        things.register("Wrong", build, "wrong", colour="red")


def test_names_are_found_in_any_case(things):
    assert "THING" in things
    assert "Thin" not in things
    assert things.find("tHiNg").name == things.parse("THING:count=1").name == "Thing"
    assert str(things.parse("heavy:weight=2.0, count=1,places=( 1 , 2 )")) == "Heavy:weight=2,count=1,places=(1,2)"


def test_a_package_registers_when_it_is_first_needed(tmp_path, monkeypatch):
    package = tmp_path / "shelf"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from clearclip.registry import Registry\nTHINGS = Registry('thing', __name__)\nimported = []\n"
    )
    for name in ("one", "two"):
        (package / f"{name}.py").write_text(
            f"from shelf import THINGS, imported\nimported.append('{name}')\n"
            f"THINGS.register('{name.title()}', lambda size=1: size, 'a thing')\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import shelf

    assert shelf.imported == []
    assert shelf.THINGS.create("two:size=4") == 4
    assert [entry.name for entry in shelf.THINGS.entries()] == ["One", "Two"]
    assert shelf.imported == ["one", "two"]


def test_modules_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_that_works.py").write_text(
        "from clearclip.methods import METHODS\n"
        "from clearclip.methods.final_block import FinalBlock\n"
        "METHODS.register('Mine', FinalBlock, 'mine', attention='vv')\n"
    )
    (tmp_path / "mine_that_fails.py").write_text("1 / 0\n")
    from clearclip.methods import METHODS

    METHODS.entries()
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    assert "Mine" not in METHODS
    import_modules(["mine_that_works"])
    assert METHODS.parse("mine").settings["attention"] == "vv"
    for name, reason in (("mine_that_fails", "ZeroDivisionError"), ("not_there_at_all", "ModuleNotFoundError")):
        with pytest.raises(UserError, match=rf"module {name} cannot be imported \({reason}: .*PYTHONPATH"):
            import_modules(["mine_that_works", name])


def test_split_leaves_brackets_whole():
    assert split("a=(1,2),b=[3,4],c", ",") == ["a=(1,2)", "b=[3,4]", "c"]
    assert split("", ",") == [""]
