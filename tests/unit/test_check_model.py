"""What the check of a job says of model, metrics and schedule, and of a range of workers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from check_support import report_of, told, write_job
from curvewatch_workers.check import main
from curvewatch_workers.check_report import lines


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            "{'error': MeanSquaredError()}",
            r"metric 'error' on a train batch: MeanSquaredError compares outputs",
        ),
        ("{'matrix': ConfusionMatrix(2)}", r"metric 'matrix' on a train batch: ConfusionMatrix\(classes=2\)"),
        (
            "{'matrix': ConfusionMatrix(4)}",
            r"metric 'matrix' on a train batch: ConfusionMatrix\(classes=4\) takes 4 logits",
        ),
        (
            "{'mean': lambda outputs, targets: outputs.mean()}",
            "'mean' on a train batch.*one value for each sample",
        ),
        (
            "{'broken': lambda outputs, targets: outputs[:, 7]}",
            "metric 'broken' on a train batch raised IndexError: index 7",
        ),
        (
            "{'foreign': torchmetrics.classification.MulticlassAccuracy(num_classes=2)}",
            "metric 'foreign' on a train batch raised (ValueError|RuntimeError)",
        ),
        (
            "{'foreign': torchmetrics.classification.MulticlassAccuracy(num_classes=3, average=None)}",
            "metric 'foreign' .*gave 3 numbers",
        ),
        (
            "{'none': lambda outputs, targets: (outputs[0, 0] > 0) * (outputs.argmax(1) == targets)}",
            "metric 'none' on an empty train batch raised IndexError",
        ),
    ],
)
def test_a_metric_that_cannot_work_is_found(tmp_path: Path, metrics: str, message: str) -> None:
    report = report_of(tmp_path, f"return task(metrics={metrics})")

    (found,) = report.findings
    assert found.severity == "error"
    assert re.search(message, found.message), found.message
    assert report.validation_loss is not None  # the rest was tried all the same


def test_every_metric_that_cannot_work_is_told_and_what_raised_where(tmp_path: Path) -> None:
    metrics = (
        "{'one': MeanSquaredError(), 'two': Accuracy(), 'three': lambda outputs, targets: outputs[:, 7]}"
    )
    report = report_of(tmp_path, f"return task(metrics={metrics})")

    one, three = report.findings
    assert "'one'" in one.message
    assert "'three'" in three.message
    assert three.traceback is not None
    assert "outputs[:, 7]" in three.traceback


def test_the_metrics_of_the_first_validation_batch_are_told(tmp_path: Path) -> None:
    other = "torchmetrics.classification.MulticlassAccuracy(num_classes=3, average='micro')"
    metrics = f"{{'accuracy': Accuracy(), 'other': {other}}}"
    report = report_of(tmp_path, f"return task(metrics={metrics})")

    assert report.findings == ()
    assert set(report.validation_metrics) == {"accuracy", "other"}
    assert report.validation_metrics["accuracy"] == pytest.approx(report.validation_metrics["other"])
    assert re.search(r"validation loss \S+, accuracy \S+, other \S+", "\n".join(lines(report)))


def test_a_model_that_keeps_tensors_of_its_first_call_is_good(tmp_path: Path) -> None:
    body = """class Caching(nn.Module):
        def __init__(self):
            super().__init__(); self.layer = nn.Linear(4, 3); self.kept = {}
        def forward(self, x):
            if self.training not in self.kept:
                self.kept[self.training] = torch.full((3,), 2.0)
            return self.layer(x) * self.kept[self.training]
    return task(model=Caching())"""

    assert report_of(tmp_path, body).findings == ()


@pytest.mark.parametrize(
    "changes",
    [
        "collate=lambda rows: sys.exit()",
        "collate=lambda rows: sys.exit(0)",
        "loss=lambda outputs, targets: sys.exit(0)",
        "metrics={'leaves': lambda outputs, targets: sys.exit(0)}",
    ],
)
def test_code_that_ends_the_program_is_an_error(
    tmp_path: Path, changes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(tmp_path, f"return task({changes})")

    assert main([str(tmp_path), "--json"]) == 2

    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [one["severity"] for one in findings] == ["error"]
    assert "raised SystemExit" in findings[0]["message"]


def test_a_callable_that_ends_the_program_is_an_error(tmp_path: Path) -> None:
    (found,) = report_of(tmp_path, "sys.exit(0)").findings

    assert (found.severity, found.message.split("()")[1]) == ("error", " raised SystemExit: 0")


def test_what_the_users_code_prints_does_not_spoil_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(tmp_path, "print('loading'); return task()")

    assert main([str(tmp_path), "--json"]) == 0

    printed = capsys.readouterr()
    assert json.loads(printed.out)["train_samples"] == 50
    assert "loading" in printed.err


ONE_CYCLE = (
    "model = nn.Linear(4, 3); optimizer = torch.optim.Adam(model.parameters(), lr=0.1)\n"
    "    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps={total})\n"
    "    return task(model=model, optimizer=optimizer, scheduler=schedule, scheduler_step='{step}')"
)


@pytest.mark.parametrize(
    ("total", "step", "severity", "message"),
    [
        (8, "step", None, ""),  # two epochs of 4 steps
        (7, "step", "error", "OneCycleLR has total_steps 7, and this job moves it 8 times"),
        (2, "epoch", None, ""),
        (1, "epoch", "error", "OneCycleLR has total_steps 1, and this job moves it 2 times"),
        (8, "epoch", "warning", "total_steps 8, and this job moves it 2 times.*scheduler_step='step'"),
    ],
)
def test_a_schedule_that_ends_before_the_run_is_told(
    tmp_path: Path, total: int, step: str, severity: str | None, message: str
) -> None:
    report = report_of(tmp_path, ONE_CYCLE.format(total=total, step=step))

    assert [one for one, _ in told(report)] == [severity] * (severity is not None), told(report)
    assert all(re.search(message, one.message) for one in report.findings), told(report)


SQUEEZING = (
    "model = nn.Linear(4, 3); model.register_forward_hook(lambda m, _, outputs: outputs if m.training else "
    "outputs.squeeze())\n    return task(model=model, train=data(48, 1), validation=data({validation}, 2))"
)


@pytest.mark.parametrize(
    ("validation", "workers", "fails"),
    [
        (24, 1, False),  # 16 and 8
        (17, 1, True),  # 16 and 1
        (18, 2, True),  # 9 on each, in batches of 8
        (18, "{min: 1, max: 2}", True),
        (34, "{min: 1, max: 2}", True),  # 16, 16 and 2 on one; 8, 8 and 1 on two
    ],
)
def test_a_last_validation_batch_that_the_model_cannot_take_is_told(
    tmp_path: Path, validation: int, workers: int | str, fails: bool
) -> None:
    found = told(report_of(tmp_path, SQUEEZING.format(validation=validation), workers=workers))

    assert len(found) == fails, found
    for severity, message in found:
        assert severity == "error"
        assert re.search(
            r"the last validation batch \(1 sample, with (1 worker|2 workers)\): the loss", message
        )


def test_a_parameter_without_a_gradient_is_told_of_one_worker_too(tmp_path: Path) -> None:
    body = "model = nn.Linear(4, 3); model.extra = nn.Linear(2, 2); return task(model=model)"

    ((severity, message),) = told(report_of(tmp_path, body, workers=1))

    assert severity == "warning"
    assert "does not depend on 2 parameters (extra.weight, ...), which stay as they are" in message


def test_a_parameter_that_the_optimizer_lacks_is_told(tmp_path: Path) -> None:
    body = (
        "model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))\n"
        "    return task(model=model, optimizer=torch.optim.Adam(model[1].parameters()))"
    )

    ((severity, message),) = told(report_of(tmp_path, body))

    assert severity == "warning"
    assert "the optimizer lacks 2 parameters that require a gradient (0.weight, ...)" in message


def test_a_first_global_batch_smaller_than_the_workers_is_tried_where_it_is_not_empty(tmp_path: Path) -> None:
    report = report_of(tmp_path, "return task(train=data(2, 1))")

    assert report.good, told(report)
    assert report.train_loss is not None


def test_a_range_of_workers_is_described_at_both_ends(tmp_path: Path) -> None:
    report = report_of(tmp_path, "return task()", workers="{min: 2, max: 5}")

    assert report.findings == ()
    assert report.steps_per_epoch == 4
    assert [(one.workers, one.train_samples, one.validation_samples) for one in report.shares] == [
        (2, (1, 8), (11, 12)),
        (5, (0, 4), (4, 5)),
    ]
    text = "\n".join(lines(report))
    assert text.startswith("checked on 2 to 5 workers")
    assert "train        50 samples an epoch in 4 steps on every worker; 8 steps in 2 epochs" in text
    assert "2 workers    on each 1 to 8 train samples at a time, 11 to 12 validation samples an epoch" in text
    assert "5 workers    on each 0 to 4 train samples at a time, 4 to 5 validation samples an epoch" in text
    assert json.loads(report.model_dump_json())["shares"][0]["workers"] == 2
