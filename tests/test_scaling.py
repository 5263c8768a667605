"""The model of scale-out against numbers worked out by hand, and docs/scaling.md against the model and the project."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torchvision
import yaml
from helpers.project import ROOT, merge

from benchmarks import scale_model
from benchmarks.scale_model import Assumptions, Network, Step, gathered_bytes, ring_bytes, step
from exp_tools.params import parse_params

DOC = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash (\w+)\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
SMALL = Network("small", parameters=1_000_000, norm_layers=10, norm_channels=100)
SLOW = Assumptions(
    images=1_000, rate=100, batch=10, gpus_a_host=2, inside=1.0, between=0.1, latency_inside=10, latency_between=100
)


def test_sums_and_exchanges_count_each_number_once_for_each_that_needs_it():
    assert ring_bytes(1_000, 1) == 0
    assert ring_bytes(1_000, 2) == 4_000  # half of them out, the sums of the other half out
    assert ring_bytes(1_000, 4) == 6_000
    assert gathered_bytes(10, 3) == 80  # from each of two others


def test_a_step_in_a_host_and_over_two():
    assert step(SMALL, 1, SLOW) == Step(0.1, 0, 0)
    two, four = step(SMALL, 2, SLOW), step(SMALL, 4, SLOW)
    # 10 layers x 2 messages x 10 µs; 210 numbers from one other and 200 summed over two, at 1 GB/s
    assert two.gradients == pytest.approx(0.004)
    assert two.norms == pytest.approx(200e-6 + (840 + 800) / 1e9)
    # over the slower link: 6 MB at 0.1 GB/s; 20 x 100 µs; 210 numbers from three others and 200 summed over four
    assert four.gradients == pytest.approx(0.06)
    assert four.norms == pytest.approx(2_000e-6 + (2_520 + 1_200) / 1e8)
    assert four.slowest == pytest.approx(0.16 + four.norms)
    assert four.fastest == pytest.approx(0.1 + four.norms)  # the backward pass lasts 0.067 s
    assert replace(four, gradients=0.1).fastest == pytest.approx(0.1 + 0.1 / 3 + four.norms)


def test_published_networks_are_counted_right():
    with torch.device("meta"):
        resnet = torchvision.models.resnet50(num_classes=7)
    norms = [module for module in resnet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    counted = scale_model.network("timm")
    assert counted.parameters == sum(parameter.numel() for parameter in resnet.parameters()) == 23_522_375
    assert (counted.norm_layers, counted.norm_channels) == (len(norms), sum(norm.num_features for norm in norms))


def test_sizes_and_steps():
    million = Assumptions()
    assert million.packed_bytes == 150_528_000_000
    assert scale_model.steps_an_epoch(64, million) == 171  # 700,000 in batches of 4,096
    assert [scale_model.steps_an_epoch(gpus, replace(million, images=10_015)) for gpus in (1, 8, 64)] == [110, 14, 2]
    assert [million.hosts(gpus) for gpus in (1, 8, 9, 64)] == [1, 1, 2, 8]
    assert scale_model.state_bytes(SMALL) == 16_000_000
    assert replace(million, size=448).augmented == pytest.approx(375)  # four times the pixels
    assert replace(million, rate=1_000).predicted == pytest.approx(1 / (1 / 20_000 + 1 / 3_000))


def test_an_epoch_is_the_sum_of_its_parts():
    parts = scale_model.epoch_parts(SMALL, 2, replace(SLOW, write=0.016))
    assert parts["training"] == pytest.approx(35 * step(SMALL, 2, SLOW).fastest)  # 700 images, 20 a step
    assert parts["order"] == pytest.approx(700 * 0.7e-6)  # each process draws all, and hands on a half
    assert parts["validation"] == pytest.approx(75 * (1 / 20_000 + 1 / 300))
    assert parts["scores"] == pytest.approx(150 * 1.5e-6)
    assert parts["state"] == pytest.approx(1)


def test_the_search_grows_with_the_square_once_its_vocabulary_is_full():
    assert scale_model.search_limit() == pytest.approx(2_000 * 256 * 256 / 224)
    assert scale_model.search_seconds(10_000) == pytest.approx(10_000 * (13_000 + 2_200 + 4_400) * 1e-6)
    full = 200 * 256 * 256 / 224
    assert scale_model.search_seconds(3 * full) == pytest.approx(3 * full * (13_000 + 3 * 2_200 + 4_400) * 1e-6)


def test_times_and_sizes_read_well():
    assert [scale_model.in_time(seconds) for seconds in (0.04, 9.96, 80, 279, 7_200)] == [
        *("0.0 s", "10.0 s", "80 s", "4.7 min", "2.0 h")
    ]
    assert [scale_model.in_bytes(count) for count in (53.4e6, 150_528_000_000)] == ["53 MB", "151 GB"]


def test_every_option_changes_the_tables(monkeypatch, capsys):
    monkeypatch.setattr(scale_model, "GPUS", (1, 64))
    usual = scale_model.report(Assumptions())
    others = {"model": "emas", "size": 448}
    for field in scale_model.fields(Assumptions):
        value = others.get(field.name, 3 * field.default if field.name not in others else None)
        told = scale_model.report(replace(Assumptions(), **{field.name: value}))
        assert any(told[name] != usual[name] for name in usual if name != "assumed"), field.name
    monkeypatch.setattr(sys, "argv", ["scale_model", "--images", "100000", "--between", "1.25"])
    scale_model.main()
    printed = capsys.readouterr().out
    assert "| `--images` | 100,000 |" in printed
    assert "| `--between` | 1.25 GB/s |" in printed


def test_the_tables_of_the_page_are_what_the_program_prints():
    shown = dict(re.findall(r"<!-- scale_model: (\w+) -->\n(.*?)\n<!-- end -->", DOC, re.DOTALL))
    assert shown == scale_model.report(Assumptions())  # else: copy what `python -m benchmarks.scale_model` prints


def test_commands_of_the_page_are_valid_bash():
    assert len(BLOCKS) >= 8
    for kind, body in BLOCKS:
        assert kind in ("data", "network", "setup")
        done = subprocess.run(["bash", "-n"], input=body, capture_output=True, text=True)
        assert done.returncode == 0, body + done.stderr


def test_parameters_of_the_page_exist_and_take_its_values():
    usual = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    named = re.findall(r"\b(data|prepare|split|train|evaluate|machine)\.([a-z_]+)\b(?!/)", DOC)
    for section, key in named:
        assert key in usual[section], f"{section}.{key}"
    settings = ["".join(found) for found in re.findall(r"-S (?:'([^']+)'|([\w.]+=[\w.-]+))", DOC)]
    assert len(settings) >= 5
    for setting in settings:
        key, _, values = setting.partition("=")
        section, name = key.split(".")
        for value in re.findall(r"[\w.-]+", values.removeprefix("range")):
            content = yaml.safe_load(yaml.safe_dump(usual))
            merge(content, {section: {name: yaml.safe_load(value)}})
            parse_params(content, setting)


def test_links_of_the_page_lead_somewhere():
    titles = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", DOC, re.M)}
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", DOC):
        assert (ROOT / "docs" / path).exists(), path
        assert path or anchor in titles, anchor
