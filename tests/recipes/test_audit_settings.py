from pathlib import Path
from typing import Any

import pytest
import yaml

from purifiers.attacks import PGD
from purifiers.errors import ConfigError
from purifiers.recipes.audit_settings import STANDARD_VIEWS, AuditSettings
from purifiers.recipes.load import NAMES, load_recipe, parse_recipe, recipe_text


def test_the_standard_attacks_have_the_audits_balls_and_steps_to_suit() -> None:
    settings = AuditSettings(epsilon="4/255", epsilon_l2=0.4)
    for name, attack in settings.attacks.items():
        radius = 0.4 if name.endswith("-L2") else 4 / 255
        assert (attack.epsilon, attack.norm) == (radius, "l2" if name.endswith("-L2") else "linf")
    assert settings.attacks["PGD"].step_size == pytest.approx(1 / 255)
    assert settings.attacks["MI-FGSM-L2"].step_size == pytest.approx(0.04)
    assert set(settings.attacks) == {name for names in STANDARD_VIEWS.values() for name in names}


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_has_an_audit(name: str) -> None:
    audit = load_recipe(name).audit
    assert audit.attacks.keys() >= {"PGD", "PGD-L2", "AA", "Square"}
    assert audit.views["full"] and audit.views["query"]


def test_what_is_given_is_laid_over_the_standard_ones_and_survives_being_written() -> None:
    overrides = ["audit.attacks.AA=null", "audit.attacks.PGD.num_steps=5", "audit.limits.Square=null", "audit.limits.AA-L2=7"]
    overrides += ["audit.attacks.mine={kind: bim, step_size: 1/255}", "audit.views.query=Square", "audit.views.bpda=[]"]
    overrides += ["audit.attacks.plain=fgsm"]
    recipe = load_recipe("paper", overrides)
    audit = recipe.audit
    assert "AA" not in audit.attacks and "AA" not in audit.views["full"] and "AA" not in audit.limits
    assert (audit.attacks["PGD"].num_steps, audit.attacks["PGD"].step_size) == (5, 2 / 255)
    assert audit.attacks["mine"].epsilon == 8 / 255
    assert audit.views["query"] == ("Square",) and audit.views["bpda"] == ()
    assert (audit.limits["AA-L2"], audit.limits.get("Square")) == (7, None)
    content = yaml.safe_load(recipe_text(recipe))
    assert parse_recipe(content) == recipe
    # A written recipe takes another ball for all attacks at once.
    other = parse_recipe(content | {"audit": content["audit"] | {"epsilon": "2/255"}}).audit
    assert {attack.epsilon for attack in other.attacks.values() if attack.norm == "linf"} == {2 / 255}
    assert load_recipe("paper", ["audit.attacks.plain=fgsm", "audit.epsilon=4/255"]).audit.attacks["plain"].epsilon == 4 / 255


@pytest.mark.parametrize("name", NAMES)
def test_another_ball_changes_a_written_recipe_as_it_does_the_shipped_one(name: str, tmp_path: Path) -> None:
    """Step sizes too, which follow from the ball unless they were given."""
    given = ["audit.attacks.BIM={kind: bim, step_size: 3/255}", "audit.attacks.mine={kind: bim}"]
    wider = ["audit.epsilon=16/255", "audit.epsilon_l2=1"]
    (tmp_path / "r.yaml").write_text(recipe_text(load_recipe(name, given)))
    written = load_recipe(tmp_path / "r.yaml", wider).audit
    assert written == load_recipe(name, [*given, *wider]).audit
    assert (written.attacks["PGD"].step_size, written.attacks["MI-FGSM"].step_size) == pytest.approx((4 / 255, 1.6 / 255))
    assert (written.attacks["PGD-L2"].step_size, written.attacks["BIM"].step_size) == (0.25, 3 / 255)
    assert written.attacks["mine"].step_size == pytest.approx(4 / 255)


def test_the_record_of_an_audit_has_every_number() -> None:
    attacks = AuditSettings(epsilon="4/255").resolved()["attacks"]
    assert (attacks["PGD"]["epsilon"], attacks["PGD"]["step_size"]) == ("4/255", "1/255")


def test_an_attack_that_is_made_already_stays_within_the_ball() -> None:
    """Its norm's: epsilon is taken from the settings where it has none, and refused where it is another."""
    inside = AuditSettings(attacks={"mine": PGD(epsilon=4 / 255, step_size=0.01, num_steps=3)}, epsilon="4/255")
    assert inside.attacks["mine"] == PGD(epsilon=4 / 255, step_size=0.01, num_steps=3)
    for norm, epsilon, name in (("linf", 0.5, "epsilon"), ("l2", 0.6, "epsilon_l2")):
        wider = PGD(norm=norm, epsilon=epsilon, step_size=0.01, num_steps=3)
        with pytest.raises(
            ValueError, match=rf"attacks.mine has an epsilon of its own: all attacks of a norm share one, {name}\b"
        ):
            AuditSettings(attacks={"mine": wider})


def test_limits_are_of_attacks_and_of_purifiers() -> None:
    settings = AuditSettings(images=500, limits={"AA": 100, "SOAP": 50})
    assert settings.limit_of("PGD", "x") == 500
    assert settings.limit_of("AA", "x") == 100
    assert settings.limit_of("AA", "SOAP") == 50
    assert AuditSettings(images=9).limit_of("AA", "x") == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("audit.epsilon=x", "'x' is not a number; write 0.1 or 8/255"),
        ("audit.epsilon=0", "audit.epsilon: Input should be greater than 0"),
        ("audit.epsilon=8", "audit.epsilon: Input should be less than or equal to 1"),
        ("audit.epsilon_l2=null", "audit.epsilon_l2"),
        ("audit.draws=1", "audit.draws: Input should be greater than or equal to 2"),
        ("audit.attacks.PGD.epsilon=0.5", "attacks.PGD has an epsilon of its own"),
        ("audit.attacks.PGD.num_step=4", "did you mean 'num_steps'"),
        ("audit.attacks.X={step_size: 1/255}", "needs a kind"),
        ("audit.attacks.CW={kind: cw}", "CW .cw. has no epsilon"),
        ("audit.attacks.PGD=3", "audit.attacks.PGD"),
        ("audit.attacks=3", "attacks is a group of values; got 3"),
        ("audit.views.full=[PGGD]", "there is no attack 'PGGD'; did you mean 'PGD'"),
        ("audit.views.full=5", "views.full is a list of names of attacks; got 5"),
        ("audit.views.full=[[1]]", "views.full is a list of names of attacks"),
        ("audit.views.ful=[PGD]", "did you mean 'full'"),
        ("audit.views.query=[PGD]", "'PGD' takes gradients"),
        ("evaluation.views=[blind, query]", "views.query: '.*' takes gradients"),
        ("audit.limits.AA=-1", "audit.limits.AA: Input should be greater than or equal to 1"),
        ("audit.image=3", "did you mean 'images'"),
        ("audit.images=0", "audit.images"),
        ("audit=3", "audit: should be a group"),
    ],
)
def test_what_is_wrong_is_told(override: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("digits", [override])
