import shutil
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import yaml

from purifiers.attacks import BIM, CW, FGSM, PGD, AutoAttack
from purifiers.errors import ConfigError, MissingFileError
from purifiers.networks import CAE
from purifiers.recipes.load import NAMES, changed, differences, load_recipe, parse_recipe, recipe_text, with_shipped_classifiers
from purifiers.registry import fingerprint, load_network, save_network
from purifiers.weights import locate


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipes_are_valid_and_survive_being_written(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    assert load_recipe(tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_no_model_is_both_a_companion_and_a_surrogate(name: str) -> None:
    """The audit attacks on companions that ship anyway, and refuses two of one name."""
    recipe = load_recipe(name)
    companions = [config.source or recipe.weights.get(stage) for stage, config in recipe.classifiers().items()][1:]
    assert not {*companions} & {*recipe.audit.surrogates}


def test_the_paper_recipe_is_the_paper() -> None:
    """Section 4.1 of the paper, and the equations."""
    recipe = load_recipe("paper")
    assert (recipe.teacher_at.epochs, recipe.teacher_nt.epochs, recipe.student.epochs) == (100, 100, 40)
    for stage in (recipe.teacher_at, recipe.teacher_nt, recipe.student):
        assert (stage.optimizer, stage.learning_rate, stage.batch_size) == ("adam", 0.01, 128)
        assert (stage.schedule, stage.weight_decay, stage.flip, stage.crop) == ("constant", 0.0, False, 0)
    assert (recipe.student.beta, recipe.student.gamma, recipe.student.nt_teacher_input) == (0.5, 0.5, "adversarial")
    assert recipe.teacher_at.adversarial_weight == 1.0
    assert sum(recipe.purifier.arguments["blocks"]) == 15
    pgd8 = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=20)
    assert recipe.training_attacks == {"PGD": pgd8}
    assert recipe.evaluation.attacks == {
        "PGD8": pgd8,
        "PGD16": PGD(epsilon=16 / 255, step_size=2 / 255, num_steps=20),
        "FGSM": FGSM(epsilon=8 / 255),
        "BIM": BIM(epsilon=8 / 255, step_size=2 / 255, num_steps=20),
        "CW": CW(num_steps=40, learning_rate=0.01),
        "AA": AutoAttack(epsilon=8 / 255),
    }


@pytest.mark.parametrize("name", ["strong", "strong-cpu", "robust-cpu"])
def test_models_of_the_recipes_own_images_are_left_out_for_other_images(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They know other classes: a companion would teach these, and an audit would end at a surrogate that nobody named."""
    own, other = load_recipe(name), load_recipe(name, [("data.name", "folder"), ("data.path", "mine")])
    assert own.audit.surrogates
    assert other.audit.surrogates == ()
    assert own.audit.surrogates[0] in capsys.readouterr().out.replace("\n", " ")
    assert tuple(one for one in own.companions if one.source is None) == other.companions  # those are trained on these images
    named = load_recipe(name, [("data.name", "folder"), ("audit.surrogates", ["cifar10-resnet20"])])
    assert named.audit.surrogates == ("cifar10-resnet20",)
    assert changed(own, {"data": {"name": "folder", "path": "mine"}}).audit.surrogates == ()
    assert changed(own, {"data.limit": 100}).audit.surrogates == own.audit.surrogates


def test_overrides_reach_any_depth_and_the_last_wins() -> None:
    recipe = load_recipe(
        "digits",
        [
            "student.epochs=5",
            "student.epochs=7",
            "student.learning_rate=1e-3",
            "purifier.widths=[4, 8, 16]",
            "evaluation.attacks.PGD.epsilon=16/255",
            "evaluation.attacks.mine.kind=fgsm",
            "evaluation.attacks.mine.epsilon=0.3",
            "data.limit=null",
        ],
    )
    assert recipe.student.epochs == 7
    assert recipe.student.learning_rate == 0.001
    assert recipe.purifier.arguments["widths"] == [4, 8, 16]
    assert recipe.evaluation.attacks["PGD"].epsilon == 16 / 255
    assert recipe.evaluation.attacks["mine"] == FGSM(epsilon=0.3)
    assert recipe.data.limit is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.epoch=5", "did you mean 'epochs'"),
        ("studnet.epochs=5", "did you mean 'student'"),
        ("data.limits=5", "did you mean 'limit'"),
        ("evaluation.attacks.PGD.num_step=5", "did you mean 'num_steps'"),
        ("evaluation.attacks.PDG.epsilon=0.1", "PDG.*kind"),
        ("evaluation.attacks={}", "at least 1 item"),
        ("evaluation.attacks={PGD: {kind: pgd, 0.5: 1}}", "keys are texts; got 0.5"),
        ("evaluation.views=[]", "at least 1 item"),
        ("training_attacks.PGD.epsilon=8", r"in \[0,1\] units: 8 would be everything; write 8/255"),
        ("training_attacks.PGD.epsilon=1e400", "finite number"),
        ("student.learning_rate=1e400", "finite number"),
        ("purifier.channels=1", "every data set has 3 channels"),
        ("classifier.network.num_classes=-1", "at least 2 classes"),
        ("training_attacks.PGD.epsilonn=5", "did you mean 'epsilon'"),
        ("classifier.training.epoch=5", "did you mean 'epochs'"),
        ("purifier.width=[4]", "takes no 'width'; did you mean 'widths'"),
        ("purifier.network=cea", "did you mean 'cae'"),
        ("purifier.network=resnet", "takes no 'widths'"),
        ("student.network={network: resnet}", "cannot be trained as a purifier"),
        ("classifier.network={network: cae}", "not a classifier"),
        ("purifier={network: resnet, depth: 20}", "cannot be trained"),
        ("purifier.blocks=[1,2]", "as many widths as blocks"),
        ("student.epochs=many", r"student\.epochs: Input should be a valid integer.*got 'many'"),
        ("student.epochs=-1", "greater than or equal to 0"),
        ("student.epochs=0", "start is scratch"),
        ("student.guide_blur=9", "less than or equal to 4"),
        ("training_attacks.PGD.epsilon=8/0", "write 0.1 or 8/255"),
        ("data.name=imagenet", r"data\.name: .*imagenet"),
        ("evaluation.attacks.PGD.kind=pgdd", "did you mean 'pgd'"),
        ("evaluation.views=[blind, ful]", "no view 'ful'; did you mean 'full'"),
        (
            "evaluation.adaptive_attacks=[PGT]",
            "adaptive_attacks names 'PGT', but the attacks are PGD, .*; set adaptive_attacks too",
        ),
        ("classifier.training=null", "either a source or a group 'training'"),
        ("student.teachers=AT", r"student\.teachers: should be a list"),
        ("name=a/b", r"name: should be a plain name, .*; got 'a/b'"),
        ("data.classes=names.txt", r"'digits' takes no data\.classes"),
        ("training_attacks={}", "is empty, and teacher_at has neither an attack of its own nor noise"),
        ("student.noise=-1", "greater than or equal to 0"),
        ("student.epochs", "reads key=value"),
        ("=5", "reads key=value"),
        ("student..epochs=5", "reads key=value"),
        ("seed.x=1", "'seed' is a value"),
        ("student.epochs=[", "cannot read the value"),
        ("student.epochs=1:30", "valid integer"),  # 90 in YAML 1.1
        ("student.epochs=yes", "valid integer"),
        ("student.epochs=0x10", "valid integer"),
        ("seed=2024-13-45", "valid integer"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=1e400", "finite number"),
        ("seed=" + "9" * 5000, "digits"),
        ("seed=!!bool x", "cannot read the value"),
        ("name=\udcff", "cannot read the value"),
        ("name=~", "valid string"),
        ("student={epochs: 1, epochs: 2}", "'epochs' is there twice"),
        ("variants=&a {x: *a}", "aliases"),
        *(
            (f"{key}=1e400", "finite number")
            for key in ("student.beta", "student.weight_decay", "teacher_at.adversarial_weight")
        ),
        *((f"name={name}", "name") for name in ("../../evil", "..", "a/b", '""', '"a\\0b"')),
        ("training_attacks.PGD.epsilon=8/255/2", "write 0.1 or 8/255"),
        ("purifier.residual=maybe", "residual: Input should be a valid boolean"),
        ("purifier.residual=1", "residual: Input should be a valid boolean"),
        ("purifier.skip_every=1.5", "skip_every: Input should be a valid integer"),
        ("purifier.widths=[4, eight, 16]", r"widths\.1: Input should be a valid integer"),
        ("purifier.last_block=tahn", "last_block"),
        ("classifier.network.mean=[yes, 0.5, 0.5]", r"mean\.0: Input should be a valid number"),
    ],
)
def test_mistakes_are_named_with_the_nearest_valid_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("digits", [override])


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("digits", ["student.epoch=5", "teacher_at.epochs=-1"])
    assert "did you mean 'epochs'" in str(caught.value)
    assert "teacher_at.epochs" in str(caught.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no recipe 'paperr'; did you mean 'paper'"):
        load_recipe("paperr")
    for content, message in [
        ("a: [", "as YAML"),
        ("- 1", "should hold"),
        ("", "should hold"),
        ("name: x", "student: Field required"),
        ("name: x\nseed: 1\nname: y", "(?s)'name' is there twice.*line 3"),
    ]:
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("student.epochs=010", 10),
        ("student.learning_rate=1e-3", 1e-3),
        ("student.beta=.5", 0.5),
        ("student.flip=true", True),
        ("student.optimizer=sgd # not adam", "sgd"),
        ("name=2024-01-01", "2024-01-01"),
        ("name=no", "no"),
    ],
)
def test_numbers_and_booleans_are_those_of_yaml_1_2(override: str, value: object) -> None:
    found = attrgetter(override.partition("=")[0])(load_recipe("digits", [override]))
    assert found == value and type(found) is type(value)


def test_one_name_may_stand_for_a_list() -> None:
    assert load_recipe("digits", ["evaluation.views=blind"]).evaluation.views == ("blind",)
    assert load_recipe("digits", ["evaluation.views=full"]).evaluation.views == ("blind", "full")  # Table 1 is of the first


def test_settings_of_a_training_that_never_happens_are_refused() -> None:
    with pytest.raises(ConfigError, match="no effect"):
        load_recipe("paper", ["classifier.training.epochs=5"])
    assert load_recipe("strong-cpu", ["classifier.training.epochs=5"]).classifier.training.epochs == 5  # type: ignore[union-attr]
    own = load_recipe("paper", ["classifier.source=null", "classifier.training={epochs: 5}"])
    assert own.classifier.source is None


@pytest.mark.parametrize(
    "settings",
    [
        ["student.trades=6"],
        ["student.label_smoothing=0.1"],
        ["student.features_weight=1"],
        ["student.feature_layer=layer3"],
        ["student.held_out={attack: {kind: pgd}}"],
        ["student.classification_weight=1", "student.trades=6", "student.clean_share=1"],
        ["student.classification_weight=1", "student.trades=6", "student.guided_share=0.5"],
        ["classifier.source=null", "classifier.training={epochs: 1, trades: 6}"],
        ["training_attacks={N: {kind: nfgsm, epsilon: 8/255, step_size: 10/255}}"],
        ["student.beta=0", "student.gamma=0"],
        ["teacher_at.reconstruction_weight=0", "teacher_at.adversarial_weight=0"],
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(settings: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"trades|label_smoothing|features_weight|held_out|step_size|nothing to learn"):
        load_recipe("paper", settings)


@pytest.mark.parametrize("override", ["student.held_out=500", "student=5", "training_attacks=pgd", "audit.attacks=7"])
def test_a_value_in_place_of_a_group_is_explained(override: str) -> None:
    with pytest.raises(ConfigError, match=r"group of values.*; got"):
        load_recipe("digits", [override])


def test_options_alone_are_those_of_the_default_classifier() -> None:
    network = load_recipe("paper", ["classifier.source=mine.safetensors", "classifier.network.depth=20"]).classifier.network
    assert (network.network, network.model_dump()["depth"]) == ("resnet", 20)
    with pytest.raises(ConfigError, match="dpth"):
        load_recipe("paper", ["classifier.network.dpth=20"])


def test_files_and_folders_are_found_from_everywhere_and_names_are_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "cifar10", "cifar10-resnet56", "scratch"):
        (tmp_path / name).mkdir()
    places = ["classifier.source", "data.path", "student.start", "teacher_at.start"]
    own = load_recipe("paper", [f"{place}=mine" for place in places])
    there = str(tmp_path / "mine")
    assert [own.classifier.source, own.data.path, own.student.start, own.teacher_at.start] == [there] * 4
    shipped = load_recipe("paper", ["classifier.source=cifar10-resnet56", "teacher_at.start=cifar10"])
    assert (shipped.classifier.source, shipped.teacher_at.start) == ("cifar10-resnet56", "cifar10")
    assert shipped.student.start == "scratch"
    assert load_recipe("paper", ["data.path=cifar10"]).data.path == str(tmp_path / "cifar10")
    assert load_recipe("paper", ["teacher_at.start=./cifar10"]).teacher_at.start == str(tmp_path / "cifar10")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "mine")  # as in a hub's cache, whose blobs have no suffix
    link = load_recipe("paper", ["classifier.source=link.safetensors"]).classifier.source
    assert link == str(tmp_path / "link.safetensors")
    away = load_recipe("paper", ["classifier.source=module:build", "data.path=nowhere"])
    assert (away.classifier.source, away.data.path) == ("module:build", "nowhere")


def test_values_that_are_no_text_are_not_parsed() -> None:
    """A path may hold what YAML takes for a comment or a key."""
    recipe = load_recipe("folder", [("data.path", "/tmp/My: Photos #1")])
    assert recipe.data.path == "/tmp/My: Photos #1"


def test_reading_a_recipe_spends_neither_random_numbers_nor_memory() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    load_recipe("digits", ["purifier.widths=[4, 8, 13]"])  # a network that no other test has checked
    load_recipe("digits", ["purifier.widths=[40000, 40000, 3]"])
    assert torch.equal(state, torch.get_rng_state())


class Decaying(CAE):
    """Its constructor reads a value that it computes, and its argument has no type that the recipe knows."""

    def __init__(self, rate: "Rate" = 0.5) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__([4, 8], [1, 1])
        self.rates = torch.linspace(0, rate, 3).tolist()


def test_a_network_of_ones_own_may_read_what_it_computes() -> None:
    network = load_recipe("digits", [f"purifier={{network: '{__name__}:Decaying', rate: 1}}"]).purifier.build()
    assert network.rates == [0, 0.5, 1]


def test_a_recipe_is_plain_yaml() -> None:
    assert yaml.safe_load(recipe_text(load_recipe("paper")))["training_attacks"]["PGD"]["epsilon"] == "8/255"


def test_classifiers_can_be_taken_from_shipped_weights() -> None:
    recipe = load_recipe("strong-cpu")
    taken = with_shipped_classifiers(recipe)
    assert {name: one.source for name, one in taken.classifiers().items()} == {
        name: recipe.weights[name] for name in recipe.classifiers()
    }
    mine = with_shipped_classifiers(load_recipe("strong-cpu", ["classifier.source=my_module:build"]))
    assert mine.classifier.source == "my_module:build"
    assert mine.companions == taken.companions
    with pytest.raises(ConfigError, match="no weights for classifier of the recipe 'digits'"):
        with_shipped_classifiers(load_recipe("digits"))
    with pytest.raises(ConfigError, match="no stage 'studnet'; did you mean 'student'"):
        load_recipe("digits", ["weights.studnet=x"])


def test_what_goes_on_from_strong_fits_it_and_is_measured_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no runs/strong
    tuned, strong = load_recipe("strong-tuned"), load_recipe("strong")
    assert tuned.student.start == tuned.teacher_at.start == "runs/strong"  # where the command leaves what `strong` trains
    assert (tuned.purifier, tuned.classifier, tuned.companions) == (strong.purifier, strong.classifier, strong.companions)
    assert tuned.evaluation.attacks == strong.evaluation.attacks
    kept = {name: attack.model_copy(update={"weight": 1}) for name, attack in tuned.training_attacks.items()}
    assert strong.training_attacks.items() <= kept.items()


def test_the_differences_of_two_recipes_have_dotted_keys() -> None:
    plain = load_recipe("strong-cpu")
    assert differences(plain, plain) == {}
    other = load_recipe("strong-cpu", ["student.epochs=99", "data.limit=7"])
    assert differences(plain, other) == {"data.limit": (None, 7), "student.epochs": (plain.student.epochs, 99)}
    fewer = differences(plain, load_recipe("strong-cpu", ["companions=[]"]))
    assert fewer["companions.1.network.depth"] == (20, None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "baselines.X={network: {network: jpeg}}",
            "needs a kind",
        ),
        (
            "baselines.X={kind: sopa, network: {network: jpeg}}",
            "did you mean 'soap'",
        ),
        ("baselines.NRP.training.epoch=1", "did you mean 'epochs'"),
        ("baselines.NRP.network={network: cae}", "the network of this baseline is 'nrp'; got 'cae'"),
        ("baselines.JPEG.around=student", "remove 'around'"),
        ("baselines.JPEG.network={network: noisy}", "give either around (such as student) or network.base"),
        ("baselines.JPEG.network={network: nrp}", "'nrp' needs training"),
        ("baselines.JPEG.network={network: soap}", "'soap' needs training"),
        ("baselines.X={kind: soap, network: {network: soap}, training: {epochs: 1}}", "give network.classifier"),
        (
            "baselines.X={kind: untrained, around: NPR, network: {network: noisy}}",
            "nothing before it is called 'NPR'; did you mean 'NRP'",
        ),
        ("baselines.X={kind: untrained, network: {network: noisy, base: nothing}}", "'nothing' needs training"),
        (
            "baselines.X={kind: untrained, network: {network: noisy, base: {network: nrp, blocks: 1}}}",
            "network.base: 'nrp' needs training",
        ),
        ("baselines.JPEG.network={network: jpeg, quality: 75.5}", "quality: Input should be a valid integer"),
        ("baselines.X={kind: pretrained, source: cifar1}", "did you mean 'cifar10'"),
        ("baselines.X={kind: pretrained, source: cifar10-resnet20}", "is a classifier; expected a purifier"),
        ("baselines.X={kind: pretrained}", "source"),
        ("baselines.ours={kind: untrained, network: {network: jpeg}}", "titles have to differ"),
        ("purifier={network: jpeg}", "'jpeg' cannot be trained"),
    ],
)
def test_baselines_that_make_no_sense_are_refused_at_once(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_recipe("digits", [override])
    assert said in str(raised.value)


def test_a_trained_purifier_stands_beside_the_recipes_own(tmp_path: Path) -> None:
    save_network(tmp_path / "mine", load_network(locate("cifar10-cpu")))
    recipe = load_recipe("digits", [f"baselines.X={{kind: pretrained, source: {tmp_path / 'mine'}}}"])
    loaded = recipe.baselines["X"].build(10)
    assert fingerprint(loaded) == fingerprint(load_network(locate("cifar10-cpu")))
    assert recipe.baselines["X"].network.network == "cae"
    shutil.rmtree(tmp_path / "mine")  # results are read on machines that have no such folder
    assert parse_recipe(yaml.safe_load(recipe_text(recipe))) == recipe


def test_lengths_of_networks_may_be_fractions_too() -> None:
    network = "{network: noisy, epsilon: 16/255, base: {network: adaptive, epsilon: 8/255, base: {network: nothing}}}"
    recipe = load_recipe("digits", [f"baselines.X={{kind: untrained, network: {network}}}"])
    arguments = recipe.baselines["X"].network.arguments
    assert arguments["epsilon"] == 16 / 255 and arguments["base"]["epsilon"] == 8 / 255
    assert parse_recipe(yaml.safe_load(recipe_text(recipe))) == recipe


@pytest.mark.parametrize("name", ["1e3", "010", "5.", "no", "1:30", "2024-01-01", "null", "0x10"])
def test_a_text_that_looks_like_a_value_survives_being_written(name: str, tmp_path: Path) -> None:
    recipe = load_recipe("digits", [("name", name)])
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert yaml.safe_load(recipe_text(recipe))["name"] == name  # as YAML 1.1


def test_a_stage_that_is_not_trained_needs_no_attacks() -> None:
    start = ["latent=null", "teacher_at={epochs: 0, start: cifar10-robust}"]
    assert load_recipe("robust-cpu", start).teacher_at.epochs == 0


def test_null_removes_a_training_attack_a_baseline_and_a_variant() -> None:
    before = load_recipe("strong-cpu")
    removed = {group: [*getattr(before, group)][-1] for group in ("training_attacks", "baselines", "variants")}
    after = load_recipe("strong-cpu", [(f"{group}.{name}", None) for group, name in removed.items()])
    for group, name in removed.items():
        assert getattr(after, group).keys() == getattr(before, group).keys() - {name}


def test_an_attack_of_the_evaluation_is_removed_by_null() -> None:
    overrides = ["evaluation.attacks.PGD=null", "evaluation.limits={PGD: 3, CW: 4}", "evaluation.adaptive_attacks=[]"]
    evaluation, usual = load_recipe("digits", overrides).evaluation, load_recipe("digits").evaluation
    assert evaluation.attacks.keys() == usual.attacks.keys() - {"PGD"}
    assert evaluation.limits == {"CW": 4}
    with pytest.raises(ConfigError, match="adaptive_attacks"):
        load_recipe("digits", ["evaluation.attacks.PGD=null", "evaluation.adaptive_attacks=[PGD]"])
