"""The OpenAPI schema is true: what schemathesis makes of it is answered as it says, and never by a bug."""

import itertools

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.runtime.serve.conftest import running_service


def no_bug(_ctx, response, _case):
    """504 is what a short deadline is for."""
    assert response.status_code < 500 or response.status_code == 504, response.text


# Not positive_data_acceptance: no schema says which values go together, such as a sampler and its options.
CHECKS = (
    no_bug,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)


def test_answers_are_what_the_schema_says():
    with running_service(images=4, waiting=16) as service:
        schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert {operation.path for operation in operations} >= {"/v1/images", "/v1/model", "/metrics", "/readyz"}
        statuses = set()
        for operation, mode in itertools.product(operations, GenerationMode):
            num = 40 if operation.path == "/v1/images" else 2
            if mode is GenerationMode.NEGATIVE and operation.path != "/v1/images":
                continue  # they take nothing that could be wrong

            @settings(max_examples=num, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                statuses.add(case.call_and_validate(checks=CHECKS).status_code)

            check()
    assert statuses >= {200, 422}
