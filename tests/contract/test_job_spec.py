from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from curvewatch_workers.contract import JobSpec, SpecError, parse_job_spec, read_job_spec

MINIMAL: dict[str, Any] = {
    "name": "digits",
    "code": {"task": "digits:build"},
    "training": {"epochs": 30, "global_batch_size": 64},
}

SHORT = "name: a\ncode: {task: a:b}\ntraining: {epochs: 1, global_batch_size: 1}\n"


def problems(**changes: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as raised:
        parse_job_spec(json.dumps({**MINIMAL, **changes}))
    return {problem.path: problem.message for problem in raised.value.problems}


def test_yaml_and_json_give_the_same_job() -> None:
    text = "name: digits\ncode: {task: 'digits:build'}\ntraining:\n  epochs: 30\n  global_batch_size: 64\n"

    assert parse_job_spec(text) == parse_job_spec(json.dumps(MINIMAL))


def test_every_error_is_told_at_once_with_its_path() -> None:
    found = problems(
        name="two words",
        code={"task": "digits.build"},
        training={"epoch": 3, "global_batch_size": 0},
        scaling={"gpus_per_worker": 2},
    )

    assert set(found) == {
        "name",
        "code.task",
        "training.epochs",
        "training.epoch",
        "training.global_batch_size",
        "scaling.gpus_per_worker",
    }
    assert "did you mean `epochs`?" in found["training.epoch"]
    assert "got 0" in found["training.global_batch_size"]


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"nmae": "x"}, "nmae", "did you mean `name`?"),
        ({"zzz": 1}, "zzz", "known here: checkpoints, code"),
        (
            {"policy": {"early_stopping": {"patiense": 3}}},
            "policy.early_stopping.patiense",
            "did you mean `patience`?",
        ),
        ({"name": "a\u0007b"}, "name", "remove control characters"),
        ({"name": "x" * 64}, "name", "at most 63"),
        ({"labels": {"a-b": "x"}}, "labels.a-b", "letters, digits and `_`"),
        ({"labels": {"a": "x\n"}}, "labels.a", "remove control characters"),
        ({"params": {"a b": 1}}, "params", "no Python keyword argument"),
        ({"code": {"task": "digits"}}, "code.task", "as in `digits:build`"),
        (
            {"training": {"epochs": True, "global_batch_size": 1}},
            "training.epochs",
            "valid integer, got True",
        ),
        ({"track": ["csv", "comet"]}, "track.1", "input should be 'tensorboard', 'wandb', 'mlflow'"),
        ({"track": ["csv", "wandb", "csv"]}, "track", "'csv' stands twice; name each tracker once"),
        ({"track": "csv"}, "track", "must be a list, as in `[a, b]`, got 'csv'"),
        ({"checkpoints": {"path": "kept/here"}}, "checkpoints.path", "an absolute path or a URI"),
        ({"checkpoints": {"path": "s3://me:secret@b/x"}}, "checkpoints.path", "must not hold a password"),
        ({"checkpoints": {"path": "s3://b/\n"}}, "checkpoints.path", "remove control characters"),
        ({"checkpoints": {"best": {"mode": "lowest"}}}, "checkpoints.best.mode", "'min' or 'max'"),
        ({"scaling": {"cpus_per_worker": math.nan}}, "scaling.cpus_per_worker", "finite"),
        ({"scaling": {"cpus_per_worker": True}}, "scaling.cpus_per_worker", "valid number, got True"),
        ({"scaling": {"cpus_per_worker": "010"}}, "scaling.cpus_per_worker", "valid number, got '010'"),
        ({"scaling": {"workers": 0}}, "scaling.workers", "greater than or equal to 1, got 0"),
        ({"scaling": {"workers": "2"}}, "scaling.workers", "valid integer, got '2'"),
        ({"scaling": {"workers": {"min": 0, "max": 2}}}, "scaling.workers.min", "or equal to 1, got 0"),
        ({"scaling": {"workers": {"min": True, "max": 2}}}, "scaling.workers.min", "integer, got True"),
        (
            {"scaling": {"workers": {"min": 1, "max": 4097}}},
            "scaling.workers.max",
            "or equal to 4096, got 4097",
        ),
        ({"scaling": {"workers": {"min": 2}}}, "scaling.workers.max", "is required but missing"),
        ({"scaling": {"workers": {"minn": 1, "max": 2}}}, "scaling.workers.minn", "did you mean `min`?"),
        (
            {"scaling": {"workers": {"min": 4, "max": 2}}},
            "scaling.workers",
            "min 4 is above max 2; swap them, or give one number",
        ),
        ({"scaling": {"resize_interval_seconds": 0}}, "scaling.resize_interval_seconds", "equal to 1, got 0"),
    ],
)
def test_each_message_names_rule_and_remedy(changes: dict[str, Any], path: str, message: str) -> None:
    assert message in problems(**changes)[path]


def test_a_password_in_a_uri_is_not_repeated() -> None:
    (message,) = problems(checkpoints={"path": "s3://me:secret@b/x"}).values()

    assert "must not hold a password" in message
    assert "secret" not in message.replace("credentials", "")


def test_a_file_that_is_no_job_is_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("absent.yaml", None, "no such file"),
        ("empty.yaml", b"", "but is empty"),
        ("list.yaml", b"- 1", "but is a list"),
        ("broken.yaml", b"a: [", "neither YAML nor JSON"),
        ("binary.yaml", b"\xff\xfe\x00", "cannot be read as UTF-8"),
        ("huge.yaml", b"#" * 1_000_001, "at most 1000000 bytes"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SpecError, match=message):
            read_job_spec(tmp_path / name)


def test_yaml_runs_no_code() -> None:
    with pytest.raises(SpecError, match="neither YAML nor JSON"):
        parse_job_spec("name: !!python/object/apply:os.getcwd []")


def test_patience_of_the_alerts() -> None:
    def patience(**changes: Any) -> int:
        return JobSpec.model_validate({**MINIMAL, **changes}).patience_epochs

    assert patience() == 3
    assert patience(training={"epochs": 200, "global_batch_size": 1}) == 20
    assert patience(policy={"early_stopping": {"patience": 7}}) == 7
    assert patience(policy={"early_stopping": {"patience": 7}}, monitoring={"patience_epochs": 2}) == 2


def test_jobs_are_immutable_and_round_trip() -> None:
    spec = JobSpec.model_validate({**MINIMAL, "params": {"layers": [1, 2], "name": None}})

    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("workers", "elastic", "possible", "words"),
    [
        (3, False, (3,), "3 workers"),
        ({"min": 2, "max": 4}, True, (2, 3, 4), "2 to 4 workers"),
        ({"min": 1, "max": 1}, False, (1,), "1 worker"),
    ],
)
def test_a_number_or_a_range_of_workers_round_trips(
    workers: int | dict[str, int], elastic: bool, possible: tuple[int, ...], words: str
) -> None:
    spec = parse_job_spec(json.dumps({**MINIMAL, "scaling": {"workers": workers}}))
    again = JobSpec.model_validate_json(spec.model_dump_json())

    assert again == spec
    assert json.loads(spec.model_dump_json())["scaling"]["workers"] == workers
    scaling = again.scaling
    assert (scaling.min_workers, scaling.max_workers) == (possible[0], possible[-1])
    assert scaling.elastic is elastic
    assert scaling.possible_workers(possible[-1]) == possible
    assert scaling.workers_in_words == words


def test_every_field_has_a_description() -> None:
    schema = JobSpec.model_json_schema()

    objects = [one for one in (schema, *schema["$defs"].values()) if "properties" in one]
    missing = [
        name for one in objects for name, field in one["properties"].items() if not field.get("description")
    ]
    assert not missing
    assert all(isinstance(one.get("description"), str) for one in objects)


def test_every_example_is_a_valid_job(project_root: Path) -> None:
    jobs = sorted(project_root.glob("examples/*/job.yaml"))

    assert len(jobs) >= 3
    for job in jobs:
        spec = read_job_spec(job)
        code = list((job.parent / spec.code.working_dir).glob("*.py"))
        assert len(code) == 1, f"{job.parent} should hold one Python file"
        assert spec.code.entry.split(":")[0] == code[0].stem
        longest = 110 if job.parent.name == "char_lm" else 60  # it writes its model out
        assert len(code[0].read_text().splitlines()) < longest


def test_models_are_closed() -> None:
    assert issubclass(JobSpec, BaseModel)
    assert JobSpec.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("{day: 2026-02-30}", "day is out of range"),
        ("{n: " + "9" * 5000 + "}", "neither YAML nor JSON"),
        ("{n: 0x" + "f" * 6000 + "}", r"params\.n: a whole number may have 1000 bits, this has 24000"),
        ("{? [a, b] : 1}", "a key must be plain text, no list and no mapping"),
        ("{? {a: b} : 1}", "a key must be plain text, no list and no mapping"),
        ("{n: !!bool foo}", "`foo` is no bool"),
        ("{n: !!int ''}", "`` is no int"),
        ("{n: !!float ''}", "`` is no float"),
        ("{n: !!timestamp x}", "`x` is no timestamp"),
        ("{n: 1:30}", "`1:30` can be read as more than one number"),
        ("{n: 1:30.5}", "`1:30.5` can be read as more than one number"),
        ("{n: 010}", "`010` can be read as more than one number"),
        (r'{n: "\ud83d"}', r"params\.n: holds half of a character, '\\\\ud83d'"),
        (r'{n: [1, {"\ud83d": 1}]}', r"params\.n\.1\.\\ud83d: holds half of a character"),
        ("[" * 3000, "neither YAML nor JSON"),
        ("{a: &x [1, 2], b: *x}", "aliases are not taken"),
        ("{a: 1, a: 2}", "the key `a` stands twice"),
        ("{a: [{b: .inf}]}", r"params\.a\.0\.b: input should be a finite number, got inf"),
        ("{a: " + "[" * 30 + "]" * 30 + "}", "nested at most 20 deep"),
    ],
)
def test_yaml_that_means_trouble_is_refused(params: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_job_spec(
            f"name: a\ncode: {{task: a:b}}\ntraining: {{epochs: 1, global_batch_size: 1}}\nparams: {params}\n"
        )


def test_numbers_are_written_as_everybody_writes_them() -> None:
    text = SHORT + "params: {a: 1e-3, b: 2.5E4, c: 1_000, d: x1e3}\n"

    assert parse_job_spec(text).params == {"a": 1e-3, "b": 25000.0, "c": 1000, "d": "x1e3"}


def test_an_emoji_of_json_is_one_character() -> None:
    text = json.dumps({**MINIMAL, "labels": {"mood": "\U0001f600"}, "params": {"\u00e9": "\U0001f600"}})
    assert "\\ud83d\\ude00" in text

    spec = parse_job_spec(text)
    assert spec.labels == {"mood": "\U0001f600"}
    assert spec.params == {"\u00e9": "\U0001f600"}
    assert parse_job_spec("\ufeff" + text) == spec


@pytest.mark.parametrize("where", ["name", "labels", "params", "\ud83d"])
def test_half_a_character_in_json_is_refused_with_its_place(where: str) -> None:
    value: object = {"a": "x\ud83d"} if where in ("labels", "params") else "x\ud83d"
    with pytest.raises(SpecError, match=r"holds half of a character") as raised:
        parse_job_spec(json.dumps({**MINIMAL, where: value}))
    str(raised.value).encode()  # it can be printed


def test_a_key_that_stands_twice_in_json_is_refused() -> None:
    text = json.dumps(MINIMAL)
    with pytest.raises(SpecError, match="the key `name` stands twice"):
        parse_job_spec(text[:-1] + ', "name": "b"}')


def test_what_begins_like_json_may_be_yaml() -> None:
    assert (
        parse_job_spec("{name: a, code: {task: a:b}, training: {epochs: 1, global_batch_size: 1}}").name
        == "a"
    )
