"""The OpenAPI document, the code, the README and real answers agree."""

import base64
import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import jsonschema
import pytest
import requests

from polarmask_serving import errors
from polarmask_serving.answer.options import OPTIONS, Options, header_of, read_options
from polarmask_serving.proxy import openapi

ROOT = Path(__file__).parents[2]
README = (ROOT / "serving/README.md").read_text(encoding="utf-8")


SCRIPTS = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "serving").rglob("*.lua"))


def validator(name):
    schema = {"$ref": f"#/components/schemas/{name}"}
    return jsonschema.Draft202012Validator(schema | {"components": DOCUMENT["components"]})


DOCUMENT = openapi.document()


def test_the_published_document_is_the_one_the_code_makes():
    published = (ROOT / "docs/reference/openapi.json").read_text(encoding="utf-8")
    assert json.loads(published) == DOCUMENT, "run `make reference`"


def test_the_documents_schemas_are_schemas():
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_table_of_options_is_the_class_of_options():
    assert list(OPTIONS) == [field.name for field in fields(Options)]
    defaults = asdict(Options())
    for name, option in OPTIONS.items():
        assert option.schema.get("default") == defaults[name]
        if "default" in option.schema:
            assert read_options([{name: option.schema["default"]}], {}) == Options()


def test_the_readme_names_every_option_and_every_refusal():
    rows = re.findall(r"^\| `(\w+)` \| `(X-[\w-]+)` \|", README, re.M)
    assert rows == [(name, header_of(name)) for name in OPTIONS]
    section = README[README.index("## Refusals") :]
    listed = {
        (int(status), code)
        for statuses, reasons in re.findall(r"^\| ([\d, ]+) \| (.*) \|$", section, re.M)
        for status in statuses.split(", ")
        for code in re.findall(r"`([a-z_]+)`", reasons)
    }
    assert {(each.status, each.code) for each in openapi.answer_errors()} <= listed
    assert {code for _, code in listed} <= set(codes_of_the_document())


def codes_of_the_document():
    error = DOCUMENT["components"]["schemas"]["Refusal"]["properties"]["error"]
    return error["properties"]["code"]["enum"]


def test_every_error_a_worker_answers_with_is_documented():
    documented = set(codes_of_the_document())
    assert {each.code for each in openapi.answer_errors()} <= documented
    assert set(re.findall(r'"code": "(\w+)"', SCRIPTS)) == {"bad_option"} <= documented
    assert errors.PredictionError in openapi.answer_errors()


@pytest.mark.parametrize("mask", ["polygon", "rle", "none"])
def test_real_answers_are_as_documented(server, png, mask):
    headers = {"X-Mask": mask, "X-Return-Rays": "true", "X-Categories": "3,debris"}
    answer = requests.post(server.predict_url, data=png, headers=headers, timeout=60)
    validator("Answer").validate(answer.json())
    assert answer.json()["instances"]


def test_real_lists_and_refusals_are_as_documented(server, png):
    items = [{"b64": base64.b64encode(data).decode()} for data in (png, b"no")]
    answer = requests.post(server.predict_url, json={"instances": items}, timeout=60)
    validator("Answers").validate(answer.json())
    refusal = requests.post(server.predict_url, data=b"no", timeout=60)
    validator("Refusal").validate(refusal.json())
