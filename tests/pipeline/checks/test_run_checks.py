"""Running the checks: policy, waivers, baselines, selection, and where a difference begins."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from growpipe.checks import run_checks
from growpipe.checks.baseline import load_baseline, write_baseline
from growpipe.checks.child.model_process import ModelProcess
from growpipe.checks.policy import Policy, load_policy
from growpipe.checks.registry import LOAD, all_checks, explain, select
from growpipe.checks.report import Outcome
from growpipe.graph_ops.errors import UnsafeModel, UsageError
from tests.helpers.broken_models import labelled, slow_cnn
from tests.helpers.good_models import CNN_BODY, build, cnn, cnn_weights, normal, save

TODAY = datetime.date(2030, 6, 1)


@pytest.fixture(scope="module")
def process() -> Iterator[ModelProcess]:
    with ModelProcess(seconds=60) as shared:
        yield shared


def waived(check: str, expires: str) -> dict:
    return {"profile": "release", "waivers": [{"check": check, "reason": "ticket 12", "expires": expires}]}


def test_only_and_skip_take_ids_and_areas(tmp_path: Path, process: ModelProcess) -> None:
    path = save(cnn(), tmp_path)
    report = run_checks(path, only=["structure", "cost/macs"], skip=["structure/run"], process=process)
    ran = [r.check for r in report.results]
    assert ran[0] == LOAD
    assert "cost/macs" in ran
    assert "structure/checker" in ran
    assert not {"structure/run", "numerics/finite"} & set(ran)
    with pytest.raises(UsageError, match="did you mean 'structure/checker'"):
        run_checks(path, only=["structure/cheker"], process=process)


def test_every_check_explains_itself_and_has_a_title() -> None:
    checks = all_checks()
    assert len({c.id for c in checks}) == len(checks) >= 30
    for c in checks:
        assert c.title
        assert len(c.explanation) > 80, c.id
        assert c.id in explain(c.id)
    assert explain("latency").count("latency/") >= 2
    assert select(only=["cost"])[0].id == LOAD


def test_one_failure_hides_no_other(tmp_path: Path, process: ModelProcess) -> None:
    model = cnn()
    model.doc_string = "exported from /home/alice/project/export.py"
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(3), "left_over"))
    report = run_checks(
        save(model, tmp_path),
        policy={"profile": "release", "cost": {"parameters": {"max": 5}}},
        process=process,
    )
    failed = {r.check for r in report.results if r.status == "failed"}
    assert failed == {"safety/leaks", "structure/unused", "cost/parameters"}
    assert [r.status for r in report.worst[:3]] == ["failed"] * 3
    assert report.exit_code == 1


def test_a_check_that_breaks_fails_and_hides_no_other(
    tmp_path: Path, process: ModelProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    import growpipe.checks.areas.safety as safety

    def broken(*_: object) -> Outcome:
        raise KeyError("oh")

    monkeypatch.setattr(safety, "total_bytes", broken)
    report = run_checks(save(cnn(), tmp_path), only=["safety", "structure/checker"], process=process)
    assert report.of("safety/size").status == "failed"
    assert "KeyError" in report.of("safety/size").message
    assert report.of("structure/checker").status == "passed"


def test_waivers_hold_until_they_expire(tmp_path: Path, process: ModelProcess) -> None:
    model = cnn()
    model.doc_string = "exported from /home/alice/project/export.py"
    path = save(model, tmp_path)
    arguments = {"only": ["safety/leaks"], "process": process, "today": TODAY}
    report = run_checks(path, policy=waived("safety/leaks", "2030-06-01"), **arguments)
    assert report.of("safety/leaks").status == "waived"
    assert report.of("safety/leaks").waiver == "ticket 12, until 2030-06-01"
    assert report.exit_code == 0
    report = run_checks(path, policy=waived("safety/leaks", "2030-05-31"), **arguments)
    assert report.exit_code == 1
    assert "expired" in report.of("safety/leaks").message
    with pytest.raises(UsageError, match="cannot be waived"):
        run_checks(path, policy=waived(LOAD, "2031-01-01"), **arguments)
    with pytest.raises(UsageError, match="there is no check"):
        run_checks(path, policy=waived("safety/leek", "2031-01-01"), **arguments)


def test_levels(tmp_path: Path, process: ModelProcess) -> None:
    model = cnn()
    model.doc_string = "exported from /home/alice/project/export.py"
    path = save(model, tmp_path)
    for level, status in (("warning", "warned"), ("off", "skipped"), ("error", "failed")):
        policy = {"levels": {"safety/leaks": level}}
        report = run_checks(path, policy=policy, only=["safety"], process=process)
        assert report.of("safety/leaks").status == status
        assert report.exit_code == (1 if status == "failed" else 0)


def test_an_unsafe_model_is_not_waived_by_a_level(tmp_path: Path, process: ModelProcess) -> None:
    (tmp_path / "model.onnx").write_text("nothing")
    report = run_checks(tmp_path / "model.onnx", policy={"levels": {"safety": "off"}}, process=process)
    assert report.exit_code == 4
    assert {r.status for r in report.results[1:]} == {"skipped"}


def test_the_first_diverging_node_and_its_module_are_named(tmp_path: Path, process: ModelProcess) -> None:
    reference = save(cnn(), tmp_path, "reference.onnx")
    weight = cnn_weights()["features.3.weight"] * 1.01
    report = run_checks(
        save(cnn(features__3__weight=weight), tmp_path),
        reference=reference,
        only=["numerics"],
        process=process,
    )
    result = report.of("numerics/reference")
    assert result.status == "failed"
    (finding,) = result.findings
    assert (finding.operator, finding.tensor, finding.module) == ("Conv", "c1", "features.3")
    assert "first diverging" in finding.message


def test_the_first_diverging_node_is_found_where_no_names_agree(
    tmp_path: Path, process: ModelProcess
) -> None:
    reference = save(cnn(), tmp_path, "reference.onnx")
    body = CNN_BODY
    for name in ("c0", "b0", "r0", "c1", "r1", "pooled", "flat", "logits"):
        body = body.replace(f"{name} =", f"{name}x =").replace(f"({name})", f"({name}x)")
        body = body.replace(f"({name},", f"({name}x,")
    wrong = cnn(
        body=body,
        signature="(float[N, 3, 12, 12] image) => (float[N, 5] logitsx)",
        features__1__bias=cnn_weights()["features.1.bias"] + 0.1,
    )
    result = run_checks(save(wrong, tmp_path), reference=reference, process=process).of("numerics/reference")
    assert result.status == "failed"
    assert result.findings[0].operator == "BatchNormalization"


def test_the_first_node_that_is_not_finite_is_named(tmp_path: Path, process: ModelProcess) -> None:
    model = build("(float[N, 30] x) => (float[N, 30] y)", "a = Neg (x)\n b = Sqrt (a)\n y = Relu (b)")
    report = run_checks(save(model, tmp_path), only=["numerics/finite"], process=process)
    assert report.of("numerics/finite").findings[0].operator == "Sqrt"


def test_the_tolerance_follows_the_rounding_error_of_the_reference(
    tmp_path: Path, process: ModelProcess
) -> None:
    # A difference of nearly equal numbers: float32 keeps three digits of it, and no more can be asked for.
    body = "big = Add (x, c)\n d = Sub (big, c)\n y = Mul (d, d)"
    loose = build("(float[N, 50] x) => (float[N, 50] y)", body, {"c": np.float32([300.0])})
    other = build(
        "(float[N, 50] x) => (float[N, 50] y)",
        "big = Add (x, c1)\n d = Sub (big, c1)\n y = Mul (d, d)",
        {"c1": np.float32([700.0])},
    )
    reference = save(loose, tmp_path, "reference.onnx")
    report = run_checks(save(other, tmp_path), reference=reference, only=["numerics"], process=process)
    result = report.of("numerics/reference")
    assert result.status == "passed"
    assert result.measured["limit"] > 10 * 4e-6
    tight = run_checks(
        tmp_path / "model.onnx",
        reference=reference,
        only=["numerics"],
        policy={"numerics": {"relative": 1e-7}},
        process=process,
    )
    assert tight.of("numerics/reference").status == "failed"


def test_other_numeric_limits(tmp_path: Path, process: ModelProcess) -> None:
    reference = save(cnn(), tmp_path, "reference.onnx")
    path = save(cnn(head__weight=cnn_weights()["head.weight"] + normal(5, 8, seed=3, scale=0.3)), tmp_path)
    limits = {"relative": 10.0, "cosine": 0.9999, "quantile": 1e-3, "top1": 1.0, "batch_sizes": [64]}
    report = run_checks(
        path, reference=reference, only=["numerics"], policy={"numerics": limits}, process=process
    )
    message = report.of("numerics/reference").message
    assert "cosine" in message
    assert "quantile" in message
    assert "top-1" in message
    loose = {"relative": 1e-9, "absolute": 100.0}
    report = run_checks(
        path, reference=reference, only=["numerics"], policy={"numerics": loose}, process=process
    )
    assert report.of("numerics/reference").status == "passed"


def test_a_baseline_holds_what_was_measured(tmp_path: Path, process: ModelProcess) -> None:
    data = labelled(tmp_path, 0.1)
    path = save(cnn(), tmp_path)
    report = run_checks(path, data=[data], process=process)
    write_baseline(report, tmp_path / "baseline.json")
    baseline = load_baseline(tmp_path / "baseline.json")
    assert baseline.value("cost/parameters") == 659
    assert baseline.value("accuracy/floor") == pytest.approx(0.9)
    assert baseline.holds_model()
    again = run_checks(path, data=[data], baseline=baseline, process=process)
    assert again.exit_code == 0
    assert "baseline 659" in again.of("cost/parameters").message
    assert again.of("latency/ratio").status == "passed"

    (tmp_path / "new").mkdir()
    policy = {
        "cost": {"macs": {"max_growth": 0.05}},
        "latency": {"max_ratio": 1.5, "seconds": 4.0},
        "accuracy": {"max_drop": 0.02},
    }
    worse = run_checks(
        save(slow_cnn(), tmp_path / "new"), data=[data], baseline=baseline, policy=policy, process=process
    )
    assert worse.of("cost/macs").status == "failed"
    assert worse.of("latency/ratio").status == "failed"
    assert worse.of("accuracy/drop").status == "passed"

    path.unlink()
    gone = run_checks(
        tmp_path / "new" / "model.onnx", baseline=baseline, only=["latency/ratio"], process=process
    )
    assert "no longer" in gone.of("latency/ratio").message


def test_no_baseline_of_a_broken_model(tmp_path: Path, process: ModelProcess) -> None:
    report = run_checks(tmp_path / "nothing.onnx", process=process)
    with pytest.raises(UsageError, match="no baseline"):
        write_baseline(report, tmp_path / "baseline.json")
    assert not (tmp_path / "baseline.json").exists()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UsageError, match="version None"):
        load_baseline(tmp_path / "other.json")


def test_a_reference_that_cannot_be_read_is_no_fault_of_the_model(
    tmp_path: Path, process: ModelProcess
) -> None:
    with pytest.raises(UnsafeModel):
        run_checks(save(cnn(), tmp_path), reference=tmp_path / "nothing.onnx", process=process)


def test_data_that_does_not_fit(tmp_path: Path, process: ModelProcess) -> None:
    path = save(cnn(), tmp_path)
    np.savez(tmp_path / "wrong.npz", picture=normal(4, 3, 12, 12))
    with pytest.raises(UsageError, match="lacks inputs"):
        run_checks(path, data=[tmp_path / "wrong.npz"], process=process)
    np.savez(tmp_path / "lengths.npz", image=normal(4, 3, 12, 12), targets=np.zeros(5, np.int64))
    with pytest.raises(UsageError, match="same number of samples"):
        run_checks(path, data=[tmp_path / "lengths.npz"], process=process)
    np.savez(tmp_path / "pickle.npz", image=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match=r"the data .*pickle.npz cannot be read"):
        run_checks(path, data=[tmp_path / "pickle.npz"], process=process)


def test_policy_files(tmp_path: Path) -> None:
    file = tmp_path / "growpipe.toml"
    file.write_text('[latency]\nmax_ratio = 1.05\n[cost.macs]\nmax = 1000\n[levels]\ncost = "warning"\n')
    policy = load_policy(file, ["numerics.relative=1e-3", "safety.domains=['ai.onnx', 'com.acme']"])
    assert policy.latency.max_ratio == 1.05
    assert policy.cost.macs.max == 1000
    assert policy.numerics.relative == 1e-3
    assert policy.safety.domains == ("ai.onnx", "com.acme")
    (tmp_path / "pyproject.toml").write_text("[tool.growpipe.check.structure]\nmin_opset = 15\n")
    assert load_policy(tmp_path / "pyproject.toml").structure.min_opset == 15
    assert load_policy() == Policy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[latency]\nmax_rati = 1.05", "unknown key 'latency.max_rati'; did you mean 'max_ratio'"),
        ("[latncy]\nmax_ratio = 1.05", "did you mean 'latency'"),
        ("[cost.macs]\nmaximum = 3", "did you mean 'max'"),
        ("[latency]\nmax_ratio = 'fast'", "latency.max_ratio"),
        ("[numerics]\nbatch_sizes = []", "numerics.batch_sizes"),
        ("[[waivers]]\ncheck = 'cost/macs'\nexpires = 2030-01-01", "waivers.0.reason"),
        ("[[waivers]]\ncheck = 'cost/macs'\nreason = 'x'\nexpired = 2030-01-01", "did you mean 'expires'"),
        ("[latency", "not TOML"),
    ],
)
def test_a_wrong_policy_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_policy(tmp_path / "p.toml")
