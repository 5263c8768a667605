"""Further columns of a user's table as subgroups: few values, in the report, the card, the figures and the gaps."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.project import Project
from matplotlib.figure import Figure

from exp_tools.cli.main import main
from exp_tools.data.labels.attributes import attribute_groups, check_attributes
from exp_tools.data.labels.table import LABEL_COLUMNS, read_labels
from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.subgroup_scores import ATTRIBUTES
from exp_tools.evaluation.metrics.subgroups import subgroup_gaps, subgroup_report
from exp_tools.evaluation.plots.subgroups import draw_subgroups
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.probabilities import Calibration

DRAWS = {"resamples": 100, "seed": 3}


def counted(values: list) -> list[tuple[str, int]]:
    """(group, images) in order."""
    groups = attribute_groups(pd.Series(values, dtype=object))
    return [(group, int((groups == group).sum())) for group in groups.cat.categories]


def test_few_words_are_taken_as_they_are_and_the_unknown_is_last():
    values = ["b", "a", " b ", "", None, np.nan, "Unknown", "none", "c  c"]
    assert counted(values) == [("b", 2), ("a", 1), ("c c", 1), ("none", 1), ("unknown", 4)]


def test_of_many_words_the_commonest_are_kept():
    words = [f"w{number:02}" for number in range(14) for _ in range(20 - number)]
    found = counted([*words, "unknown"])
    assert found == [*((f"w{number:02}", 20 - number) for number in range(11)), ("other", 9 + 8 + 7), ("unknown", 1)]
    assert len(counted(words[: -7 - 8])) == 12
    named = counted([*words, *["other"] * 30])
    assert named == [*((f"w{number:02}", 20 - number) for number in range(10)), ("other", 10 + 9 + 8 + 7 + 30)]


def test_few_numbers_rise_and_many_are_in_quartiles():
    assert counted(["10", "2", "2.0", "", "n/a"]) == [("2", 2), ("10", 1), ("unknown", 2)]
    assert [name for name, _ in counted([str(n) for n in range(12, 0, -1)])] == [str(n) for n in range(1, 13)]
    assert counted([str(n / 2) for n in range(1, 101)]) == [
        ("0.5 to 12.5", 25),
        ("13 to 25", 25),
        ("25.5 to 37.5", 25),
        ("38 to 50", 25),
    ]
    mostly_none = ["0"] * 60 + [str(n) for n in range(-20, 21) if n]
    assert counted(mostly_none) == [("-20 to 0", 80), ("1 to 20", 20)]


def test_numbers_among_words_and_infinite_ones_are_words():
    assert counted(["1", "2", "x"]) == [("1", 1), ("2", 1), ("x", 1)]
    assert counted(["inf", "1"]) == [("1", 1), ("inf", 1)]
    assert counted(["", "unknown"]) == [("unknown", 2)]


def test_labels_are_read_as_text_whatever_their_columns_are(tmp_path):
    cells = dict.fromkeys(LABEL_COLUMNS, "7") | {"age": "45", "extra_tone": "03", "more": "1e5"}
    pd.DataFrame([cells, cells | {"age": "", "extra_tone": "NA"}]).to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv")
    assert labels["extra_tone"].tolist() == ["03", "NA"]
    assert labels["more"].tolist() == ["1e5", "1e5"]
    assert labels["age"].tolist() == pytest.approx([45.0, np.nan], nan_ok=True)


def test_an_attribute_that_the_labels_lack_is_named_with_what_they_have():
    labels = pd.DataFrame(columns=["image_id", "sex", "extra_skin_tone", "extra_hospital"])
    check_attributes(["age", "hospital"], ATTRIBUTES, labels, "evaluate.subgroups")
    said = (
        r"evaluate\.subgroups names 'skintone'; the label table has sex, age, localization, source, dx_type, "
        r"skin_tone, hospital \(did you mean 'skin_tone'\?\)"
    )
    with pytest.raises(UserError, match=said):
        check_attributes(["skintone"], ATTRIBUTES, labels, "evaluate.subgroups")
    with pytest.raises(UserError, match="names 'image_id'"):
        check_attributes(["image_id"], ATTRIBUTES, labels, "evaluate.subgroups")


def table_of_hospitals(images: int = 400) -> pd.DataFrame:
    """Predictions of bkl and nv, right but for a third of hospital B."""
    number = np.arange(images)
    labels, hospital = number % 2, np.where(number % 4 < 2, "A", "B")
    right = (hospital == "A") | (number % 3 > 0)
    ids = [f"L_{one}" for one in number]
    table = pd.DataFrame({"image_id": ids, "lesion_id": ids, "group_id": ids, "source": "mine"})
    table = table.assign(dx=np.array(["bkl", "nv"])[labels])
    logits = 9.0 * np.eye(2)[np.where(right, labels, 1 - labels)]
    table = prediction_table(table, "test", logits, ["bkl", "nv"], Calibration.none(2))
    about = {"sex": "male", "age": 50.0, "localization": "back", "dx_type": np.where(number % 8 < 4, "histo", "expert")}
    return table.assign(**about, extra_hospital=hospital, extra_tone=(number % 5).astype(str), extra_empty="unknown")


def test_a_further_attribute_has_rows_and_gaps_in_the_asked_order():
    table, names = table_of_hospitals(), ["hospital", "sex", "dx_type", "tone", "empty", "absent"]
    report = subgroup_report(table, ["bkl", "nv"], attributes=names, **DRAWS)
    by_value = {(row["attribute"], row["value"]): row for row in report}
    assert list(by_value) == [
        ("all", "all"),
        ("hospital", "A"),
        ("hospital", "B"),
        ("sex", "male"),
        ("dx_type", "expert"),
        ("dx_type", "histo"),
        *(("tone", str(number)) for number in range(5)),
    ]
    part = table[table["extra_hospital"] == "B"]
    assert by_value["hospital", "B"]["accuracy"] == (part["dx"] == part["predicted"]).mean() < 0.7
    gaps = subgroup_gaps(table, ["bkl", "nv"], attributes=names, **DRAWS)
    assert {gap["attribute"] for gap in gaps} == {"hospital", "tone"}
    assert next((gap["best"], gap["worst"], gap["clear"]) for gap in gaps) == ("A", "B", True)


def test_what_is_scored_by_default_does_not_depend_on_further_columns():
    table = table_of_hospitals(80)
    without = table[[column for column in table if not column.startswith("extra_")]]
    assert repr(subgroup_report(table, ["bkl", "nv"], **DRAWS)) == repr(
        subgroup_report(without, ["bkl", "nv"], **DRAWS)
    )


def test_names_out_of_a_table_are_drawn_as_they_are(tmp_path, monkeypatch):
    kept = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *given, **named: (kept.append(given[0]), savefig(*given, **named)))
    table = table_of_hospitals(40).assign(extra_fee_class=["up to $5 and $^_", "more"] * 20)
    report = subgroup_report(table, ["bkl", "nv"], attributes=["fee_class"], **DRAWS)
    draw_subgroups(tmp_path / "a.png", report, "t")
    axes = kept[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()][1:] == [
        "more  (n=20)",
        r"up to \$5 and \$^   (n=20)",
    ]
    assert "fee class" in [text.get_text() for text in axes.texts]


@pytest.fixture(scope="module")
def project(ran_project, tmp_path_factory) -> Project:
    """The project that ran, evaluated once more with two further columns and two external sets, one without."""
    made = ran_project.copy(tmp_path_factory.mktemp("attributes") / "project")
    path = made.folder / "data/prepared/labels.csv"
    labels = pd.read_csv(path, dtype=str, keep_default_na=False)
    number = labels.groupby("lesion_id").ngroup()
    path.unlink()
    labels = labels.assign(extra_hospital=np.where(number % 2, "north", "south"), extra_width=number.astype(str))
    labels.to_csv(path, index=False, lineterminator="\n")
    set_subgroups(made, ["sex", "hospital", "width"])
    external = pd.concat(
        [labels.iloc[:12].assign(set="with"), labels.iloc[12:24].assign(set="bare", extra_hospital="")]
    )
    path = made.folder / "data/external/labels.csv"
    path.unlink()
    external.assign(image_id="E" + external["image_id"], extra_width="").to_csv(path, index=False)
    images = np.load(made.folder / "data/prepared/images.npy")[:24]
    (made.folder / "data/external/images.npy").unlink()
    np.save(made.folder / "data/external/images.npy", images)
    for name in ("data/predictions.csv", "metrics/report.json", "MODEL_CARD.md"):
        (made.folder / name).unlink()
    made.run("python", "-m", "stages.evaluate")
    return made


def set_subgroups(project: Project, names: list[str]) -> None:
    path = project.folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    content["evaluate"]["subgroups"] = names
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def attributes(report: dict) -> list[str]:
    return list(dict.fromkeys(row["attribute"] for row in report["subgroups"]))


def test_the_stage_scores_by_the_columns_and_leaves_the_predictions_as_they_were(project, ran_project):
    report = json.loads((project.folder / "metrics/report.json").read_text())
    assert attributes(report["test"]) == ["all", "sex", "hospital", "width"]
    assert attributes(report["external"]["with"]) == ["all", "sex", "hospital"]
    assert attributes(report["external"]["bare"]) == ["all", "sex"]
    widths = [row["value"] for row in report["test"]["subgroups"] if row["attribute"] == "width"]
    assert widths == sorted(widths, key=int)
    assert len(widths) > 3
    own, before = (pd.read_csv(one.folder / "data/predictions.csv") for one in (project, ran_project))
    assert list(own) == list(before)
    pd.testing.assert_frame_equal(own[: len(before)], before)
    card = (project.folder / "MODEL_CARD.md").read_text()
    assert "| hospital | north |" in card
    assert "except by what the subgroups tell of: hospital, width." in card
    curves = pd.read_csv(project.folder / "plots/curves/subgroups.csv")
    assert {"north", "south"} <= set(curves["value"])


def test_score_takes_the_projects_attributes_or_others(project, capsys, monkeypatch):
    monkeypatch.chdir(project.folder)
    arguments = ["score", "data/predictions.csv", "--split", "test", "--resamples", "100", "--json"]
    assert main(arguments) == 0
    report = json.loads((project.folder / "metrics/report.json").read_text())["test"]
    again = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in again["subgroups"]] == [row["value"] for row in report["subgroups"]]
    assert main([*arguments, "--subgroups", "hospital"]) == 0
    assert attributes(json.loads(capsys.readouterr().out)) == ["all", "hospital"]
    assert main([*arguments, "--subgroups", "clinic"]) == 1
    assert "--subgroups (or evaluate.subgroups) names 'clinic'; the label table has sex" in capsys.readouterr().err


def test_the_sheets_name_what_was_scored(project, capsys, monkeypatch):
    monkeypatch.chdir(project.folder)
    assert main(["card", "--sheet", "tripod"]) == 0
    assert "Scores by sex, hospital and width; " in capsys.readouterr().out


def test_an_unknown_attribute_ends_the_stage_before_it_predicts(project, tmp_path):
    other = project.copy(tmp_path / "other")
    set_subgroups(other, ["sex", "hospitals"])
    before = (other.folder / "data/predictions.csv").read_bytes()
    done = other.run("python", "-m", "stages.evaluate", check=False)
    assert done.returncode == 1
    said = "evaluate.subgroups names 'hospitals'; the label table has sex, age, localization, source, dx_type, hospital"
    assert said in done.stderr
    assert (other.folder / "data/predictions.csv").read_bytes() == before
