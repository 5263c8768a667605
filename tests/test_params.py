"""params.yaml: read with types, and every fault said at once in words."""

import pytest

from exp_tools.errors import UserError
from exp_tools.models.registry import list_models
from exp_tools.params import ModelParams, load_params, parse_params


def test_the_committed_file_is_valid(params):
    assert params.model.name in ModelParams.model_fields


def test_every_architecture_has_its_section():
    assert sorted(ModelParams.model_fields.keys() - {"name", "weights"}) == list_models()


@pytest.mark.parametrize("text", ["3e-05", "3e-5", "0.00003", "+3E-05"])
def test_numbers_that_yaml_reads_as_text_are_numbers(content, text):
    content["train"]["lr"] = text
    assert parse_params(content).train.lr == 3e-5


@pytest.mark.parametrize("text", ["fast", "3e", "0x1", "nan", ""])
def test_text_that_is_no_number_is_refused(content, text):
    content["train"]["lr"] = text
    with pytest.raises(UserError, match=r"train\.lr is"):
        parse_params(content)


def test_a_near_miss_is_suggested(content):
    content["model"]["name"] = "soft_atention"
    with pytest.raises(
        UserError, match=r"model\.name is 'soft_atention'; choose one of .*did you mean 'soft_attention'"
    ):
        parse_params(content)


def test_an_unknown_key_is_refused_with_its_neighbour(content):
    content["train"]["batchsize"] = 4
    with pytest.raises(UserError, match=r"train\.batchsize is unknown.*did you mean 'batch_size'"):
        parse_params(content)


def test_a_missing_key_is_named(content):
    del content["split"]["seed"]
    with pytest.raises(UserError, match=r"split\.seed is missing"):
        parse_params(content)


def test_all_faults_come_in_one_message(content):
    content["train"]["lr"] = -1
    content["split"]["fractions"] = [0.5, 0.1, 0.1]
    content["split"]["fold"] = 0
    content["machine"]["workers"] = "many"
    content["task"] = "guess"
    with pytest.raises(UserError) as caught:
        parse_params(content)
    message = str(caught.value)
    for part in ("4 faults", "train.lr is -1", "add up to 0.7", "machine.workers is 'many'", "task is 'guess'"):
        assert part in message
    assert message.count("\n") == 4


def test_a_fold_that_does_not_exist_is_refused(content):
    content["split"]["fold"] = 5
    with pytest.raises(UserError, match="choose 0 to 4"):
        parse_params(content)


def test_a_missing_file_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match="run from the project's root"):
        load_params(tmp_path / "params.yaml")


def test_off_is_a_word_though_yaml_reads_it_as_false(content):
    content["prepare"]["duplicates"] = False
    assert parse_params(content).prepare.duplicates == "off"


def test_a_fault_in_an_external_set_is_named(content):
    content["data"]["external"] = {"clinic": {"source": "tabel", "dir": None}}
    with pytest.raises(UserError, match=r"data\.external\.clinic\.source is 'tabel'.*did you mean 'table'"):
        parse_params(content)
    content["data"]["external"] = {"clinic": {"source": "table", "folder": "x", "dir": None}}
    with pytest.raises(UserError, match=r"data\.external\.clinic\.folder is unknown; known here: source, dir"):
        parse_params(content)
    content["data"]["external"] = {"../x": {"source": "table", "dir": None}}
    with pytest.raises(UserError, match=r"data\.external"):
        parse_params(content)


def test_an_action_that_a_kind_does_not_have_is_refused(content):
    content["prepare"]["on_problem"] |= {"missing_image": "fix", "bad_aeg": "stop"}
    with pytest.raises(UserError) as caught:
        parse_params(content)
    assert "prepare.on_problem.missing_image is 'fix'; choose one of stop, skip" in str(caught.value)
    assert "did you mean 'bad_age'" in str(caught.value)


def test_a_split_is_always_stratified_by_class(content):
    content["split"]["stratify"] = ["sex"]
    with pytest.raises(UserError, match="lacks dx"):
        parse_params(content)


@pytest.mark.parametrize("key", ["split.stratify", "evaluate.subgroups"])
def test_attributes_are_named_once_by_words(content, key):
    section, name = key.split(".")
    content[section][name] = ["dx", "hospital", "hospital"]
    with pytest.raises(UserError, match=f"{key}: hospital is named twice"):
        parse_params(content)
    for wrong in ([], ["dx", 3], "dx"):
        content[section][name] = wrong
        with pytest.raises(UserError, match=key):
            parse_params(content)
    content[section][name] = ["dx", "hospital"]
    assert getattr(getattr(parse_params(content), section), name) == ["dx", "hospital"]


@pytest.mark.parametrize("text", ["a: [1", "just words", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")
