"""Reporting sheets hold what the report says, leave the rest to the author, and claim nothing."""

import json
import re

import pytest
from helpers.project import Project

from exp_tools.cli.main import main
from exp_tools.errors import UserError
from exp_tools.evaluation.report.latex import escaped, inline, latex_table, markdown_to_latex
from exp_tools.evaluation.report.sheets import AUTHOR, SHEETS, reporting_sheet
from exp_tools.models.model_file import read_facts


@pytest.fixture(scope="module")
def project(ran_project, tmp_path_factory) -> Project:
    return ran_project.copy(tmp_path_factory.mktemp("sheets") / "project")


def test_the_guidelines_are_whole():
    items = {name: [item for item, *_ in sheet.items] for name, sheet in SHEETS.items()}
    assert items["claim"] == [str(number) for number in range(1, 45)]
    assert len(items["tripod"]) == len(set(items["tripod"])) == 52
    assert {re.match(r"\d+", item)[0] for item in items["tripod"]} == {str(number) for number in range(1, 28)}
    assert list(dict.fromkeys(items["clear"])) == ["data", "technique", "assessment", "application"]


@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_says_what_the_report_says(project, name, monkeypatch, capsys):
    monkeypatch.chdir(project.folder)
    assert main(["card", "--sheet", name]) == 0
    sheet = capsys.readouterr().out
    report = json.loads((project.folder / "metrics/report.json").read_text())
    test = report["test"]
    lines = [line for line in sheet.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(SHEETS[name].items)
    unknown = sum(line.endswith(f"| {AUTHOR} |") for line in lines)
    assert f"{len(lines) - unknown} of {len(lines)} lines hold what the pipeline knows, {unknown} are for the" in sheet
    assert 0 < unknown < len(lines)
    assert f"{test['metrics']['balanced_accuracy']:.3f}" in sheet
    assert f"test: {test['images']:,} images of {test['lesions']:,} lesions" in sheet
    assert "not a statement that the guideline is met" in sheet
    assert not re.search(r"\{|\bNone\b|\bnan\b|complian", sheet.replace("None: ", "").replace("| None. |", ""))


def test_what_is_unknown_is_left_to_the_author(project):
    facts = read_facts(project.folder / "models/model.safetensors")
    report = json.loads((project.folder / "metrics/report.json").read_text())
    bare = {"external": {}, "test": report["test"] | {"participants": None, "melanoma": None}}
    sheet = reporting_sheet("claim", facts, bare)
    assert f"| 36 | demographics of each partition | {AUTHOR} |" in sheet
    assert f"| 38 | diagnostic accuracy with precision | {AUTHOR} |" in sheet
    assert f"| 33 | external evaluation | {AUTHOR} |" in sheet
    known = report | {"external": {"ph2": report["test"]}}
    assert "| 33 | external evaluation | ph2: balanced accuracy" in reporting_sheet("claim", facts, known)
    with pytest.raises(UserError, match="no reporting sheet 'stard'; choose of claim, tripod, clear"):
        reporting_sheet("stard", facts, report)


def test_latex_escapes_and_keeps_the_cells():
    assert escaped("5 % of a_b & {c}") == r"5 \% of a\_b \& \{c\}"
    assert inline("**no** `p_mel` \\* 0.5") == r"\textbf{no} \texttt{p\_mel} * 0.5"
    table = latex_table(["", "score"], [["`mel`", "0.5 *"]], caption="a & b")
    assert table.splitlines()[3:9] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r" & score \\",
        r"\midrule",
        r"\texttt{mel} & 0.5 * \\",
        r"\bottomrule",
    ]
    assert r"\caption{a \& b}" in table


def test_the_card_and_a_sheet_are_whole_as_latex(project, monkeypatch, capsys):
    monkeypatch.chdir(project.folder)
    for command in (["card"], ["card", "--sheet", "claim"]):
        assert main(command) == 0
        markdown = capsys.readouterr().out
        assert main([*command, "--format", "latex"]) == 0
        latex = capsys.readouterr().out
        for name in ("tabular", "itemize", "verbatim"):
            assert latex.count(f"\\begin{{{name}}}") == latex.count(f"\\end{{{name}}}")
        rows = [line for line in markdown.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
        assert sum(line.endswith(r"\\") for line in latex.splitlines()) == len(rows)
        assert latex == markdown_to_latex(markdown)
        outside = re.sub(r"\\begin\{verbatim\}.*?\\end\{verbatim\}", "", latex, flags=re.DOTALL)
        assert not re.search(r"(?<!\\)[%#_]", outside)
