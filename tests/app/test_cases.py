"""The cases of the Cases page without a browser: what is read, filtered, ordered and refused, and the page itself."""

import dataclasses
import os
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.cases import SIDE, WRONG, label_table, logits_of, save, save_images, write_lock, write_run
from helpers.models import CLASSES, write_model

pytest.importorskip("streamlit")

import streamlit
from streamlit.testing.v1 import AppTest

from exp_tools.app import launch
from exp_tools.app.cases import explain, freshness
from exp_tools.app.cases.selection import ORDERS, Filters, ordered, orders, select
from exp_tools.app.cases.table import read_cases
from exp_tools.app.parts import charts
from exp_tools.app.parts.settings import Settings
from exp_tools.cli import main as cli
from exp_tools.errors import UserError
from exp_tools.project import EXTERNAL_LABELS, IMAGES, LABELS, MODEL, PREDICTIONS, SPLITS
from exp_tools.serving.predictor import NO_MAPS, Patient, Predictor


@pytest.fixture(autouse=True)
def as_it_was():
    """Streamlit's test runner puts its page in the place of `__main__`; what the app keeps is of one test only."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before
    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()


def changed(root, **columns) -> None:
    """Add columns to predictions.csv."""
    save(root, PREDICTIONS, pd.read_csv(root / PREDICTIONS).assign(**columns))


# ------------------------------------------------------------------------------------------------------ the table


def test_a_case_is_a_test_image_with_its_metadata_and_its_row_of_the_packed_images(tmp_path):
    written = write_run(tmp_path)
    cases = read_cases(tmp_path)
    assert cases.table["image_id"].tolist() == [f"IMG_{n:02}" for n in range(2, 12)]
    assert cases.table["place"].tolist() == list(range(2, 12))
    assert [image[0, 0, 0] for image in cases.pixels("test", [2, 11])] == [2, 11]
    row, shares = cases.table.iloc[1], written.set_index("image_id").loc["IMG_03"]
    assert (row["dx"], row["predicted"], row["right"]) == ("bcc", "mel", False)
    assert row["confidence"] == pytest.approx(shares["p_mel"])
    assert row["loss"] == pytest.approx(-np.log(shares["p_bcc"]))
    assert (row["sex"], row["of_age"], row["extra_skin_tone"]) == ("female", "20-39", "light")
    assert cases.attributes == {
        "sex": ["female", "male", "unknown"],
        "age": ["20-39", "40-59", "unknown"],
        "localization": ["back", "face"],
        "dx_type": ["follow_up", "histo"],
        "skin_tone": ["dark", "light"],
    }
    assert "source" not in cases.attributes  # one value says nothing
    assert not {"set_size", "unlike_training", "unlike_score"} & set(cases.table)
    assert orders(cases.table) == [order for order in ORDERS if "unlike" not in order]


def test_images_of_one_name_in_two_sets_are_two_cases(tmp_path):
    write_run(tmp_path, external=True)
    cases = read_cases(tmp_path)
    assert cases.sets == ["test", "external:ph2"]
    assert len(select(cases.table, Filters("test"))) == 10
    outside = select(cases.table, Filters("external:ph2"))
    assert outside["image_id"].tolist() == ["IMG_00", "IMG_01", "IMG_02", "IMG_03"]
    assert [image[0, 0, 0] for image in cases.pixels("external:ph2", outside["place"])] == [102, 103, 104, 105]


def test_further_columns_are_read_as_what_they_are(tmp_path):
    rows = len(write_run(tmp_path))
    sets = ["mel nv", "mel", "", "bcc mel nv"]
    changed(
        tmp_path,
        prediction_set=np.resize(sets, rows),
        unlike_training=np.resize(["true", "false"], rows),
        unlike_score=np.resize(["1.5", "", "0.25"], rows),
    )
    table = read_cases(tmp_path).table  # row 0 of the file is the validation image
    assert table["set_size"].tolist()[:4] == [1, 0, 3, 2]
    assert table["unlike_training"].tolist()[:3] == [False, True, False]
    assert np.isnan(table["unlike_score"][0])
    assert table["unlike_score"][1] == 0.25
    sorted_ = ordered(table, "most unlike the training images first")
    known = sorted(table["unlike_score"].dropna(), reverse=True)
    assert sorted_["unlike_score"].tolist()[: len(known)] == known
    assert sorted_["unlike_score"][len(known) :].isna().all()
    assert len(select(table, Filters("test", unlike=True))) == 5
    assert set(select(table, Filters("test", sizes=(0, 3)))["set_size"]) == {0, 3}


def damage(root) -> None:
    (root / IMAGES).write_bytes(b"nothing")


def keep_validation(root) -> None:
    table = pd.read_csv(root / PREDICTIONS)
    save(root, PREDICTIONS, table[table["split"] == "val"])


def lose_an_image(root) -> None:
    labels = label_table().drop(index=4)
    save(root, LABELS, labels)
    save_images(root / IMAGES, len(labels))


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda root: (root / PREDICTIONS).unlink(), "there is no prediction table data/predictions.csv; make it"),
        (lambda root: (root / LABELS).unlink(), "data/prepared/labels.csv"),
        (
            lambda root: (root / IMAGES).unlink(),
            "data/prepared/images.npy is not here; make it with `dvc repro prepare`",
        ),
        (lambda root: (root / EXTERNAL_LABELS).unlink(), "data/external/labels.csv"),
        (damage, "data/prepared/images.npy is damaged"),
        (lambda root: save_images(root / IMAGES, 11), "images.npy has 11 images and data/prepared/labels.csv 12 rows"),
        (
            lose_an_image,
            "1 of 10 images of data/predictions.csv are not in data/prepared/labels.csv, the first is IMG_04",
        ),
        (lambda root: changed(root, predicted="scc"), "is predicted as 'scc', which is no class of the file"),
        (keep_validation, "has no image of the test split"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_line_with_a_remedy(tmp_path, break_it, told):
    write_run(tmp_path, external=True)
    break_it(tmp_path)
    with pytest.raises(UserError) as error:
        read_cases(tmp_path)
    line = str(error.value)
    assert told in line
    assert "dvc " in line
    assert "\n" not in line
    assert str(tmp_path) not in line  # a visitor is not told where the project is


# -------------------------------------------------------------------------------------------------------- filters


def test_filters_take_what_a_loop_takes(tmp_path):
    rows = len(write_run(tmp_path))
    changed(tmp_path, prediction_set=np.resize(["mel nv", "mel"], rows), unlike_training=np.resize([True, False], rows))
    table = read_cases(tmp_path).table
    some = [
        Filters("test"),
        Filters("test", "wrong"),
        Filters("test", "right", true=("mel", "nv")),
        Filters("test", predicted=("mel",), confidence=(0.6, 0.8)),
        Filters("test", attributes={"sex": ("male", "unknown"), "age": ("40-59",)}),
        Filters("test", attributes={"skin_tone": ("dark",), "dx_type": ()}),
        Filters("test", "wrong", unlike=False, sizes=(1,)),
        Filters("external:ph2"),
    ]
    counts = []
    for filters in some:
        wanted = [row["image_id"] for _, row in table.iterrows() if passes(row, filters)]
        assert select(table, filters)["image_id"].tolist() == wanted
        counts.append(len(wanted))
    assert counts[:2] == [10, 4]
    assert all(0 < count < 10 for count in counts[1:6])


def passes(row: pd.Series, filters: Filters) -> bool:
    """By hand, from the columns that filters are about."""
    ages = {30: "20-39", 55: "40-59"}
    values = {"age": ages.get(row["age"], "unknown"), "sex": row["sex"], "skin_tone": row["extra_skin_tone"]}
    return (
        row["split"] == filters.of_set
        and {"all": True, "wrong": row["dx"] != row["predicted"], "right": row["dx"] == row["predicted"]}[
            filters.outcome
        ]
        and (not filters.true or row["dx"] in filters.true)
        and (not filters.predicted or row["predicted"] in filters.predicted)
        and filters.confidence[0] <= max(row[f"p_{code}"] for code in CLASSES) <= filters.confidence[1]
        and all(not some or values[name] in some for name, some in filters.attributes.items())
        and filters.unlike in (None, row.get("unlike_training"))
        and (not filters.sizes or len(row["prediction_set"].split()) in filters.sizes)
    )


def test_orders_are_by_number_and_equal_ones_by_name(tmp_path):
    write_run(tmp_path, logits=logits_of(["mel"] * 12) * 0 + [0.0, 1.0, 0.0])
    table = read_cases(tmp_path).table
    assert ordered(table, "highest probability first")["image_id"].tolist() == table["image_id"].tolist()
    assert ordered(table, "largest loss first")["right"].tolist() == [False] * 7 + [True] * 3


# ------------------------------------------------------------------------------------------------------ freshness


@pytest.fixture
def run(tmp_path):
    """A folder with a run and the model that fits it."""
    write_run(tmp_path)
    write_model(tmp_path / MODEL, "soft_attention")
    write_lock(tmp_path)
    return tmp_path


def test_files_of_one_run_are_fresh_whatever_their_times(run):
    os.utime(run / PREDICTIONS, (1, 1))  # `dvc checkout` sets times of its own
    assert freshness.stale(run) == []


@pytest.mark.parametrize("path", [MODEL, LABELS, SPLITS, IMAGES])
def test_a_file_that_changed_after_the_predictions_is_named(run, path):
    with (run / path).open("ab") as file:
        file.write(b"\n")
    (line,) = freshness.stale(run)
    assert line == f"{path} is not the one that {PREDICTIONS} was made with; `dvc repro evaluate` predicts again."


def test_images_that_were_prepared_otherwise_are_named_without_reading_them(run):
    lock = yaml.safe_load((run / "dvc.lock").read_text())
    lock["stages"]["prepare"]["outs"][0] = {**lock["stages"]["prepare"]["outs"][0], "md5": "0" * 32}
    (run / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert [line.split()[0] for line in freshness.stale(run)] == [str(IMAGES)]


def test_predictions_that_dvc_does_not_know_are_said(run):
    changed(run, remark="mine")
    assert "is not the table that dvc.lock records" in freshness.stale(run)[0]


@pytest.mark.parametrize("lock", [None, "<<<<<<< HEAD\n: [", "schema: '2.0'\n"])
def test_without_a_record_the_times_decide(run, lock):
    (run / "dvc.lock").unlink()
    if lock is not None:
        (run / "dvc.lock").write_text(lock)
    os.utime(run / PREDICTIONS, (2_000_000_000, 2_000_000_000))
    assert freshness.stale(run) == []
    os.utime(run / PREDICTIONS, (1, 1))
    assert "is older than models/model.safetensors" in freshness.stale(run)[0]
    (run / MODEL).unlink()
    assert freshness.stale(run) == []


# ----------------------------------------------------------------------------------------------- maps of two classes


def test_maps_are_of_the_class_that_is_asked_for(run):
    predictor = Predictor(run / MODEL)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    one, two = (predictor.maps(pixels, Patient(), code, ["gradcam"])["gradcam"] for code in ("mel", "nv"))
    assert one.shape == two.shape == (SIDE, SIDE)
    assert not np.allclose(one, two)
    found = predictor.predict(pixels, explain=["gradcam"])
    again = predictor.maps(pixels, Patient(), found.diagnosis, ["gradcam"])
    assert np.array_equal(found.maps["gradcam"], again["gradcam"])


def test_bars_mark_the_true_class():
    answer = dataclasses.make_dataclass("Answer", ["diagnosis", "probabilities"])("nv", {"nv": 0.7, "mel": 0.3})
    assert charts.probability_bars(answer, true="mel").count("true class") == 1
    assert "Melanoma<small>true class, malignant" in charts.probability_bars(answer, true="mel")
    assert "true class" not in charts.probability_bars(answer)


# -------------------------------------------------------------------------------------------------------- the page


def script(settings):
    from exp_tools.app.pages import cases

    cases.show(settings)


def page(root, *, state=None, **query) -> AppTest:
    """The page as somebody sees it who opens it with these query parameters."""
    app = AppTest.from_function(script, args=(Settings(str(root), cases=True),), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    for name, value in (state or {}).items():
        app.session_state[name] = value
    app.run()
    assert not app.exception
    return app


def texts(app: AppTest, *kinds: str) -> str:
    return "\n".join(element.value for kind in kinds for element in getattr(app, kind))


def asked(app: AppTest) -> str:
    """The case that the page's address names."""
    found = app.query_params["case"]
    return found if isinstance(found, str) else found[0]


def facts(app: AppTest) -> str:
    """The HTML of the table of what is known of the case."""
    return next(html.proto.body for html in app.html if "class='facts'" in html.proto.body)


def heading(app: AppTest) -> str:
    return app.header[0].value


def test_the_page_begins_with_the_worst_mistake_and_steps_round(run):
    app = page(run)
    assert heading(app).startswith("Wrong: Basal cell carcinoma")  # IMG_11, the surest of all
    assert asked(app) == "IMG_11"
    assert "**4** of 10 images" in texts(app, "markdown")
    seen = []
    for _ in range(5):
        seen.append(asked(app))
        app.button(key="next").click().run()
    assert sorted(seen[:4]) == WRONG
    assert seen[4] == "IMG_11"  # after the last the first
    app.button(key="previous").click().run()
    assert asked(app) == "IMG_11"
    assert not app.exception


def test_a_link_leads_to_its_case_whatever_the_filters_say(run):
    app = page(run, case="IMG_04")
    assert heading(app).startswith("Right: Melanoma")
    assert "The filters do not let this case pass" in texts(app, "info")
    app.button(key="next").click().run()
    assert asked(app) == "IMG_11"
    app = page(run, case="IMG_99")
    assert "There is no image IMG_99 in the test split" in texts(app, "error")
    app.button(key="next").click().run()
    assert heading(app).startswith("Wrong")


def test_filters_narrow_the_cases_and_begin_anew(run):
    app = page(run)
    app.multiselect(key="predicted").set_value(["mel"]).run()
    assert "**2** of 10 images" in texts(app, "markdown")
    assert asked(app) == "IMG_05"
    assert app.expander[0].label == "Filters and order: 1 set"
    app.multiselect(key="of_sex").set_value(["male"]).run()
    assert "**0** of 10" in texts(app, "markdown")
    assert "No image passes these filters" in texts(app, "info")
    next(button for button in app.button if button.label == "Clear filters").click().run()
    assert "**4** of 10" in texts(app, "markdown")
    assert not app.exception


def test_the_grid_shows_only_a_page_of_pictures_and_opens_a_case(run, monkeypatch):
    from exp_tools.app.pages import cases as module

    monkeypatch.setattr(module, "PER_PAGE", 3)
    app = page(run, state={"view": "Grid", "outcome": "all"})
    opened = [button for button in app.button if (button.key or "").startswith("open ")]
    assert len(opened) == 3
    opened[1].click().run()
    assert not app.exception
    assert asked(app) == opened[1].key.split()[-1]
    assert app.segmented_control(key="view").value == "One case"


def test_what_the_table_lacks_has_no_filter_and_how_to_get_it_is_said(run):
    app = page(run)
    assert "No filter for the number of classes in the prediction set" in texts(app, "caption")
    keys = {one.key for one in [*app.multiselect, *app.selectbox]}
    assert not {"sizes", "unlike", "images"} & keys
    changed(run, prediction_set="mel nv", unlike_training=True, unlike_score=2.5)
    app = page(run)
    assert "No filter for" not in texts(app, "caption")
    assert {"sizes", "unlike"} <= {one.key for one in [*app.multiselect, *app.selectbox]}
    assert "Melanoma, Melanocytic nevus (2 of 3 classes)" in facts(app)
    assert "<td>yes, score 2.5</td>" in facts(app)
    app.selectbox(key="unlike").set_value("no").run()
    assert "**0** of 10" in texts(app, "markdown")


def test_an_external_set_is_chosen_like_any_filter(run):
    write_run(run, external=True)
    app = page(run)
    app.selectbox(key="images").set_value("external set ph2").run()
    assert not app.exception
    assert "**3** of 4 images" in texts(app, "markdown")  # all taken for nevi, one rightly
    app = page(run, images="external set ph2", case="IMG_02")
    assert heading(app).startswith("Right: Melanocytic nevus")


def test_a_label_that_somebody_changed_is_shown_with_the_one_before(run):
    changed(run, dx_original=pd.read_csv(run / PREDICTIONS)["dx"].replace("mel", "nv"))
    app = page(run, case="IMG_04")
    assert "label before it was changed</th><td>Melanocytic nevus" in facts(app)
    assert "label before" not in facts(page(run, case="IMG_03"))


def test_other_images_of_the_lesion_are_shown_also_where_they_are_in_training(run):
    app = page(run, case="IMG_02")  # its lesion's other image is in train: the split tore them apart
    assert "IMG_00: in train, not predicted here" in texts(app, "caption").replace("\\", "")
    assert not [one for one in app.button if (one.key or "").startswith("open ")]
    app = page(run, case="IMG_04")
    assert [one.key for one in app.button if (one.key or "").startswith("open ")] == ["open test IMG_05"]
    app.button(key="open test IMG_05").click().run()
    assert asked(app) == "IMG_05"
    assert heading(app).startswith("Wrong")


def test_two_maps_side_by_side_of_a_mistake_and_one_of_what_is_right(run, monkeypatch):
    drawn = []
    real = Predictor.maps

    def maps(self, pixels, patient, target, kinds):
        drawn.append((int(pixels[0, 0, 0]), target, patient.age))
        return real(self, pixels, patient, target, kinds)

    monkeypatch.setattr(Predictor, "maps", maps)
    app = page(run, case="IMG_03")
    assert drawn == []  # nobody asked for them
    app.toggle(key="maps").set_value(True).run()
    assert drawn == [(3, "mel", 30.0), (3, "bcc", 30.0)]
    assert "each map has its own scale" in texts(app, "caption")
    assert "they are of different runs" in texts(app, "warning")  # the predictions are made up
    drawn.clear()
    app = page(run, case="IMG_04", state={"maps": True})
    assert [target for _, target, _ in drawn] == ["mel"]


def test_predictions_of_this_model_are_not_doubted(run):
    pixels = np.load(run / IMAGES)
    predictor = Predictor(run / MODEL)
    write_run(run, logits=predictor.engine.logits(pixels, np.zeros((len(pixels), 3), np.float32)))
    app = page(run, case="IMG_04", state={"maps": True})
    assert "different runs" not in texts(app, "warning")


def test_without_the_model_file_cases_are_shown_and_maps_are_not(run):
    (run / MODEL).unlink()
    app = page(run, state={"maps": True})
    assert heading(app).startswith("Wrong")
    assert "No heat maps: there is no model model.safetensors yet; make one with `dvc repro`" in texts(
        app, "info"
    ).replace("\\", "")


@pytest.mark.parametrize(("side", "told"), [(SIDE, NO_MAPS), (64, "image_size 64 here, 96 there")])
def test_why_there_are_no_maps_is_said(run, monkeypatch, side, told):
    monkeypatch.setattr("exp_tools.serving.engines.positions", lambda *_: 1)
    np.save(run / IMAGES, np.load(run / IMAGES)[:, :side, :side])
    app = page(run, state={"maps": True})
    assert told in texts(app, "info").replace("\\", "")


def test_a_stale_model_is_a_warning_and_a_missing_table_an_error(run):
    with (run / MODEL).open("ab") as file:
        file.write(b" ")
    assert "is not the one that" in texts(page(run), "warning")
    (run / PREDICTIONS).unlink()
    app = page(run)
    assert "there is no prediction table data/predictions.csv" in texts(app, "error").replace("\\", "")
    assert not app.header


# ------------------------------------------------------------------------------------------------ who may see it


def test_pictures_are_shown_to_others_only_where_that_is_switched_on(run, monkeypatch):
    started = []
    monkeypatch.setattr(launch, "start", lambda settings, **where: started.append(settings.cases))
    monkeypatch.chdir(run)
    public = ["--public-url", "https://example.org"]
    for words in ([], ["--host", "0.0.0.0"], public, ["--cases", "--host", "0.0.0.0"], ["--cases", *public]):
        assert cli.main(["app", *words]) == 0
    assert started == [True, False, False, True, True]
    app = AppTest.from_function(script, args=(Settings(str(run)),), default_timeout=60).run()
    assert "exp-tools app --cases" in texts(app, "info")
    assert not app.header
    assert not app.button


def test_patients_are_those_of_the_evaluation():
    row = pd.Series({"age": np.nan, "sex": "unknown", "localization": "back"})
    assert explain.patient_of(row) == Patient(localization="back")
    assert explain.patient_of(pd.Series({**row, "age": 40.0, "sex": "male"})) == Patient(40.0, "male", "back")
