"""What docs/verification.md says of other verifiers is so: their own functions are called."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from job.verify.mutants import ONNX, mutants
from tests.conftest import ROOT

WRITTEN_BACK, NAN, TWO_ROWS = "weights written back", "one weight not a number", "two rows for all"


@pytest.fixture(scope="module")
def found(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """The verdict of every verifier that is installed on three of the mutants."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "verifiers.py"))
    trained = script["Trained"](published, tmp_path_factory.mktemp("scratch"))
    made = mutants({ONNX: (published / ONNX).read_bytes()}, trained.reference)
    return {
        (verifier.judge.__name__, mutant.name): script["verdict"](verifier, mutant.content, trained)
        for mutant in made
        if mutant.name in (WRITTEN_BACK, NAN, TWO_ROWS)
        for verifier in script["installed"]()
    }


def test_on_its_own_rows_no_verifier_refuses_a_faithful_export(
    found: dict[tuple[str, str], Any],
) -> None:
    verdicts = {who: verdict for (who, mutant), verdict in found.items() if mutant == WRITTEN_BACK}
    # torch's tolerances on this project's rows: too narrow for the noise of float32 far out.
    verdicts.pop("assert_close_battery")
    assert set(verdicts.values()) == {"passes"}


def test_torch_verify_passes_nan_and_this_project_does_not(
    found: dict[tuple[str, str], Any],
) -> None:
    assert found["torch_verify", NAN] == "passes"
    assert found["assert_onnx_program", NAN] == found["verify_answers", NAN] == "refuses"


def test_what_is_wrong_from_the_third_row_on_passes_where_two_are_run(
    found: dict[tuple[str, str], Any],
) -> None:
    for verifier in ("torch_verify", "assert_onnx_program", "assert_close_traced"):
        assert found[verifier, TWO_ROWS] == "passes"
    for verifier in ("assert_close_held_out", "verify_answers", "verify"):
        assert found[verifier, TWO_ROWS] == "refuses"
